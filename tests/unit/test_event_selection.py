"""Picking events out of batches gives what a plain filter over a list gives, however the events were batched."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings, strategies as st

from greenroom.adapters.event_codec import BatchEncoder, decode_slab
from greenroom.adapters.event_selection import EventSelection, StoredBatch
from greenroom.domain.event import SCHEMA_VERSION, Event, EventType, NewEvent
from greenroom.domain.event_log import EventQuery

SESSION = "ses_1"
TYPES = [EventType.RUN_QUEUED, EventType.MESSAGE_STREAMED, EventType.RUN_COMPLETED, EventType.SESSION_STEERED]

new_events = st.builds(
    NewEvent,
    st.just("evt_1"),
    st.sampled_from(TYPES),
    st.integers(0, 5),
    st.sampled_from([None, "run_a", "run_b"]),
    st.just(1),
    st.none(),
    st.fixed_dictionaries({"content": st.text(max_size=3)}),
    st.just({}),
    st.just(SCHEMA_VERSION),
)
logs = st.lists(new_events, max_size=25) | st.lists(new_events, min_size=15, max_size=25)
cuts = st.lists(st.integers(1, 24), max_size=6)


windows = st.builds(
    EventQuery,
    after=st.just(0) | st.integers(0, 28),
    before=st.none() | st.integers(1, 28),
    limit=st.integers(1, 5) | st.just(10_000),
)
filters = st.builds(
    EventQuery,
    after=st.just(0) | st.integers(0, 28),
    before=st.none() | st.integers(1, 28),
    limit=st.integers(1, 5) | st.just(10_000),
    run_id=st.none() | st.sampled_from(["run_a", "run_b", "run_c"]),
    types=st.none() | st.frozensets(st.sampled_from(TYPES)),
    since_us=st.none() | st.just(0) | st.integers(0, 5),
)
queries = windows | filters


def batched(events: Sequence[NewEvent], at: Sequence[int]) -> list[StoredBatch]:
    """The events as stored batches, cut at these places."""
    encoder = BatchEncoder()
    edges = sorted({0, len(events), *(place for place in at if place < len(events))})
    return [
        StoredBatch(start + 1, end, 1_000 + start, batch.types, batch.payload)
        for start, end in pairwise(edges)
        for batch in [encoder.encode(events[start:end])]
    ]


def every_event(batches: Sequence[StoredBatch]) -> list[Event]:
    found: list[Event] = []
    for batch in batches:
        found += selected([batch], EventQuery(after=batch.first_seq - 1, limit=10_000))
    return found


def selected(batches: Sequence[StoredBatch], query: EventQuery) -> list[Event]:
    selection = EventSelection(query)
    selection.add(batches)
    return [event for slab in selection.slabs for event in decode_slab(SESSION, slab)]


def filtered(events: Sequence[Event], query: EventQuery) -> list[Event]:
    """What the query means, in the plainest words."""
    found = [
        event
        for event in events
        if event.seq > query.after and (query.before is None or event.seq < query.before) and query.matches(event)
    ]
    return found[: query.limit]


@given(logs, cuts, queries)
@settings(max_examples=300)
def test_any_query_over_any_batching_is_a_plain_filter(
    events: list[NewEvent], at: list[int], query: EventQuery
) -> None:
    batches = batched(events, at)

    assert filtered(every_event(batches), query) == selected(batches, query)


@given(logs, cuts, queries)
def test_batches_given_bit_by_bit_give_the_same(events: list[NewEvent], at: list[int], query: EventQuery) -> None:
    batches = batched(events, at)
    selection = EventSelection(query)

    for batch in batches:
        selection.add([batch])

    found = [event for slab in selection.slabs for event in decode_slab(SESSION, slab)]
    assert selected(batches, query) == found
    assert (len(found) == query.limit) == selection.is_full


@given(logs, cuts)
def test_the_whole_log_is_in_the_batches(events: list[NewEvent], at: list[int]) -> None:
    found = every_event(batched(events, at))

    assert list(range(1, len(events) + 1)) == [event.seq for event in found]
    assert [event.data for event in events] == [event.data for event in found]


def test_a_full_selection_looks_at_no_further_batch() -> None:
    events = [NewEvent("evt_1", EventType.RUN_QUEUED, 0, None, None, None, {}, {})] * 4
    looked_at = iter(batched(events, [1, 2, 3]))
    selection = EventSelection(EventQuery(limit=2))

    selection.add(looked_at)

    assert selection.is_full
    assert 1 == len(list(looked_at))


@pytest.mark.parametrize("before", [1, 3, 5, 6])
def test_a_window_that_ends_before_it_begins_is_empty(before: int) -> None:
    events = [NewEvent("evt_1", EventType.RUN_QUEUED, 0, None, None, None, {}, {})] * 10

    assert [] == selected(batched(events, []), EventQuery(after=5, before=before))


def test_an_empty_set_of_types_matches_nothing() -> None:
    batches = batched([NewEvent("evt_1", EventType.RUN_QUEUED, 0, None, None, None, {}, {})], [])

    assert [] == selected(batches, EventQuery(types=frozenset()))
