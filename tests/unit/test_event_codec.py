"""Events as bytes: nothing is lost, batches join and split without decoding, and a newer layout is refused."""

from itertools import pairwise
from typing import Any

import msgpack
import pytest
from hypothesis import given, strategies as st

from greenroom.adapters.append_frames import (
    AppendAnswer,
    AppendEntry,
    AppendStatus,
    decode_answers,
    decode_frame,
    encode_answers,
    encode_frame,
)
from greenroom.adapters.event_codec import (
    BatchEncoder,
    EncodedBatch,
    OpenBatch,
    Slab,
    decode_slab,
    event_bounds,
    record_events,
    split_events,
)
from greenroom.domain.errors import InvalidFormat, ValidationError
from greenroom.domain.event import (
    RECORD_TYPES,
    SCHEMA_VERSION,
    Event,
    EventType,
    NewEvent,
    from_microseconds,
    mask_of,
    to_microseconds,
)

SESSION = "ses_1"
RECORDED_AT_US = 1_800_000_000_000_001

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
json_objects = st.dictionaries(st.text(max_size=8), json_values, max_size=4)
new_events = st.builds(
    NewEvent,
    st.text(max_size=8),
    st.sampled_from(EventType),
    st.integers(0, 4_000_000_000_000_000),
    st.none() | st.text(max_size=8),
    st.none() | st.integers(1, 9),
    st.none() | st.text(max_size=8),
    json_objects,
    json_objects,
    st.just(SCHEMA_VERSION),
)
batches = st.lists(new_events, min_size=1, max_size=6)
plain_batches = st.lists(
    st.builds(
        NewEvent,
        st.text(max_size=3),
        st.sampled_from(EventType),
        st.integers(0, 1 << 50),
        st.none(),
        st.integers(1, 9),
        st.none(),
        st.dictionaries(st.text(max_size=3), st.text(max_size=3) | st.integers(0, 300), max_size=2),
        st.just({}),
        st.just(SCHEMA_VERSION),
    ),
    min_size=1,
    max_size=5,
)
"""For what does not depend on the data: quicker to make."""


def stored(new: NewEvent, seq: int) -> Event:
    """The event as it must come back."""
    return Event(
        seq=seq,
        id=new.id,
        session_id=SESSION,
        run_id=new.run_id,
        attempt=new.attempt,
        type=new.type,
        timestamp=from_microseconds(new.timestamp_us),
        recorded_at=from_microseconds(RECORDED_AT_US),
        provider=new.provider,
        data=new.data,
        metadata=new.metadata,
    )


def all_stored(events: list[NewEvent], first_seq: int = 1) -> list[Event]:
    return [stored(event, seq) for seq, event in enumerate(events, start=first_seq)]


def an_event(**data: Any) -> NewEvent:
    return NewEvent("evt_1", EventType.MESSAGE_STREAMED, 0, "run_1", 1, "scripted", data, {})


@given(batches)
def test_a_batch_comes_back_as_it_was(events: list[NewEvent]) -> None:
    batch = BatchEncoder().encode(events)

    found = decode_slab(SESSION, Slab(range(5, 5 + len(events)), RECORDED_AT_US, batch.payload))

    assert all_stored(events, 5) == found
    assert (len(events), mask_of({event.type for event in events})) == (batch.event_count, batch.types)


@given(st.lists(st.tuples(plain_batches, st.booleans()), min_size=1, max_size=4), st.integers(0, 3))
def test_a_batch_that_grows_is_one_batch_of_all_its_events(
    parts: list[tuple[list[NewEvent], bool]], copied_at: int
) -> None:
    encoder, batch = BatchEncoder(), OpenBatch()

    for place, (part, is_batch) in enumerate(parts):
        if place == copied_at:
            batch, former = batch.copy(), batch
            former.add(encoder.packed([an_event()]))
        if is_batch:
            batch.extend(encoder.encode(part))
        else:
            batch.add(encoder.packed(part))

    whole = encoder.encode([event for part, _ in parts for event in part])
    assert whole == batch.encoded()
    assert (whole.event_count, len(whole.payload)) == (batch.count, batch.size)


