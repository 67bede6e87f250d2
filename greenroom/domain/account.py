"""One provider account: who may begin an attempt at it, and who stands in line. Breaker, rate budget and fair shares
in one place; no clock, no I/O."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from .circuit import Admission, BreakerOptions, Circuit, CircuitState
from .fair_line import FairLine, Place
from .rate_budget import RateBudget, RateLevels, RateOptions


class WaitReason(StrEnum):
    """Why an attempt may not begin yet."""

    CIRCUIT_OPEN = "circuit_open"
    """The account fails, and is left alone for a while."""
    PAUSED = "paused"
    """The provider has said that it was asked for too much, and when to come back."""
    RATE = "rate"
    """The budget of a minute is used up."""
    CONCURRENCY = "concurrency"
    """As many attempts are under way as may be."""
    LINE = "line"
    """Others came before."""


class AttemptEnd(StrEnum):
    """How an attempt ended, as far as it concerns the account."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """By the provider's fault."""
    RATE_LIMITED = "rate_limited"
    """The provider did not take it."""
    GIVEN_UP = "given_up"
    """It says nothing of the provider: cancelled, stopped by a policy, not valid, or never begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PermitAsk:
    """An attempt that wants to begin."""

    key: str
    """Of the attempt: no other has it."""
    holder: str
    """The server that carries it out: what it has comes back when it dies."""
    shares: tuple[str, ...] = ()
    priority: int = 0
    input_tokens: int = 0
    """What it is thought to need."""
    early: bool = False
    """There is nowhere else to go: an open breaker is tried before it has cooled down."""


class Permit(NamedTuple):
    """Leave to begin; the account is told how it ended."""

    admission: Admission
    output_tokens: int = 0
    """What was set aside for the answer."""
    is_free: bool = False
    """Nothing is counted at the account: until its server hears otherwise, others may begin there unasked."""
    is_unasked: bool = False
    """It was taken without asking, because another one was free."""

    @property
    def is_probe(self) -> bool:
        """Whether it is to find out if the account works again."""
        return self.admission.is_probe


class Refusal(NamedTuple):
    """Not now."""

    reason: WaitReason
    retry_in_s: float | None
    """None: nobody knows; when others have ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptReport:
    """How an attempt ended, and what it used."""

    end: AttemptEnd
    input_tokens: int | None = None
    """None: not known, so what was set aside is taken for used."""
    output_tokens: int | None = None
    retry_after_s: float | None = None
    levels: RateLevels | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountState:
    """What a router or a person wants to know of an account."""

    provider: str
    state: CircuitState
    failures: int
    """One after the other, up to now."""
    under_way: int
    waiting: int
    retry_in_s: float
    """0 where it may be tried."""
    wait_reason: WaitReason | None


class _Held(NamedTuple):
    """An attempt that is under way."""

    ask: PermitAsk
    permit: Permit
    began_s: float


DEFAULT_PAUSE_S = 5.0
"""How long an account rests whose provider refused for the rate and did not say for how long."""

_OUTPUT_MEMORY = 0.9
"""How much of the expected size of an answer each new answer leaves as it was: an average over about ten."""


