"""Reading where events are gone: what is left is found, and what is missing is never passed over in silence."""

import dataclasses
from typing import NamedTuple

import pytest
from hypothesis import example, given, strategies as st

from greenroom.adapters.event_codec import BatchEncoder, Slab, decode_slab
from greenroom.adapters.event_selection import EVERY_TYPE, PRUNED_TYPES, EventSelection, StoredBatch
from greenroom.domain.errors import ResyncRequired
from greenroom.domain.event import SCHEMA_VERSION, Event, EventType, NewEvent
from greenroom.domain.event_log import EventQuery

SESSION = "ses_1"
STREAMED = EventType.MESSAGE_STREAMED
TYPES = [STREAMED, EventType.MESSAGE_RECEIVED, EventType.TURN_COMPLETED]
WHOLE, PRUNED, LOST = "whole", "pruned", "lost"


class Gone(NamedTuple):
    """A log of which something is missing."""

    batches: list[StoredBatch]
    events: list[Event]
    """Everything that there ever was."""
    pruned: frozenset[int]
    lost: frozenset[int]


new_events = st.builds(
    NewEvent,
    st.just("evt_1"),
    st.sampled_from([STREAMED, STREAMED, *TYPES]),
    st.integers(0, 5),
    st.sampled_from([None, "run_a", "run_b"]),
    st.just(1),
    st.none(),
    st.just({}),
    st.just({}),
    st.just(SCHEMA_VERSION),
)


@st.composite
def gone_logs(draw: st.DrawFn, *, may_lose: bool = True) -> Gone:
    """Batches, of some of which some streamed events were pruned, and some of which were lost altogether."""
    encoder = BatchEncoder()
    batches: list[StoredBatch] = []
    events: list[Event] = []
    pruned: set[int] = set()
    lost: set[int] = set()
    fates = [WHOLE, WHOLE, PRUNED, PRUNED, *([LOST] if may_lose else [])]
    for new in draw(st.lists(st.lists(new_events, min_size=1, max_size=5), min_size=1, max_size=8)):
        first, last = len(events) + 1, len(events) + len(new)
        batch = encoder.encode(new)
        whole = StoredBatch(first, last, 1_000 + first, batch.types, batch.payload)
        selection = EventSelection(EventQuery(after=first - 1, limit=10_000))
        selection.add([whole])
        events += [one for slab in selection.slabs for one in decode_slab(SESSION, slab)]
        fate = draw(st.sampled_from(fates))
        streamed = [seq for seq, one in enumerate(new, first) if one.type is STREAMED]
        if fate == LOST:
            lost |= {*range(first, last + 1)}
            batches.append(StoredBatch(first, last, 0, EVERY_TYPE, b"", ()))
        elif fate == PRUNED and streamed:
            going = draw(st.sets(st.sampled_from(streamed), min_size=1))
            pruned |= going
            left = [(seq, one) for seq, one in enumerate(new, first) if seq not in going]
            rest = encoder.encode([one for _, one in left])
            batches.append(
                StoredBatch(
                    *(first, last, 1_000 + first, rest.types & ~PRUNED_TYPES, rest.payload),
                    tuple(seq for seq, _ in left),
                )
            )
        else:
            batches.append(whole)
    return Gone(batches, events, frozenset(pruned), frozenset(lost))


windowless = st.builds(
    EventQuery,
    after=st.just(0) | st.integers(0, 30),
    limit=st.integers(1, 5) | st.just(10_000),
    run_id=st.none() | st.sampled_from(["run_a", "run_b", "run_c"]),
    types=st.none()
    | st.sampled_from([frozenset(TYPES[:1]), frozenset(TYPES[:2]), frozenset(TYPES[1:2]), frozenset(TYPES[1:])])
    | st.frozensets(st.sampled_from(TYPES), min_size=1),
    since_us=st.none() | st.integers(0, 5),
)
windows = st.builds(dataclasses.replace, windowless, before=st.integers(1, 32))
Case = tuple[Gone, EventQuery, bool]


cases = st.tuples(gone_logs(), windowless, st.booleans())
window_cases = st.tuples(gone_logs(), windows, st.booleans())


def handed_over(log: Gone, query: EventQuery, *, sparse: bool) -> list[StoredBatch]:
    """What the store gives to a selection: sparse as from parts, where what holds none of the types is passed over."""
    mask = EventSelection(query).mask
    return [
        batch
        for batch in log.batches
        if batch.last_seq > query.after
        and (not sparse or (batch.types | (PRUNED_TYPES if batch.kept is not None else 0)) & mask)
    ]


def answer(log: Gone, query: EventQuery, *, sparse: bool = False) -> list[int] | ResyncRequired:
    selection = EventSelection(query)
    try:
        selection.add(handed_over(log, query, sparse=sparse))
        slabs = selection.finish()
    except ResyncRequired as exc:
        return exc
    found = [one for slab in slabs for one in decode_slab(SESSION, slab)]
    assert [one for one in log.events if one.seq in {each.seq for each in found}] == found
    return [one.seq for one in found]


def missed(log: Gone, query: EventQuery) -> frozenset[int]:
    """The events that are gone and that the query may have asked for."""
    minds_pruned = query.types is None or STREAMED in query.types
    return log.lost | log.pruned if minds_pruned else log.lost


