"""Places in the feed of a tenant."""

import pytest
from hypothesis import given, strategies as st

from greenroom.domain.errors import InvalidCursor, ResyncRequired
from greenroom.domain.feed_cursor import FeedCursor, ShardPlace

NUMBERS = st.integers(0, 10**18 - 1)
PLACES = st.lists(st.builds(ShardPlace, NUMBERS, NUMBERS), min_size=1, max_size=64)


@given(places=PLACES)
def test_a_cursor_is_read_as_it_was_written(places: list[ShardPlace]) -> None:
    cursor = FeedCursor(places)

    assert cursor == FeedCursor.parse(str(cursor), len(places))


@given(places=PLACES, place=st.builds(ShardPlace, NUMBERS, NUMBERS), data=st.data())
def test_going_on_in_one_shard_leaves_the_others_where_they_were(
    places: list[ShardPlace], place: ShardPlace, data: st.DataObject
) -> None:
    shard = data.draw(st.integers(0, len(places) - 1))
    moved = FeedCursor(places).at(shard, place).places

    assert place == moved[shard]
    assert [*places[:shard], *places[shard + 1 :]] == [*moved[:shard], *moved[shard + 1 :]]


NO_CURSORS = ["", "1", "1.", ".1", "1.2.3", "-1.0", "1.0-", "1.0--1.0", "\uff11.0", "1.0\n", "9" * 19 + ".0"]


@given(text=st.text(max_size=40))
@pytest.mark.parametrize("more", NO_CURSORS)
def test_what_is_no_cursor_is_refused(text: str, more: str) -> None:
    for tried in (more, f"{text}{more}x"):
        with pytest.raises(InvalidCursor):
            FeedCursor.parse(tried, 1)


def test_a_cursor_of_another_number_of_shards_asks_for_a_new_start() -> None:
    with pytest.raises(ResyncRequired):
        FeedCursor.parse("1.0-2.0", 1)