class Account:
    """Everything that depends on time is told it, in seconds that never go back."""

    def __init__(self, provider: str, breaker: BreakerOptions, rate: RateOptions) -> None:
        self.provider = provider
        self.circuit = Circuit(breaker)
        self.budget = RateBudget(rate)
        self._line = FairLine()
        self._asks: dict[str, PermitAsk] = {}
        """Those in line."""
        self._held: dict[str, _Held] = {}
        self._unasked: dict[str, int] = {}
        """By holder: attempts under way that began unasked."""
        self._expected_output = 0.0

    def configure(self, breaker: BreakerOptions, rate: RateOptions) -> None:
        """Other options; what is known of the account stays."""
        self.circuit.options = breaker
        self.budget.configure(rate)

    def permit_of(self, key: str) -> Permit | None:
        """What the attempt holds already."""
        held = self._held.get(key)
        return held.permit if held else None

    def ask(self, ask: PermitAsk, now_s: float) -> Permit | Refusal:
        """Leave to begin at once, or why not. Nobody overtakes those in line, except to try what they do not dare."""
        why = self._refusal(ask, now_s)
        if why is None and len(self._line) and not (ask.early and self.circuit.state is CircuitState.OPEN):
            why = next(iter(self.refused(now_s).values()))
        return why or self._begin(ask, now_s)

    def stand(self, ask: PermitAsk) -> None:
        """Wait in line; `grant` says when it is its turn."""
        if ask.key not in self._held:
            self._asks.setdefault(ask.key, ask)
            self._line.add(Place(ask.key, ask.shares, ask.priority))

    def grant(self, now_s: float) -> list[tuple[str, Permit]]:
        """Let those in line begin, as many as may."""
        granted: list[tuple[str, Permit]] = []
        while (place := self._line.first()) is not None:
            ask = self._asks[place.key]
            if self._refusal(ask, now_s) is not None:
                break
            granted.append((place.key, self._begin(ask, now_s)))
            self._line.serve(place.key)
            del self._asks[place.key]
        return granted

    def refused(self, now_s: float) -> dict[str, Refusal]:
        """Why each of those in line waits."""
        place = self._line.first()
        if place is None:
            return {}
        why = self._refusal(self._asks[place.key], now_s) or Refusal(WaitReason.LINE, 0.0)
        return dict.fromkeys(self._asks, why)

    def leave(self, key: str) -> None:
        """It waits no more."""
        self._asks.pop(key, None)
        self._line.remove(key)

    def next_look_s(self, now_s: float) -> float | None:
        """In how many seconds `grant` may have something to give; None: when an attempt has ended."""
        place = self._line.first()
        if place is None:
            return None
        why = self._refusal(self._asks[place.key], now_s)
        return 0.0 if why is None else why.retry_in_s

    def hold(self, ask: PermitAsk, permit: Permit) -> None:
        """The attempt is under way by its holder's word, begun before this account was made."""
        if ask.key in self._held:
            return
        self.leave(ask.key)
        self.budget.adopt()
        self._held[ask.key] = _Held(ask, Permit(Admission(-1, is_probe=False), permit.output_tokens), float("-inf"))

    def end(self, key: str, report: AttemptReport, now_s: float) -> None:
        """The attempt has ended, or waits no more."""
        self.leave(key)
        held = self._held.pop(key, None)
        if held is None:
            return
        self._use(held, report, now_s)
        self._judge(held.permit.admission, report, now_s)

    def _judge(self, admission: Admission, report: AttemptReport, now_s: float) -> None:
        if report.levels is not None:
            self.budget.observe(report.levels, now_s)
        if report.end is AttemptEnd.SUCCEEDED:
            self.circuit.succeeded(admission, now_s)
        elif report.end is AttemptEnd.FAILED:
            self.circuit.failed(admission, now_s, retry_after_s=report.retry_after_s)
        else:
            self.circuit.given_up(admission)
        if report.retry_after_s is not None or report.end is AttemptEnd.RATE_LIMITED:
            self.budget.pause(now_s + (report.retry_after_s or DEFAULT_PAUSE_S))

    def reconcile(self, holder: str, keys: Collection[str], now_s: float, *, older_than_s: float) -> None:
        """The holder has these under way and no others, but for what it was granted of late."""
        for key, held in list(self._held.items()):
            if held.ask.holder == holder and key not in keys and now_s - held.began_s > older_than_s:
                self.end(key, AttemptReport(end=AttemptEnd.GIVEN_UP), now_s)

    def drop(self, holder: str, now_s: float) -> list[str]:
        """The holder is gone: what it had comes back; the keys of those of its attempts that waited."""
        waiting = [key for key, ask in self._asks.items() if ask.holder == holder]
        for key in [*waiting, *(key for key, held in self._held.items() if held.ask.holder == holder)]:
            self.end(key, AttemptReport(end=AttemptEnd.GIVEN_UP), now_s)
        self._unasked.pop(holder, None)
        return waiting

    def is_free(self, now_s: float) -> bool:
        """Whether anybody may begin unasked: the breaker is closed, nothing is limited, and nobody waits."""
        is_closed = self.circuit.state is CircuitState.CLOSED
        return is_closed and not len(self._line) and self.budget.is_unlimited(now_s)

    def note(self, admission: Admission, report: AttemptReport, now_s: float) -> None:
        """An attempt has ended that began unasked."""
        self._judge(admission, report, now_s)

    def tally(self, holder: str, under_way: int) -> None:
        """So many attempts are under way at the holder that began unasked."""
        if under_way:
            self._unasked[holder] = under_way
        else:
            self._unasked.pop(holder, None)

    def state(self, now_s: float) -> AccountState:
        """As it is now."""
        why = self._refusal(PermitAsk(key="", holder=""), now_s)
        return AccountState(
            provider=self.provider,
            state=self.circuit.state,
            failures=self.circuit.failures,
            under_way=len(self._held) + sum(self._unasked.values()),
            waiting=len(self._line),
            retry_in_s=0.0 if why is None else why.retry_in_s or 0.0,
            wait_reason=why.reason if why else None,
        )

    def _begin(self, ask: PermitAsk, now_s: float) -> Permit:
        admission = self.circuit.admit(now_s, early=ask.early)
        assert admission is not None, "it was not refused"
        permit = Permit(admission, round(self._expected_output), is_free=self.is_free(now_s))
        self.budget.begin(ask.input_tokens, permit.output_tokens, now_s)
        self._held[ask.key] = _Held(ask, permit, now_s)
        return permit

    def _refusal(self, ask: PermitAsk, now_s: float) -> Refusal | None:
        wait_s = self.circuit.wait_s(now_s, early=ask.early)
        if wait_s != 0.0:
            return Refusal(WaitReason.CIRCUIT_OPEN, wait_s)
        wait_s = self.budget.wait_s(ask.input_tokens, round(self._expected_output), now_s, priority=ask.priority)
        if wait_s is None:
            return Refusal(WaitReason.CONCURRENCY, None)
        if wait_s == 0.0:
            return None
        is_paused = self.budget.paused_until_s - now_s >= wait_s
        return Refusal(WaitReason.PAUSED if is_paused else WaitReason.RATE, wait_s)

    def _use(self, held: "_Held", report: AttemptReport, now_s: float) -> None:
        """Correct what was set aside by what was used. That an attempt ended well which began before the account was
        paused does not say that the pause has helped."""
        more_input = 0 if report.input_tokens is None else report.input_tokens - held.ask.input_tokens
        more_output = 0 if report.output_tokens is None else report.output_tokens - held.permit.output_tokens
        well = report.end is AttemptEnd.SUCCEEDED
        if well and report.output_tokens is not None:
            known = self._expected_output
            fresh = report.output_tokens if not known else (1 - _OUTPUT_MEMORY) * report.output_tokens
            self._expected_output = fresh + (_OUTPUT_MEMORY * known if known else 0.0)
        is_news = held.began_s >= self.budget.paused_until_s
        self.budget.end(more_input, more_output, now_s, well=well and is_news)
