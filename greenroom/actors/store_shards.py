"""The event store's actors as one: the session's id says which of them has it."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import ray.exceptions

from ..adapters.event_log_client import EventLogClient
from ..adapters.sharded_event_log import ShardedEventLog
from ..domain.batch_row import LedgerEntry
from ..domain.event_log import EventLog
from ..domain.run import Run
from ..domain.session import Session
from ..domain.sharding import shard_of
from .ray_errors import raise_bare
from .store_access import RayStoreAccess


class StoreShards:
    """Travels to whoever needs the store. Errors are the bare ones of greenroom."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self.actors = tuple(actors)
        """In the order of their numbers."""

    def event_log(self, *, spill_bytes: int) -> EventLog:
        """The log, for this process; data of events above spill_bytes goes to the artifact store."""
        logs = [EventLogClient(RayStoreAccess(actor), spill_bytes=spill_bytes) for actor in self.actors]
        return logs[0] if len(logs) == 1 else ShardedEventLog(logs)

    async def ask(self, session_id: str, method: str, *args: Any) -> Any:
        """The answer of the actor that has the session; its id is the call's first argument."""
        return await _answer(self.actors[shard_of(session_id, len(self.actors))], method, session_id, *args)

    async def ask_all(self, method: str, *args: Any) -> list[Any]:
        """The answers of all, in their order."""
        return await asyncio.gather(*(_answer(actor, method, *args) for actor in self.actors))

    async def ask_shard(self, shard: int, method: str, *args: Any) -> Any:
        """The answer of one of them."""
        return await _answer(self.actors[shard], method, *args)

    async def ask_first(self, method: str, *args: Any) -> Any:
        """The answer of the first of them, which acts for all."""
        return await _answer(self.actors[0], method, *args)

    async def first(self, method: str, *args: Any) -> Any:
        """The answer of whoever has one; None if nobody has."""
        return next((answer for answer in await self.ask_all(method, *args) if answer is not None), None)

    async def joined(self, method: str, *args: Any) -> list[Any]:
        """The lists of all, one after another."""
        return [item for answer in await self.ask_all(method, *args) for item in answer]

    async def save_tools(self, session_ids: Sequence[str], tools: bytes) -> None:
        """Keep the same tools for all of the sessions, each where it is."""
        await self._ask_parts("save_tools_of_all", session_ids, tools)

    async def ledger(self, session_ids: Sequence[str]) -> dict[str, LedgerEntry]:
        """Those of the sessions that there are, with their runs."""
        answers: list[dict[str, LedgerEntry]] = await self._ask_parts("ledger", session_ids)
        return {session_id: entry for answer in answers for session_id, entry in answer.items()}

    async def row_counts(self, tag: str) -> dict[str, int]:
        """How many of the sessions with this tag there are in each status."""
        found: Counter[str] = Counter()
        for answer in await self.ask_all("row_counts", tag):
            found.update(answer)
        return dict(found)

    async def _ask_parts(self, method: str, session_ids: Sequence[str], *args: Any) -> list[Any]:
        """The answers of those who have some of the sessions, each asked for its own."""
        parts: dict[int, list[str]] = {}
        for session_id in session_ids:
            parts.setdefault(shard_of(session_id, len(self.actors)), []).append(session_id)
        return await asyncio.gather(*(_answer(self.actors[shard], method, ids, *args) for shard, ids in parts.items()))

    async def list_sessions(self, filters: dict[str, Any]) -> list[Session]:
        """A page over all shards, in the order of ids."""
        found: list[Session] = await self.joined("list_sessions", filters)
        found.sort(key=lambda session: session.id, reverse=filters["newest_first"])
        return found[: filters["limit"]]

    async def list_runs(self, filters: dict[str, Any]) -> list[Run]:
        """A page over all shards, in the order of ids."""
        found: list[Run] = await self.joined("list_runs", filters)
        return sorted(found, key=lambda run: run.id)[: filters["limit"]]

    async def status_counts(self) -> dict[str, dict[str, int]]:
        """How many sessions and runs there are in each status, in all of them."""
        answers: list[dict[str, dict[str, int]]] = await self.ask_all("status_counts")
        found: dict[str, Counter[str]] = {}
        for answer in answers:
            for noun, by_status in answer.items():
                found.setdefault(noun, Counter()).update(by_status)
        return {noun: dict(by_status) for noun, by_status in found.items()}

    async def counts(self) -> dict[str, int]:
        """How much there is in all of them."""
        counts: list[dict[str, int]] = await self.ask_all("counts")
        return {name: sum(each[name] for each in counts) for name in counts[0]}


async def _answer(actor: Any, method: str, *args: Any) -> Any:
    try:
        return await getattr(actor, method).remote(*args)
    except ray.exceptions.RayError as exc:
        raise_bare(exc)
