"""Sealing: log files and parts in, one part out, clustered by session. Runs in a process of its own.

Every row is compared with its journal or its chain on the way: what was damaged is refused, never sealed.
"""

import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import duckdb

from ...domain.errors import StorageError
from ...domain.event import EventType, mask_of
from ..event_codec import split_events
from ..event_selection import PRUNED_TYPES
from .chunks import CHUNK_BYTES, CHUNK_EVENTS, SealedBatch, pack_chunk, pruned
from .duckdb_files import connect, digest_file, heads_of, remove_database, storage_error, sync_directory, sync_file
from .head_journal import batch_head, grant_head, name_heads, write_heads
from .log_file import Grant, SessionSpan, check_log, scan_rows
from .log_rows import unpack_row
from .part_file import scan_part

ROW_GROUP_BATCHES = 2048
"""How many rows the sealing process keeps before it hands them to DuckDB."""

_COMPLETE = mask_of({EventType.MESSAGE_RECEIVED})
_TYPE, _TIMESTAMP, _RUN_ID, _ATTEMPT = 1, 2, 3, 4  # positions in the packed event, as in NewEvent

Row = tuple[int, int, SealedBatch]
"""Session key, first seq, batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealOrder:
    """What to make one part of."""

    logs: Sequence[tuple[str, str]] = ()
    """Paths of log files and of their journals, oldest first."""
    parts: Sequence[str] = ()
    """Paths of parts, oldest first, all older than the logs."""
    output: str
    dropped: Sequence[int] = ()
    """Keys of sessions that are left out."""
    prune_before_us: int | None = None
    """Streamed pieces of messages that were complete before this time are left out."""


class Sealed(NamedTuple):
    """The part that was made."""

    first_batch: int
    last_batch: int
    events: int
    size: int
    sha256: str
    heads_sha256: str
    mtime_ns: int


@dataclass(slots=True)
class Spans:
    """The chains of the sessions as they are in the inputs, oldest first."""

    found: dict[int, SessionSpan] = field(default_factory=dict[int, SessionSpan])
    grants: dict[int, Grant] = field(default_factory=dict[int, Grant])

    def add(self, session_key: int, span: SessionSpan) -> None:
        known = self.found.get(session_key)
        if known is None:
            self.found[session_key] = SessionSpan(span.first_seq, span.last_seq, span.previous, span.digest)
        else:
            known.last_seq = span.last_seq
            known.digest = span.digest


def seal(order: SealOrder) -> Sealed | None:
    """Make the part; None if nothing is left to put into one. The inputs stay as they are."""
    spans = Spans()
    with _Inputs(order, spans) as inputs:
        pruner = _Pruner(inputs.rows(), order.prune_before_us) if order.prune_before_us is not None else None
        return write_part(Path(order.output), inputs.rows(), spans, pruner)


def write_part(output: Path, rows: Iterable[Row], spans: Spans, pruner: "_Pruner | None" = None) -> Sealed | None:
    """A part of these rows, whose chains are as the spans say; None if there are none. StorageError if they are not."""
    scratch = output.with_name(output.name + ".new")
    remove_database(scratch)
    writer = _PartWriter(scratch, spans, pruner)
    try:
        writer.write(rows)
    except BaseException:
        remove_database(scratch)
        raise
    if not writer.batches:
        remove_database(scratch)
        return None
    write_heads(heads_of(output), writer.heads)
    sync_file(scratch)
    scratch.replace(output)
    sync_directory(output.parent)
    stat = output.stat()
    return Sealed(
        first_batch=writer.first_batch,
        last_batch=writer.last_batch,
        events=writer.events,
        size=stat.st_size,
        sha256=digest_file(output),
        heads_sha256=digest_file(heads_of(output)),
        mtime_ns=stat.st_mtime_ns,
    )


class _Inputs:
    """The files that are read. Opening compares the logs with their journals."""

    def __init__(self, order: SealOrder, spans: Spans) -> None:
        self._dropped = frozenset(order.dropped)
        self._parts = [connect(Path(path), read_only=True) for path in order.parts]
        for connection in self._parts:
            _read_spans(connection, spans)
        self._logs: list[duckdb.DuckDBPyConnection] = []
        for path, journal in order.logs:
            checked = check_log(Path(path), Path(journal), None, self._dropped)
            if checked.damage:
                _refuse_damage(path, [found.problem for found in checked.damage])
            for session_key, span in checked.contents.spans.items():
                spans.add(session_key, span)
            spans.grants.update({grant.session_key: grant for grant in checked.contents.grants.values()})
            self._logs.append(connect(Path(path), read_only=True))

    def __enter__(self) -> "_Inputs":
        return self

    def __exit__(self, *_: object) -> None:
        for connection in (*self._parts, *self._logs):
            connection.close()

    def rows(self) -> Iterator[Row]:
        """Everything that is to be kept, by session and seq."""
        streams: list[Iterator[Row]] = [_part_rows(connection) for connection in self._parts]
        streams += [_log_rows(connection) for connection in self._logs]
        for row in heapq.merge(*streams, key=itemgetter(0, 1)):
            if row[0] not in self._dropped:
                yield row


def _refuse_damage(path: str, problems: Sequence[str]) -> None:
    raise StorageError(
        f"{path} is damaged ({problems[0]}); it was not sealed. Run `greenroom doctor --repair`.",
        details={"path": path, "problems": list(problems)[:10]},
    )


def _read_spans(connection: duckdb.DuckDBPyConnection, spans: Spans) -> None:
    for session_key, *span in connection.execute(
        "SELECT session_key, first_seq, last_seq, previous, digest FROM spans"
    ).fetchall():
        spans.add(session_key, SessionSpan(*span))
    for fields in connection.execute(
        "SELECT session_key, session_id, epoch, owner, granted_at_us FROM grants"
    ).fetchall():
        grant = Grant(*fields)
        spans.grants[grant.session_key] = grant


def _part_rows(connection: duckdb.DuckDBPyConnection) -> Iterator[Row]:
    for session_key, batch in scan_part(connection):
        yield session_key, batch.header.first_seq, batch


def _log_rows(connection: duckdb.DuckDBPyConnection) -> Iterator[Row]:
    for session_key, batch in scan_rows(connection, "session"):
        yield session_key, batch.header.first_seq, batch


class _PartWriter:
    def __init__(self, path: Path, spans: Spans, pruner: "_Pruner | None") -> None:
        self._path = path
        self._spans = spans
        self._pruner = pruner
        self.first_batch = self.last_batch = self.events = self.batches = 0
        self.heads: list[bytes] = []

    def write(self, rows: Iterable[Row]) -> None:
        connection = connect(self._path)
        try:
            connection.execute(files("greenroom.adapters.duckdb").joinpath("part_schema.sql").read_text())
            chunks: Any = connection.appender("chunks")
            found: list[tuple[Any, ...]] = []
            for count, (session_key, of_session) in enumerate(itertools.groupby(rows, key=itemgetter(0))):
                found.append(self._write_session(chunks, session_key, (batch for _, _, batch in of_session)))
                if count % ROW_GROUP_BATCHES == 0:
                    chunks.flush()
            chunks.flush()
            self._write_index(connection, found)
            connection.execute("CHECKPOINT")
        except duckdb.Error as exc:
            raise storage_error(exc, self._path) from exc
        finally:
            connection.close()

    def _write_session(self, chunks: Any, session_key: int, batches: Iterable[SealedBatch]) -> tuple[Any, ...]:
        """Appends the chunks of one session; returns its row in spans."""
        span = self._spans.found[session_key]
        digest, last_seq, pruned_count = span.previous, span.first_seq - 1, 0
        chunk = _OpenChunk(session_key, chunks)
        for batch in batches:
            header = batch.header
            following = batch.next_digest(digest)
            if header.first_seq != last_seq + 1:
                _refuse_damage(str(self._path), [f"what follows seq {last_seq} of session {session_key} is missing"])
            kept = self._pruner.prune(session_key, batch, digest) if self._pruner is not None else batch
            pruned_count += header.event_count - len(kept.kept) if kept.kept is not None else 0
            chunk.add(kept, header.types | (PRUNED_TYPES if kept.kept is not None else 0), digest)
            digest, last_seq = following, header.last_seq
            self._count(batch.batch_id, len(kept.kept) if kept.kept is not None else header.event_count)
        chunk.end()
        if digest != span.digest or last_seq != span.last_seq:
            _refuse_damage(str(self._path), [f"the chain of session {session_key} does not hold"])
        return session_key, span.first_seq, span.last_seq, span.previous, span.digest, pruned_count

    def _count(self, batch_id: int, events: int) -> None:
        self.first_batch = min(self.first_batch or batch_id, batch_id)
        self.last_batch = max(self.last_batch, batch_id)
        self.batches += 1
        self.events += events

    def _write_index(self, connection: duckdb.DuckDBPyConnection, found: Sequence[tuple[Any, ...]]) -> None:
        spans, grants = connection.appender("spans"), connection.appender("grants")
        for row in found:
            grant = self._spans.grants[row[0]]
            spans.append_row(*row)
            grants.append_row(*grant)
            self.heads += _heads_of(grant, *row[1:5])
        spans.flush()
        grants.flush()
        connection.execute("INSERT INTO meta VALUES ('first_batch', ?)", [str(self.first_batch)])
        connection.execute("INSERT INTO meta VALUES ('last_batch', ?)", [str(self.last_batch)])


def _heads_of(grant: Grant, first_seq: int, last_seq: int, previous: bytes, digest: bytes) -> list[bytes]:
    key = grant.session_key
    return [
        name_heads(key, grant.session_id),
        grant_head(key, grant.epoch, last_seq),
        batch_head(key, 0, first_seq, last_seq, previous, digest),
    ]


class _OpenChunk:
    """Gathers batches until a chunk is full."""

    def __init__(self, session_key: int, chunks: Any) -> None:
        self._session_key = session_key
        self._chunks = chunks
        self._batches: list[SealedBatch] = []
        self._previous = b""
        self._types = self._events = self._bytes = 0

    def add(self, batch: SealedBatch, types: int, previous: bytes) -> None:
        if not self._batches:
            self._previous = previous
        self._batches.append(batch)
        self._types |= types
        self._events += batch.header.event_count
        self._bytes += len(batch.row)
        if self._events >= CHUNK_EVENTS or self._bytes >= CHUNK_BYTES:
            self.end()

    def end(self) -> None:
        """Append what was gathered."""
        if not self._batches:
            return
        first_seq, last_seq = self._batches[0].header.first_seq, self._batches[-1].header.last_seq
        self._chunks.append_row(
            self._session_key,
            first_seq,
            last_seq,
            self._types,
            self._batches[0].batch_id,
            self._batches[-1].batch_id,
            self._previous,
            pack_chunk(self._session_key, self._batches),
        )
        self._batches = []
        self._types = self._events = self._bytes = 0


class _Pruner:
    """Decides which streamed pieces go: those that a whole message of the same run and attempt followed."""

    def __init__(self, rows: Iterable[Row], before_us: int) -> None:
        self._complete: dict[tuple[int, str, int], int] = {}  # session, run, attempt -> seq of the last whole message
        for session_key, _, batch in rows:
            header, payload = unpack_row(batch.row)
            if header.types & _COMPLETE:
                for seq, (_, _, fields) in zip(batch.seqs, split_events(payload), strict=True):
                    if fields[_TYPE] == EventType.MESSAGE_RECEIVED and fields[_TIMESTAMP] < before_us:
                        self._complete[session_key, fields[_RUN_ID], fields[_ATTEMPT]] = seq

    def prune(self, session_key: int, batch: SealedBatch, previous: bytes) -> SealedBatch:
        """The batch, without what may go."""
        header, payload = unpack_row(batch.row)
        if not header.types & PRUNED_TYPES:
            return batch
        keep = [
            fields[_TYPE] != EventType.MESSAGE_STREAMED
            or seq > self._complete.get((session_key, fields[_RUN_ID], fields[_ATTEMPT]), 0)
            for seq, (_, _, fields) in zip(batch.seqs, split_events(payload), strict=True)
        ]
        return batch if all(keep) else pruned(batch, previous, keep)
