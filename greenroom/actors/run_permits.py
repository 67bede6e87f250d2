"""A server's share of the runtime's slots: asked for one run at a time, given back when it ends."""

import asyncio
from dataclasses import replace
from typing import Any

import ray.exceptions

from ..adapters.logs import get_logger
from ..domain.amount import Amount
from ..domain.budget import BudgetAnswer, BudgetDecision
from ..domain.slots import Slot

_log = get_logger(__name__)

_RETRY_S = 0.5


class RunPermits:
    """Implements RunGate over the Limiter. Serves all sessions of its process."""

    def __init__(self, limiter: Any, holder: str) -> None:
        self._limiter = limiter
        self._holder = holder
        self._held: dict[str, Slot] = {}
        self._asked: set[str] = set()

    async def enter(self, slot: Slot) -> BudgetDecision:
        slot = replace(slot, holder=self._holder)
        self._asked.add(slot.run_id)
        decision = await self._acquire(slot)
        if decision.answer is BudgetAnswer.GRANTED:
            self._held[slot.run_id] = slot
        return decision

    def move(self, run_id: str, provider: str) -> None:
        slot = self._held.get(run_id)
        if slot is not None and slot.provider != provider:
            self._held[run_id] = replace(slot, provider=provider)
            self._limiter.move.remote(run_id, provider)

    def leave(self, run_id: str, used: Amount) -> None:
        self._held.pop(run_id, None)
        if run_id in self._asked:
            self._asked.discard(run_id)
            self._limiter.release.remote(run_id, used)

    async def renew(self) -> None:
        """Tell the Limiter that this process lives, and what it has."""
        await self._limiter.renew.remote(self._holder, list(self._held.values()))

    async def _acquire(self, slot: Slot) -> BudgetDecision:
        while True:
            try:
                decision: BudgetDecision | None = await self._limiter.acquire.remote(slot)
            except ray.exceptions.RayError:
                _log.warning("limiter_does_not_answer", run_id=slot.run_id, exc_info=True)
                await asyncio.sleep(_RETRY_S)
                continue
            if decision is not None:
                return decision
            # given up: the limiter took this process for dead, and it is not
