"""Ids: what they look like, and that those of one factory are unique and sort as they were made."""

import re
import uuid

from hypothesis import given, strategies as st

from greenroom.adapters.clock import id_factory
from greenroom.domain.identifiers import IdFactory

SHAPE = re.compile(r"(ses|run|evt)_[0-9a-f]{32}")
NOW_US = 1_800_000_000_123_456
COUNTER_END = 1 << 74


def factory_at(times_us: list[int], *, random_bits: int = 0) -> IdFactory:
    """A factory whose clock shows these times, one per id, and stays at the last."""
    left = list(times_us)
    return IdFactory(now_us=lambda: left.pop(0) if len(left) > 1 else left[0], random_bits=lambda _: random_bits)


def as_uuid(made: str) -> uuid.UUID:
    return uuid.UUID(made[4:])


def test_an_id_tells_its_kind_by_its_prefix() -> None:
    ids = id_factory()

    made = [ids.session_id(), ids.run_id(), ids.event_id()]

    assert ["ses", "run", "evt"] == [one[:3] for one in made]
    assert all(SHAPE.fullmatch(one) for one in made)


def test_an_id_is_a_uuid_of_version_7_that_begins_with_its_millisecond() -> None:
    found = as_uuid(factory_at([NOW_US], random_bits=0x2AAAAAAAAAAAAAAAAA).run_id())

    assert 7 == found.version
    assert uuid.RFC_4122 == found.variant
    assert NOW_US // 1000 == found.int >> 80


@given(st.lists(st.integers(min_value=0, max_value=2**47), min_size=1, max_size=50))
def test_ids_ascend_whatever_the_clock_does(times_us: list[int]) -> None:
    ids = factory_at(times_us, random_bits=COUNTER_END // 4 - 1)

    made = [ids.event_id() for _ in times_us]

    assert sorted(set(made)) == made


def test_ids_of_one_millisecond_count_upwards() -> None:
    ids = factory_at([NOW_US])

    first, second = as_uuid(ids.run_id()).int, as_uuid(ids.run_id()).int

    assert 1 == second - first


def test_a_full_counter_borrows_the_next_millisecond() -> None:
    ids = factory_at([NOW_US], random_bits=COUNTER_END - 1)

    last, next_one = ids.run_id(), ids.run_id()

    assert last < next_one
    assert NOW_US // 1000 + 1 == as_uuid(next_one).int >> 80
    assert 7 == as_uuid(next_one).version


def test_two_factories_give_different_ids_at_the_same_time() -> None:
    made = {id_factory().run_id() for _ in range(1_000)}

    assert 1_000 == len(made)
