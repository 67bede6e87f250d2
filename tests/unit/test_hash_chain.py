"""The chain: whatever is changed, dropped, repeated, moved or put in, its end is another one."""

from collections.abc import Sequence
from random import Random

from hypothesis import assume, given, strategies as st

from greenroom.domain.hash_chain import DIGEST_BYTES, chain_next, chain_start

rows = st.lists(st.binary(max_size=8), min_size=1, max_size=8)


def end_of(found: Sequence[bytes], session_id: str = "ses_1") -> bytes:
    digest = chain_start(session_id)
    for row in found:
        digest = chain_next(digest, row)
    return digest


@given(rows, st.data())
def test_a_changed_byte_anywhere_changes_the_end(found: list[bytes], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(found) - 1))
    assume(found[at])
    place = data.draw(st.integers(0, len(found[at]) - 1))
    changed = bytearray(found[at])
    changed[place] ^= data.draw(st.integers(1, 255))

    assert end_of(found) != end_of([*found[:at], bytes(changed), *found[at + 1 :]])


@given(rows, rows)
def test_other_rows_in_any_number_and_order_have_another_end(found: list[bytes], others: list[bytes]) -> None:
    assume(found != others)

    assert end_of(found) != end_of(others)


@given(rows, st.data())
def test_a_dropped_or_repeated_row_changes_the_end(found: list[bytes], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(found) - 1))

    assert end_of(found) not in {
        end_of([*found[:at], *found[at + 1 :]]),
        end_of([*found[: at + 1], *found[at:]]),
    }


@given(rows, st.randoms(use_true_random=False))
def test_another_order_has_another_end(found: list[bytes], chance: Random) -> None:
    shuffled = chance.sample(found, len(found))
    assume(shuffled != found)

    assert end_of(found) != end_of(shuffled)


@given(st.binary(min_size=1), st.data())
def test_bytes_that_move_from_one_row_to_the_next_change_the_end(joined: bytes, data: st.DataObject) -> None:
    first, second = (data.draw(st.integers(0, len(joined))) for _ in "ab")
    assume(first != second)

    assert end_of([joined[:first], joined[first:]]) != end_of([joined[:second], joined[second:]])


@given(st.text(), st.text(), rows)
def test_the_same_rows_in_another_session_are_another_chain(one: str, other: str, found: list[bytes]) -> None:
    assume(one != other)

    assert chain_start(one) != chain_start(other)
    assert end_of(found, one) != end_of(found, other)


@given(rows)
def test_a_chain_can_be_gone_on_with_from_any_digest_of_it(found: list[bytes]) -> None:
    half = len(found) // 2
    digest = end_of(found[:half])
    for row in found[half:]:
        digest = chain_next(digest, memoryview(row))

    assert end_of(found) == digest
    assert DIGEST_BYTES == len(digest)


def test_the_digests_are_those_that_were_always_written() -> None:
    """Stores and archives that exist rely on them."""
    start = chain_start("ses_1")

    assert "ad175b7af887d4e931f11e2cfe2ebc2612cddcb5c33b6328cd1ba90deec780e8" == start.hex()
    assert "1a2f5a6ab33d5cc70fc7ac7b010f29e65a413f7de77ba8b47e48b318c719c2af" == chain_next(start, b"row").hex()
