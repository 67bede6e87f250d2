"""A Messages API on the loopback: the real SDKs and programs can be driven with no network and no key."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

from .answers import ERROR_TYPES, Answer, text
from .loopback_server import Answering, LoopbackServer


class MessagesServer(LoopbackServer):
    """Answers `POST /v1/messages`, streamed or whole, on 127.0.0.1 and a free port.

    Each request takes the next of `answers`; when there is none, `default` answers, which says the last user message
    again. Answers may be added while it runs. Requests are served at the same time, each in a thread; an Answering that
    is a function is called there. The server lives in the process that starts it; clients anywhere on the machine use
    its `url`, which is what to give as base_url.

        with MessagesServer() as server:
            server.answers.append(answers.tool_use("weather", {"city": "Oslo"}))
            server.answers.append(answers.error(529))
    """

    def __init__(self, *, default: Answering | None = None) -> None:
        super().__init__(_MessagesWire(), default=default)


class _MessagesWire:
    """Implements Wire; the Answer itself writes its events."""

    path = "/v1/messages"
    delta = "content_block_delta"
    pages: Mapping[str, dict[str, Any]] = {}

    def message(self, answer: Answer, number: int, body: dict[str, Any]) -> dict[str, Any]:
        return answer.message(f"msg_{number:04d}", _model(body))

    def events(self, answer: Answer, number: int, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        return answer.events(f"msg_{number:04d}", _model(body))

    def error(self, answer: Answer, number: int) -> tuple[int, dict[str, Any]]:
        detail = answer.error or {"type": ERROR_TYPES.get(answer.status, "api_error"), "message": "scripted"}
        return answer.status, {"type": "error", "error": detail, "request_id": f"req_{number:04d}"}

    def headers(self, number: int) -> dict[str, str]:
        return {"request-id": f"req_{number:04d}"}

    def echo(self, body: dict[str, Any]) -> Answer:
        messages = body.get("messages") or [{"content": ""}]
        content = messages[-1].get("content", "")
        if not isinstance(content, str):
            blocks = cast("list[dict[str, Any]]", content)
            content = "".join(str(block.get("text", block.get("content", ""))) for block in blocks)
        return text(content or "ok")


def _model(body: dict[str, Any]) -> str:
    return str(body.get("model", "claude-fake"))
