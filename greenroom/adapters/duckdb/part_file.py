"""A sealed part, open for reading: events of many sessions, clustered by session."""

import zlib
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from ...domain.errors import StorageReadFailed
from ..event_selection import EVERY_TYPE, StoredBatch
from .chunks import SealedBatch, unpack_chunk
from .duckdb_files import connect, first_row, storage_error
from .log_file import Grant, SessionSpan

MEMORY_LIMIT = "64MB"
"""Of each part's page cache in the store's process; the operating system's cache is behind it."""

_FIRST_SPAN = 128
_MAX_SPAN = 4096
_PAGE_CHUNKS = 64
"""Seqs that are asked for at once: few for a page, more for whoever reads on."""

_SPANS = "SELECT session_key, first_seq, last_seq FROM spans ORDER BY session_key"
_SPAN = "SELECT first_seq, last_seq, previous, digest FROM spans WHERE session_key = ?"
_GRANT = "SELECT session_key, session_id, epoch, owner, granted_at_us FROM grants WHERE session_key = ?"
_GRANTS_OF = """
    SELECT session_key, session_id, epoch, owner, granted_at_us FROM grants
    WHERE session_key IN (SELECT unnest(?::BIGINT[]))
"""
_GRANTS = "SELECT session_key, session_id, epoch, owner, granted_at_us FROM grants"
_CHUNKS = """
    SELECT first_seq, chunk FROM chunks
    WHERE session_key = ? AND last_seq > ? AND first_seq <= ? AND (types & ?) <> 0
"""
_NEWEST = "SELECT chunk FROM chunks WHERE session_key = ? AND last_seq > ? ORDER BY first_seq DESC"
_BATCH_NUMBERS = "SELECT value FROM meta WHERE name IN ('first_batch', 'last_batch') ORDER BY name"
_BY_COMMIT = "SELECT first_batch, rowid FROM chunks WHERE last_batch >= ? ORDER BY first_batch"
_AT = "SELECT session_key, chunk FROM chunks WHERE rowid IN (SELECT unnest(?::BIGINT[]))"
_ALL = "SELECT session_key, chunk FROM chunks"