@given(plain_batches)
def test_record_events_are_those_that_change_a_record(events: list[NewEvent]) -> None:
    batch = BatchEncoder().encode(events)

    found = list(record_events(SESSION, range(3, 3 + batch.event_count), RECORDED_AT_US, batch.records, batch.payload))

    assert [event for event in all_stored(events, 3) if event.type in RECORD_TYPES] == found


@given(plain_batches)
def test_event_bounds_cut_a_batch_into_its_events(events: list[NewEvent]) -> None:
    encoder = BatchEncoder()
    payload = encoder.encode(events).payload

    bounds = event_bounds(payload, len(events))

    assert [encoder.encode([event]).payload for event in events] == [
        payload[start:end] for start, end in pairwise(bounds)
    ]
    assert bounds[:2] == event_bounds(payload, 1)


@given(plain_batches)
def test_split_events_tells_the_same_bounds_and_the_fields(events: list[NewEvent]) -> None:
    payload = BatchEncoder().encode(events).payload

    found = list(split_events(payload))

    bounds = event_bounds(payload, len(events))
    assert list(pairwise(bounds)) == [(start, end) for start, end, _ in found]
    assert [list(event) for event in events] == [fields for _, _, fields in found]


@pytest.mark.parametrize("change", [{"schema_version": SCHEMA_VERSION + 1}, {"schema_version": 99}])
def test_an_event_of_a_newer_layout_is_refused(change: dict[str, int]) -> None:
    batch = BatchEncoder().encode([an_event(), an_event()._replace(**change)])

    with pytest.raises(InvalidFormat, match="Event 8 of ses_1") as refused:
        decode_slab(SESSION, Slab((7, 8), RECORDED_AT_US, batch.payload))

    assert change["schema_version"] == refused.value.details["schema_version"]


def test_an_event_with_fields_added_by_a_newer_version_is_refused() -> None:
    payload = msgpack.packb([*an_event()[:-1], "new field", SCHEMA_VERSION + 1])

    with pytest.raises(InvalidFormat):
        decode_slab(SESSION, Slab((1,), RECORDED_AT_US, payload))


@pytest.mark.parametrize(
    "value", [b"raw", float("nan"), float("-inf"), {1: "a"}, {("a", "b"): 1}, "\ud800", 1 << 64, object(), {1, 2}]
)
def test_data_that_json_does_not_know_is_refused_and_the_encoder_goes_on(value: Any) -> None:
    encoder = BatchEncoder()

    with pytest.raises(ValidationError) as refused:
        encoder.encode([an_event(content="fine"), an_event(content=[value])])

    assert {"field": "data", "event_type": "message_streamed"} == refused.value.details
    assert BatchEncoder().encode([an_event(content="fine")]) == encoder.encode([an_event(content="fine")])


def test_bytes_in_metadata_are_refused_too() -> None:
    with pytest.raises(ValidationError):
        BatchEncoder().encode([an_event()._replace(metadata={"raw": b"x"})])


def test_a_slab_with_fewer_events_than_it_says_is_no_answer() -> None:
    payload = BatchEncoder().encode([an_event()]).payload

    with pytest.raises(ValueError, match="zip"):
        decode_slab(SESSION, Slab((1, 2), RECORDED_AT_US, payload))


@given(st.lists(st.tuples(st.text(max_size=5), st.integers(1, 9), st.integers(1, 99), plain_batches), max_size=4))
def test_a_frame_comes_back_as_it_was(given_entries: list[tuple[str, int, int, list[NewEvent]]]) -> None:
    encoder = BatchEncoder()
    entries = [
        AppendEntry(session_id, epoch, number, encoder.encode(events))
        for session_id, epoch, number, events in given_entries
    ]

    assert (7, entries) == decode_frame(encode_frame(7, entries))
    assert all(isinstance(entry.batch, EncodedBatch) for entry in decode_frame(encode_frame(7, entries))[1])


def test_answers_come_back_as_they_were() -> None:
    answers = [AppendAnswer(status, 1 << 40, RECORDED_AT_US) for status in AppendStatus]

    assert (3, answers, True) == decode_answers(encode_answers(3, answers, is_short_of_room=True))


@given(st.integers(0, 250_000_000_000_000_000))
def test_a_time_in_microseconds_is_exact(microseconds: int) -> None:
    assert microseconds == to_microseconds(from_microseconds(microseconds))