def plain_answer(log: Gone, query: EventQuery) -> list[int] | int:
    """The same in the plainest words: the seqs, or the lowest seq that there is after the gap."""
    gone = missed(log, query)
    found: list[int] = []
    for one in log.events:
        if one.seq <= query.after:
            continue
        if (query.before is not None and one.seq >= query.before) or len(found) == query.limit:
            break
        if one.seq in gone:
            lowest = min({*range(one.seq, len(log.events) + 2)} - gone - log.pruned)
            return found if found or (query.before is not None and lowest >= query.before) else lowest
        if query.matches(one) and one.seq not in log.pruned:
            found.append(one.seq)
    return found


def agrees(log: Gone, query: EventQuery, *, sparse: bool) -> bool:
    """Whether the answer is the plain one. A refusal may leave out what the query did not ask for; and when nothing
    that it asked for is left in its window, there may be no refusal."""
    expected, found = plain_answer(log, query), answer(log, query, sparse=sparse)
    if isinstance(expected, list):
        return expected == found
    if isinstance(found, ResyncRequired):
        skipped = range(expected, found.details["lowest_seq"])
    else:
        skipped = range(expected, query.before or 0)
    left_out = {one.seq for one in log.events if one.seq in skipped and query.matches(one)} - log.lost - log.pruned
    return not left_out and (isinstance(found, ResyncRequired) or (query.before is not None and found == []))


@given(cases)
def test_an_answer_ends_before_the_first_event_that_is_gone_or_says_where_to_go_on(case: Case) -> None:
    log, query, sparse = case

    assert agrees(log, query, sparse=sparse)


def batch_of(first: int, *types: EventType) -> StoredBatch:
    batch = BatchEncoder().encode([NewEvent("evt_1", type_, 1, None, None, None, {}, {}) for type_ in types])
    return StoredBatch(first, first + len(types) - 1, 1_000 + first, batch.types, batch.payload)


def events_in(*batches: StoredBatch) -> list[Event]:
    return [one for batch in batches for one in decode_slab(SESSION, Slab(batch.seqs, 1_000, batch.payload))]


RECEIVED = EventType.MESSAGE_RECEIVED
PIECE = batch_of(1, STREAMED, RECEIVED)
FIRST_PRUNED = Gone(
    [batch_of(1, RECEIVED)._replace(last_seq=2, kept=(2,))], events_in(PIECE), frozenset({1}), frozenset()
)
FIRST_LOST = Gone(
    [StoredBatch(1, 1, 0, EVERY_TYPE, b"", ()), batch_of(2, RECEIVED)],
    events_in(batch_of(1, RECEIVED), batch_of(2, RECEIVED)),
    frozenset(),
    frozenset({1}),
)


@given(window_cases)
@example((FIRST_PRUNED, EventQuery(before=2), False))
def test_the_same_holds_for_a_window_that_ends_before_a_seq(case: Case) -> None:
    log, query, sparse = case

    assert agrees(log, query, sparse=sparse)


def passes_over_something(log: Gone, query: EventQuery, *, sparse: bool) -> bool:
    found = answer(log, query, sparse=sparse)
    return isinstance(found, list) and bool(found and missed(log, query) & {*range(query.after + 1, found[-1] + 1)})


@given(cases | window_cases)
def test_no_answer_reaches_past_an_event_that_is_gone(case: Case) -> None:
    log, query, sparse = case

    assert not passes_over_something(log, query, sparse=sparse)


@given(gone_logs(), windowless | windows, st.booleans())
@example(FIRST_LOST, EventQuery(types=frozenset([RECEIVED])), False)
def test_no_answer_reaches_past_a_loss_whatever_types_it_asks_for(log: Gone, query: EventQuery, sparse: bool) -> None:
    assert not passes_over_something(log, query, sparse=sparse)


@given(cases | window_cases)
def test_a_refusal_passes_over_nothing_that_is_there(case: Case) -> None:
    log, query, sparse = case
    found = answer(log, query, sparse=sparse)

    if isinstance(found, ResyncRequired):
        assert "after" == found.details["field"]
        between = {*range(query.after + 1, found.details["lowest_seq"])}
        there = {one.seq for one in log.events if one.seq in between and query.matches(one)}
        assert there <= log.lost | log.pruned


@given(cases)
def test_whoever_goes_on_where_he_is_told_to_gets_to_the_end_and_sees_all_that_is_left(case: Case) -> None:
    log, query, sparse = case
    seen: list[int] = []
    told: set[int] = set()
    cursor = query.after
    for _ in range(3 * len(log.events) + 3):
        found = answer(log, dataclasses.replace(query, after=cursor), sparse=sparse)
        if isinstance(found, ResyncRequired):
            told |= {*range(cursor + 1, found.details["lowest_seq"])}
            assert found.details["lowest_seq"] > cursor + 1
            cursor = found.details["lowest_seq"] - 1
        elif found:
            seen += found
            cursor = found[-1]
        else:
            break
    else:
        pytest.fail("it never came to an end")

    left = [one.seq for one in log.events if one.seq not in log.lost | log.pruned]
    assert [seq for seq in left if seq > query.after and query.matches(log.events[seq - 1])] == seen
    assert {seq for seq in missed(log, query) if seq > query.after} <= told


@given(gone_logs(may_lose=False), windowless | windows, st.booleans())
def test_who_does_not_ask_for_streamed_pieces_never_notices_that_they_were_pruned(
    log: Gone, query: EventQuery, sparse: bool
) -> None:
    types = (query.types if query.types is not None else frozenset(EventType)) - {STREAMED}
    query = dataclasses.replace(query, types=types)
    intact = Gone([], log.events, frozenset(), frozenset())

    assert plain_answer(intact, query) == answer(log, query, sparse=sparse)
