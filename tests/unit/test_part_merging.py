"""Merging parts: few files whatever was sealed, few rewrites of each event, and the order of the log is kept."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, strategies as st

from greenroom.domain.part_merging import FANOUT, FIRST_TIER_BYTES, LARGEST_BYTES, parts_to_merge, tier_of

MIB = 1024 * 1024
SMALL = FIRST_TIER_BYTES // 100

small_sizes = st.integers(1, 8 * MIB)
any_sizes = st.integers(1, 100) | st.integers(1, 40 * MIB) | st.integers(1, 3 * LARGEST_BYTES)


@dataclass
class Folder:
    """Parts by size, each with the numbers of what was sealed into it."""

    sizes: list[int] = field(default_factory=list[int])
    held: list[list[int]] = field(default_factory=list[list[int]])
    rewrites: Counter[int] = field(default_factory=Counter[int])
    merges: int = 0

    def seal(self, size: int) -> None:
        self.held.append([sum(map(len, self.held))])
        self.sizes.append(size)
        while (places := parts_to_merge(self.sizes)) is not None:
            self.merge(places)

    def merge(self, places: range) -> None:
        assert 1 == places.step
        assert 0 <= places.start < places.stop - 1 < len(self.sizes)
        where = slice(places.start, places.stop)
        if len(places) < FANOUT:  # what follows does not fit with them into the largest part
            assert sum(self.sizes[where]) + self.sizes[places.stop] > LARGEST_BYTES
        merged = [number for held in self.held[where] for number in held]
        self.rewrites.update(merged)
        self.sizes[where] = [sum(self.sizes[where])]
        self.held[where] = [merged]
        self.merges += 1


def filled(sizes: Sequence[int]) -> Folder:
    folder = Folder()
    for size in sizes:
        folder.seal(size)
    return folder


@pytest.mark.parametrize(
    ("size", "tier"),
    [
        (0, 0),
        (FIRST_TIER_BYTES, 0),
        (FIRST_TIER_BYTES + 1, 1),
        (FIRST_TIER_BYTES * FANOUT, 1),
        (FIRST_TIER_BYTES * FANOUT + 1, 2),
    ],
)
def test_each_tier_is_as_many_times_larger_as_parts_are_merged(size: int, tier: int) -> None:
    assert tier == tier_of(size)


@given(st.lists(any_sizes, max_size=FANOUT - 1))
def test_few_parts_are_left_alone(sizes: list[int]) -> None:
    assert parts_to_merge(sizes) is None


@given(st.lists(any_sizes, max_size=60))
def test_merging_ends_and_keeps_everything_in_its_order(sizes: list[int]) -> None:
    folder = filled(sizes)

    assert parts_to_merge(folder.sizes) is None
    assert [*range(len(sizes))] == [number for held in folder.held for number in held]
    assert sum(sizes) == sum(folder.sizes)
    assert folder.merges <= len(sizes)


@given(st.lists(any_sizes, min_size=1, max_size=60))
def test_what_is_merged_never_grows_past_the_largest_part(sizes: list[int]) -> None:
    folder = filled(sizes)

    assert all(size <= max(LARGEST_BYTES, *sizes) for size in folder.sizes)
    assert all(size <= LARGEST_BYTES for size, held in zip(folder.sizes, folder.held, strict=True) if len(held) > 1)


@given(st.integers(1, FIRST_TIER_BYTES // FANOUT), st.integers(0, 300))
def test_equal_parts_leave_less_than_the_fanout_in_each_tier(size: int, count: int) -> None:
    folder = filled([size] * count)

    assert all(found < FANOUT for found in Counter(map(tier_of, folder.sizes)).values())


@given(st.lists(small_sizes, max_size=120))
def test_there_are_never_more_parts_than_the_fanout_allows_for_all_tiers(sizes: list[int]) -> None:
    """As long as nothing is as large as parts may get."""
    folder = filled(sizes)

    assert len(folder.sizes) <= (FANOUT - 1) * (tier_of(sum(sizes)) + 1)


@given(st.lists(small_sizes, max_size=120))
def test_parts_of_a_lower_tier_never_lie_before_so_many_of_a_higher_one(sizes: list[int]) -> None:
    """A part that is not followed by a larger one has less than FANOUT neighbours that it could be merged with."""
    tiers = [*map(tier_of, filled(sizes).sizes)]

    for end in range(len(tiers)):
        run = 0
        while run <= end and tiers[end - run] <= tiers[end]:
            run += 1
        if end == len(tiers) - 1 or tiers[end + 1] < tiers[end]:
            assert run < FANOUT


@pytest.mark.parametrize("count", [10, 100, 1_000, 3_000])
def test_each_event_is_rewritten_a_logarithmic_number_of_times(count: int) -> None:
    folder = filled([SMALL] * count)

    # Within the first tier parts double as a byte counter does; each tier after that costs one rewrite more.
    bound = 2 + math.log(max(1, count * SMALL / FIRST_TIER_BYTES), FANOUT) + 100 / (FANOUT - 1)
    assert folder.rewrites.total() / count <= bound


@pytest.mark.parametrize("count", [100, 1_000])
def test_parts_as_large_as_a_tier_are_rewritten_once_for_each_tier(count: int) -> None:
    folder = filled([FIRST_TIER_BYTES // 2] * count)

    assert max(folder.rewrites.values(), default=0) <= 1 + math.ceil(math.log(count, FANOUT))


def test_a_long_log_has_less_than_the_fanout_in_each_tier_below_the_largest_parts() -> None:
    folder = filled([10 * MIB] * 1_000)

    found = Counter(tier_of(size) for size in folder.sizes if size < LARGEST_BYTES // 2)
    assert all(count < FANOUT for count in found.values())
