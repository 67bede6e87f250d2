"""Keeping the query mirror of one store up to date, and running queries over it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from ...domain.errors import QueueFull, StorageConnectionFailed
from .chunks import SealedBatch
from .log_sources import LogSources
from .maintenance import run_maintenance
from .open_store import OpenStore
from .query_refresh import RefreshOrder
from .query_runner import QueryAnswer, ask
from .session_transfer import write_tail

MIRROR_NAME = "query.duckdb"
MAX_WAITING = 16
"""Queries that may wait for the mirror at once; one more is refused with queue_full."""

_RETRY_S = 0.1
_PAGE = 4096

ResultT = TypeVar("ResultT")


class QueryDesk:
    """The mirror is made at the first query, and brought up to date by each; a store that nobody queries has none."""

    def __init__(self, store: OpenStore, *, timeout_s: float) -> None:
        self._store = store
        self._timeout_s = timeout_s
        self._path = store.folder.path / MIRROR_NAME
        self._refreshing = asyncio.Lock()
        self._waiting = 0
        self._mirrored = 0
        self._forgotten: set[str] = set(store.deleted)
        self._rebuild = False
        self._compact = False

    async def refresh(self) -> Path:
        """Bring the mirror up to everything that was committed before the call; returns its path."""
        if self._waiting >= MAX_WAITING:
            raise QueueFull(f"{self._waiting} queries wait already; try again.", details={"waiting": self._waiting})
        self._waiting += 1
        try:
            async with self._refreshing:
                await self._catch_up()
        finally:
            self._waiting -= 1
        return self._path

    async def query(
        self, paths: Sequence[Path], sql: str, params: Any, *, limit: int, tenant: str | None
    ) -> QueryAnswer:
        """Run one SELECT over these mirrors. See query_runner.ask for what is refused."""
        return await self._when_free(
            lambda: ask(paths, sql, params, limit=limit, tenant=tenant, timeout_s=self._timeout_s)
        )

    def forget(self, session_id: str) -> None:
        """The session is to be gone from the mirror before the next query."""
        self._forgotten.add(session_id)

    def rebuild(self) -> None:
        """Begin the mirror anew: sessions came into the log behind what is mirrored."""
        self._rebuild = True

    async def compact(self) -> None:
        """Take the bytes of forgotten sessions out of the mirror's file."""
        if self._path.exists():
            self._compact = True
            await self.refresh()

    async def _catch_up(self) -> None:
        sources, newest = await asyncio.wrap_future(
            self._store.writer.between_groups(lambda: (self._store.sources(), self._store.writer.committed_batch))
        )
        if newest == self._mirrored and not (self._forgotten or self._rebuild or self._compact):
            return
        since = 0 if self._rebuild else self._mirrored
        watermark = await self._refresh(sources, since, newest)
        if watermark < since:  # it was lost or damaged, and begun anew
            watermark = await self._refresh(sources, watermark, newest)
        self._mirrored = watermark

    async def _refresh(self, sources: LogSources, since: int, newest: int) -> int:
        forgotten, rebuild, compact = sorted(self._forgotten), self._rebuild, self._compact
        with self._store.folder.workspace() as work:
            tail = await asyncio.to_thread(_tail, sources, since, newest)
            await asyncio.to_thread(write_tail, work / "tail", [batch for _, batch in tail])
            order = RefreshOrder(
                path=str(self._path),
                parts=await self._store.keeper.pinned_parts(sources, since, work),
                tail=str(work / "tail"),
                tail_sessions=[session_id for session_id, _ in tail],
                since=since,
                up_to=newest,
                deleted=self._store.keeper.manifest.deleted,
                forgotten=forgotten,
                rebuild=rebuild,
                compact=compact,
                artifacts=str(self._store.folder.artifacts_path),
            )
            answer: dict[str, int] = await self._when_free(lambda: run_maintenance("mirror", asdict(order)))
        self._forgotten.difference_update(forgotten)
        self._rebuild &= not rebuild
        self._compact &= not compact
        return answer["watermark"]

    async def _when_free(self, work: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """A mirror is read by many or written by one; DuckDB's lock on the file says which: try until it is free."""
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        while True:
            try:
                return await work()
            except StorageConnectionFailed:
                if asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(_RETRY_S)


def _tail(sources: LogSources, since: int, newest: int) -> list[tuple[str, SealedBatch]]:
    """The batches past `since` in log files, with their sessions."""
    found: list[tuple[str, SealedBatch]] = []
    while since < newest:
        page = sources.batches_from(since + 1, _PAGE)
        if not page:
            break
        found += [(session_id, batch) for session_id, batch in page if session_id and batch.batch_id <= newest]
        since = page[-1][1].batch_id
    return found
