"""What went over the wire of a real client, played to the Messages API provider from the loopback, gives the events
that somebody has read and found right."""

import json
from typing import Any

import pytest

from greenroom.domain.errors import GreenroomError
from greenroom.testing.answers import Ending
from tests.anthropic_recordings import Exchange, golden_path, play_wire, read_exchanges, wire_names
from tests.provider_recordings import to_golden
from tests.unit.test_provider_recordings import check_attempt


def asked(body: dict[str, Any]) -> dict[str, Any]:
    """What a request has to have in common with the recorded one; how tools are described is each client's own."""
    return {name: body[name] for name in ("model", "max_tokens", "messages", "stream")}


def recorded_error(exchange: Exchange) -> dict[str, Any] | None:
    """The body of the error that the recorded server gave, if it gave any."""
    if exchange.response is not None:
        return exchange.response["body"]
    return next((frame for frame in exchange.frames if frame["type"] == "error"), None)


def test_there_are_recordings() -> None:
    assert 12 == len(wire_names())


@pytest.mark.parametrize("name", wire_names())
async def test_a_recording_of_the_wire_gives_its_golden_list(name: str) -> None:
    expected = json.loads(golden_path(name).read_text(encoding="utf-8"))

    played = await play_wire(name)

    assert expected == [to_golden(attempt) for attempt in played.attempts]
    for attempt in played.attempts:
        check_attempt(attempt)


@pytest.mark.parametrize("name", wire_names())
async def test_the_provider_asks_for_what_the_recorded_client_asked_for(name: str) -> None:
    played = await play_wire(name)

    assert [asked(one.request["body"]) for one in played.exchanges] == [asked(one.body) for one in played.requests]
    assert {one.request["path"] for one in played.exchanges} == {one.path for one in played.requests}
    assert {"0"} == {one.headers["x-stainless-retry-count"] for one in played.requests}
    assert [one.ending is Ending.STALL for one in played.exchanges] == [one.disconnected for one in played.requests]


@pytest.mark.parametrize(
    "name", [name for name in wire_names() if any(recorded_error(exchange) for exchange in read_exchanges(name))]
)
async def test_the_error_of_the_api_is_kept_as_it_came(name: str) -> None:
    played = await play_wire(name)

    error = played.attempts[0].end()
    exchange = played.exchanges[0]
    assert isinstance(error, GreenroomError)
    assert error.provider_error is not None
    assert recorded_error(exchange) == error.provider_error["body"]
    assert exchange.answer.status == error.provider_error["status_code"]
    assert error.__cause__ is not None
