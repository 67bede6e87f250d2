"""The DuckDB file of the event store: opening it, appending to it, reading from it.

One connection writes and belongs to one thread; `reader()` gives others a cursor of their own on the same database.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import msgpack

from ...domain.errors import GreenroomError, InvalidFormat, StorageConnectionFailed, StorageError, StorageFull
from ...domain.log_head import REMEMBERED_BATCHES, LogHead
from ..event_codec import EncodedBatch
from ..event_selection import StoredBatch

FILE_VERSION = 1
"""Layout of the file; a newer one is refused, untouched."""

LOCK_WAIT_S = 15.0
"""How long opening waits for the lock of a process that is just dying (2-3 s were seen after kill -9)."""

_LOCK_POLL_S = 0.1
_FIRST_PAGE = 128
_NEXT_PAGES = 1024
_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "checkpoint_threshold": "1GB",  # a checkpoint stalls commits (0.2 s seen): the writer chooses when it is idle
    "memory_limit": "1GB",
    "threads": 1,  # with two, DuckDB hands each commit between them: 0.15 ms more
}

_INSERT_VERSION = "INSERT INTO meta VALUES ('file_version', ?)"
_FILE_VERSION = "SELECT value FROM meta WHERE name = 'file_version'"
_NEWEST_EPOCH = "SELECT session_key, epoch FROM epochs WHERE session_id = ? ORDER BY epoch DESC LIMIT 1"
_LAST_SEQ = "SELECT max(last_seq) FROM batches WHERE session_key = ?"
_LAST_BATCHES = "SELECT batch FROM batches WHERE session_key = ? ORDER BY last_seq DESC LIMIT ?"
_COUNTERS = "SELECT (SELECT max(batch_id) FROM batches), (SELECT max(session_key) FROM epochs)"
_PAGE = "SELECT last_seq, batch FROM batches WHERE session_key = ? AND last_seq > ? ORDER BY last_seq LIMIT ?"
_OWNER = "SELECT owner FROM epochs WHERE session_id = ? ORDER BY epoch DESC LIMIT 1"
_COUNT_EVENTS = """
    SELECT coalesce(sum(last_seq), 0) FROM (SELECT max(last_seq) AS last_seq FROM batches GROUP BY session_key)
"""


class RowHeader(NamedTuple):
    """What a stored batch says of itself, in front of its events."""

    epoch: int
    batch_number: int
    first_seq: int
    recorded_at_us: int
    types: int
    records: tuple[int, ...]


def unpack_row(packed: bytes) -> tuple[RowHeader, bytes]:
    """The header and the packed events of a stored batch."""
    unpacker = msgpack.Unpacker(use_list=False, strict_map_key=False)
    unpacker.feed(packed)
    header = RowHeader(*next(iter(unpacker)))
    return header, packed[unpacker.tell() :]


def first_row(
    connection: duckdb.DuckDBPyConnection, statement: str, parameters: Sequence[Any]
) -> tuple[Any, ...] | None:
    """The first row, the result read to its end: an appender of a connection with an open one refuses to flush."""
    rows = connection.execute(statement, list(parameters)).fetchall()
    return rows[0] if rows else None


class EventDatabase:
    """Tables and statements. Nothing here decides: heads say what may be written, and where."""

    def __init__(self, path: str, *, lock_wait_s: float = LOCK_WAIT_S) -> None:
        self._path = path
        self.connection = _connect(path, lock_wait_s)
        try:
            self._prepare()
        except duckdb.Error as exc:
            self.connection.close()
            raise storage_error(exc, path) from exc
        except GreenroomError:
            self.connection.close()
            raise
        newest_batch, newest_key = self._row(_COUNTERS) or (None, None)
        self._batch_id: int = newest_batch or 0
        self._session_key: int = newest_key or 0
        self._batches = self.connection.appender("batches")
        self._epochs = self.connection.appender("epochs")

    def _prepare(self) -> None:
        tables = {name for (name,) in self.connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        if "meta" in tables:
            self._check_version()
        self.connection.execute(files("greenroom.adapters.duckdb").joinpath("schema.sql").read_text())
        if self._row(_FILE_VERSION) is None:
            self.connection.execute(_INSERT_VERSION, [str(FILE_VERSION)])
            self.connection.execute("INSERT INTO watermark VALUES (0)")
        self.connection.execute("CHECKPOINT")  # replaying a log with DDL in it took part in most replay bugs

    def _check_version(self) -> None:
        found = self._row(_FILE_VERSION)
        if found is not None and int(found[0]) > FILE_VERSION:
            raise InvalidFormat(
                f"{self._path} has layout {found[0]}; this version of Greenroom reads up to {FILE_VERSION}, and has"
                " changed nothing. Use the version that wrote it, or a newer one.",
                details={"path": self._path, "schema_version": int(found[0])},
            )

    def _row(self, statement: str, parameters: list[Any] | None = None) -> tuple[Any, ...] | None:
        return first_row(self.connection, statement, parameters or [])

    @property
    def newest_batch(self) -> int:
        """Number of the newest batch."""
        return self._batch_id

    def head(self, session_id: str) -> LogHead | None:
        """The end of the session's log as it is on disk; None if nobody ever owned the session."""
        newest = self._row(_NEWEST_EPOCH, [session_id])
        if newest is None:
            return None
        session_key, epoch = newest
        last = self._row(_LAST_SEQ, [session_key])
        head = LogHead(session_key, epoch, last[0] if last and last[0] else 0)
        rows = self.connection.execute(_LAST_BATCHES, [session_key, REMEMBERED_BATCHES]).fetchall()
        for (packed,) in reversed(rows):
            header, _ = unpack_row(packed)
            if header.epoch == epoch:
                head.answers[header.batch_number] = (header.first_seq, header.recorded_at_us)
                head.last_batch = header.batch_number
        return head

    def new_head(self) -> LogHead:
        """The head of a session that nobody owned yet; it exists once a grant of it has been flushed."""
        self._session_key += 1
        return LogHead(self._session_key)

    def append_grant(self, session_id: str, head: LogHead, owner: str, granted_at_us: int) -> None:
        """A new owner; durable after `flush`."""
        self._epochs.append_row(head.session_key, session_id, head.epoch, owner, granted_at_us)

    def append_batch(
        self, head: LogHead, batch_number: int, first_seq: int, recorded_at_us: int, batch: EncodedBatch
    ) -> None:
        """A batch at the place that the head gave it; durable after `flush`."""
        self._batch_id += 1
        self._batches.append_row(
            self._batch_id,
            head.session_key,
            first_seq + batch.event_count - 1,
            msgpack.packb((head.epoch, batch_number, first_seq, recorded_at_us, batch.types, batch.records))
            + batch.payload,
        )

    def flush(self, *, grants: bool, batches: bool) -> None:
        """Commit what was appended: one commit for the grants, one for all the batches."""
        if grants:
            self._epochs.flush()
        if batches:
            self._batches.flush()

    def checkpoint_if_larger(self, wal_bytes: int) -> None:
        """Move the write-ahead log into the file when it has grown beyond that; stalls commits meanwhile."""
        wal = Path(self._path + ".wal")
        if wal.exists() and wal.stat().st_size > wal_bytes:
            self.connection.execute("CHECKPOINT")

    def reader(self) -> "EventReader":
        """A cursor for one other thread."""
        return EventReader(self.connection.cursor())

    def close(self) -> None:
        self._batches.flush()
        self._epochs.flush()
        self.connection.close()


