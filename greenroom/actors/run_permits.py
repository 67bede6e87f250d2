"""A server's share of the runtime's slots: asked for one run at a time, given back when it ends."""

import asyncio
from collections.abc import Callable
from typing import Any

import ray.exceptions

from ..adapters.logs import get_logger
from ..domain.slots import Slot

_log = get_logger(__name__)

_RETRY_S = 0.5


class RunPermits:
    """Implements RunGate over the Limiter. Serves all sessions of its process."""

    def __init__(self, limiter: Any, holder: str) -> None:
        self._limiter = limiter
        self._holder = holder
        self._held: dict[str, Slot] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}

    def admit(
        self, run_id: str, *, provider: str, tenant: str | None, priority: int, retry: Callable[[], None]
    ) -> bool:
        if run_id in self._held:
            return True
        if run_id not in self._asking:
            slot = Slot(run_id=run_id, holder=self._holder, provider=provider, tenant=tenant, priority=priority)
            self._asking[run_id] = asyncio.get_running_loop().create_task(self._ask(slot, retry))
        return False

    def release(self, run_id: str) -> None:
        asking = self._asking.pop(run_id, None)
        held = self._held.pop(run_id, None)
        if asking is not None:
            asking.cancel()
        if asking is not None or held is not None:
            self._limiter.release.remote(run_id)

    async def renew(self) -> None:
        """Tell the Limiter that this process lives, and what it has."""
        await self._limiter.renew.remote(self._holder, list(self._held.values()))

    async def _ask(self, slot: Slot, retry: Callable[[], None]) -> None:
        while True:
            try:
                granted: bool = await self._limiter.acquire.remote(slot)
                break
            except ray.exceptions.RayError:
                _log.warning("limiter_does_not_answer", run_id=slot.run_id, exc_info=True)
                await asyncio.sleep(_RETRY_S)
        self._asking.pop(slot.run_id, None)
        if granted:
            self._held[slot.run_id] = slot
        retry()
