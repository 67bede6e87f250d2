"""What becomes of a run whose attempt has failed: again, elsewhere, or over. One table and one decision."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from .account import AttemptEnd
from .errors import (
    GreenroomError,
    ProviderAuthenticationFailed,
    ProviderOverloaded,
    ProviderQuotaExceeded,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnavailable,
)

BACKOFF_BASE_S = 0.5
BACKOFF_CAP_S = 30.0


class Fault(StrEnum):
    """Whose fault a failure is, and so what helps."""

    OVERLOAD = "overload"
    """The provider's, and it may pass: the same again, later."""
    RATE = "rate"
    """The account was used too much: the same again, when the provider says."""
    ACCOUNT = "account"
    """The account's, and it does not pass by itself: only another provider helps."""
    RUN = "run"
    """The run's own: nothing helps, and the provider is well."""


FAULTS: Mapping[type[GreenroomError], Fault] = {
    ProviderRateLimited: Fault.RATE,
    ProviderOverloaded: Fault.OVERLOAD,
    ProviderUnavailable: Fault.OVERLOAD,
    ProviderTimeout: Fault.OVERLOAD,
    ProviderAuthenticationFailed: Fault.ACCOUNT,
    ProviderQuotaExceeded: Fault.ACCOUNT,
}
"""What is not here is the run's own."""

ENDS: Mapping[Fault, AttemptEnd] = {
    Fault.OVERLOAD: AttemptEnd.FAILED,
    Fault.RATE: AttemptEnd.RATE_LIMITED,
    Fault.ACCOUNT: AttemptEnd.FAILED,
    Fault.RUN: AttemptEnd.GIVEN_UP,
}
"""What the account is told."""


def fault_of(error: GreenroomError) -> Fault:
    """Whose fault it is."""
    return next((fault for kind, fault in FAULTS.items() if isinstance(error, kind)), Fault.RUN)


def retry_after_of(error: GreenroomError) -> float | None:
    """How long the provider asks to be left alone, in seconds."""
    given = error.details.get("retry_after_s")
    return float(given) if isinstance(given, int | float) and not isinstance(given, bool) and given >= 0 else None


class Recourse(StrEnum):
    """What is done about a failure."""

    RETRY = "retry"
    FAIL_OVER = "fail_over"
    FAIL = "fail"


class NextStep(NamedTuple):
    """The decision, and how long to wait before."""

    recourse: Recourse
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What there is to know of a run whose attempt has failed."""

    fault: Fault
    has_acted: bool
    """Whether a tool with side effects has run in it, and doing so again was not agreed to."""
    failures_here: int
    """One after the other at this provider, this one among them."""
    elapsed_s: float
    """Since the first of those."""
    budget_s: float
    """How long the run may be tried again at this provider."""
    can_fail_over: bool
    retry_after_s: float | None = None


def next_step(failure: Failure, *, draw: float) -> NextStep:
    """Again at the same provider while its time budget lasts and trying again can help, else at another one, else the
    run has failed. Never after a tool with side effects. What was refused for the rate waits its turn, however long
    that is (the run's deadline bounds it), where there is no other provider. `draw` in [0, 1) spreads those that failed
    together."""
    if failure.has_acted or failure.fault is Fault.RUN:
        return NextStep(Recourse.FAIL)
    if failure.fault is not Fault.ACCOUNT:
        delay_s = max(backoff_s(failure.failures_here, draw), failure.retry_after_s or 0.0)
        waits_its_turn = failure.fault is Fault.RATE and failure.budget_s > 0 and not failure.can_fail_over
        if waits_its_turn or failure.elapsed_s + delay_s <= failure.budget_s:
            return NextStep(Recourse.RETRY, delay_s)
    return NextStep(Recourse.FAIL_OVER if failure.can_fail_over else Recourse.FAIL)


def backoff_s(failures: int, draw: float) -> float:
    """Exponential with equal jitter: half of it for sure, the other half by chance ("Exponential Backoff And Jitter",
    AWS Architecture Blog, 2015)."""
    ceiling_s = min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2 ** min(failures - 1, 16))
    return ceiling_s * (1 + draw) / 2
