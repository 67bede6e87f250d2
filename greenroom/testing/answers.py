"""What a loopback server answers: builders for messages and for faults, in the words of the Messages API.

Messages add up: `thinking("Hm.") + text("I look.") + tool_use("weather", {"city": "Oslo"})` is one message of three
blocks that ends with stop_reason `tool_use`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import pairwise
from typing import Any

from ..domain.token_usage import TokenUsage

Block = dict[str, Any]

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""The `error.type` that goes with a status."""


class Ending(StrEnum):
    """How a stream ends."""

    COMPLETE = "complete"
    ERROR = "error"
    """With an `error` event after the last block's text."""
    STALL = "stall"
    """Not at all: it says nothing more until the client goes or the server is stopped."""
    CUT = "cut"
    """The connection is dropped after the last block's text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer to one request. Make it with the builders of this module."""

    blocks: tuple[Block, ...] = ()
    stop_reason: str = "end_turn"
    stop_details: dict[str, Any] | None = None
    usage: TokenUsage = field(default_factory=lambda: TokenUsage(input_tokens=25, output_tokens=12))
    chunks: int = 5
    """In how many deltas the text of each block comes."""
    chunk_delay_s: float = 0.0
    """Seconds before each delta."""
    ending: Ending = Ending.COMPLETE
    status: int = 200
    """Other than 200: no message at all, only `error`."""
    error: dict[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict[str, str])

    def __add__(self, other: "Answer") -> "Answer":
        """One message with the blocks of both; all else is the other's, but that it calls tools if either does."""
        calls = "tool_use" in (self.stop_reason, other.stop_reason)
        return replace(other, blocks=self.blocks + other.blocks, stop_reason="tool_use" if calls else other.stop_reason)

    def pieces(self, content: str) -> list[str]:
        """The text of a block in the pieces in which it is streamed, none of them empty."""
        return _pieces(content, self.chunks)

    def message(self, message_id: str, model: str) -> dict[str, Any]:
        """The whole message, as it is answered without streaming."""
        return {
            **_empty_message(message_id, model, self.usage),
            "content": [_with_id(block, message_id, index) for index, block in enumerate(self.blocks)],
            "stop_reason": self.stop_reason,
            **({"stop_details": self.stop_details} if self.stop_details else {}),
            "usage": _wire_usage(self.usage),
        }

    def events(self, message_id: str, model: str) -> Iterator[dict[str, Any]]:
        """The events of the stream in order; one that does not end complete breaks off before its last block stops."""
        yield {"type": "message_start", "message": _empty_message(message_id, model, self.usage)}
        yield {"type": "ping"}
        for index, block in enumerate(self.blocks):
            yield from _block_events(index, _with_id(block, message_id, index), self.chunks)
            if self.ending is Ending.COMPLETE or index < len(self.blocks) - 1:
                yield {"type": "content_block_stop", "index": index}
        if self.ending is Ending.COMPLETE:
            delta: dict[str, Any] = {"stop_reason": self.stop_reason, "stop_sequence": None}
            if self.stop_details:
                delta["stop_details"] = self.stop_details
            yield {"type": "message_delta", "delta": delta, "usage": _wire_usage(self.usage)}
            yield {"type": "message_stop"}
        elif self.ending is Ending.ERROR:
            yield {"type": "error", "error": self.error}


def text(
    content: str,
    *,
    stop_reason: str = "end_turn",
    usage: TokenUsage | None = None,
    chunks: int = 5,
    chunk_delay_s: float = 0.0,
) -> Answer:
    """A message of text, in `chunks` deltas, each `chunk_delay_s` after the one before it."""
    block = {"type": "text", "text": content}
    return _message(block, usage, stop_reason=stop_reason, chunks=chunks, chunk_delay_s=chunk_delay_s)


def thinking(content: str, *, signature: str = "c2ln", usage: TokenUsage | None = None) -> Answer:
    """A block of thinking; put a `text` or `tool_use` behind it with `+`."""
    return _message({"type": "thinking", "thinking": content, "signature": signature}, usage)


