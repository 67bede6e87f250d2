"""One log file: where batches are committed, and where they lie until they are sealed into a part."""

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

import duckdb

from ...domain.hash_chain import chain_next, chain_start
from ..event_selection import StoredBatch
from .chunks import SealedBatch
from .duckdb_files import connect, storage_error, wal_of
from .head_journal import Head, HeadKind, batch_head, name_heads, read_heads
from .log_rows import RowHeader, batch_id_of
from .manifest import LAYOUT_VERSION

MEMORY_LIMIT = "1GB"
"""What is committed stays in memory until the file is closed: a commit past the limit fails. A file is frozen long
before (LOG_BYTES in group_commit)."""

_PAGE = 256

_GRANTS = "SELECT session_key, session_id, epoch, owner, granted_at_us FROM grants ORDER BY rowid"
_SCAN = "SELECT session_key, batch FROM batches WHERE rowid >= ? AND rowid < ? ORDER BY rowid"
_OF_SESSION = "SELECT last_seq, batch FROM batches WHERE session_key = ? AND last_seq > ? ORDER BY last_seq LIMIT ?"
_ALL_ROWS = {
    "committed": "SELECT session_key, batch FROM batches ORDER BY rowid",
    "session": "SELECT session_key, batch FROM batches ORDER BY session_key, last_seq",
}
_NEWEST = "SELECT batch FROM batches WHERE session_key = ? ORDER BY last_seq DESC LIMIT ?"


class Grant(NamedTuple):
    """A session and its owner."""

    session_key: int
    session_id: str
    epoch: int
    owner: str
    granted_at_us: int


@dataclass(slots=True)
class SessionSpan:
    """The events of one session in one file, and the digests before and after them."""

    first_seq: int
    last_seq: int
    previous: bytes
    digest: bytes


class Damage(NamedTuple):
    """Something that was acknowledged and is not there as it was written."""

    session_key: int
    first_seq: int
    last_seq: int
    problem: str


@dataclass(slots=True)
class LogContents:
    """What a log file holds, by memory: kept while it grows, made again when it is opened."""

    spans: dict[int, SessionSpan] = field(default_factory=dict[int, SessionSpan])
    grants: dict[str, Grant] = field(default_factory=dict[str, Grant])
    """The newest grant of each session with a grant or a batch here."""
    session_ids: dict[int, str] = field(default_factory=dict[int, str])
    """The same sessions by key; a session that was deleted is in neither."""
    first_batch: int = 0
    """Number of the first batch, or of the one that will be; 0 if nobody knows yet."""
    grant_count: int = 0
    batch_count: int = 0
    event_count: int = 0
    byte_count: int = 0

    def add_grant(self, grant: Grant) -> None:
        self.grant_count += 1
        self.grants[grant.session_id] = grant
        self.session_ids[grant.session_key] = grant.session_id

    @property
    def is_empty(self) -> bool:
        return not self.grant_count and not self.batch_count

    def forget(self, session_key: int) -> None:
        """Know the session no more; its rows stay until they are sealed."""
        session_id = self.session_ids.pop(session_key, None)
        if session_id is not None and self.grants[session_id].session_key == session_key:
            del self.grants[session_id]

    def add_batch(self, session_key: int, first_seq: int, last_seq: int, previous: bytes, digest: bytes) -> None:
        span = self.spans.get(session_key)
        if span is None:
            self.spans[session_key] = SessionSpan(first_seq, last_seq, previous, digest)
        else:
            span.last_seq = last_seq
            span.digest = digest
        self.batch_count += 1
        self.event_count += last_seq - first_seq + 1


