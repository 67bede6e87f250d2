"""Slots for runs, over the whole runtime: who has one, and who waits for one. Pure bookkeeping: no clock, no I/O."""

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .amount import UNKNOWN, Amount
from .budget import BudgetAnswer, BudgetDecision, BudgetTree
from .budget_options import BudgetOptions
from .priority import usable


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotLimits:
    """How many runs may be under way at once; None: any number."""

    total: int | None = None
    per_provider: Mapping[str, int] = field(default_factory=dict[str, int])
    per_tenant: int | None = None
    budgets: Mapping[str, BudgetOptions] = field(default_factory=dict[str, BudgetOptions])
    """By scope: what all of its runs may use together."""

    @property
    def are_set(self) -> bool:
        return bool(self.total is not None or self.per_provider or self.per_tenant is not None or self.budgets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A run that has a slot or wants one."""

    run_id: str
    provider: str
    tenant: str | None
    holder: str = ""
    """The server that carries the run out: its slots come back when it dies."""
    priority: int = 0
    scopes: tuple[str, ...] = ()
    """Whose budgets it is charged to."""
    model: str | None = None
    most: Amount = UNKNOWN
    """What it may use by its own limits."""
    beyond: tuple[str, ...] = ()
    """Scopes whose budget it may exceed: their owner lets it, or somebody has agreed."""


class SlotTable:
    """Grants slots in the order of priority, and within one in the order in which they were asked for. Runs of a
    priority below 0 leave a tenth of each limit to others.

    One whose provider or tenant is at its limit does not hold up the others. Sessions ask only for the run that is next
    in their queue, so no session fills the line, which is never longer than there are live sessions.
    """

    def __init__(self, limits: SlotLimits) -> None:
        self.limits = limits
        self.budgets = BudgetTree(limits.budgets)
        self._held: dict[str, Slot] = {}
        self._line: dict[str, tuple[int, int, Slot]] = {}
        self._arrivals = itertools.count()
        self._providers: Counter[str] = Counter()
        self._tenants: Counter[str | None] = Counter()

    @property
    def held(self) -> tuple[str, ...]:
        """Runs that have a slot."""
        return tuple(self._held)

    @property
    def waiting(self) -> tuple[str, ...]:
        """Runs that wait for one, the next first."""
        return tuple(self._line_in_order())

    def ask(self, slot: Slot) -> None:
        """The run wants a slot; `grant` says when it has it. One that has asked or has a slot keeps its place."""
        if slot.run_id not in self._held and slot.run_id not in self._line:
            self._line[slot.run_id] = (-slot.priority, next(self._arrivals), slot)

    def hold(self, slot: Slot) -> None:
        """The run has a slot by its holder's word, granted before this table was made."""
        self._line.pop(slot.run_id, None)
        if slot.run_id not in self._held:
            self._take(slot)

    def grant(self) -> list[tuple[str, BudgetDecision]]:
        """Give the free slots to those who wait; the runs that have one now, and those whose budget is used up."""
        answered: list[tuple[str, BudgetDecision]] = []
        saving: set[str] = set()  # scopes in which somebody waits for more than is left: those behind do not take it
        for run_id in self._line_in_order():
            slot = self._line[run_id][2]
            if self.limits.total is not None and len(self._held) >= usable(self.limits.total, slot.priority):
                break  # those behind it have no higher priority
            if not self._fits(slot) or not saving.isdisjoint(slot.scopes):
                continue
            decision = self._budgeted(slot)
            if decision.answer is BudgetAnswer.WAIT:
                saving.add(decision.scope or "")
                continue
            del self._line[run_id]
            if decision.answer is BudgetAnswer.GRANTED:
                self._take(slot)
            answered.append((run_id, decision))
        return answered

    def release(self, run_id: str, used: Amount | None = None) -> None:
        """The run has ended and used so much, or it waits no more. None: nobody knows."""
        self._line.pop(run_id, None)
        slot = self._held.pop(run_id, None)
        if slot is not None:
            self._providers[slot.provider] -= 1
            self._tenants[slot.tenant] -= 1
            if used is None:
                self.budgets.forfeit(run_id)
            else:
                self.budgets.commit(run_id, used)

    def move(self, run_id: str, provider: str) -> None:
        """The run, which has a slot, is at another provider now."""
        slot = self._held.get(run_id)
        if slot is not None:
            self._providers[slot.provider] -= 1
            self._providers[provider] += 1
            self._held[run_id] = replace(slot, provider=provider)

    def drop(self, holder: str) -> list[str]:
        """The holder is gone; returns the runs whose slots came back or who waited."""
        gone = [slot.run_id for slot in self._held.values() if slot.holder == holder]
        gone += [run_id for run_id, (_, _, slot) in self._line.items() if slot.holder == holder]
        for run_id in gone:
            self.release(run_id)
        return gone

    def _line_in_order(self) -> list[str]:
        return sorted(self._line, key=lambda run_id: self._line[run_id][:2])

    def _fits(self, slot: Slot) -> bool:
        of_provider = self.limits.per_provider.get(slot.provider)
        if of_provider is not None and self._providers[slot.provider] >= usable(of_provider, slot.priority):
            return False
        if slot.tenant is None or self.limits.per_tenant is None:
            return True
        return self._tenants[slot.tenant] < usable(self.limits.per_tenant, slot.priority)

    def _budgeted(self, slot: Slot) -> BudgetDecision:
        scopes = [scope for scope in slot.scopes if scope not in slot.beyond]
        return self.budgets.decide(scopes, (slot.provider, slot.model), slot.most)

    def _take(self, slot: Slot) -> None:
        self.budgets.reserve(slot.run_id, slot.scopes, (slot.provider, slot.model), slot.most)
        self._held[slot.run_id] = slot
        self._providers[slot.provider] += 1
        self._tenants[slot.tenant] += 1
