"""A Gemini API on the loopback, for Gemini CLI: an Answer as that API writes it."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from greenroom.domain.token_usage import TokenUsage
from greenroom.testing import Answer
from greenroom.testing.answers import ERROR_TYPES, Block, Ending, text
from greenroom.testing.loopback_server import Answering, LoopbackServer

_STATUS_NAMES: Mapping[int, str] = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}

_STATUSES: Mapping[int, int] = {402: 429, 413: 400, 529: 503}
"""The statuses that only the Messages API has."""

_FINISHES: Mapping[str, str] = {"max_tokens": "MAX_TOKENS", "refusal": "SAFETY"}
"""stop_reason -> finishReason; all others are `STOP`."""

_STREAMED = "streamGenerateContent"
_COUNTED = "countTokens"

_Event = dict[str, Any]


class GeminiServer(LoopbackServer):
    """Answers `POST /v1beta/models/MODEL:streamGenerateContent`, `:generateContent` and `:countTokens`; all else is as
    with a MessagesServer.

    What a LoopbackServer takes from a request's body, this API has in the path: which model, and whether it is to be
    streamed. And Google's client takes no event that has a name. So a front translates both. Recorded bodies have
    `model` and `stream` besides what the client sent; a count of tokens is answered in the front, and not recorded.
    """

    def __init__(self, *, default: Answering | None = None) -> None:
        super().__init__(GeminiWire(), default=default)
        self._front: _Front | None = None

    @property
    def url(self) -> str:
        if self._front is None:
            raise RuntimeError("The server is not running; call start(), or use it as a context manager.")
        return f"http://127.0.0.1:{self._front.server_address[1]}"

    def start(self) -> Self:
        super().start()
        if self._front is None:
            self._front = _Front(int(super().url.rpartition(":")[2]))
            threading.Thread(target=self._front.serve_forever, args=(0.05,), name="GeminiFront", daemon=True).start()
        return self

    def stop(self) -> None:
        front, self._front = self._front, None
        if front is not None:
            front.shutdown()
        super().stop()  # which ends the answers that the front passes on
        if front is not None:
            front.server_close()


class GeminiWire:
    """Implements Wire.

    | Answer | Gemini API |
    |---|---|
    | text | parts with `text` |
    | thinking | parts with `text` and `thought` |
    | tool_use | a part with `functionCall`, which this API never gives in pieces |
    | stop_reason max_tokens, refusal | finishReason MAX_TOKENS, SAFETY |
    | midstream_error | an event that is `{"error": ...}`, or HTTP 500 if it is not streamed |
    | error | `{"error": {"code", "message", "status"}}`; 402 becomes 429, 413 becomes 400, 529 becomes 503 |
    """

    path = "/generate"
    """Where the front posts to."""
    delta = ".delta"
    pages: Mapping[str, dict[str, Any]] = {}

    def message(self, answer: Answer, number: int, body: dict[str, Any]) -> dict[str, Any]:
        parts = [part for index, block in enumerate(answer.blocks) for part in _parts(answer, block, number, index)]
        return _response(number, body, parts, answer)

    def events(self, answer: Answer, number: int, body: dict[str, Any]) -> Iterator[_Event]:
        for index, block in enumerate(answer.blocks):
            for part in _parts(answer, block, number, index):
                yield {"type": "part.delta", **_response(number, body, [part])}
        if answer.ending is Ending.COMPLETE:
            yield {"type": "end", **_response(number, body, [{"text": ""}], answer)}
        elif answer.ending is Ending.ERROR:
            failed = Answer(status=500, error=answer.error)
            yield {"type": "error", **self.error(failed, number)[1]}

    def error(self, answer: Answer, number: int) -> tuple[int, dict[str, Any]]:
        given = answer.error or {"type": ERROR_TYPES.get(answer.status, "api_error"), "message": "scripted"}
        status = _STATUSES.get(answer.status, answer.status)
        error = {"code": status, "message": given["message"], "status": _STATUS_NAMES.get(status, "UNKNOWN")}
        return status, {"error": error}

    def headers(self, number: int) -> dict[str, str]:
        return {}

    def echo(self, body: dict[str, Any]) -> Answer:
        contents: list[dict[str, Any]] = body.get("contents") or [{"parts": []}]
        parts: list[dict[str, Any]] = contents[-1].get("parts") or []
        return text("".join(str(part.get("text", "")) for part in parts) or "ok")


class _Front(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, behind: int) -> None:
        super().__init__(("127.0.0.1", 0), _FrontHandler)
        self.behind = behind
        """The port of the LoopbackServer."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away."""


