"""An Answer as the Responses API writes it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, cast

from ..domain.token_usage import TokenUsage
from .answers import ERROR_TYPES, Answer, Block, Ending, text

_HTTP_ERRORS: Mapping[str, tuple[str, str | None]] = {
    "invalid_request_error": ("invalid_request_error", "invalid_request_error"),
    "authentication_error": ("invalid_request_error", "invalid_api_key"),
    "billing_error": ("insufficient_quota", "insufficient_quota"),
    "permission_error": ("invalid_request_error", "insufficient_permissions"),
    "not_found_error": ("invalid_request_error", "not_found"),
    "request_too_large": ("invalid_request_error", "context_length_exceeded"),
    "rate_limit_error": ("requests", "rate_limit_exceeded"),
    "api_error": ("server_error", "server_error"),
    "timeout_error": ("server_error", "timeout"),
    "overloaded_error": ("service_unavailable_error", "server_is_overloaded"),
}
"""The type of an Answer's error -> `type` and `code`. A type that is not here is written as it is."""

_FAILURES: Mapping[str, str] = {
    "invalid_request_error": "invalid_prompt",
    "billing_error": "insufficient_quota",
    "request_too_large": "context_length_exceeded",
    "rate_limit_error": "rate_limit_exceeded",
    "overloaded_error": "server_is_overloaded",
    "api_error": "server_error",
    "timeout_error": "server_error",
}
"""The type of an Answer's error -> the `code` in `response.failed`, which has no type."""

_STATUSES: Mapping[int, int] = {402: 429, 529: 503}
"""The statuses that only the Messages API has."""

_INCOMPLETE: Mapping[str, str] = {"max_tokens": "max_output_tokens", "refusal": "content_filter"}
"""stop_reason -> why the response is incomplete."""

_Event = dict[str, Any]


class ResponsesWire:
    """Implements Wire.

    | Answer | Responses API |
    |---|---|
    | text | a message item, output_text deltas |
    | thinking | a reasoning item with one summary, reasoning_summary_text deltas |
    | tool_use | a function_call item, function_call_arguments deltas |
    | stop_reason max_tokens, refusal | response.incomplete: max_output_tokens, content_filter |
    | midstream_error | response.failed, or HTTP 500 if it is not streamed |
    | error | `{"error": {"message", "type", "code", "param"}}`; 402 becomes 429 insufficient_quota, 529 becomes 503 |
    """

    path = "/v1/responses"
    delta = ".delta"
    pages: Mapping[str, dict[str, Any]] = {"/v1/models": {"object": "list", "data": [], "models": []}}

    def message(self, answer: Answer, number: int, body: dict[str, Any]) -> dict[str, Any]:
        return _ended(answer, _empty_response(number, body), [item.whole for item in _items(answer, number)])

    def events(self, answer: Answer, number: int, body: dict[str, Any]) -> Iterator[_Event]:
        numbers = count()
        for event in _unnumbered_events(answer, number, body):
            yield {**event, "sequence_number": next(numbers)}

    def error(self, answer: Answer, number: int) -> tuple[int, dict[str, Any]]:
        given = answer.error or {"type": ERROR_TYPES.get(answer.status, "api_error"), "message": "scripted"}
        kind, code = _HTTP_ERRORS.get(given["type"], (given["type"], given["type"]))
        details: dict[str, Any] = given.get("details") or {}
        code = details.get("error_code", code)
        error: dict[str, Any] = {"message": given["message"], "type": kind, "code": code, "param": None}
        return _STATUSES.get(answer.status, answer.status), {"error": error}

    def headers(self, number: int) -> dict[str, str]:
        return {"x-request-id": f"req_{number:04d}"}

    def echo(self, body: dict[str, Any]) -> Answer:
        given = body.get("input") or ""
        if isinstance(given, str):
            return text(given or "ok")
        items = cast("list[dict[str, Any]]", given)
        said = [item for item in items if item.get("role") == "user" or item.get("type") == "function_call_output"]
        last = said[-1] if said else {}
        return text(_text_of(last.get("content") or last.get("output") or "") or "ok")


@dataclass(frozen=True, slots=True)
class _Item:
    """One item of the output: as it is announced, what fills it, what follows when it is full, and as it is whole."""

    empty: dict[str, Any]
    whole: dict[str, Any]
    parts: list[_Event] = field(default_factory=list[_Event])
    """What opens it and brings its text. An answer that breaks off ends with these."""
    closings: list[_Event] = field(default_factory=list[_Event])


