"""Places in the feed of a tenant."""

import pytest
from hypothesis import given, strategies as st

from greenroom.domain.errors import InvalidCursor, ResyncRequired
from greenroom.domain.feed_cursor import FeedCursor, ShardPlace

NUMBERS = st.integers(0, 10**18 - 1)
IDENTITIES = st.text("0123456789abcdef", min_size=8, max_size=8)
PLACES = st.lists(st.builds(ShardPlace, IDENTITIES, NUMBERS, NUMBERS), min_size=1, max_size=64)

NO_CURSORS = [
    *("", "a.1.0", "1.0", "0000000a.1", "0000000a..0", "0000000a.1.0-", "0000000a.1.0--0000000a.1.0", "0000000A.1.0"),
    *("0000000a.1.0\n", "0000000a.-1.0", "0000000a.\uff11.0", f"0000000a.{'9' * 19}.0"),
]


@given(places=PLACES)
def test_a_cursor_is_read_as_it_was_written(places: list[ShardPlace]) -> None:
    cursor = FeedCursor(places)

    assert cursor == FeedCursor.parse(str(cursor))
    cursor.check(places)


@given(places=PLACES, batch_id=NUMBERS, events=NUMBERS, data=st.data())
def test_going_on_in_one_shard_leaves_the_others_where_they_were(
    places: list[ShardPlace], batch_id: int, events: int, data: st.DataObject
) -> None:
    shard = data.draw(st.integers(0, len(places) - 1))
    moved = FeedCursor(places).at(shard, batch_id, events).places

    assert ShardPlace(places[shard].identity, batch_id, events) == moved[shard]
    assert [*places[:shard], *places[shard + 1 :]] == [*moved[:shard], *moved[shard + 1 :]]


@pytest.mark.parametrize("text", NO_CURSORS)
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(InvalidCursor):
        FeedCursor.parse(text)


@pytest.mark.parametrize(
    "ends", [[("aaaaaaaa", 9), ("bbbbbbbb", 9)], [("bbbbbbbb", 9)], []], ids=["more shards", "another store", "none"]
)
def test_a_cursor_of_other_stores_asks_for_a_new_start(ends: list[tuple[str, int]]) -> None:
    with pytest.raises(ResyncRequired):
        FeedCursor.parse("aaaaaaaa.1.0").check([ShardPlace(*end) for end in ends])


def test_a_cursor_past_the_end_is_refused() -> None:
    FeedCursor.parse("aaaaaaaa.9.3").check([ShardPlace("aaaaaaaa", 9)])
    with pytest.raises(InvalidCursor):
        FeedCursor.parse("aaaaaaaa.10.0").check([ShardPlace("aaaaaaaa", 9)])
