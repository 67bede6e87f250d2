"""What a full queue says of when to come again."""

from hypothesis import given, strategies as st

from greenroom.domain.run_pace import RunPace

SECONDS = st.floats(0, 1e6)


def test_nothing_is_guessed_before_a_run_has_ended() -> None:
    assert RunPace().next_end_s([1.0]) is None


def test_the_run_that_is_furthest_on_is_the_next_to_end() -> None:
    pace = RunPace()
    for running_s in (8.0, 12.0):
        pace.ended(running_s)

    assert 3.0 == pace.next_end_s([1.0, 7.0])
    assert 0.0 == pace.next_end_s([1.0, 70.0])
    assert pace.next_end_s([]) is None


@given(ended=st.lists(SECONDS, min_size=1, max_size=50), under_way=st.lists(SECONDS, min_size=1))
def test_it_is_never_later_than_the_longest_that_is_remembered(ended: list[float], under_way: list[float]) -> None:
    pace = RunPace()
    for running_s in ended:
        pace.ended(running_s)

    next_s = pace.next_end_s(under_way)

    assert next_s is not None
    assert 0 <= next_s <= max(ended[-20:]) * (1 + 1e-9)
