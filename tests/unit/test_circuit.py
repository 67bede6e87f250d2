"""The circuit breaker: every move of its table, the count of its probes, and that nothing late upsets it."""

from collections.abc import Iterator

import pytest
from hypothesis import given, strategies as st

from greenroom.domain.circuit import (
    CIRCUIT_TRANSITIONS,
    LEAST_SAMPLES,
    Admission,
    BreakerOptions,
    Circuit,
    CircuitEvent,
    CircuitState,
)
from greenroom.domain.errors import ValidationError

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN


def breaker(**options: float) -> Circuit:
    return Circuit(BreakerOptions(**{"failure_threshold": 3, "cooldown_s": 10.0, **options}))  # pyright: ignore[reportArgumentType]


def admitted(one: Circuit, now_s: float = 0.0) -> Admission:
    admission = one.admit(now_s)
    assert admission is not None
    return admission


def opened(**options: float) -> Circuit:
    """A breaker that has opened at 0."""
    one = breaker(**options)
    for _ in range(one.options.failure_threshold):
        one.failed(admitted(one), 0.0)
    assert one.state is OPEN
    return one


def half_opened(probes: int = 1) -> tuple[Circuit, list[Admission]]:
    one = opened(half_open_probes=probes)
    return one, [admitted(one, 10.0) for _ in range(probes)]


def every_move() -> Iterator[tuple[CircuitState, CircuitEvent, CircuitState]]:
    for state in CircuitState:
        for event in CircuitEvent:
            yield state, event, CIRCUIT_TRANSITIONS[state].get(event, state)


MADE = {
    (CLOSED, CircuitEvent.BROKE),
    (OPEN, CircuitEvent.COOLED),
    (HALF_OPEN, CircuitEvent.PROBE_SUCCEEDED),
    (HALF_OPEN, CircuitEvent.PROBE_FAILED),
}


@pytest.mark.parametrize(("state", "event", "after"), list(every_move()))
def test_the_table_has_these_moves_and_no_others(state: CircuitState, event: CircuitEvent, after: CircuitState) -> None:
    assert (after is not state) == ((state, event) in MADE)


def test_it_opens_after_so_many_failures_one_after_the_other() -> None:
    one = breaker()
    for _ in range(2):
        one.failed(admitted(one), 0.0)
    one.succeeded(admitted(one), 0.0)
    for _ in range(2):
        one.failed(admitted(one), 0.0)
    assert one.state is CLOSED

    one.failed(admitted(one), 0.0)

    assert one.state is OPEN
    assert one.admit(9.9) is None


def test_it_opens_when_half_of_many_fail_within_the_window() -> None:
    one = breaker(failure_threshold=100, window_s=60.0)
    for number in range(LEAST_SAMPLES):
        assert one.state is CLOSED
        admission = admitted(one, number)
        one.failed(admission, number) if number % 2 else one.succeeded(admission, number)

    assert one.state is OPEN


def test_failures_before_the_window_do_not_count() -> None:
    one = breaker(failure_threshold=100, window_s=60.0)
    for _ in range(LEAST_SAMPLES - 1):
        one.failed(admitted(one), 0.0)

    one.succeeded(admitted(one, 61.0), 61.0)
    one.failed(admitted(one, 61.0), 61.0)

    assert one.state is CLOSED


def test_after_the_cooldown_exactly_so_many_probes_go_through() -> None:
    one = opened(half_open_probes=2)
    assert one.admit(9.9) is None

    probes = [one.admit(10.0) for _ in range(5)]

    assert [probe is not None for probe in probes] == [True, True, False, False, False]
    assert one.state is HALF_OPEN


def test_it_closes_when_all_probes_have_succeeded() -> None:
    one, (first, second) = half_opened(2)

    one.succeeded(first, 11.0)
    assert one.state is HALF_OPEN
    one.succeeded(second, 11.0)

    assert one.state is CLOSED
    assert one.failures == 0


def test_a_probe_that_fails_opens_it_again_for_a_whole_cooldown() -> None:
    one, (first, second) = half_opened(2)

    one.failed(first, 11.0)
    one.succeeded(second, 12.0)

    assert one.state is OPEN
    assert one.admit(20.9) is None
    assert one.admit(21.0) is not None


def test_a_probe_that_was_given_up_makes_room_for_another() -> None:
    one, (probe,) = half_opened()
    assert one.admit(10.0) is None

    one.given_up(probe)

    assert one.admit(10.0) is not None


def test_the_provider_says_when_to_come_back() -> None:
    one = breaker()
    for retry_after_s in (None, None, 120.0):
        one.failed(admitted(one), 0.0, retry_after_s=retry_after_s)

    assert one.admit(119.9) is None
    assert one.admit(120.0) is not None


def test_what_began_before_it_opened_neither_closes_it_nor_counts_later() -> None:
    one = breaker()
    late = [admitted(one) for _ in range(3)]
    for _ in range(3):
        one.failed(admitted(one), 0.0)

    one.succeeded(late[0], 1.0)
    one.failed(late[1], 1.0, retry_after_s=30.0)
    assert one.state is OPEN
    assert one.admit(30.9) is None

    (probe,) = [admitted(one, 31.0)]
    one.given_up(late[2])
    assert one.admit(31.0) is None
    one.succeeded(probe, 32.0)
    assert one.state is CLOSED


@given(st.lists(st.sampled_from(["admit", "succeed", "fail", "give up", "wait"]), max_size=80), st.integers(1, 3))
def test_never_more_probes_are_under_way_than_are_allowed(steps: list[str], probes: int) -> None:
    one = breaker(half_open_probes=probes)
    under_way: list[Admission] = []
    now_s = 0.0
    for step in steps:
        if step == "admit":
            admission = one.admit(now_s)
            under_way += [admission] if admission else []
        elif step == "wait":
            now_s += 10.0
        elif under_way:
            admission = under_way.pop(0)
            if step == "succeed":
                one.succeeded(admission, now_s)
            elif step == "fail":
                one.failed(admission, now_s)
            else:
                one.given_up(admission)
        if one.state is HALF_OPEN:
            newest = max((admission.cycle for admission in under_way), default=0)
            assert sum(admission.is_probe and admission.cycle == newest for admission in under_way) <= probes
        if one.state is OPEN:
            assert one.retry_at_s >= one.opened_at_s + 10.0


@pytest.mark.parametrize("name", ["failure_threshold", "half_open_probes", "window_s", "cooldown_s"])
def test_options_that_make_no_sense_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValidationError) as caught:
        breaker(**{name: 0})

    assert caught.value.details["field"] == f"breaker.{name}"