class LogFile:
    """A log file that is open: for writing by one thread, or for reading only; reads come from any thread."""

    def __init__(
        self, path: Path, number: int, connection: duckdb.DuckDBPyConnection, contents: LogContents, *, writable: bool
    ) -> None:
        self.path = path
        self.number = number
        self.contents = contents
        self.is_recorded = True
        """Whether all of it is in its journal: False for a moment after it was frozen."""
        self._connection = connection
        self._idle: deque[duckdb.DuckDBPyConnection] = deque()
        self._batches: Any = connection.appender("batches") if writable else None
        self._grants: Any = connection.appender("grants") if writable else None

    @classmethod
    def create(cls, path: Path, number: int) -> "LogFile":
        """An empty log file."""
        connection = connect(path, memory_limit=MEMORY_LIMIT)
        try:
            connection.execute(files("greenroom.adapters.duckdb").joinpath("log_schema.sql").read_text())
            connection.execute("INSERT INTO meta VALUES ('layout', ?)", [str(LAYOUT_VERSION)])
            connection.execute("CHECKPOINT")  # replaying a log with DDL in it took part in most replay bugs
        except duckdb.Error as exc:
            connection.close()  # else who opens the path next in this process gets this database, whatever lies there
            raise storage_error(exc, path) from exc
        return cls(path, number, connection, LogContents(), writable=True)

    @classmethod
    def open(cls, path: Path, number: int, contents: LogContents, *, writable: bool) -> "LogFile":
        """A log file whose contents were checked."""
        connection = connect(path, read_only=not writable, memory_limit=MEMORY_LIMIT)
        return cls(path, number, connection, contents, writable=writable)

    @property
    def last_batch(self) -> int:
        """Number of its newest batch, committed or about to be."""
        return self.contents.first_batch + self.contents.batch_count - 1

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return sum(path.stat().st_size for path in (self.path, wal_of(self.path)) if path.exists())

    # Writing

    def append_grant(self, grant: Grant) -> bytes:
        """Durable after `flush`; returns the records for the journal."""
        is_named = grant.session_id in self.contents.grants
        self.contents.add_grant(grant)
        self._grants.append_row(*grant)
        return b"" if is_named else name_heads(grant.session_key, grant.session_id)

    def append_batch(self, session_key: int, header: RowHeader, stored: bytes, previous: bytes, digest: bytes) -> bytes:
        """Durable after `flush`; returns the record for the journal."""
        last_seq = header.last_seq
        self._batches.append_row(session_key, last_seq, stored)
        contents = self.contents
        contents.first_batch = contents.first_batch or batch_id_of(stored)
        contents.add_batch(session_key, header.first_seq, last_seq, previous, digest)
        contents.byte_count += len(stored)
        return batch_head(session_key, batch_id_of(stored), header.first_seq, last_seq, previous, digest)

    def flush(self, *, grants: bool, batches: bool) -> None:
        """Commit what was appended: one commit for the grants, then one for all the batches."""
        if grants:
            self._grants.flush()
        if batches:
            self._batches.flush()

    def close(self) -> None:
        """The file of the end of the log is left without a write-ahead log beside it."""
        self._idle.clear()
        if self._batches is not None:
            self._connection.execute("CHECKPOINT")
        self._connection.close()

    # Reading

    @contextmanager
    def _cursor(self) -> Generator[duckdb.DuckDBPyConnection]:
        try:
            cursor = self._idle.pop()
        except IndexError:
            cursor = self._connection.cursor()
        try:
            yield cursor
        except duckdb.Error as exc:
            raise storage_error(exc, self.path) from exc
        self._idle.append(cursor)

    def batches(self, session_key: int, *, after: int) -> Iterator[StoredBatch]:
        """Batches with events past `after`, in order, fetched in pages while they are consumed."""
        while True:
            with self._cursor() as cursor:
                rows = cursor.execute(_OF_SESSION, [session_key, after, _PAGE]).fetchall()
            for _, row in rows:
                yield SealedBatch.of(row).readable()
            if len(rows) < _PAGE:
                return
            after = rows[-1][0]

    def span(self, session_key: int) -> SessionSpan | None:
        """What is here of the session, by the record of heads: as of now, while the file may grow."""
        span = self.contents.spans.get(session_key)
        return SessionSpan(span.first_seq, span.last_seq, span.previous, span.digest) if span else None

    def session_batches(self, session_key: int) -> Iterator[SealedBatch]:
        """All batches of the session, in order."""
        after = 0
        while True:
            with self._cursor() as cursor:
                rows = cursor.execute(_OF_SESSION, [session_key, after, _PAGE]).fetchall()
            for _, row in rows:
                yield SealedBatch.of(row)
            if len(rows) < _PAGE:
                return
            after = rows[-1][0]

    def newest_batches(self, session_key: int, limit: int) -> list[SealedBatch]:
        """The newest batches of the session, the newest first."""
        with self._cursor() as cursor:
            return [SealedBatch.of(row) for (row,) in cursor.execute(_NEWEST, [session_key, limit]).fetchall()]

    def batches_from(self, batch_id: int, limit: int) -> list[tuple[str | None, SealedBatch]]:
        """Session and batch of the batches from that number on, in the order of commits; None for a deleted session."""
        first = max(0, batch_id - self.contents.first_batch)
        with self._cursor() as cursor:
            rows = cursor.execute(_SCAN, [first, first + limit]).fetchall()
        return [(self.contents.session_ids.get(session_key), SealedBatch.of(row)) for session_key, row in rows]


Link = tuple[int, bytes]
"""The last seq of a session before a file begins, and the digest there."""


class CheckedLog(NamedTuple):
    """What was found when a log file was compared with its journal."""

    contents: LogContents
    unrecorded: bytes
    """Journal records of rows that were committed and never acknowledged: the process died between the two."""
    damage: list[Damage]


