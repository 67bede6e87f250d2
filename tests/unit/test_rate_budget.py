"""Rate budgets: what a minute holds, what is overdrawn, pauses, and the slow start after one."""

import pytest
from hypothesis import given, strategies as st

from greenroom.domain.errors import ValidationError
from greenroom.domain.rate_budget import Bucket, RateBudget, RateOptions


def test_a_bucket_gives_a_minutes_worth_at_once_and_then_fills_up() -> None:
    bucket = Bucket(60)
    bucket.take(60, 0.0)

    assert bucket.wait_s(1, 0.0) == pytest.approx(1.0)
    assert bucket.wait_s(1, 1.0) == 0.0
    assert bucket.level(30.0) == pytest.approx(30.0)


def test_more_than_a_minutes_worth_waits_for_a_full_bucket_and_overdraws_it() -> None:
    bucket = Bucket(60)
    assert bucket.wait_s(600, 0.0) == 0.0

    bucket.take(600, 0.0)

    assert bucket.wait_s(1, 0.0) == pytest.approx(541.0)


def test_what_was_not_used_is_given_back_and_never_more_than_it_holds() -> None:
    bucket = Bucket(60)
    bucket.take(60, 0.0)
    bucket.take(-30, 0.0)
    assert bucket.level(0.0) == 30.0
    bucket.take(-300, 0.0)
    assert bucket.level(0.0) == 60.0


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 50)), max_size=100), st.integers(10, 1_000))
def test_over_any_time_no_more_goes_through_than_the_rate_and_one_burst(
    asked: list[tuple[float, int]], per_minute: int
) -> None:
    bucket, now_s, taken = Bucket(per_minute), 0.0, 0.0
    for after_s, amount in asked:
        now_s += after_s
        if bucket.wait_s(amount, now_s) == 0.0:
            bucket.take(amount, now_s)
            taken += amount

    overdraft = max((amount for _, amount in asked), default=0)
    assert taken <= per_minute + now_s * per_minute / 60 + overdraft + 1e-6


def test_all_limits_hold_at_once_and_the_longest_wait_counts() -> None:
    budget = RateBudget(RateOptions(requests_per_minute=60, input_tokens_per_minute=600))
    budget.begin(600, 0, 0.0)

    assert budget.wait_s(10, 0, 0.0) == pytest.approx(1.0)
    assert budget.wait_s(600, 0, 0.0) == pytest.approx(60.0)


def test_so_many_at_once_and_no_more() -> None:
    budget = RateBudget(RateOptions(max_concurrent=2))
    for _ in range(2):
        assert budget.wait_s(0, 0, 0.0) == 0.0
        budget.begin(0, 0, 0.0)
    assert budget.wait_s(0, 0, 0.0) is None

    budget.end(0, 0, 0.0, well=True)

    assert budget.wait_s(0, 0, 0.0) == 0.0


def test_a_pause_holds_everything_and_then_lets_one_go_first_and_then_more() -> None:
    budget = RateBudget(RateOptions(max_concurrent=8))
    budget.pause(30.0)
    assert budget.wait_s(0, 0, 0.0) == 30.0

    at_once: list[int] = []
    for _ in range(4):
        begun = 0
        while budget.wait_s(0, 0, 30.0) == 0.0:
            budget.begin(0, 0, 30.0)
            begun += 1
        at_once.append(begun)
        for _ in range(begun):
            budget.end(0, 0, 30.0, well=True)

    assert at_once[0] == 1
    assert at_once == sorted(at_once)
    assert at_once[-1] == 8


def test_a_later_pause_is_not_cut_short_by_an_earlier_one() -> None:
    budget = RateBudget(RateOptions())
    budget.pause(30.0)
    budget.pause(10.0)

    assert budget.paused_until_s == 30.0


def test_tokens_that_turn_out_to_be_more_are_paid_later() -> None:
    budget = RateBudget(RateOptions(output_tokens_per_minute=600))
    budget.begin(0, 100, 0.0)
    budget.end(0, 1_100, 0.0, well=True)

    assert budget.wait_s(0, 1, 0.0) == pytest.approx(60.1)


@pytest.mark.parametrize(
    "name", ["requests_per_minute", "input_tokens_per_minute", "output_tokens_per_minute", "max_concurrent"]
)
def test_a_limit_below_one_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValidationError) as caught:
        RateOptions(**{name: 0})

    assert caught.value.details["field"] == f"rate.{name}"
