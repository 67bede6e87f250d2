"""The events of the real SDK, taken by AssistantMessage, give the events that somebody has read and found right."""

import json
from itertools import accumulate
from typing import Any

import pytest

from greenroom.domain.errors import GreenroomError
from greenroom.domain.event import EventType
from greenroom.domain.json_values import check_json_safe
from tests.anthropic_recordings import (
    RAW_KINDS,
    RecordedMessage,
    foreign_error,
    golden_path,
    read_exchanges,
    read_messages,
    sdk_names,
    take_messages,
)
from tests.provider_recordings import to_golden

SYNTHETIC_KINDS = {"text", "thinking", "signature", "input_json"}
FIELD_OF_DELTA = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "signature_delta": "signature",
    "input_json_delta": "partial_json",
}


def with_exception() -> list[str]:
    return [name for name in sdk_names() if any(message.exception for message in read_messages(name))]


def pieces(message: RecordedMessage, kind: str) -> list[str]:
    """What the API sent of this kind."""
    deltas = [event["delta"] for event in message.raw_events() if event["type"] == "content_block_delta"]
    return [delta[FIELD_OF_DELTA[kind]] for delta in deltas if delta["type"] == kind]


def synthetic(message: RecordedMessage, kind: str, field: str) -> list[Any]:
    """What the SDK said of it."""
    return [event[field] for event in message.synthetic_events() if event["type"] == kind]


def test_there_are_recordings() -> None:
    assert 12 == len(sdk_names())
    assert 7 == len(with_exception())


@pytest.mark.parametrize("name", sdk_names())
def test_a_recording_gives_its_golden_list(name: str) -> None:
    expected = json.loads(golden_path(name).read_text(encoding="utf-8"))

    assert expected == [to_golden(attempt) for _, _, attempt in take_messages(name)]


@pytest.mark.parametrize("name", sdk_names())
def test_the_raw_events_are_what_came_over_the_wire(name: str) -> None:
    frames = [frame for exchange in read_exchanges(f"{name}.wire") for frame in exchange.frames]
    sent = [frame for frame in frames if frame["type"] in RAW_KINDS]

    raw = [event for message in read_messages(name) for event in message.raw_events()]

    assert {"ping", "error"} >= {frame["type"] for frame in frames} - RAW_KINDS
    assert raw == sent[: len(raw)]
    assert name == "cancel" or len(raw) == len(sent)


@pytest.mark.parametrize("name", sdk_names())
def test_the_events_of_the_sdk_that_are_skipped_say_nothing_new(name: str) -> None:
    for message in read_messages(name):
        assert SYNTHETIC_KINDS >= {event["type"] for event in message.synthetic_events()}
        for kind in ("text", "thinking"):
            came = pieces(message, f"{kind}_delta")
            assert came == synthetic(message, kind, kind)
            assert list(accumulate(came)) == synthetic(message, kind, "snapshot")
        assert pieces(message, "signature_delta") == synthetic(message, "signature", "signature")
        inputs = pieces(message, "input_json_delta")
        assert inputs == synthetic(message, "input_json", "partial_json")
        if inputs:
            assert json.loads("".join(inputs)) == synthetic(message, "input_json", "snapshot")[-1]


@pytest.mark.parametrize("name", sdk_names())
def test_each_piece_is_streamed_once(name: str) -> None:
    for recorded, _, attempt in take_messages(name):
        streamed = [event.data for event in attempt.events if event.type is EventType.MESSAGE_STREAMED]
        for kind in ("text", "thinking"):
            assert pieces(recorded, f"{kind}_delta") == [one["content"] for one in streamed if one["kind"] == kind]
        for event in attempt.events:
            check_json_safe(event.data)


@pytest.mark.parametrize("name", sdk_names())
def test_the_message_is_put_together_as_the_sdk_does_it(name: str) -> None:
    for recorded, message, _ in take_messages(name):
        assert message.complete == (recorded.whole is not None)
        snapshot = recorded.whole or recorded.cut_off
        if snapshot is not None:
            assert {"role": snapshot["role"], "content": snapshot["content"]} == message.to_parameter()
            assert (snapshot["model"], snapshot["stop_reason"]) == (message.model, message.stop_reason)
            assert {
                "input_tokens": message.usage.input_tokens,
                "output_tokens": message.usage.output_tokens,
                "cache_read_input_tokens": message.usage.cache_read_tokens,
                "cache_creation_input_tokens": message.usage.cache_write_tokens,
            } == snapshot["usage"]


@pytest.mark.parametrize("name", with_exception())
def test_an_exception_of_the_sdk_is_rebuilt_and_kept(name: str) -> None:
    recorded, _, attempt = take_messages(name)[-1]
    assert recorded.exception is not None
    exc, error = foreign_error(recorded.exception), attempt.end()

    assert (recorded.exception["mro"], recorded.exception["str"]) == (
        [one.__name__ for one in type(exc).__mro__[:5]],
        str(exc),
    )
    assert isinstance(error, GreenroomError)
    assert error.provider_error is not None
    for field in ("status_code", "request_id", "body"):
        assert recorded.exception[field] == error.provider_error[field]
    assert (recorded.exception["type"] or recorded.exception["exception"]) == error.provider_error["type"]
