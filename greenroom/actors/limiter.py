"""The actor that counts runs over all sessions and what they cost, where the runtime has limits on them."""

import asyncio
from collections.abc import Sequence
from typing import Any

import ray

from ..adapters.logs import get_logger, log_to_stderr
from ..domain.amount import Amount
from ..domain.budget import BudgetAnswer, BudgetDecision, BudgetState
from ..domain.slots import Slot, SlotLimits, SlotTable
from .holders import Holders
from .spending import spending

_log = get_logger(__name__)

_GRANTED = BudgetDecision(BudgetAnswer.GRANTED)
_RETRY_S = 1.0


class Limiter:
    """Grants slots to servers for their runs. What it knows it can lose: holders say again and again what they have,
    and what was spent is in the log.

    A limiter that was started anew grants nothing for half a lease, until the holders have said what they have. Slots
    of a holder that is silent for a whole lease come back.
    """

    def __init__(self, limits: SlotLimits, lease_s: float, stores: Any) -> None:
        log_to_stderr()
        self._table = SlotTable(limits)
        self._stores = stores
        self._loop = asyncio.get_running_loop()
        self._holders = Holders(lease_s, self._drop)
        self._waiting: dict[str, asyncio.Future[BudgetDecision | None]] = {}
        restarted = ray.get_runtime_context().was_current_actor_reconstructed
        self._is_ready = False
        self._preparing = self._loop.create_task(self._prepare(lease_s / 2 if restarted else 0.0))

    async def acquire(self, slot: Slot) -> BudgetDecision | None:
        """Wait for a slot. EXCEEDED when its budget is used up, None when it was given up meanwhile."""
        self._holders.heard(slot.holder)
        self._table.ask(slot)
        waiter = self._waiting.get(slot.run_id)
        if waiter is None:
            waiter = self._waiting[slot.run_id] = self._loop.create_future()
        if slot.run_id in self._table.held:
            self._answer(slot.run_id, _GRANTED)
        self._grant()
        return await asyncio.shield(waiter)

    async def release(self, run_id: str, used: Amount) -> None:
        """The run has ended, or waits no more."""
        self._table.release(run_id, used)
        self._answer(run_id, None)
        self._grant()

    async def move(self, run_id: str, provider: str) -> None:
        """The run, which has a slot, is at another provider now."""
        self._table.move(run_id, provider)
        self._grant()

    async def renew(self, holder: str, held: Sequence[Slot]) -> None:
        """The holder is alive and has these slots."""
        self._holders.heard(holder)
        for slot in held:
            self._table.hold(slot)

    async def drop(self, holder: str) -> None:
        """The holder is gone: its slots come back."""
        self._holders.gone(holder)

    async def budgets(self) -> dict[str, BudgetState]:
        """What was used of each budget up to now, by scope."""
        await asyncio.shield(self._preparing)
        return self._table.budgets.states()

    def _drop(self, holder: str) -> None:
        for run_id in self._table.drop(holder):
            self._answer(run_id, None)
        self._grant()

    def _grant(self) -> None:
        if self._is_ready:
            for run_id, decision in self._table.grant():
                self._answer(run_id, decision)

    def _answer(self, run_id: str, decision: BudgetDecision | None) -> None:
        waiter = self._waiting.pop(run_id, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(decision)

    async def _prepare(self, hold_back_s: float) -> None:
        """Hear what holders have, and read what was spent, before anything is granted."""
        if self._table.limits.budgets:
            for scope, used in (await self._read_spending()).items():
                self._table.budgets.spend(scope, used)
        await asyncio.sleep(hold_back_s)
        self._is_ready = True
        self._grant()

    async def _read_spending(self) -> dict[str, Amount]:
        while True:
            try:
                return await spending(self._stores)
            except Exception:  # noqa: BLE001  a budget that does not know what was spent must grant nothing
                _log.warning("spending_cannot_be_read", exc_info=True)
                await asyncio.sleep(_RETRY_S)
