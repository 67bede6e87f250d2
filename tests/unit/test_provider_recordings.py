"""Recordings of real clients give the events that somebody has read and found right, and obey the rules of the port."""

import json

import pytest

from greenroom.adapters.providers.agents.replayed_attempt import Attempt
from greenroom.domain.event import RECORD_TYPES, EventType
from greenroom.domain.json_values import check_json_safe
from greenroom.domain.provider import ProviderOutcome
from tests.provider_recordings import golden_path, names, replay, to_golden

CLOSING = {EventType.TOOL_CALL_COMPLETED, EventType.TOOL_CALL_FAILED}


@pytest.mark.parametrize("name", names())
def test_a_recording_gives_its_golden_list(name: str) -> None:
    expected = json.loads(golden_path(name).read_text(encoding="utf-8"))

    assert expected == [to_golden(attempt) for attempt in replay(name)]


@pytest.mark.parametrize("name", names())
def test_a_recording_obeys_the_rules_of_the_port(name: str) -> None:
    for attempt in replay(name):
        check_attempt(attempt)


def check_attempt(attempt: Attempt) -> None:
    started: list[str] = []
    ended: list[str] = []
    totals = [0]
    for event in attempt.events:
        check_json_safe(event.data)
        assert event.type not in RECORD_TYPES
        if event.type is EventType.TOOL_CALL_STARTED:
            started.append(event.data["tool_call_id"])
        elif event.type in CLOSING:
            ended.append(event.data["tool_call_id"])
            assert event.data["tool_call_id"] in started
        elif event.type is EventType.TOKEN_USAGE_UPDATED:
            totals.append(event.data["total_tokens"])
    assert len(set(started)) == len(started)
    assert len(set(ended)) == len(ended)
    assert sorted(totals) == totals
    end = attempt.end()
    if isinstance(end, ProviderOutcome):
        assert set(started) == set(ended)
        received = [one.data["content"] for one in attempt.events if one.type is EventType.MESSAGE_RECEIVED]
        assert not end.content or end.content in received


def test_a_message_of_an_unknown_kind_gives_nothing() -> None:
    for provider in {name.split("/")[0] for name in names()}:
        (attempt, *_) = replay(next(name for name in names() if name.startswith(f"{provider}/")))
        assert [] == attempt.mapping.take({"type": "a kind of next year", "session_id": None})
