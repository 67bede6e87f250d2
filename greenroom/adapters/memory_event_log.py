"""The event log in memory: the same port and the same promises but for durability. For tests and for thought."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..domain.errors import InvalidCursor, SessionNotFound, WriterFenced
from ..domain.event import RECORD_TYPES, Event, NewEvent
from ..domain.event_log import CommitListener, Committed, EventQuery, Ownership, SessionRecords
from ..domain.record_projection import changes_session, fold_run, fold_session
from ..domain.run import Run
from ..domain.session import Session
from .clock import now_us
from .event_codec import BatchEncoder, EncodedBatch, Slab, decode_slab
from .event_log_client import PackedBatch


@dataclass(slots=True)
class _Log:
    epoch: int = 0
    events: list[Event] = field(default_factory=list[Event])
    session: Session | None = None
    runs: dict[str, Run] = field(default_factory=dict[str, Run])
    on_commit: CommitListener | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class MemoryEventLog:
    """Commits in the next turn of the loop, so that whoever forgets to wait for a commit is found out."""

    def __init__(self) -> None:
        self._logs: dict[str, _Log] = {}
        self._encoder = BatchEncoder()

    async def acquire(
        self, session_id: str, owner: str, on_commit: CommitListener, *, must_exist: bool = False
    ) -> Ownership:
        if must_exist:
            self._log(session_id)
        log = self._logs.setdefault(session_id, _Log())
        log.epoch += 1
        log.on_commit = on_commit
        return Ownership(epoch=log.epoch, last_seq=len(log.events), records=await self.load(session_id))

    async def acquire_new(self, listeners: Mapping[str, CommitListener], owner: str) -> list[Ownership | None]:
        return [
            None if session_id in self._logs else await self.acquire(session_id, owner, on_commit)
            for session_id, on_commit in listeners.items()
        ]

    def release(self, session_id: str, epoch: int) -> None:
        log = self._logs[session_id]
        if log.epoch == epoch:
            log.epoch += 1

    def append(self, session_id: str, epoch: int, events: Sequence[NewEvent]) -> "asyncio.Future[Committed]":
        batch = self._encoder.encode(events)
        committed: asyncio.Future[Committed] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(self._commit, session_id, epoch, batch, committed)
        return committed

    def record(self, session_id: str, epoch: int, events: Sequence[NewEvent]) -> None:
        asyncio.get_running_loop().call_soon(self._commit, session_id, epoch, self._encoder.encode(events), None)

    @property
    def has_room(self) -> bool:
        return True

    async def room(self) -> None:
        return None

    async def require_room(self) -> None:
        return None

    async def acknowledged(self, session_id: str, committed: "asyncio.Future[Committed]") -> None:
        await asyncio.shield(committed)

    async def read(self, session_id: str, query: EventQuery, *, wait_s: float = 0) -> list[Event]:
        log = self._log(session_id)
        if query.after > len(log.events):
            raise InvalidCursor(details={"field": "after", "last_seq": len(log.events)})
        try:
            async with asyncio.timeout(wait_s):
                while not (found := _matching(log.events, query)):
                    log.changed.clear()
                    await log.changed.wait()
        except TimeoutError:
            return _matching(log.events, query)
        return found

    async def load(self, session_id: str) -> SessionRecords:
        log = self._log(session_id)
        runs = sorted(log.runs.values(), key=lambda run: run.queued_seq)
        return SessionRecords(
            session=log.session,
            open_runs=tuple(run for run in runs if not run.status.is_terminal),
            run_count=len(runs),
            recent_calls=tuple((run.call_id, run.id) for run in runs if run.call_id is not None),
        )

    async def find_run(self, run_id: str) -> Run | None:
        return next((log.runs[run_id] for log in self._logs.values() if run_id in log.runs), None)

    async def find_run_by_key(self, session_id: str, idempotency_key: str) -> str | None:
        runs = self._log(session_id).runs.values()
        return next((run.id for run in runs if run.idempotency_key == idempotency_key), None)

    def _log(self, session_id: str) -> _Log:
        if session_id not in self._logs:
            raise SessionNotFound(details={"session_id": session_id})
        return self._logs[session_id]

    def _commit(
        self, session_id: str, epoch: int, batch: EncodedBatch, committed: "asyncio.Future[Committed] | None"
    ) -> None:
        log = self._log(session_id)
        if epoch != log.epoch:
            if committed is not None and not committed.done():
                committed.set_exception(WriterFenced(details={"session_id": session_id, "epoch": epoch}))
            return
        first_seq = len(log.events) + 1
        slab = Slab(range(first_seq, first_seq + batch.event_count), now_us(), batch.payload)
        for event in decode_slab(session_id, slab):
            log.events.append(event)
            _project(log, event)
        log.changed.set()
        if log.on_commit is not None:
            log.on_commit(PackedBatch(session_id, slab))
        if committed is not None and not committed.done():
            committed.set_result(Committed(first_seq, slab.recorded_at_us))


def _project(log: _Log, event: Event) -> None:
    if event.type not in RECORD_TYPES:
        return
    if changes_session(event):
        log.session = fold_session(log.session, event, epoch=log.epoch)
    if event.run_id is not None:
        log.runs[event.run_id] = fold_run(log.runs.get(event.run_id), event)


def _matching(events: list[Event], query: EventQuery) -> list[Event]:
    before = query.before if query.before is not None else len(events) + 1
    window = events[query.after : max(query.after, before - 1)]
    return [event for event in window if query.matches(event)][: query.limit]
