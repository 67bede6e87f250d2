"""Budgets over many runs: a tree of scopes (the whole runtime, a tenant, a project, a session), each with what it may
spend. A run sets aside what it is likely to need before it starts, in all of its scopes at once, so that those that
start together cannot spend the same money twice."""

from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from .amount import MICRO, Amount
from .budget_options import BudgetOptions
from .policy import OnViolation

_REMEMBERED_RUNS = 10
"""The dearest of so many of the last runs of the same kind is what the next one is likely to need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetState:
    """A budget, and what was used of it. None: that is not limited, so it is not counted."""

    options: BudgetOptions
    spent_usd: float | None
    reserved_usd: float | None
    spent_tokens: int | None
    reserved_tokens: int | None


class BudgetAnswer(StrEnum):
    """What a run is told that wants to start."""

    GRANTED = "granted"
    WAIT = "wait"
    """Too little is left, but runs under way may need less than they have set aside."""
    EXCEEDED = "exceeded"
    """Too little is left, and nobody will give anything back."""


class BudgetDecision(NamedTuple):
    """The answer, and which scope gave it."""

    answer: BudgetAnswer
    scope: str | None = None
    options: BudgetOptions | None = None


@dataclass(slots=True)
class _Purse:
    """One kind of thing that a scope may spend."""

    cap: int
    spent: int = 0
    reserved: int = 0

    def answer(self, amount: int | None) -> BudgetAnswer:
        """What is not known needs all that is left, so nobody may be under way beside it."""
        left = self.cap - self.spent - self.reserved
        if left > 0 and (not self.reserved if amount is None else amount <= left):
            return BudgetAnswer.GRANTED
        return BudgetAnswer.WAIT if self.reserved else BudgetAnswer.EXCEEDED


class _Scope:
    def __init__(self, options: BudgetOptions) -> None:
        self.options = options
        caps = Amount.of(options.max_cost_usd, options.max_total_tokens)
        self.purses = [None if cap is None else _Purse(cap) for cap in caps]

    def answer(self, amount: Amount) -> BudgetAnswer:
        answers = [purse.answer(one) for purse, one in zip(self.purses, amount, strict=True) if purse is not None]
        for worst in (BudgetAnswer.EXCEEDED, BudgetAnswer.WAIT):
            if worst in answers:
                return worst
        return BudgetAnswer.GRANTED

    def reserve(self, amount: Amount) -> tuple[int, int]:
        """Set it aside, all that is left where it is not known; what was set aside of each."""
        taken: list[int] = []
        for purse, one in zip(self.purses, amount, strict=True):
            if purse is None:
                taken.append(0)
                continue
            taken.append(max(0, purse.cap - purse.spent - purse.reserved) if one is None else one)
            purse.reserved += taken[-1]
        return taken[0], taken[1]

    def settle(self, reserved: tuple[int, int], used: Amount) -> None:
        for purse, back, one in zip(self.purses, reserved, used, strict=True):
            if purse is not None:
                purse.reserved -= back
                purse.spent += one or 0


@dataclass(slots=True)
class _Reservation:
    kind: Hashable
    most: Amount
    taken: dict[str, tuple[int, int]]


class BudgetTree:
    """Knows no clock and no I/O. Scopes without a budget cost nothing."""

    def __init__(self, options: Mapping[str, BudgetOptions]) -> None:
        self._scopes = {name: _Scope(one) for name, one in options.items() if one.is_set}
        self._reservations: dict[str, _Reservation] = {}
        self._costs: dict[Hashable, deque[Amount]] = {}

    def spend(self, scope: str, used: Amount) -> None:
        """Something of the scope was used before this tree was made."""
        if scope in self._scopes:
            self._scopes[scope].settle((0, 0), Amount(used.micro_usd or 0, used.tokens or 0))

    def spent(self, scope: str) -> Amount:
        """What the scope has used up to now; None where it has no budget for it."""
        purses = self._scopes[scope].purses if scope in self._scopes else [None, None]
        return Amount(*(None if purse is None else purse.spent for purse in purses))

    def states(self) -> dict[str, BudgetState]:
        """All budgets, by scope."""
        return {name: _state(scope) for name, scope in self._scopes.items()}

    def decide(self, scopes: Sequence[str], kind: Hashable, most: Amount) -> BudgetDecision:
        """Whether a run may start in these scopes, of which it will use no more than `most`. Of several scopes that are
        exceeded the one with the strictest action answers. Changes nothing."""
        needed = self._needed(kind, most)
        found = [(name, self._scopes[name]) for name in scopes if name in self._scopes]
        answers = [BudgetDecision(scope.answer(needed), name, scope.options) for name, scope in found]
        answers.sort(key=lambda decision: _severity(decision.options))
        for worst in (BudgetAnswer.EXCEEDED, BudgetAnswer.WAIT):
            for decision in answers:
                if decision.answer is worst:
                    return decision
        return BudgetDecision(BudgetAnswer.GRANTED)

    def reserve(self, key: str, scopes: Iterable[str], kind: Hashable, most: Amount) -> None:
        """Set aside what the run is likely to need, whether or not it was granted."""
        if key in self._reservations:
            return
        needed = self._needed(kind, most)
        taken = {name: self._scopes[name].reserve(needed) for name in scopes if name in self._scopes}
        self._reservations[key] = _Reservation(kind, most, taken)

    def commit(self, key: str, used: Amount) -> None:
        """The run has ended. What it used is spent; what has no known price counts nothing."""
        reservation = self._reservations.pop(key, None)
        if reservation is None:
            return
        for name, taken in reservation.taken.items():
            self._scopes[name].settle(taken, used)
        if used.micro_usd or used.tokens:  # what was never carried out says nothing of its kind
            self._costs.setdefault(reservation.kind, deque(maxlen=_REMEMBERED_RUNS)).append(used)

    def forfeit(self, key: str) -> None:
        """Nobody knows what became of the run: it counts what runs of its kind need."""
        reservation = self._reservations.get(key)
        if reservation is not None:
            self.commit(key, Amount(*(one or 0 for one in self._needed(reservation.kind, reservation.most))))

    def __contains__(self, key: object) -> bool:
        return key in self._reservations

    def _needed(self, kind: Hashable, most: Amount) -> Amount:
        """What runs of this kind needed of late, at most `most`; not known for a kind that has not run yet. A kind
        whose runs have no price needs nothing."""
        known = self._costs.get(kind, ())
        return Amount(
            _likely([one.micro_usd for one in known], most.micro_usd),
            _likely([one.tokens for one in known], most.tokens),
        )


def _state(scope: _Scope) -> BudgetState:
    money, tokens = scope.purses
    return BudgetState(
        options=scope.options,
        spent_usd=None if money is None else money.spent / MICRO,
        reserved_usd=None if money is None else money.reserved / MICRO,
        spent_tokens=None if tokens is None else tokens.spent,
        reserved_tokens=None if tokens is None else tokens.reserved,
    )


def _severity(options: BudgetOptions | None) -> int:
    return list(OnViolation).index(options.on_violation) if options else len(OnViolation)


def _likely(known: Sequence[int | None], most: int | None) -> int | None:
    dearest = max((one or 0 for one in known), default=None)
    return min((one for one in (dearest, most) if one is not None), default=None)
