"""What the loopback servers have in common: scripted answers and how they break off, and a record of all requests."""

import contextlib
import json
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Protocol, Self, cast

from .answers import Answer, Ending, error

Answering = Answer | Callable[[dict[str, Any]], Answer]
"""An answer, or what makes one from the body of the request."""

_SECRET_HEADERS = frozenset({"authorization", "x-api-key", "cookie"})
_STOP_WAIT_S = 5.0


class Wire(Protocol):
    """How one API writes an Answer. `number` counts the requests of a server from 1; ids are made of it."""

    path: str
    """Where requests are posted to."""
    delta: str
    """How the type of an event ends that brings a piece of a block: before these an answer may wait."""
    pages: Mapping[str, dict[str, Any]]
    """What is answered to GET, by path."""

    def message(self, answer: Answer, number: int, body: dict[str, Any]) -> dict[str, Any]:
        """The whole answer, as it is without streaming."""
        ...

    def events(self, answer: Answer, number: int, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of the stream in order; one that does not end complete breaks off before its last block stops."""
        ...

    def error(self, answer: Answer, number: int) -> tuple[int, dict[str, Any]]:
        """The HTTP status and the body of an error."""
        ...

    def headers(self, number: int) -> dict[str, str]:
        """What every response has."""
        ...

    def echo(self, body: dict[str, Any]) -> Answer:
        """What is answered when nothing else is scripted: the text of the last message, again."""
        ...


@dataclass(slots=True)
class RecordedRequest:
    """One request as it came in. `headers` have lower-case names; keys in them are masked."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    _gone: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def disconnected(self) -> bool:
        """Whether the client went away before its answer was complete."""
        return self._gone.is_set()

    def wait_disconnected(self, timeout_s: float = 5.0) -> bool:
        """Block until the client has gone away; False if it has not by then."""
        return self._gone.wait(timeout_s)

    def mark_disconnected(self) -> None:
        """The server saw the client go."""
        self._gone.set()


class LoopbackServer:
    """Answers one API, streamed or whole, on 127.0.0.1 and a free port.

    Each request takes the next of `answers`; when there is none, `default` answers. Answers may be added while it
    runs. Requests are served at the same time, each in a thread; an Answering that is a function is called there. The
    server lives in the process that starts it; clients anywhere on the machine use its `url`.
    """

    def __init__(self, wire: Wire, *, default: Answering | None = None) -> None:
        self.answers: deque[Answering] = deque()
        self.default: Answering = default or wire.echo
        self.requests: list[RecordedRequest] = []
        """All requests in the order in which they came in."""
        self._wire = wire
        self._http: _HttpServer | None = None

    @property
    def url(self) -> str:
        """Where it listens; only while it runs."""
        if self._http is None:
            raise RuntimeError("The server is not running; call start(), or use it as a context manager.")
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def start(self) -> Self:
        """Listen. It takes connections when this returns."""
        if self._http is None:
            self._http = _HttpServer(self._wire, self._take, self.requests)
            name = type(self).__name__
            threading.Thread(target=self._http.serve_forever, args=(0.05,), name=name, daemon=True).start()
        return self

    def stop(self) -> None:
        """Stop listening and drop every connection, stalled ones too; nothing of it is left when this returns."""
        http, self._http = self._http, None
        if http is not None:
            http.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _take(self, body: dict[str, Any]) -> Answer:
        try:
            answering = self.answers.popleft()
        except IndexError:
            answering = self.default
        return answering if isinstance(answering, Answer) else answering(body)


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, wire: Wire, take: Callable[[dict[str, Any]], Answer], requests: list[RecordedRequest]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.wire = wire
        self.take = take
        self.requests = requests
        self.open_connections: set[socket.socket] = set()
        self.changed = threading.Condition()
        self._count = 0
        self.stopping, self._stop = socket.socketpair()
        """`stopping` becomes readable when the server stops: a stalled answer waits for that and for its client."""

    def next_number(self) -> int:
        with self.changed:
            self._count += 1
            return self._count

    def stop(self) -> None:
        self.shutdown()
        self._stop.send(b"x")
        with self.changed:
            for connection in self.open_connections:
                with contextlib.suppress(OSError):  # the client was faster
                    connection.shutdown(socket.SHUT_RDWR)
            self.changed.wait_for(lambda: not self.open_connections, _STOP_WAIT_S)
        self.server_close()
        self.stopping.close()
        self._stop.close()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.changed:
            self.open_connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self.changed:
            self.open_connections.discard(request)
            self.changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away: that is recorded with the request."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    """Each event leaves at once; otherwise a delta waits 40 ms for the acknowledgement of the one before."""
    server: _HttpServer  # pyright: ignore[reportIncompatibleVariableOverride]  # only this server makes these handlers

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr: `requests` is the log."""

    def do_POST(self) -> None:
        """Record the request, then answer it."""
        number = self.server.next_number()
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        recorded = RecordedRequest(path=self.path, headers=self._masked_headers(), body=_parsed(raw))
        self.server.requests.append(recorded)
        if self.path.partition("?")[0] != self.server.wire.path:
            self._send_no_such_path(number)
            return
        try:
            self._answer(self.server.take(recorded.body), recorded, number)
        except OSError:
            recorded.mark_disconnected()
            self.close_connection = True

    def do_GET(self) -> None:
        """The pages of the API; they are not recorded and take no answer."""
        number = self.server.next_number()
        page = self.server.wire.pages.get(self.path.partition("?")[0])
        if page is None:
            self._send_no_such_path(number)
        else:
            self._send_json(HTTPStatus.OK, page, number, {})

    def _answer(self, answer: Answer, recorded: RecordedRequest, number: int) -> None:
        if answer.status != HTTPStatus.OK:
            self._send_error_answer(answer, number)
        elif recorded.body.get("stream"):
            self._stream(answer, recorded, number)
        elif answer.ending is Ending.COMPLETE:
            message = self.server.wire.message(answer, number, recorded.body)
            self._send_json(HTTPStatus.OK, message, number, answer.headers)
        elif answer.ending is Ending.ERROR:
            self._send_error_answer(Answer(status=500, error=answer.error), number)
        else:
            self._break_off(answer.ending, recorded)

    def _stream(self, answer: Answer, recorded: RecordedRequest, number: int) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self._send_headers(number, answer.headers)
        wire = self.server.wire
        for event in wire.events(answer, number, recorded.body):
            waits = answer.chunk_delay_s if event["type"].endswith(wire.delta) else 0.0
            if waits and self._quiet(waits, recorded):
                return
            data = f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        if answer.ending in (Ending.STALL, Ending.CUT):
            self._break_off(answer.ending, recorded)
            return
        self.wfile.write(b"0\r\n\r\n")

    def _break_off(self, ending: Ending, recorded: RecordedRequest) -> None:
        if ending is Ending.STALL:
            self._quiet(None, recorded)
        self.close_connection = True
        with contextlib.suppress(OSError):  # the client was faster
            self.connection.shutdown(socket.SHUT_RDWR)

    def _quiet(self, seconds: float | None, recorded: RecordedRequest) -> bool:
        """Say nothing for so long; True if it ended early because the client went or the server stops."""
        readable, _, _ = select.select([self.connection, self.server.stopping], [], [], seconds)
        if not readable:
            return False
        self.close_connection = True
        if self.connection in readable:  # in the middle of an answer a client sends nothing, so this is its end
            recorded.mark_disconnected()
        return True

    def _send_no_such_path(self, number: int) -> None:
        self._send_error_answer(error(404, message=f"no such path: {self.path}"), number)

    def _send_error_answer(self, answer: Answer, number: int) -> None:
        status, body = self.server.wire.error(answer, number)
        self._send_json(status, body, number, answer.headers)

    def _send_json(self, status: int, body: dict[str, Any], number: int, headers: dict[str, str]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self._send_headers(number, headers)
        self.wfile.write(data)

    def _send_headers(self, number: int, headers: dict[str, str]) -> None:
        for name, value in {**self.server.wire.headers(number), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _masked_headers(self) -> dict[str, str]:
        names = ((name.lower(), value) for name, value in self.headers.items())
        return {name: "***" if name in _SECRET_HEADERS else value for name, value in names}


def _parsed(raw: bytes) -> dict[str, Any]:
    try:
        body: object = json.loads(raw or b"{}")
    except ValueError:
        return {}
    return cast("dict[str, Any]", body) if isinstance(body, dict) else {}