class _FrontHandler(BaseHTTPRequestHandler):
    """Takes one request and passes its answer on as it comes; who of the two goes, takes the other with it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Front  # pyright: ignore[reportIncompatibleVariableOverride]  # only this server makes these handlers

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""

    def do_POST(self) -> None:
        """Have the request answered by the LoopbackServer."""
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        model, _, method = self.path.partition("?")[0].rpartition("/")[2].partition(":")
        if method == _COUNTED:
            self._send_whole(HTTPStatus.OK, b'{"totalTokens": 25}')
            return
        body = json.dumps({**json.loads(raw), "model": model, "stream": method == _STREAMED}).encode()
        behind = HTTPConnection("127.0.0.1", self.server.behind)
        behind.connect()
        threading.Thread(target=_end_with, args=(self.connection, behind.sock), daemon=True).start()
        try:
            behind.request("POST", GeminiWire.path, body)
            self._pass_on(behind.getresponse())
        except (OSError, HTTPException):  # it broke off, and so does this
            self.close_connection = True
        finally:
            _end(self.connection)
            behind.close()

    def _pass_on(self, answer: HTTPResponse) -> None:
        if "content-length" in answer.headers:
            self._send_whole(answer.status, answer.read())
            return
        self.send_response(answer.status)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.send_header("connection", "close")
        self.end_headers()
        pending = b""
        while received := answer.read1():
            *events, pending = (pending + received).split(b"\n\n")
            for event in events:
                nameless = event.partition(b"\n")[2] + b"\n\n"
                self.wfile.write(f"{len(nameless):x}\r\n".encode() + nameless + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def _send_whole(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(content)


def _end_with(client: socket.socket, behind: socket.socket) -> None:
    """Wait until the client goes, which sends nothing while it waits for its answer, or has it."""
    with contextlib.suppress(OSError):
        client.recv(1)
    _end(behind)


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has ended already
        connection.shutdown(socket.SHUT_RDWR)


def _parts(answer: Answer, block: Block, number: int, index: int) -> Iterator[dict[str, Any]]:
    if block["type"] == "text":
        yield from ({"text": piece} for piece in answer.pieces(block["text"]))
    elif block["type"] == "thinking":
        yield from ({"text": piece, "thought": True} for piece in answer.pieces(block["thinking"]))
    else:
        call_id = block.get("id", f"call_{number:04d}_{index}")
        yield {"functionCall": {"id": call_id, "name": block["name"], "args": block["input"]}}


def _response(
    number: int, body: dict[str, Any], parts: list[dict[str, Any]], ended: Answer | None = None
) -> dict[str, Any]:
    candidate: dict[str, Any] = {"index": 0, "content": {"role": "model", "parts": parts}}
    response = {"candidates": [candidate], "modelVersion": body.get("model"), "responseId": f"resp_{number:04d}"}
    if ended is None:
        return response
    candidate["finishReason"] = _FINISHES.get(ended.stop_reason, "STOP")
    return {**response, "usageMetadata": _wire_usage(ended.usage)}


def _wire_usage(usage: TokenUsage) -> dict[str, int]:
    """This API counts as prompt also what came from a cache."""
    return {
        "promptTokenCount": usage.total_tokens - usage.output_tokens,
        "cachedContentTokenCount": usage.cache_read_tokens,
        "candidatesTokenCount": usage.output_tokens,
        "totalTokenCount": usage.total_tokens,
    }