def tool_use(name: str, arguments: dict[str, Any], *, usage: TokenUsage | None = None) -> Answer:
    """A call of a tool; the message ends with stop_reason `tool_use`."""
    return _message({"type": "tool_use", "name": name, "input": arguments}, usage, stop_reason="tool_use")


def refusal(explanation: str | None = None, *, category: str | None = None) -> Answer:
    """A message that ends with stop_reason `refusal`."""
    details = {"type": "refusal", "category": category, "explanation": explanation}
    return Answer(stop_reason="refusal", stop_details=details)


def error(
    status: int,
    type: str | None = None,
    message: str | None = None,
    *,
    retry_after: float | str | None = None,
    error_code: str | None = None,
) -> Answer:
    """An HTTP error. `type` follows from the status unless given; `retry_after` is sent as header."""
    kind = type or ERROR_TYPES.get(status, "api_error")
    detail = {"type": kind, "message": message or f"scripted {kind}"}
    return Answer(
        status=status,
        error={**detail, "details": {"error_code": error_code}} if error_code else detail,
        headers={} if retry_after is None else {"retry-after": str(retry_after)},
    )


def midstream_error(type: str = "overloaded_error", message: str | None = None, *, content: str = "Hello ") -> Answer:
    """A stream with status 200 that gives `content` and then an `error` event."""
    detail = {"type": type, "message": message or f"scripted mid-stream {type}"}
    return replace(text(content, chunks=1), ending=Ending.ERROR, error=detail)


def stall(content: str = "Hello ") -> Answer:
    """A stream that gives `content` and then nothing more."""
    return replace(text(content, chunks=1), ending=Ending.STALL)


def cut(content: str = "Hello ") -> Answer:
    """A stream that gives `content` and is then dropped."""
    return replace(text(content, chunks=1), ending=Ending.CUT)


def _message(block: Block, usage: TokenUsage | None, **rest: Any) -> Answer:
    return Answer(blocks=(block,), **rest) if usage is None else Answer(blocks=(block,), usage=usage, **rest)


def _with_id(block: Block, message_id: str, index: int) -> Block:
    if block["type"] != "tool_use" or "id" in block:
        return block
    return {"type": "tool_use", "id": f"toolu_{message_id}_{index}", **block}


def _empty_message(message_id: str, model: str, usage: TokenUsage) -> dict[str, Any]:
    return {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {**_wire_usage(usage), "output_tokens": 1},
    }


def _wire_usage(usage: TokenUsage) -> dict[str, int]:
    return {
        "input_tokens": usage.input_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "cache_read_input_tokens": usage.cache_read_tokens,
        "output_tokens": usage.output_tokens,
    }


def _block_events(index: int, block: Block, chunks: int) -> Iterator[dict[str, Any]]:
    empty, deltas = _parts(block, chunks)
    yield {"type": "content_block_start", "index": index, "content_block": empty}
    for delta in deltas:
        yield {"type": "content_block_delta", "index": index, "delta": delta}


def _parts(block: Block, chunks: int) -> tuple[Block, list[dict[str, Any]]]:
    """The block as it starts, and what fills it."""
    if block["type"] == "text":
        pieces = _pieces(block["text"], chunks)
        return {**block, "text": ""}, [{"type": "text_delta", "text": piece} for piece in pieces]
    if block["type"] == "thinking":
        deltas = [{"type": "thinking_delta", "thinking": piece} for piece in _pieces(block["thinking"], chunks)]
        signed = {"type": "signature_delta", "signature": block["signature"]}
        return {**block, "thinking": "", "signature": ""}, [*deltas, signed]
    if block["type"] == "tool_use":
        pieces = ["", *_pieces(json.dumps(block["input"]), 2)]
        return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
    return block, []


def _pieces(content: str, parts: int) -> list[str]:
    """The text in that many pieces of nearly equal length, none of them empty."""
    bounds = [len(content) * part // parts for part in range(parts + 1)]
    return [content[start:end] for start, end in pairwise(bounds) if end > start]
