"""The loopback Responses API: what becomes of each answer, as a client without any SDK sees it."""

import json
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

import pytest

from greenroom.domain.token_usage import TokenUsage
from greenroom.testing import Answer, MessagesServer, ResponsesServer, answers

TIMEOUT_S = 10.0


@pytest.fixture
def server() -> Iterator[ResponsesServer]:
    with ResponsesServer() as running:
        yield running


def connected(server: ResponsesServer | MessagesServer) -> closing[HTTPConnection]:
    return closing(HTTPConnection(urlsplit(server.url).netloc, timeout=TIMEOUT_S))


def posted(connection: HTTPConnection, *, path: str = "/v1/responses", **body: Any) -> HTTPResponse:
    data = json.dumps({"model": "gpt-6-sol", "stream": True, "input": "Hi", **body})
    connection.request("POST", path, data, {"authorization": "Bearer sk-secret"})
    return connection.getresponse()


def next_event(response: HTTPResponse) -> dict[str, Any]:
    name = response.readline().decode().strip()
    event: dict[str, Any] = json.loads(response.readline().decode().removeprefix("data: "))
    assert response.readline() == b"\n"
    assert name == f"event: {event['type']}"
    return event


def streamed(server: ResponsesServer, **body: Any) -> list[dict[str, Any]]:
    """All events of an answer that ends."""
    with connected(server) as connection:
        lines = posted(connection, **body).read().decode().splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


def answered(server: ResponsesServer, **body: Any) -> tuple[int, dict[str, Any], HTTPResponse]:
    with connected(server) as connection:
        response = posted(connection, **body)
        return response.status, json.loads(response.read()), response


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def test_text_is_a_message_item_that_comes_in_pieces(server: ResponsesServer) -> None:
    server.answers.append(answers.text("Hello there.", chunks=2))

    events = streamed(server)

    assert types(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert "".join(event["delta"] for event in events if "delta" in event) == "Hello there."
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["response"]["output"] == [events[-2]["item"]]
    assert events[-2]["item"]["content"][0]["text"] == "Hello there."


def test_thinking_is_a_reasoning_item_and_a_tool_use_a_function_call(server: ResponsesServer) -> None:
    server.answers.append(answers.thinking("Hm.") + answers.text("I look.") + answers.tool_use("look", {"at": "Oslo"}))

    events = streamed(server)

    reasoning, message, call = events[-1]["response"]["output"]
    assert (reasoning["type"], reasoning["summary"]) == ("reasoning", [{"type": "summary_text", "text": "Hm."}])
    assert message["content"][0]["text"] == "I look."
    assert (call["type"], call["name"], call["call_id"]) == ("function_call", "look", "call_0001_2")
    assert json.loads(call["arguments"]) == {"at": "Oslo"}
    deltas = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call["arguments"]
    assert "response.reasoning_summary_text.delta" in {event["type"] for event in events}


def test_what_came_from_a_cache_or_went_to_one_counts_as_input(server: ResponsesServer) -> None:
    usage = TokenUsage(input_tokens=20, output_tokens=7, cache_read_tokens=5, cache_write_tokens=3)
    server.answers.append(answers.text("Hello.", usage=usage))

    assert streamed(server)[-1]["response"]["usage"] == {
        "input_tokens": 28,
        "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 3},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 35,
    }


def test_without_streaming_the_response_comes_whole(server: ResponsesServer) -> None:
    server.answers.append(answers.text("Hello."))

    status, response, _ = answered(server, stream=False)

    assert (status, response["status"], response["model"]) == (200, "completed", "gpt-6-sol")
    assert response["output"][0]["content"][0]["text"] == "Hello."


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (answers.text("cut sh", stop_reason="max_tokens"), "max_output_tokens"),
        (answers.refusal("No."), "content_filter"),
    ],
)
def test_an_answer_that_is_not_all_is_incomplete(server: ResponsesServer, answer: Answer, reason: str) -> None:
    server.answers.append(answer)

    last = streamed(server)[-1]

    assert (last["type"], last["response"]["incomplete_details"]) == ("response.incomplete", {"reason": reason})


@pytest.mark.parametrize(
    ("scripted", "status", "kind", "code"),
    [
        (400, 400, "invalid_request_error", "invalid_request_error"),
        (401, 401, "invalid_request_error", "invalid_api_key"),
        (402, 429, "insufficient_quota", "insufficient_quota"),
        (429, 429, "requests", "rate_limit_exceeded"),
        (500, 500, "server_error", "server_error"),
        (529, 503, "service_unavailable_error", "server_is_overloaded"),
    ],
)
def test_an_error_is_written_as_this_api_writes_it(
    server: ResponsesServer, scripted: int, status: int, kind: str, code: str
) -> None:
    server.answers.append(answers.error(scripted, message="No.", retry_after=3))

    answered_with, body, response = answered(server)

    assert answered_with == status
    assert body == {"error": {"message": "No.", "type": kind, "code": code, "param": None}}
    assert (response.getheader("retry-after"), response.getheader("x-request-id")) == ("3", "req_0001")


