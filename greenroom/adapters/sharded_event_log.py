"""The event log over several stores: each session is in the one that its id says."""

import asyncio
from collections.abc import Mapping, Sequence

from ..domain.event import Event, NewEvent
from ..domain.event_log import CommitListener, Committed, EventLog, EventQuery, Ownership, SessionRecords
from ..domain.run import Run
from ..domain.sharding import shard_of


class ShardedEventLog:
    """Implements the EventLog port over logs that each have some of the sessions."""

    def __init__(self, logs: Sequence[EventLog]) -> None:
        self._logs = logs

    def _of(self, session_id: str) -> EventLog:
        return self._logs[shard_of(session_id, len(self._logs))]

    async def acquire(
        self, session_id: str, owner: str, on_commit: CommitListener, *, must_exist: bool = False
    ) -> Ownership:
        return await self._of(session_id).acquire(session_id, owner, on_commit, must_exist=must_exist)

    async def acquire_new(self, listeners: Mapping[str, CommitListener], owner: str) -> list[Ownership | None]:
        parts: dict[int, dict[str, CommitListener]] = {}
        for session_id, on_commit in listeners.items():
            parts.setdefault(shard_of(session_id, len(self._logs)), {})[session_id] = on_commit
        answers = await asyncio.gather(*(self._logs[shard].acquire_new(part, owner) for shard, part in parts.items()))
        found: dict[str, Ownership | None] = {}
        for part, answer in zip(parts.values(), answers, strict=True):
            found.update(zip(part, answer, strict=True))
        return [found[session_id] for session_id in listeners]

    def release(self, session_id: str, epoch: int) -> None:
        self._of(session_id).release(session_id, epoch)

    def append(self, session_id: str, epoch: int, events: Sequence[NewEvent]) -> "asyncio.Future[Committed]":
        return self._of(session_id).append(session_id, epoch, events)

    def record(self, session_id: str, epoch: int, events: Sequence[NewEvent]) -> None:
        self._of(session_id).record(session_id, epoch, events)

    @property
    def has_room(self) -> bool:
        return all(log.has_room for log in self._logs)

    async def room(self) -> None:
        for log in self._logs:
            await log.room()

    async def require_room(self) -> None:
        for log in self._logs:
            await log.require_room()

    async def acknowledged(self, session_id: str, committed: "asyncio.Future[Committed]") -> None:
        await self._of(session_id).acknowledged(session_id, committed)

    async def read(self, session_id: str, query: EventQuery, *, wait_s: float = 0) -> list[Event]:
        return await self._of(session_id).read(session_id, query, wait_s=wait_s)

    async def load(self, session_id: str) -> SessionRecords:
        return await self._of(session_id).load(session_id)

    async def find_run(self, run_id: str) -> Run | None:
        found = await asyncio.gather(*(log.find_run(run_id) for log in self._logs))
        return next((run for run in found if run is not None), None)

    async def find_run_by_key(self, session_id: str, idempotency_key: str) -> str | None:
        return await self._of(session_id).find_run_by_key(session_id, idempotency_key)
