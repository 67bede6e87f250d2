"""The actor that counts runs over all sessions, where the runtime has limits on them."""

import asyncio
from collections.abc import Sequence

import ray

from ..adapters.logs import get_logger, log_to_stderr
from ..domain.slots import Slot, SlotLimits, SlotTable

_log = get_logger(__name__)

_WATCHES = 4


class Limiter:
    """Grants slots to servers for their runs. What it knows it can lose: holders say again and again what they have.

    A limiter that was started anew grants nothing for half a lease, until the holders have said what they have. Slots
    of a holder that is silent for a whole lease come back.
    """

    def __init__(self, limits: SlotLimits, lease_s: float) -> None:
        log_to_stderr()
        self._table = SlotTable(limits)
        self._lease_s = lease_s
        self._loop = asyncio.get_running_loop()
        self._heard: dict[str, float] = {}
        self._waiting: dict[str, asyncio.Future[bool]] = {}
        restarted = ray.get_runtime_context().was_current_actor_reconstructed
        self._opens_at = self._loop.time() + (lease_s / 2 if restarted else 0.0)
        self._watching = self._loop.create_task(self._watch(), name="greenroom-limiter")

    async def acquire(self, slot: Slot) -> bool:
        """Wait for a slot. False when it was given up meanwhile."""
        self._heard.setdefault(slot.holder, self._loop.time())
        self._table.ask(slot)
        waiter = self._waiting.get(slot.run_id)
        if waiter is None:
            waiter = self._waiting[slot.run_id] = self._loop.create_future()
        if slot.run_id in self._table.held:
            self._answer(slot.run_id, True)
        self._grant()
        return await asyncio.shield(waiter)

    async def release(self, run_id: str) -> None:
        """The run has ended, or waits no more."""
        self._table.release(run_id)
        self._answer(run_id, False)
        self._grant()

    async def renew(self, holder: str, held: Sequence[Slot]) -> None:
        """The holder is alive and has these slots."""
        self._heard[holder] = self._loop.time()
        for slot in held:
            self._table.hold(slot)

    async def drop(self, holder: str) -> None:
        """The holder is gone: its slots come back."""
        self._heard.pop(holder, None)
        for run_id in self._table.drop(holder):
            self._answer(run_id, False)
        self._grant()

    def _grant(self) -> None:
        if self._loop.time() >= self._opens_at:
            for run_id in self._table.grant():
                self._answer(run_id, True)

    def _answer(self, run_id: str, granted: bool) -> None:
        waiter = self._waiting.pop(run_id, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(granted)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / _WATCHES)
            now = self._loop.time()
            for holder in [one for one, heard in self._heard.items() if now - heard > self._lease_s]:
                _log.warning("slots_of_silent_holder_taken_back", holder=holder)
                await self.drop(holder)
            self._grant()