class EventReader:
    """Reads of committed events, beside the writer. For one thread at a time."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    def locate(self, session_id: str) -> tuple[int, int] | None:
        """Key and last seq of the session; None if nobody ever owned it."""
        newest = first_row(self._connection, _NEWEST_EPOCH, [session_id])
        if newest is None:
            return None
        last = first_row(self._connection, _LAST_SEQ, [newest[0]])
        return newest[0], last[0] if last and last[0] else 0

    def batches(self, session_key: int, *, after: int) -> Iterator[StoredBatch]:
        """Batches with events past `after`, in order, fetched in pages while they are consumed."""
        page = _FIRST_PAGE
        while True:
            rows = self._connection.execute(_PAGE, [session_key, after, page]).fetchall()
            for last_seq, packed in rows:
                header, payload = unpack_row(packed)
                yield StoredBatch(header.first_seq, last_seq, header.recorded_at_us, header.types, payload)
            if len(rows) < page:
                return
            after = rows[-1][0]
            page = _NEXT_PAGES

    def owner(self, session_id: str) -> str | None:
        """Name of the newest owner."""
        row = first_row(self._connection, _OWNER, [session_id])
        return row[0] if row else None

    def count_events(self) -> int:
        row = first_row(self._connection, _COUNT_EVENTS, [])
        return int(row[0]) if row else 0


def _connect(path: str, lock_wait_s: float) -> duckdb.DuckDBPyConnection:
    deadline = time.monotonic() + lock_wait_s
    while True:
        try:
            return duckdb.connect(path, config=_SETTINGS)
        except duckdb.Error as exc:
            if not _is_locked(str(exc)) or time.monotonic() > deadline:
                raise storage_error(exc, path) from exc
        time.sleep(_LOCK_POLL_S)


def _is_locked(text: str) -> bool:
    return "Could not set lock on file" in text  # no looser: a damaged file has a wrong checksum "in block"


_TRANSLATION: tuple[tuple[Callable[[str], bool], type[GreenroomError], str], ...] = (
    (
        _is_locked,
        StorageConnectionFailed,
        "Another process uses the event store. Stop it, or use another data_dir",
    ),
    (
        lambda text: "orrupt" in text or "not a valid DuckDB" in text or "erialization" in text,
        StorageError,
        "The event store's file does not open; it was left as it is. Restore it from a copy, or use another data_dir",
    ),
    (
        lambda text: "o space left" in text,
        StorageFull,
        "There is no room left on the disk of the event store. Free some",
    ),
)


def storage_error(exc: Exception, path: str) -> GreenroomError:
    """What an error of DuckDB means here."""
    text = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
    for applies, error, message in _TRANSLATION:
        if applies(str(exc)):
            return error(f"{message}: {path} ({text}).", details={"path": path, "pid": os.getpid()})
    return StorageError(f"The event store failed: {text} ({path}).", details={"path": path})