class PartFile:
    """Reads come from any thread. The index of sessions is in memory: 24 bytes for each."""

    def __init__(self, path: Path, number: int) -> None:
        self.path = path
        self.number = number
        self._connection = connect(path, read_only=True, memory_limit=MEMORY_LIMIT)
        self._idle: deque[duckdb.DuckDBPyConnection] = deque()
        self._keys, self._first, self._last = array("q"), array("q"), array("q")
        with self._cursor() as cursor:
            result = cursor.execute(_SPANS)
            while rows := result.fetchmany(10_000):
                for session_key, first_seq, last_seq in rows:
                    self._keys.append(session_key)
                    self._first.append(first_seq)
                    self._last.append(last_seq)

    def close(self) -> None:
        self._idle.clear()
        self._connection.close()

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

    @property
    def batch_numbers(self) -> tuple[int, int]:
        """The numbers of its first and its last batch; not all between them need be in it."""
        with self._cursor() as cursor:
            first, last = (int(row[0]) for row in cursor.execute(_BATCH_NUMBERS).fetchall())
        return first, last

    @property
    def session_keys(self) -> "array[int]":
        """Keys of the sessions in it, ascending."""
        return self._keys

    def bounds(self, session_key: int) -> tuple[int, int] | None:
        """First and last seq of the session here; None if it has nothing here."""
        place = bisect_left(self._keys, session_key)
        if place == len(self._keys) or self._keys[place] != session_key:
            return None
        return self._first[place], self._last[place]

    def span(self, session_key: int) -> SessionSpan | None:
        """What is here of the session, with its digests."""
        if self.bounds(session_key) is None:
            return None
        with self._cursor() as cursor:
            row = first_row(cursor, _SPAN, [session_key])
        return SessionSpan(*row) if row else None

    def grant(self, session_key: int) -> Grant | None:
        with self._cursor() as cursor:
            row = first_row(cursor, _GRANT, [session_key])
        return Grant(*row) if row else None

    def grants_of(self, session_keys: Collection[int]) -> list[Grant]:
        """The newest grants of these sessions, as of when the part was made."""
        with self._cursor() as cursor:
            return [Grant(*row) for row in cursor.execute(_GRANTS_OF, [list(session_keys)]).fetchall()]

    def grants(self) -> list[Grant]:
        """The newest grant of each session here, as of when the part was made."""
        with self._cursor() as cursor:
            return [Grant(*row) for row in cursor.execute(_GRANTS).fetchall()]

    def batches(self, session_key: int, *, after: int, types: int) -> Iterator[StoredBatch]:
        """Batches past `after` in chunks with events of those types, in order, fetched while they are consumed."""
        for batch in self._walk(session_key, after, types, _FIRST_SPAN):
            yield batch.readable()

    def session_batches(self, session_key: int) -> Iterator[SealedBatch]:
        """All batches of the session as they are sealed, in order."""
        return self._walk(session_key, 0, EVERY_TYPE, _MAX_SPAN)

    def batches_from(self, batch_id: int, limit: int) -> list[tuple[int, SealedBatch]]:
        """Key and batch of the first `limit` batches from that number on, in the order of commits; those of chunks that
        begin before it and end after it have to be unpacked all."""
        found: list[tuple[int, SealedBatch]] = []
        with self._cursor() as cursor:
            places = cursor.execute(_BY_COMMIT, [batch_id]).fetchall()
            for start in range(0, len(places), _PAGE_CHUNKS):
                page = places[start : start + _PAGE_CHUNKS]
                if len(found) >= limit and page[0][0] > found[limit - 1][1].batch_id:
                    break  # all that is left was committed later
                rows = cursor.execute(_AT, [[rowid for _, rowid in page]]).fetchall()
                found += [
                    (session_key, batch)
                    for session_key, chunk in rows
                    for batch in self._unpack(session_key, chunk)
                    if batch.batch_id >= batch_id
                ]
                found.sort(key=lambda one: one[1].batch_id)
                del found[limit:]
        return found

    def _walk(self, session_key: int, after: int, types: int, span: int) -> Iterator[SealedBatch]:
        bounds = self.bounds(session_key)
        if bounds is None:
            return
        after = max(after, bounds[0] - 1)
        while after < bounds[1]:
            up_to = after + span
            for batch in self._sealed(session_key, after, up_to, types):
                if batch.header.last_seq > after:
                    after = batch.header.last_seq
                    yield batch
            after = max(after, up_to)  # chunks that reach into the window were taken to their ends
            span = min(span * 2, _MAX_SPAN)

    def _sealed(self, session_key: int, after: int, up_to: int, types: int) -> list[SealedBatch]:
        with self._cursor() as cursor:
            chunks = cursor.execute(_CHUNKS, [session_key, after, up_to, types]).fetchall()
        chunks.sort()  # by first_seq; an ORDER BY takes DuckDB 0.2 ms more
        return [batch for _, chunk in chunks for batch in self._unpack(session_key, chunk)]

    def _unpack(self, session_key: int, chunk: bytes) -> list[SealedBatch]:
        try:
            found, batches = unpack_chunk(chunk)
        except (zlib.error, ValueError, TypeError) as exc:
            raise self._changed(str(exc)) from exc
        if found != session_key:
            raise self._changed(f"a chunk of session {found} lies where {session_key} is")
        return batches

    def _changed(self, problem: str) -> StorageReadFailed:
        return StorageReadFailed(
            f"{self.path} was changed since it was written ({problem}). Run `greenroom verify`.",
            details={"path": str(self.path)},
        )

    def newest_batches(self, session_key: int, limit: int) -> list[SealedBatch]:
        """The newest batches of the session, the newest first."""
        bounds = self.bounds(session_key)
        if bounds is None:
            return []
        with self._cursor() as cursor:
            chunks = cursor.execute(_NEWEST, [session_key, bounds[1] - limit]).fetchall()
        newest = [batch for (chunk,) in chunks for batch in reversed(self._unpack(session_key, chunk))]
        return newest[:limit]


def scan_part(connection: duckdb.DuckDBPyConnection) -> Iterator[tuple[int, SealedBatch]]:
    """Key and batch of everything in a part, in its order, streamed."""
    result = connection.execute(_ALL)
    while rows := result.fetchmany(_PAGE_CHUNKS):
        for session_key, chunk in rows:
            for batch in unpack_chunk(chunk)[1]:
                yield session_key, batch
