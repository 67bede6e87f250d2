"""The newest batches in memory: bounded, in order, and honest about what they have forgotten."""

import pytest
from hypothesis import given, strategies as st

from greenroom.adapters.event_selection import StoredBatch
from greenroom.adapters.recent_batches import RecentBatches


def batch(first_seq: int, count: int = 1, *, size: int = 10) -> StoredBatch:
    return StoredBatch(first_seq, first_seq + count - 1, 0, 0, b"x" * size)


def filled(sizes: list[int], *, max_bytes: int = 1_000) -> tuple[RecentBatches, list[StoredBatch]]:
    """One session with batches of these many events."""
    recent, kept, seq = RecentBatches(max_bytes=max_bytes), list[StoredBatch](), 1
    for size in sizes:
        kept.append(batch(seq, size))
        recent.add("ses_1", kept[-1])
        seq += size
    return recent, kept


def test_a_session_that_was_never_here_is_not_known() -> None:
    assert RecentBatches(max_bytes=100).after("ses_1", 0) is None


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.integers(0, 40))
def test_all_batches_with_events_past_a_seq_are_given_in_order(sizes: list[int], seq: int) -> None:
    recent, kept = filled(sizes)
    end = kept[-1].last_seq

    found = recent.after("ses_1", min(seq, end))

    expected = [one for one in kept if one.last_seq > min(seq, end)]
    assert expected == (found if seq < end else found and [])


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 3), st.integers(1, 40)), max_size=40), st.data())
def test_what_is_given_has_no_gap_and_what_was_forgotten_is_said(
    added: list[tuple[str, int, int]], data: st.DataObject
) -> None:
    recent, logs = RecentBatches(max_bytes=100), {"a": list[StoredBatch](), "b": list[StoredBatch]()}
    for session_id, count, size in added:
        log = logs[session_id]
        log.append(batch(log[-1].last_seq + 1 if log else 1, count, size=size))
        recent.add(session_id, log[-1])

    session_id = data.draw(st.sampled_from("ab"))
    log = logs[session_id]
    seq = data.draw(st.integers(0, log[-1].last_seq if log else 0))
    found = recent.after(session_id, seq)

    if found is None:
        kept = sum(len(one.payload) for one in log if one.last_seq > seq)
        others = sum(len(one.payload) for one in logs["b" if session_id == "a" else "a"])
        assert not log or kept + others > 60
    else:
        past = [one for one in found if one.last_seq > seq]
        assert [one for one in log if one.last_seq > seq] == past


def test_the_oldest_batch_of_any_session_goes_first() -> None:
    recent = RecentBatches(max_bytes=30)
    for session_id, seq in [("a", 1), ("b", 1), ("b", 2), ("b", 3)]:
        recent.add(session_id, batch(seq))

    assert recent.after("a", 0) is None
    assert [batch(1), batch(2), batch(3)] == recent.after("b", 0)


def test_a_reader_behind_what_is_kept_must_go_to_the_file() -> None:
    recent, kept = filled([1] * 5, max_bytes=30)

    assert recent.after("ses_1", 1) is None
    assert kept[2:] == recent.after("ses_1", 2)


def test_a_batch_larger_than_the_room_is_not_kept() -> None:
    recent = RecentBatches(max_bytes=10)

    recent.add("ses_1", batch(1, size=11))

    assert recent.after("ses_1", 0) is None


@pytest.mark.parametrize("seq", [2, 3, 4])
def test_a_reader_at_the_end_gets_the_newest_batch_alone(seq: int) -> None:
    recent, kept = filled([2, 2])

    assert kept[-1:] == recent.after("ses_1", seq)
