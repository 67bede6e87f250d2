"""The event store as one asyncio object: appends in, committed events out. An actor or a test holds it."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ...domain.artifact_store import ArtifactStore
from ...domain.batch_row import LedgerEntry
from ...domain.errors import (
    AlreadyExists,
    GreenroomError,
    InvalidCursor,
    QueueFull,
    RunNotFound,
    SessionNotFound,
    StorageFull,
    StorageReadFailed,
)
from ...domain.event_log import NO_RECORDS, EventQuery, Ownership, SessionRecords
from ...domain.run import Run
from ...domain.session import Session
from ...domain.verification import Verification
from ..append_frames import AppendAnswer, decode_frame, encode_answers
from ..clock import now_us
from ..event_codec import Slab
from ..event_selection import EventSelection
from ..logs import get_logger
from ..recent_batches import RecentBatches
from ..room_watch import Room
from ..store_options import StoreOptions
from .commit_feed import CommitFeed, FeedEnd, FeedPage
from .duckdb_files import storage_error
from .group_commit import CommittedGroup, WriterCallbacks
from .log_sources import LogSources
from .open_store import OpenStore, open_store
from .query_desk import QueryDesk
from .query_runner import QueryAnswer
from .record_tables import RecordTables
from .session_archive import read_head
from .verification import verify_session

_log = get_logger(__name__)

RECENT_BYTES = 64 * 1024 * 1024
"""How much of the newest events is kept in memory, over all sessions: what follows live streams reads from there."""

MAX_KNOWN_ENDS = 100_000
MAX_WAITERS = 100_000
"""Long polls that may wait at once; one more is refused with queue_full."""

MAX_RECENT_CALLS = 10_000
"""Newest runs of a session whose call ids an owner gets when it takes the session over."""

_READER_THREADS = 2

_DELETE_RETRY_S = 1.0

ResultT = TypeVar("ResultT")


class HandedOver(NamedTuple):
    """Sessions that leave a store for another."""

    session_ids: list[str]
    session_keys: list[int]
    parts: list[Path]
    tools: dict[str, bytes]
    artifacts: ArtifactStore


class DuckDBEventStore:
    """Appends go to one writer thread; reads are answered from memory, or from the files in reader threads.

    `path` is the folder of the files; one store at a time has it.
    """

    def __init__(
        self, path: Path, options: StoreOptions | None = None, *, on_fatal: Callable[[Exception], None]
    ) -> None:
        self.path = path
        self.options = options or StoreOptions()
        self._loop = asyncio.get_running_loop()
        self._on_fatal = on_fatal
        self._recent = RecentBatches(max_bytes=RECENT_BYTES)
        self._ends: OrderedDict[str, tuple[int, int]] = OrderedDict()  # session id -> key, last seq
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}
        self._waiting = 0
        self._pool = ThreadPoolExecutor(_READER_THREADS, thread_name_prefix="greenroom-reader")
        self._open: OpenStore | None = None
        self._desk: QueryDesk | None = None
        self._feed: CommitFeed | None = None
        self._leaving: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Open the folder, making it when it is missing. Raises the typed error why it cannot be opened: StorageError
        that names the file and the copy of it that was kept, if something that was acknowledged is not there."""
        callbacks = WriterCallbacks(
            committed=self._in_loop(self._committed),
            filling=self._in_loop(self._filling),
            rotated=self._in_loop(self._rotated),
            failed=self._in_loop(self._on_fatal),
        )
        self._open = await asyncio.to_thread(open_store, self.path, self.options, callbacks)
        self._desk = QueryDesk(self._open, timeout_s=self.options.query_timeout_s)
        self._feed = self._made_feed(self._open)
        try:
            await self._finish_deletions()
            await self._open.keeper.finish_taking_in()
        except BaseException:
            await self.close()
            raise
        self._open.keeper.tidy_soon()

    def _made_feed(self, store: OpenStore) -> CommitFeed:
        return CommitFeed(
            store.writer.committed_batch,
            sources=store.sources,
            manifest=lambda: store.keeper.manifest,
            find_sessions=self.find_sessions,
        )

    async def _finish_deletions(self) -> None:
        """Of sessions whose deletion a crash cut short after the point of no return."""
        store = self._store
        sealed = await self._records(lambda tables: tables.owned(store.keeper.manifest.deleted))
        unsealed = [session_id for session_id in store.deleted if store.grant(session_id) is None]
        for session_id in {*sealed, *unsealed}:
            await self._forget_traces(session_id)

    def _in_loop(self, work: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any) -> None:
            self._loop.call_soon_threadsafe(work, *args)

        return call

    @property
    def is_open(self) -> bool:
        return self._open is not None

    @property
    def _store(self) -> OpenStore:
        if self._open is None:
            raise StorageReadFailed("The event store is closed.")
        return self._open

    @property
    def _query(self) -> QueryDesk:
        if self._desk is None:
            raise StorageReadFailed("The event store is closed.")
        return self._desk

    @property
    def _commits(self) -> CommitFeed:
        if self._feed is None:
            raise StorageReadFailed("The event store is closed.")
        return self._feed

    async def close(self) -> None:
        """Commit what has arrived and close the files; nothing can be called after."""
        store, self._open = self._store, None
        await store.keeper.close()
        await asyncio.to_thread(store.close)
        self._pool.shutdown()
        if self._feed is not None:
            self._feed.close()

    # Appending

    def submit(self, frame: bytes, reply: Callable[[bytes], None]) -> None:
        """Store a frame of batches; `reply` gets the encoded answers once they are durable."""
        number, entries = decode_frame(frame)

        def answer(answers: list[AppendAnswer]) -> None:
            reply(encode_answers(number, answers, is_short_of_room=self._store.writer.room is not Room.PLENTY))

        self._store.writer.append(entries, answer)

    async def append(self, frame: bytes) -> bytes:
        """`submit` for callers that wait."""
        replied: asyncio.Future[bytes] = self._loop.create_future()

        def reply(answers: bytes) -> None:
            if not replied.done():
                replied.set_result(answers)

        self.submit(frame, reply)
        return await replied

    async def is_short_of_room(self) -> bool:
        """Whether new work should be refused, as of now."""
        return await self._look_for_room() is not Room.PLENTY

    async def _look_for_room(self) -> Room:
        return await asyncio.wrap_future(self._store.writer.between_groups(self._store.writer.look_for_room))

    async def grant(self, session_id: str, owner: str, *, must_exist: bool = False) -> Ownership:
        """Make `owner` the session's only writer; the session exists from then on, or must exist already."""
        return await asyncio.wrap_future(self._store.writer.grant(session_id, owner, must_exist=must_exist))

    async def take_over(self, session_id: str, owner: str, *, must_exist: bool) -> Ownership:
        """`grant`, with the records that a new owner needs: nobody but it can change them any more."""
        ownership = await self.grant(session_id, owner, must_exist=must_exist)
        if ownership.epoch == 1:  # the first owner finds nothing but tools
            return replace(ownership, records=replace(NO_RECORDS, tools=await self.tools(session_id)))
        return replace(ownership, records=await self.load(session_id))

    async def take_over_new(self, session_ids: Sequence[str], owner: str) -> list[Ownership | None]:
        """`take_over` of those that do not exist, which nobody can have given tools; None for the others."""
        return await asyncio.wrap_future(self._store.writer.grant_new(session_ids, owner))

    def _filling(self) -> None:
        if self._open is not None:
            self._own(self._open.keeper.prepare_until_done())

    def _rotated(self) -> None:
        if self._open is not None:
            self._open.keeper.rotated()

    def _committed(self, group: CommittedGroup) -> None:
        if self._open is not None:
            self._open.records.committed()
        for batch_id, session_id, session_key, batch in group.batches:
            self._recent.add(session_id, batch)
            self._know(session_id, session_key, batch.last_seq)
            if self._feed is not None:
                self._feed.add(batch_id, session_id, batch)
        for answer, answers in group.answers:
            answer(answers)
        for _, session_id, _, _ in group.batches:
            self._wake(session_id)

    def _wake(self, session_id: str) -> None:
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
            slabs = await self._select(session_id, session_key, query, last_seq)
            left_s = deadline - self._loop.time()
            if slabs or left_s <= 0 or (query.before is not None and last_seq >= query.before - 1):
                return slabs
            await self._wait_for_commit(session_id, last_seq, left_s)

    async def end_of(self, session_id: str, run_id: str | None) -> tuple[int, int | None]:
        """The last seq there is, and the seq after which nothing more comes of the session, or of the run; None while
        that is open. SessionNotFound, RunNotFound."""
        _, last_seq = await self._end(session_id)
        if run_id is not None:
            run = await self.find_run(run_id)
            if run is None or run.session_id != session_id:
                raise RunNotFound(
                    f"Session {session_id} has no run {run_id}.", details={"session_id": session_id, "run_id": run_id}
                )
            return last_seq, run.last_seq if run.status.is_terminal else None
        session = await self.find_session(session_id)
        return last_seq, last_seq if session is not None and session.status.is_terminal else None

    def end_of_feed(self) -> FeedEnd:
        """Where the feed of what is committed ends now."""
        return self._commits.end

    async def read_feed(self, after: int, *, tenant: str, types: int, wait_s: float) -> FeedPage:
        """See CommitFeed.read."""
        return await self._commits.read(after, tenant=tenant, types=types, wait_s=wait_s)

    async def _end(self, session_id: str) -> tuple[int, int]:
        known = self._ends.get(session_id)
        if known is None:
            self._refuse_leaving(session_id)
            located = await self._in_reader(self._store.locate, session_id)
            if located is None:
                raise SessionNotFound(details={"session_id": session_id})
            known = self._ends.get(session_id)  # a commit may have come while the reader looked
            if known is None:
                self._refuse_leaving(session_id)
                self._know(session_id, *located)
                return located
        return known

    def _refuse_leaving(self, session_id: str) -> None:
        if session_id in self._leaving:
            raise SessionNotFound(details={"session_id": session_id})

    async def _select(self, session_id: str, session_key: int, query: EventQuery, last_seq: int) -> list[Slab]:
        selection = EventSelection(query, up_to=last_seq)
        recent = self._recent.after(session_id, query.after)
        if recent is not None:
            selection.add(recent)
            return selection.slabs

        def select(sources: LogSources) -> list[Slab]:
            selection.add(sources.batches(session_key, after=query.after, types=selection.mask))
            return selection.finish()

        return await self._in_reader(select, self._store.sources())

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

    async def _in_reader(self, work: Callable[..., ResultT], *args: Any) -> ResultT:
        return await self._loop.run_in_executor(self._pool, work, *args)

    # Artifacts

    async def put_artifact(self, session_id: str, content: bytes) -> str:
        """Keep content for the session; returns its reference once it is durable. StorageFull, StorageWriteFailed."""
        if self._store.writer.room is Room.FULL:
            raise StorageFull
        return await asyncio.to_thread(self._store.artifacts.put, session_id, content)

    async def artifact(self, session_id: str, reference: str) -> bytes:
        """The content. NotFound if the session has none of this reference, StorageReadFailed if it was changed."""
        return await asyncio.to_thread(self._store.artifacts.get, session_id, reference)

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
                tools=tables.tools(session_id),
            )

        return await self._records(read)

    async def owner(self, session_id: str) -> str | None:
        """Name of the newest owner; None if the session does not exist."""
        grant = await self._in_reader(self._store.grant, session_id)
        return grant.owner if grant else None

    async def find_session(self, session_id: str) -> Session | None:
        return await self._records(lambda tables: tables.session(session_id))

    async def find_sessions(self, session_ids: list[str]) -> list[Session]:
        """The records of those that there are."""
        return await self._records(
            lambda tables: [found for found in map(tables.session, session_ids) if found is not None]
        )

    async def find_session_by_key(self, idempotency_key: str) -> str | None:
        return await self._records(
            lambda tables: tables.session_by_key(idempotency_key, since_us=self._keys_since_us())
        )

    async def find_run(self, run_id: str) -> Run | None:
        return await self._records(lambda tables: tables.run(run_id))

    async def find_run_by_key(self, session_id: str, idempotency_key: str) -> str | None:
        return await self._records(
            lambda tables: tables.run_by_key(session_id, idempotency_key, since_us=self._keys_since_us())
        )

    def _keys_since_us(self) -> int:
        return now_us() - round(self.options.idempotency_keys_s * 1_000_000)

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
        return [
            session_id for session_id in await self.sessions_with_open_runs() if await self.owner(session_id) == owner
        ]

    async def save_tools(self, session_id: str, tools: bytes) -> None:
        """Keep the packed tools of a session, in place of earlier ones."""
        await self._records(lambda tables: tables.save_tools(session_id, tools))

    async def save_tools_of_all(self, session_ids: Sequence[str], tools: bytes) -> None:
        """`save_tools` of the same tools for many sessions."""
        await self._records(lambda tables: tables.save_tools_of_all(session_ids, tools))

    async def has_jobs(self) -> bool:
        """Whether there are, or were, batches."""
        return await self._records(lambda tables: tables.has_jobs())

    async def ledger(self, session_ids: Sequence[str]) -> dict[str, LedgerEntry]:
        """Those of the sessions that there are, with their runs: what became of rows of a batch."""
        return await self._records(lambda tables: tables.ledger(session_ids))

    async def row_counts(self, tag: str) -> dict[str, int]:
        """How many of the sessions with this tag there are in each status."""
        return await self._records(lambda tables: tables.row_counts(tag))

    async def tools(self, session_id: str) -> bytes | None:
        """The packed tools; they are no part of the log, so nothing has to be folded first."""
        return await asyncio.wrap_future(self._store.records.run(lambda tables: tables.tools(session_id), after=0))

    async def counts(self) -> dict[str, int]:
        """How much there is: sessions, runs, events, bytes on disk."""
        sessions, runs = await self._records(lambda tables: tables.counts())
        events = self._store.event_count()
        return {"sessions": sessions, "runs": runs, "events": events, "bytes": await asyncio.to_thread(self._bytes)}

    async def status_counts(self) -> dict[str, dict[str, int]]:
        """How many sessions and runs there are in each status."""
        return await self._records(lambda tables: tables.status_counts())

    async def _records(self, read: Callable[[RecordTables], ResultT]) -> ResultT:
        return await asyncio.wrap_future(self._store.records.run(read))

    def _bytes(self) -> int:
        return sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())

    # Queries

    async def refresh_mirror(self) -> Path:
        """Bring the mirror for queries up to date; returns its path."""
        return await self._query.refresh()

    async def query(
        self, paths: Sequence[Path], sql: str, params: Any, *, limit: int, tenant: str | None
    ) -> QueryAnswer:
        """One SELECT over mirrors that were refreshed; see query_runner.ask."""
        return await self._query.query(paths, sql, params, limit=limit, tenant=tenant)

    # The whole life of data

    async def verify_session(self, session_id: str) -> Verification:
        """Read everything of the session from the files, and compare it with its chain. SessionNotFound."""
        session_key, last_seq = await self._end(session_id)
        artifacts = self._store.artifacts
        parts, logs = await asyncio.wrap_future(self._store.keeper.look_at(session_key))
        return await self._in_reader(verify_session, session_id, session_key, last_seq, artifacts, parts, logs)

    async def delete_session(self, session_id: str) -> None:
        """Forget the session: when this returns nobody can read it or write it, and nothing brings it back. Its bytes
        leave the files when they are next compacted. SessionNotFound if there is none, StorageFull while the disk has
        no room for the note of it; then nothing was changed.

        Once begun it is carried out, also when the caller gives up. If the disk refuses in the middle, the caller is
        told so, nobody can own the session, and the rest is done when the disk gives way; if the process ends before
        that, the session is there again, whole."""
        told: asyncio.Future[None] = self._loop.create_future()
        told.add_done_callback(lambda answer: answer.exception())  # whoever asked may be gone
        self._own(self._delete_session(session_id, told))
        await asyncio.shield(told)

    async def _delete_session(self, session_id: str, told: "asyncio.Future[None]") -> None:
        try:
            if await self._look_for_room() is Room.FULL:
                raise StorageFull
            session_key = await asyncio.wrap_future(self._store.writer.leave(session_id))
            if session_key is None:
                raise SessionNotFound(details={"session_id": session_id})
        except GreenroomError as exc:
            told.set_exception(exc)
            return
        self._leaving.add(session_id)
        while not await self._is_deleted(session_id, session_key, told) and self.is_open:
            await asyncio.sleep(_DELETE_RETRY_S)  # no event to wait for: nobody tells when the disk gives way

    async def _is_deleted(self, session_id: str, session_key: int, told: "asyncio.Future[None]") -> bool:
        try:
            await self._delete(session_id, session_key)
        except Exception as exc:  # noqa: BLE001  logged, told, and tried again
            _log.exception("deletion_will_be_tried_again", session_id=session_id)
            if not told.done():
                told.set_exception(storage_error(exc, self.path) if isinstance(exc, OSError) else exc)
            return False
        if not told.done():
            told.set_result(None)
        return True

    async def _delete(self, session_id: str, session_key: int) -> None:
        store = self._store
        await store.keeper.delete(session_key)  # only then may anybody pass over its rows: a crash could bring it back
        await asyncio.wrap_future(store.writer.forget(session_key))
        self._ends.pop(session_id, None)
        self._recent.forget(session_id)
        self._commits.forget(session_id)
        await self._forget_traces(session_id)
        self._query.forget(session_id)
        self._leaving.discard(session_id)
        await asyncio.wrap_future(store.writer.forgotten(session_id))
        self._wake(session_id)

    async def _forget_traces(self, session_id: str) -> None:
        """Everything but its rows in the log. The records last: they tell an opening that there is something to do."""
        await asyncio.to_thread(self._store.artifacts.delete_owner, session_id)
        await self._records(lambda tables: tables.forget(session_id))

    async def compact(self) -> None:
        """Rewrite the files without what was deleted or may be pruned; appends go on meanwhile."""
        await self._store.keeper.compact()
        await self._records(lambda tables: tables.compact())
        await asyncio.to_thread(self._store.artifacts.collect)
        await self._query.compact()

    async def export_session(self, session_id: str, path: Path) -> int:
        """Write the session as it is now to one file; returns how many events it holds. SessionNotFound."""
        await self._end(session_id)
        grant = await self._in_reader(self._store.grant, session_id)
        if grant is None:
            raise SessionNotFound(details={"session_id": session_id})
        return await self._store.keeper.export(grant, path)

    async def import_session(self, path: Path) -> str:
        """Take in the session of an archive; returns its id. InvalidFormat if it is not whole, AlreadyExists if there
        is a session of that name; then nothing was changed."""
        head = await asyncio.to_thread(read_head, path)
        if not await asyncio.wrap_future(self._store.writer.reserve(head.session_id)):
            raise AlreadyExists(
                f"There is a session {head.session_id} here already; delete it first, or import elsewhere.",
                details={"session_id": head.session_id},
            )
        try:
            await self._store.keeper.import_(path)
            self._query.rebuild()
        finally:
            await asyncio.wrap_future(self._store.writer.forgotten(head.session_id))
        return head.session_id

    async def session_ids(self) -> list[str]:
        """Every session that anybody ever owned."""
        return await self._records(lambda tables: tables.session_ids(self._store.sources().granted()))

    async def has_session(self, session_id: str) -> bool:
        """Whether anybody ever owned it."""
        return await self._in_reader(self._store.grant, session_id) is not None

    async def expired_sessions(self, statuses: Sequence[str], before_us: int) -> list[str]:
        """Sessions in one of these states that nothing has changed since that time."""
        return await self._records(lambda tables: tables.unchanged_sessions(statuses, before_us))

    async def hand_over(self, session_ids: Sequence[str]) -> HandedOver:
        """What another store needs to take these sessions over."""
        await self._store.keeper.freeze()
        grants = [await self._in_reader(self._store.grant, session_id) for session_id in session_ids]
        tools = [(session_id, await self.tools(session_id)) for session_id in session_ids]
        return HandedOver(
            session_ids=list(session_ids),
            session_keys=[grant.session_key for grant in grants if grant is not None],
            parts=[part.path for part in self._store.sources().parts],
            tools={session_id: packed for session_id, packed in tools if packed is not None},
            artifacts=self._store.artifacts,
        )

    async def adopt(self, sessions: HandedOver) -> None:
        """Take these sessions over; whoever handed them over may delete them when this returns."""
        for session_id in sessions.session_ids:
            await asyncio.to_thread(_copy_artifacts, sessions.artifacts, self._store.artifacts, session_id)
        for session_id, packed in sessions.tools.items():
            await self.save_tools(session_id, packed)
        await self._store.keeper.adopt(sessions.parts, sessions.session_keys)

    async def back_up(self, target: Path) -> int:
        """Copy the store as it is now to a folder that does not exist yet; returns the bytes."""
        return await self._store.keeper.back_up(target)

    def _own(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _copy_artifacts(source: ArtifactStore, target: ArtifactStore, owner: str) -> None:
    for reference in source.references(owner):
        target.put(owner, source.get(owner, reference))
