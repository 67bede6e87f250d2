"""The event store as one asyncio object: appends in, committed events out. An actor or a test holds it."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from ...domain.errors import InvalidCursor, QueueFull, SessionNotFound, StorageReadFailed
from ...domain.event_log import EventQuery, Ownership, SessionRecords
from ...domain.run import Run
from ...domain.session import Session
from ..append_frames import AppendAnswer, decode_frame, encode_answers
from ..event_codec import Slab
from ..event_selection import EventSelection
from ..recent_batches import RecentBatches
from .event_database import EventDatabase, EventReader
from .group_commit import CommittedGroup, GroupCommitThread
from .record_tables import RecordTables

FILE_NAME = "events.duckdb"
MEMORY_PATH = ":memory:"

RECENT_BYTES = 64 * 1024 * 1024
"""How much of the newest events is kept in memory, over all sessions: what follows live streams reads from there."""

MAX_KNOWN_ENDS = 100_000
MAX_WAITERS = 100_000
"""Long polls that may wait at once; one more is refused with queue_full."""

MAX_RECENT_CALLS = 10_000
"""Newest runs of a session whose call ids an owner gets when it takes the session over."""

_READER_THREADS = 2

ResultT = TypeVar("ResultT")


class DuckDBEventStore:
    """Appends go to one writer thread; reads are answered from memory, or from the file in reader threads."""

    def __init__(self, path: str, *, on_fatal: Callable[[Exception], None]) -> None:
        self.path = path
        self._loop = asyncio.get_running_loop()
        self._writer = GroupCommitThread(path, on_commit=self._committed_in_writer, on_fatal=self._failed_in_writer)
        self._on_fatal = on_fatal
        self._database: EventDatabase | None = None
        self._recent = RecentBatches(max_bytes=RECENT_BYTES)
        self._ends: OrderedDict[str, tuple[int, int]] = OrderedDict()  # session id -> key, last seq
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}
        self._waiting = 0
        self._pool = ThreadPoolExecutor(_READER_THREADS, thread_name_prefix="greenroom-reader")
        self._readers: list[EventReader] = []

    async def open(self) -> None:
        """Open the file, making it when it is missing. Raises the typed error why it cannot be opened."""
        self._database = await asyncio.wrap_future(self._writer.start())
        self._readers = [self._database.reader() for _ in range(_READER_THREADS)]

    async def close(self) -> None:
        """Commit what has arrived and close the file."""
        await asyncio.to_thread(self._writer.stop)
        self._pool.shutdown()

    # Writing

    def submit(self, frame: bytes, reply: Callable[[bytes], None]) -> None:
        """Store a frame of batches; `reply` gets the encoded answers once they are durable."""
        number, entries = decode_frame(frame)

        def answer(answers: list[AppendAnswer]) -> None:
            reply(encode_answers(number, answers))

        self._writer.append(entries, answer)

    async def append(self, frame: bytes) -> bytes:
        """`submit` for callers that wait."""
        replied: asyncio.Future[bytes] = self._loop.create_future()

        def reply(answers: bytes) -> None:
            if not replied.done():
                replied.set_result(answers)

        self.submit(frame, reply)
        return await replied

    async def grant(self, session_id: str, owner: str) -> Ownership:
        """Make `owner` the session's only writer; the session exists from then on."""
        return await asyncio.wrap_future(self._writer.grant(session_id, owner))

    def _committed_in_writer(self, group: CommittedGroup) -> None:
        self._loop.call_soon_threadsafe(self._committed, group)

    def _failed_in_writer(self, exc: Exception) -> None:
        self._loop.call_soon_threadsafe(self._on_fatal, exc)

    def _committed(self, group: CommittedGroup) -> None:
        for session_id, session_key, batch in group.batches:
            self._recent.add(session_id, batch)
            self._know(session_id, session_key, batch.last_seq)
        for answer, answers in group.answers:
            answer(answers)
        for session_id, _, _ in group.batches:
            for waiter in self._waiters.pop(session_id, ()):
                if not waiter.done():
                    waiter.set_result(None)

    def _know(self, session_id: str, session_key: int, last_seq: int) -> None:
        self._ends[session_id] = (session_key, last_seq)
        self._ends.move_to_end(session_id)
        if len(self._ends) > MAX_KNOWN_ENDS:
            self._ends.popitem(last=False)

    # Reading events

    async def read(self, session_id: str, query: EventQuery, *, wait_s: float = 0) -> list[Slab]:
        """The matching events; waits up to wait_s for the first one when there is none yet."""
        deadline = self._loop.time() + wait_s
        while True:
            session_key, last_seq = await self._end(session_id)
            if query.after > last_seq:
                raise InvalidCursor(
                    f"after is {query.after}, but the log of {session_id} ends at seq {last_seq}.",
                    details={"field": "after", "last_seq": last_seq},
                )
            slabs = await self._select(session_id, session_key, query)
            left_s = deadline - self._loop.time()
            if slabs or left_s <= 0 or (query.before is not None and last_seq >= query.before - 1):
                return slabs
            await self._wait_for_commit(session_id, last_seq, left_s)

    async def _end(self, session_id: str) -> tuple[int, int]:
        known = self._ends.get(session_id)
        if known is None:
            located = await self._in_reader(lambda reader: reader.locate(session_id))
            if located is None:
                raise SessionNotFound(details={"session_id": session_id})
            known = self._ends.get(session_id)  # a commit may have come while the reader looked
            if known is None:
                self._know(session_id, *located)
                return located
        return known

    async def _select(self, session_id: str, session_key: int, query: EventQuery) -> list[Slab]:
        selection = EventSelection(query)
        recent = self._recent.after(session_id, query.after)
        if recent is not None:
            selection.add(recent)
            return selection.slabs

        def select(reader: EventReader) -> list[Slab]:
            selection.add(reader.batches(session_key, after=query.after))
            return selection.slabs

        return await self._in_reader(select)

    async def _wait_for_commit(self, session_id: str, seen: int, timeout_s: float) -> None:
        if self._ends.get(session_id, (0, seen))[1] > seen:
            return
        if self._waiting >= MAX_WAITERS:
            raise QueueFull(f"{self._waiting} long polls wait already; try again.", details={"waiting": self._waiting})
        waiter: asyncio.Future[None] = self._loop.create_future()
        waiters = self._waiters.setdefault(session_id, set())
        waiters.add(waiter)
        self._waiting += 1
        try:
            await asyncio.wait([waiter], timeout=timeout_s)
        finally:
            self._waiting -= 1
            waiters.discard(waiter)
            if not waiters and self._waiters.get(session_id) is waiters:
                del self._waiters[session_id]

    async def _in_reader(self, work: Callable[[EventReader], ResultT]) -> ResultT:
        def run() -> ResultT:
            reader = self._readers.pop()
            try:
                return work(reader)
            finally:
                self._readers.append(reader)

        try:
            return await self._loop.run_in_executor(self._pool, run)
        except IndexError as exc:
            raise StorageReadFailed("The event store is closed.") from exc

    # Reading records

    async def load(self, session_id: str) -> SessionRecords:
        """What an owner needs to take the session over."""
        await self._end(session_id)

        def read(tables: RecordTables) -> SessionRecords:
            return SessionRecords(
                session=tables.session(session_id),
                open_runs=tables.open_runs(session_id),
                run_count=tables.run_count(session_id),
                recent_calls=tables.recent_calls(session_id, MAX_RECENT_CALLS),
            )

        return await self._records(read)

    async def owner(self, session_id: str) -> str | None:
        """Name of the newest owner; None if the session does not exist."""
        return await self._in_reader(lambda reader: reader.owner(session_id))

    async def find_session(self, session_id: str) -> Session | None:
        return await self._records(lambda tables: tables.session(session_id))

    async def find_session_by_key(self, idempotency_key: str) -> str | None:
        return await self._records(lambda tables: tables.session_by_key(idempotency_key))

    async def find_run(self, run_id: str) -> Run | None:
        return await self._records(lambda tables: tables.run(run_id))

    async def find_run_by_key(self, session_id: str, idempotency_key: str) -> str | None:
        return await self._records(lambda tables: tables.run_by_key(session_id, idempotency_key))

    async def list_sessions(self, **filters: Any) -> list[Session]:
        """See RecordTables.list_sessions."""
        return await self._records(lambda tables: tables.list_sessions(**filters))

    async def list_runs(self, **filters: Any) -> list[Run]:
        """See RecordTables.list_runs."""
        return await self._records(lambda tables: tables.list_runs(**filters))

    async def sessions_with_open_runs(self) -> list[str]:
        return await self._records(lambda tables: tables.sessions_with_open_runs())

    async def sessions_of(self, owner: str) -> list[str]:
        """Sessions with open runs whose newest owner this is."""
        return await self._records(lambda tables: tables.sessions_of(owner))

    async def save_tools(self, session_id: str, tools: bytes) -> None:
        """Keep the packed tools of a session, in place of earlier ones."""
        await self._records(lambda tables: tables.save_tools(session_id, tools))

    async def tools(self, session_id: str) -> bytes | None:
        return await self._records(lambda tables: tables.tools(session_id))

    async def save_setting(self, name: str, value: str) -> None:
        """Keep a setting of the runtime, in place of an earlier one."""
        await self._records(lambda tables: tables.save_setting(name, value))

    async def setting(self, name: str) -> str | None:
        return await self._records(lambda tables: tables.setting(name))

    async def counts(self) -> dict[str, int]:
        """How much there is: sessions, runs, events, bytes on disk."""
        sessions, runs = await self._records(lambda tables: tables.counts())
        events = await self._in_reader(lambda reader: reader.count_events())
        return {"sessions": sessions, "runs": runs, "events": events, "bytes": await asyncio.to_thread(self._bytes)}

    async def _records(self, read: Callable[[RecordTables], ResultT]) -> ResultT:
        return await asyncio.wrap_future(self._writer.read_records(read))

    def _bytes(self) -> int:
        if self.path == MEMORY_PATH:
            return 0
        return sum(path.stat().st_size for path in (Path(self.path), Path(self.path + ".wal")) if path.exists())
