"""What becomes of a run whose attempt has failed."""

from typing import Any

import pytest
from hypothesis import given, strategies as st

from greenroom.domain.errors import (
    ERRORS_BY_CODE,
    Cancelled,
    PolicyViolation,
    ProviderAuthenticationFailed,
    ProviderContentRefused,
    ProviderInvalidRequest,
    ProviderOverloaded,
    ProviderQuotaExceeded,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnavailable,
)
from greenroom.domain.failover import (
    BACKOFF_CAP_S,
    ENDS,
    Failure,
    Fault,
    Recourse,
    backoff_s,
    fault_of,
    next_step,
    retry_after_of,
)


def failure(fault: Fault, **more: Any) -> Failure:
    known: dict[str, Any] = {
        "has_acted": False,
        "failures_here": 1,
        "elapsed_s": 0.0,
        "budget_s": 10.0,
        "can_fail_over": True,
    }
    return Failure(fault=fault, **{**known, **more})


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        (ProviderOverloaded, Fault.OVERLOAD),
        (ProviderUnavailable, Fault.OVERLOAD),
        (ProviderTimeout, Fault.OVERLOAD),
        (ProviderRateLimited, Fault.RATE),
        (ProviderAuthenticationFailed, Fault.ACCOUNT),
        (ProviderQuotaExceeded, Fault.ACCOUNT),
        (ProviderInvalidRequest, Fault.RUN),
        (ProviderContentRefused, Fault.RUN),
        (PolicyViolation, Fault.RUN),
        (Cancelled, Fault.RUN),
    ],
)
def test_whose_fault_an_error_is(kind: Any, fault: Fault) -> None:
    assert fault is fault_of(kind("x"))


def test_only_the_providers_own_failures_count_against_it() -> None:
    counted = {code for code, kind in ERRORS_BY_CODE.items() if ENDS[fault_of(kind("x"))] == "failed"}

    assert counted == {
        "provider_overloaded",
        "provider_unavailable",
        "provider_timeout",
        "provider_authentication_failed",
        "provider_quota_exceeded",
    }


@pytest.mark.parametrize(
    ("given", "recourse"),
    [
        (failure(Fault.OVERLOAD), Recourse.RETRY),
        (failure(Fault.OVERLOAD, elapsed_s=9.9), Recourse.FAIL_OVER),
        (failure(Fault.OVERLOAD, elapsed_s=9.9, can_fail_over=False), Recourse.FAIL),
        (failure(Fault.OVERLOAD, budget_s=0.0, can_fail_over=False), Recourse.FAIL),
        (failure(Fault.OVERLOAD, retry_after_s=11.0), Recourse.FAIL_OVER),
        (failure(Fault.RATE, retry_after_s=5.0), Recourse.RETRY),
        (failure(Fault.RATE, retry_after_s=500.0), Recourse.FAIL_OVER),
        (failure(Fault.RATE, retry_after_s=500.0, can_fail_over=False), Recourse.RETRY),
        (failure(Fault.RATE, budget_s=0.0, can_fail_over=False), Recourse.FAIL),
        (failure(Fault.ACCOUNT), Recourse.FAIL_OVER),
        (failure(Fault.ACCOUNT, can_fail_over=False), Recourse.FAIL),
        (failure(Fault.RUN), Recourse.FAIL),
        (failure(Fault.OVERLOAD, has_acted=True), Recourse.FAIL),
        (failure(Fault.ACCOUNT, has_acted=True), Recourse.FAIL),
    ],
)
def test_what_is_done_about_it(given: Failure, recourse: Recourse) -> None:
    assert recourse is next_step(given, draw=0.5).recourse


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_a_backoff_grows_to_its_cap_and_at_least_half_of_it_is_sure(failures: int, draw: float) -> None:
    wait_s = backoff_s(failures, draw)

    assert backoff_s(failures, 0.0) <= wait_s <= 2 * backoff_s(failures, 0.0)
    assert wait_s <= BACKOFF_CAP_S


@given(st.sampled_from(Fault), st.floats(0, 100), st.floats(0, 1, exclude_max=True), st.integers(1, 20))
def test_nobody_comes_back_before_the_provider_says(fault: Fault, after_s: float, draw: float, failures: int) -> None:
    step = next_step(failure(fault, retry_after_s=after_s, failures_here=failures, budget_s=1e6), draw=draw)

    assert step.recourse is not Recourse.RETRY or step.delay_s >= after_s


@pytest.mark.parametrize(
    ("given", "seconds"), [(3, 3.0), (0.5, 0.5), (-1, None), ("3", None), (True, None), (None, None)]
)
def test_what_a_provider_says_of_when_to_come_back(given: object, seconds: float | None) -> None:
    assert seconds == retry_after_of(ProviderRateLimited("x", details={"retry_after_s": given}))