def test_an_error_that_only_this_api_knows_can_be_scripted(server: ResponsesServer) -> None:
    server.answers.append(answers.error(429, "usage_limit_reached", "No more today."))
    server.answers.append(answers.error(400, error_code="unknown_parameter"))

    assert answered(server)[1]["error"]["type"] == "usage_limit_reached"
    assert answered(server)[1]["error"]["code"] == "unknown_parameter"


@pytest.mark.parametrize(
    ("kind", "code"),
    [("rate_limit_error", "rate_limit_exceeded"), ("overloaded_error", "server_is_overloaded"), ("own", "own")],
)
def test_an_error_in_the_middle_is_a_failed_response(server: ResponsesServer, kind: str, code: str) -> None:
    server.answers.append(answers.midstream_error(kind, "Enough.", content="Hel"))

    events = streamed(server)

    assert types(events)[-2:] == ["output_text.delta", "failed"]
    assert events[-1]["response"]["error"] == {"code": code, "message": "Enough."}


def test_a_cut_stream_ends_without_its_end(server: ResponsesServer) -> None:
    server.answers.append(answers.cut())

    with connected(server) as connection:
        response = posted(connection)
        with pytest.raises((HTTPException, OSError)):
            response.read()


def test_a_stalled_stream_knows_when_its_client_goes(server: ResponsesServer) -> None:
    server.answers.append(answers.stall("Wait"))

    with connected(server) as connection:
        response = posted(connection)
        while next_event(response)["type"] != "response.output_text.delta":
            pass
        response.close()
        assert not server.requests[0].disconnected
    assert server.requests[0].wait_disconnected(TIMEOUT_S)


def test_stopping_ends_a_stalled_stream() -> None:
    server = ResponsesServer().start()
    server.answers.append(answers.stall())

    with connected(server) as connection:
        response = posted(connection)
        next_event(response)
        server.stop()
        with pytest.raises((HTTPException, OSError)):
            response.read()


def test_requests_are_recorded_with_their_keys_masked(server: ResponsesServer) -> None:
    streamed(server, input="Hello")

    (request,) = server.requests
    assert (request.path, request.body["input"]) == ("/v1/responses", "Hello")
    assert request.headers["authorization"] == "***"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("Hello", "Hello"),
        ([{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}, {"type": "reasoning"}], "Hi"),
        ([{"role": "user", "content": "Hi"}, {"type": "function_call_output", "output": "made"}], "made"),
        ([], "ok"),
    ],
)
def test_the_default_says_the_last_input_again(server: ResponsesServer, given: Any, said: str) -> None:
    assert streamed(server, input=given)[-1]["response"]["output"][0]["content"][0]["text"] == said


def test_an_answer_can_be_made_from_the_request(server: ResponsesServer) -> None:
    server.default = lambda body: answers.text(f"from {body['model']}")

    assert streamed(server)[-1]["response"]["output"][0]["content"][0]["text"] == "from gpt-6-sol"


def test_models_can_be_asked_for_and_other_paths_are_not_found(server: ResponsesServer) -> None:
    with connected(server) as connection:
        connection.request("GET", "/v1/models?client_version=1")
        models = connection.getresponse()
        assert (models.status, json.loads(models.read())["data"]) == (200, [])
        other = posted(connection, path="/v1/chat/completions")
        assert (other.status, json.loads(other.read())["error"]["code"]) == (404, "not_found")


def test_one_script_drives_both_apis(server: ResponsesServer) -> None:
    script = [answers.error(429, retry_after=1), answers.thinking("Hm.") + answers.text("Hello.")]
    with MessagesServer() as other, connected(other) as connection:
        server.answers.extend(script)
        other.answers.extend(script)

        assert answered(server, stream=False)[0] == 429
        refused = posted(connection, path="/v1/messages", stream=False)
        assert (refused.status, json.loads(refused.read())["error"]["type"]) == (429, "rate_limit_error")
        assert answered(server, stream=False)[1]["output"][1]["content"][0]["text"] == "Hello."
        message = posted(connection, path="/v1/messages", stream=False)
        assert json.loads(message.read())["content"][1]["text"] == "Hello."
