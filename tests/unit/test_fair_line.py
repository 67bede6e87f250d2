"""Fair shares in a waiting line."""

from hypothesis import given, strategies as st

from greenroom.domain.fair_line import FairLine, Place


def served(line: FairLine) -> list[str]:
    order: list[str] = []
    while (place := line.first()) is not None:
        line.serve(place.key)
        order.append(place.key)
    return order


def line_of(*places: tuple[str, tuple[str, ...]]) -> FairLine:
    line = FairLine()
    for key, shares in places:
        line.add(Place(key, shares))
    return line


def test_within_one_share_the_first_comes_first() -> None:
    assert served(line_of(("1", ("a",)), ("2", ("a",)), ("3", ("a",)))) == ["1", "2", "3"]


def test_who_asks_for_much_does_not_hold_up_who_asks_for_little() -> None:
    line = line_of(*((f"a{number}", ("a",)) for number in range(4)), ("b", ("b",)))

    assert served(line) == ["a0", "b", "a1", "a2", "a3"]


def test_tenants_take_turns_and_so_do_the_sessions_of_each() -> None:
    line = line_of(
        ("a1", ("a", "s1")), ("a2", ("a", "s1")), ("a3", ("a", "s2")), ("b1", ("b", "s3")), ("b2", ("b", "s3"))
    )

    assert served(line) == ["a1", "b1", "a3", "b2", "a2"]


def test_a_higher_priority_goes_first_whatever_its_share() -> None:
    line = line_of(("low", ("a",)))
    line.add(Place("high", ("b",), 1))

    assert served(line) == ["high", "low"]


def test_who_comes_back_at_once_has_no_turn_saved_up() -> None:
    line = line_of(*((f"a{number}", ("a",)) for number in range(4)))
    order: list[str] = []
    for number in range(4):
        line.add(Place(f"b{number}", ("b",)))
        for _ in range(2):
            place = line.first()
            assert place is not None
            line.serve(place.key)
            order.append(place.key)

    assert sorted(order) == sorted([*(f"a{number}" for number in range(4)), *(f"b{number}" for number in range(4))])
    assert all({one[0], other[0]} == {"a", "b"} for one, other in zip(order[::2], order[1::2], strict=True))


shares = st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"))


@given(st.lists(st.tuples(st.sampled_from(["add", "serve", "remove"]), shares, st.integers(0, 2)), max_size=60))
def test_everybody_in_line_is_served_once(steps: list[tuple[str, tuple[str, ...], int]]) -> None:
    line = FairLine()
    waiting: set[str] = set()
    for number, (what, where, priority) in enumerate(steps):
        if what == "add":
            line.add(Place(str(number), where, priority))
            waiting.add(str(number))
        elif what == "remove" and waiting:
            key = min(waiting)
            line.remove(key)
            waiting.discard(key)
        elif (place := line.first()) is not None:
            line.serve(place.key)
            waiting.discard(place.key)
        assert len(line) == len(waiting)
    assert set(served(line)) == waiting


@given(st.lists(st.sampled_from("abc"), min_size=3, max_size=40))
def test_those_who_wait_all_the_time_differ_by_one_turn_at_most(names: list[str]) -> None:
    line = line_of(*((f"{name}{number}", (name,)) for number, name in enumerate(names)))
    left = {name: names.count(name) for name in set(names)}
    turns = dict.fromkeys(left, 0)
    while all(left.values()):
        place = line.first()
        assert place is not None
        line.serve(place.key)
        left[place.shares[0]] -= 1
        turns[place.shares[0]] += 1
        assert max(turns.values()) - min(turns.values()) <= 1