def check_log(
    path: Path, journal: Path, earlier: Callable[[int], Link | None] | None, deleted: Collection[int] = ()
) -> CheckedLog:
    """Read the whole file, changing nothing, and compare each row with the journal.

    `earlier` gives the end of a session in the files before this one; without it, where the file begins is believed.
    Of sessions that were `deleted` nothing is compared: parts of their logs may be gone.
    Damage is whatever the journal says was acknowledged and is not there as it was written. InvalidFormat if the
    journal was changed, StorageError if the file does not open.
    """
    heads = list(read_heads(journal))
    connection = connect(path, read_only=True)
    try:
        return _Check(heads, earlier, frozenset(deleted)).run(connection)
    except duckdb.Error as exc:
        raise storage_error(exc, path) from exc
    finally:
        connection.close()


class _Check:
    def __init__(
        self, heads: Sequence[Head], earlier: Callable[[int], Link | None] | None, deleted: frozenset[int]
    ) -> None:
        self._deleted = deleted
        self._batches = {head.number: head for head in heads if head.kind is HeadKind.BATCH}
        self._epochs = {head.session_key: head for head in heads if head.kind is HeadKind.GRANT}
        self._earlier = earlier
        self._contents = LogContents()
        self._unrecorded: list[bytes] = []
        self._damage: list[Damage] = []
        self._session_ids: dict[int, str] = {}

    def run(self, connection: duckdb.DuckDBPyConnection) -> CheckedLog:
        self._check_grants(connection)
        for session_key, batch in scan_rows(connection):
            self._check_batch(session_key, batch)
        for head in self._batches.values():  # those that no row matched
            self._damaged(head, "missing")
        damage = [found for found in self._damage if found.session_key not in self._deleted]
        return CheckedLog(self._contents, b"".join(self._unrecorded), damage)

    def _check_grants(self, connection: duckdb.DuckDBPyConnection) -> None:
        newest: dict[int, int] = {}
        for fields in connection.execute(_GRANTS).fetchall():
            grant = Grant(*fields)
            newest[grant.session_key] = max(grant.epoch, newest.get(grant.session_key, 0))
            self._session_ids[grant.session_key] = grant.session_id
            self._contents.add_grant(grant)
        for session_key, head in self._epochs.items():
            if newest.get(session_key, 0) < head.number:
                problem = f"the grant of epoch {head.number} is missing"
                self._damage.append(Damage(session_key, head.last_seq + 1, head.last_seq, problem))

    def _check_batch(self, session_key: int, batch: SealedBatch) -> None:
        self._contents.byte_count += len(batch.row)
        try:
            last_seq_here = batch.header.last_seq
        except (ValueError, TypeError, StopIteration) as exc:  # whatever msgpack makes of changed bytes
            self._damage.append(Damage(session_key, 0, 0, f"a row cannot be read ({exc})"))
            return
        self._contents.first_batch = self._contents.first_batch or batch.batch_id
        head = self._batches.pop(batch.batch_id, None)
        last_seq, previous = self._end(session_key, head)
        if head is None:
            self._add_unrecorded(session_key, batch, previous)
            return
        if (session_key, last_seq_here) != (head.session_key, head.last_seq) or chain_next(
            head.previous, batch.row
        ) != head.digest:
            self._damaged(head, "changed")
        elif head.first_seq != last_seq + 1 or head.previous != previous:
            self._damage.append(
                Damage(session_key, last_seq + 1, head.first_seq - 1, f"what follows seq {last_seq} is missing")
            )
        self._contents.add_batch(session_key, head.first_seq, head.last_seq, head.previous, head.digest)

    def _end(self, session_key: int, head: Head | None) -> Link:
        span = self._contents.spans.get(session_key)
        if span is not None:
            return span.last_seq, span.digest
        if self._earlier is None:
            assert head is not None, "a file is sealed when all of it has been recorded"
            return head.first_seq - 1, head.previous
        return self._earlier(session_key) or (0, chain_start(self._session_ids.get(session_key, "")))

    def _add_unrecorded(self, session_key: int, batch: SealedBatch, previous: bytes) -> None:
        header, digest = batch.header, chain_next(previous, batch.row)
        self._contents.add_batch(session_key, header.first_seq, header.last_seq, previous, digest)
        self._unrecorded.append(
            batch_head(session_key, batch.batch_id, header.first_seq, header.last_seq, previous, digest)
        )

    def _damaged(self, head: Head, what: str) -> None:
        problem = f"the batch with seqs {head.first_seq} to {head.last_seq} is {what}"
        self._damage.append(Damage(head.session_key, head.first_seq, head.last_seq, problem))


def scan_rows(
    connection: duckdb.DuckDBPyConnection, order: Literal["committed", "session"] = "committed"
) -> Iterator[tuple[int, SealedBatch]]:
    """Key and batch of all batches, in that order, streamed. The connection can do nothing else meanwhile."""
    result = connection.execute(_ALL_ROWS[order])
    while rows := result.fetchmany(_PAGE):
        for session_key, row in rows:
            yield session_key, SealedBatch.of(row)