def _unnumbered_events(answer: Answer, number: int, body: dict[str, Any]) -> Iterator[_Event]:
    response = _empty_response(number, body)
    yield {"type": "response.created", "response": response}
    yield {"type": "response.in_progress", "response": response}
    items = _items(answer, number)
    for index, item in enumerate(items):
        at = {"output_index": index}
        yield {"type": "response.output_item.added", **at, "item": item.empty}
        yield from ({**event, **at, "item_id": item.whole["id"]} for event in item.parts)
        if answer.ending is Ending.COMPLETE or index < len(items) - 1:
            yield from ({**event, **at, "item_id": item.whole["id"]} for event in item.closings)
            yield {"type": "response.output_item.done", **at, "item": item.whole}
    if answer.ending is Ending.COMPLETE:
        ended = _ended(answer, response, [item.whole for item in items])
        yield {"type": f"response.{ended['status']}", "response": ended}
    elif answer.ending is Ending.ERROR:
        yield {"type": "response.failed", "response": {**response, "status": "failed", "error": _failure(answer)}}


def _items(answer: Answer, number: int) -> list[_Item]:
    makers = {"text": _message, "thinking": _reasoning, "tool_use": _function_call}
    return [makers[block["type"]](block, f"{number:04d}_{index}", answer) for index, block in enumerate(answer.blocks)]


def _message(block: Block, suffix: str, answer: Answer) -> _Item:
    whole: Block = {"type": "output_text", "text": block["text"], "annotations": []}
    empty: Block = {
        "id": f"msg_{suffix}",
        "type": "message",
        "role": "assistant",
        "status": "in_progress",
        "content": [],
    }
    at = {"content_index": 0}
    deltas = [{"type": "response.output_text.delta", **at, "delta": piece} for piece in answer.pieces(block["text"])]
    return _Item(
        empty=empty,
        whole={**empty, "status": "completed", "content": [whole]},
        parts=[{"type": "response.content_part.added", **at, "part": {**whole, "text": ""}}, *deltas],
        closings=[
            {"type": "response.output_text.done", **at, "text": block["text"]},
            {"type": "response.content_part.done", **at, "part": whole},
        ],
    )


def _reasoning(block: Block, suffix: str, answer: Answer) -> _Item:
    content = block["thinking"]
    whole = {"type": "summary_text", "text": content}
    empty: Block = {"id": f"rs_{suffix}", "type": "reasoning", "summary": []}
    at = {"summary_index": 0}
    summary = "response.reasoning_summary"
    deltas = [{"type": f"{summary}_text.delta", **at, "delta": piece} for piece in answer.pieces(content)]
    return _Item(
        empty=empty,
        whole={**empty, "summary": [whole], "encrypted_content": block["signature"]},
        parts=[{"type": f"{summary}_part.added", **at, "part": {**whole, "text": ""}}, *deltas],
        closings=[
            {"type": f"{summary}_text.done", **at, "text": content},
            {"type": f"{summary}_part.done", **at, "part": whole},
        ],
    )


def _function_call(block: Block, suffix: str, answer: Answer) -> _Item:
    arguments = json.dumps(block["input"])
    whole = {
        "id": f"fc_{suffix}",
        "type": "function_call",
        "status": "completed",
        "call_id": block.get("id", f"call_{suffix}"),
        "name": block["name"],
        "arguments": arguments,
    }
    kind = "response.function_call_arguments"
    return _Item(
        empty={**whole, "status": "in_progress", "arguments": ""},
        whole=whole,
        parts=[{"type": f"{kind}.delta", "delta": piece} for piece in answer.pieces(arguments)],
        closings=[{"type": f"{kind}.done", "name": block["name"], "arguments": arguments}],
    )


def _empty_response(number: int, body: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"resp_{number:04d}",
        "object": "response",
        "created_at": 1_700_000_000,
        "status": "in_progress",
        "model": str(body.get("model", "gpt-fake")),
        "output": [],
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": None,
    }


def _ended(answer: Answer, response: dict[str, Any], output: list[dict[str, Any]]) -> dict[str, Any]:
    reason = _INCOMPLETE.get(answer.stop_reason)
    return {
        **response,
        "status": "incomplete" if reason else "completed",
        "incomplete_details": {"reason": reason} if reason else None,
        "output": output,
        "usage": _wire_usage(answer.usage),
    }


def _failure(answer: Answer) -> dict[str, Any]:
    given = answer.error or {"type": "api_error", "message": "scripted"}
    return {"code": _FAILURES.get(given["type"], given["type"]), "message": given["message"]}


def _wire_usage(usage: TokenUsage) -> dict[str, Any]:
    """This API counts as input also what came from a cache or went to one."""
    return {
        "input_tokens": usage.total_tokens - usage.output_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cache_read_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.total_tokens,
    }


def _text_of(content: str | list[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else "".join(str(part.get("text", "")) for part in content)
