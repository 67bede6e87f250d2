"""An OpenAI Chat Completions API on the loopback, for OpenCode: an Answer as that API writes it."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from greenroom.domain.token_usage import TokenUsage
from greenroom.testing import Answer
from greenroom.testing.answers import ERROR_TYPES, Block, Ending, text
from greenroom.testing.loopback_server import Answering, LoopbackServer

_HTTP_ERRORS: Mapping[str, tuple[str, str]] = {
    "invalid_request_error": ("invalid_request_error", "invalid_request_error"),
    "authentication_error": ("invalid_request_error", "invalid_api_key"),
    "rate_limit_error": ("requests", "rate_limit_exceeded"),
    "api_error": ("server_error", "server_error"),
    "overloaded_error": ("service_unavailable_error", "server_is_overloaded"),
}
"""The type of an Answer's error -> `type` and `code`. A type that is not here is written as it is."""

_STATUSES: Mapping[int, int] = {402: 429, 529: 503}
"""The statuses that only the Messages API has."""

_FINISHES: Mapping[str, str] = {"tool_use": "tool_calls", "max_tokens": "length", "refusal": "content_filter"}
"""stop_reason -> finish_reason; all others are `stop`."""

_Event = dict[str, Any]


class ChatCompletionsServer(LoopbackServer):
    """Answers `POST /v1/chat/completions`; all else is as with a MessagesServer. Its base_url is `url + "/v1"`."""

    def __init__(self, *, default: Answering | None = None) -> None:
        super().__init__(ChatCompletionsWire(), default=default)


class ChatCompletionsWire:
    """Implements Wire.

    | Answer | Chat Completions API |
    |---|---|
    | text | `delta.content` |
    | thinking | `delta.reasoning_content`, as DeepSeek and others have it; OpenAI has no form for it |
    | tool_use | `delta.tool_calls` |
    | stop_reason max_tokens, refusal | finish_reason length, content_filter |
    | midstream_error | a chunk that is `{"error": ...}`, or HTTP 500 if it is not streamed |
    | error | `{"error": {"message", "type", "code", "param"}}`; 402 becomes 429, 529 becomes 503 |

    Chunks have a `type` besides what the API gives them, and `[DONE]` is left out: clients need neither.
    """

    path = "/v1/chat/completions"
    delta = ".delta"
    pages: Mapping[str, dict[str, Any]] = {"/v1/models": {"object": "list", "data": []}}

    def message(self, answer: Answer, number: int, body: dict[str, Any]) -> dict[str, Any]:
        said = "".join(block["text"] for block in answer.blocks if block["type"] == "text")
        thought = "".join(block["thinking"] for block in answer.blocks if block["type"] == "thinking")
        calls = [_call(block, number, index) for index, block in enumerate(_calls_of(answer))]
        message: dict[str, Any] = {"role": "assistant", "content": said or None}
        if thought:
            message["reasoning_content"] = thought
        if calls:
            message["tool_calls"] = calls
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": _finish(answer)}
        head = {**_head(number, body), "object": "chat.completion"}
        return {**head, "choices": [choice], "usage": _wire_usage(answer.usage)}

    def events(self, answer: Answer, number: int, body: dict[str, Any]) -> Iterator[_Event]:
        head = {**_head(number, body), "object": "chat.completion.chunk"}

        def chunk(kind: str, delta: dict[str, Any], finish: str | None = None) -> _Event:
            choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": finish}
            return {"type": kind, **head, "choices": [choice]}

        yield chunk("chunk.start", {"role": "assistant", "content": ""})
        call_index = 0
        for block in answer.blocks:
            for delta in _deltas(answer, block, number, call_index):
                yield chunk("chunk.delta", delta)
            call_index += block["type"] == "tool_use"
        if answer.ending is Ending.COMPLETE:
            yield chunk("chunk.end", {}, _finish(answer))
            yield {"type": "chunk.usage", **head, "choices": [], "usage": _wire_usage(answer.usage)}
        elif answer.ending is Ending.ERROR:
            yield {"type": "error", **self.error(answer, number)[1]}

    def error(self, answer: Answer, number: int) -> tuple[int, dict[str, Any]]:
        given = answer.error or {"type": ERROR_TYPES.get(answer.status, "api_error"), "message": "scripted"}
        kind, code = _HTTP_ERRORS.get(given["type"], (given["type"], given["type"]))
        error = {"message": given["message"], "type": kind, "code": code, "param": None}
        return _STATUSES.get(answer.status, answer.status), {"error": error}

    def headers(self, number: int) -> dict[str, str]:
        return {"x-request-id": f"req_{number:04d}"}

    def echo(self, body: dict[str, Any]) -> Answer:
        messages: list[dict[str, Any]] = body.get("messages") or [{"content": ""}]
        content: str | list[dict[str, Any]] = messages[-1].get("content") or ""
        said = content if isinstance(content, str) else "".join(str(part.get("text", "")) for part in content)
        return text(said or "ok")


def _deltas(answer: Answer, block: Block, number: int, call_index: int) -> Iterator[dict[str, Any]]:
    if block["type"] == "text":
        yield from ({"content": piece} for piece in answer.pieces(block["text"]))
    elif block["type"] == "thinking":
        yield from ({"reasoning_content": piece} for piece in answer.pieces(block["thinking"]))
    else:
        call = _call(block, number, call_index)
        function = call["function"]
        yield {"tool_calls": [{"index": call_index, **call, "function": {**function, "arguments": ""}}]}
        for piece in answer.pieces(function["arguments"]):
            yield {"tool_calls": [{"index": call_index, "function": {"arguments": piece}}]}


def _calls_of(answer: Answer) -> list[Block]:
    return [block for block in answer.blocks if block["type"] == "tool_use"]


def _call(block: Block, number: int, index: int) -> dict[str, Any]:
    function = {"name": block["name"], "arguments": json.dumps(block["input"])}
    return {"id": block.get("id", f"call_{number:04d}_{index}"), "type": "function", "function": function}


def _finish(answer: Answer) -> str:
    return _FINISHES.get(answer.stop_reason, "stop")


def _head(number: int, body: dict[str, Any]) -> dict[str, Any]:
    return {"id": f"chatcmpl-{number:04d}", "created": 1_700_000_000, "model": str(body.get("model", "gpt-fake"))}


def _wire_usage(usage: TokenUsage) -> dict[str, Any]:
    """This API counts as input also what came from a cache or went to one."""
    return {
        "prompt_tokens": usage.total_tokens - usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read_tokens},
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
    }
