"""The plain client, over a port of the loopback: the verbs of the async one, waited for."""

import gc
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import greenroom
from greenroom.domain.event import EventType
from greenroom.domain.session import SessionState
from greenroom.serve.client import Client

from .client_world import KEY, RUN, SESSION, event, message, run_record, session_record

PATIENCE_S = 30.0


class Service(ThreadingHTTPServer):
    """Opens sessions, and streams events that it is told to send, until its client has gone."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.is_asked = threading.Event()
        self.is_left = threading.Event()
        self.content = message(event(1))
        self.breaks = 0
        self.seen: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Service  # pyright: ignore[reportIncompatibleVariableOverride]  it is served by no other

    def do_GET(self) -> None:
        self.server.seen.append(self.path)
        if "/stream" in self.path:
            self._stream()
        elif "wait_s" in self.path:
            self._until_left()
        elif "/runs" in self.path:
            self._answer(200, {"items": [run_record().to_dict()], "next_cursor": None})
        else:
            self._answer(200, session_record().to_dict())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/runs"):
            self._answer(202, {"run_id": RUN})
        else:
            self._answer(201, session_record(SessionState.PENDING).to_dict())

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, status: int, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        content = message(event(2, EventType.RUN_COMPLETED)) if "Last-Event-ID" in self.headers else self.server.content
        self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))
        self.wfile.flush()
        self.close_connection = True
        if self.server.breaks:
            self.server.breaks -= 1
        else:
            self._until_left()

    def _until_left(self) -> None:
        self.server.is_asked.set()
        self.connection.settimeout(PATIENCE_S)
        if self.connection.recv(1) == b"":
            self.server.is_left.set()
        self.close_connection = True


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url, key=KEY, timeout_s=PATIENCE_S) as client:
        yield client


def test_the_plain_verbs_give_what_the_async_ones_give(client: Client) -> None:
    session = client.open_session(agent_id="reviewer")

    assert SESSION == session.session_id
    assert RUN == session.submit_run("Hello!")
    assert session_record() == session.record()
    assert [run_record()] == list(session.list_runs())


def test_a_plain_stream_goes_on_when_its_connection_breaks(service: Service, client: Client) -> None:
    service.breaks = 1

    found = [one.seq for one in client.session(SESSION).follow(run_id=RUN)]

    assert [1, 2] == found


def left_with_close(client: Client) -> None:
    stream = client.session(SESSION).follow()
    next(stream)
    stream.close()
    assert [] == list(stream)


def left_with_a_block(client: Client) -> None:
    with client.session(SESSION).follow() as stream:
        next(stream)


def left_with_break(client: Client) -> None:
    for _ in client.session(SESSION).follow():
        break
    gc.collect()


def left_with_the_client(client: Client) -> None:
    stream = client.session(SESSION).follow()
    next(stream)
    client.close()
    stream.close()


@pytest.mark.parametrize("leave", [left_with_close, left_with_a_block, left_with_break, left_with_the_client])
def test_a_plain_stream_that_is_left_early_closes_its_connection(
    service: Service, client: Client, leave: Callable[[Client], None]
) -> None:
    leave(client)

    assert service.is_left.wait(PATIENCE_S)


def test_a_plain_stream_can_be_closed_while_another_thread_waits_for_it(service: Service, client: Client) -> None:
    stream = client.session(SESSION).follow()
    first = next(stream)
    rest: list[object] = []
    reader = threading.Thread(target=lambda: rest.extend(stream))
    reader.start()
    assert service.is_asked.wait(PATIENCE_S)

    stream.close()
    reader.join(PATIENCE_S)

    assert 1 == first.seq
    assert not reader.is_alive()
    assert [] == rest
    assert service.is_left.wait(PATIENCE_S)


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """Also where whoever started the tests has them ignore it, as a shell does in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_when(asked: threading.Event) -> None:
    """Ctrl-C, as soon as the service has the request."""

    def interrupt() -> None:
        asked.wait(PATIENCE_S)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()


def test_ctrl_c_cancels_the_request_under_way(service: Service, client: Client, hears_ctrl_c: None) -> None:
    interrupt_when(service.is_asked)

    with pytest.raises(KeyboardInterrupt):
        client.session(SESSION).await_run(RUN)

    assert service.is_left.wait(PATIENCE_S)
    assert session_record() == client.session(SESSION).record()


def test_a_plain_stream_goes_on_after_ctrl_c(service: Service, client: Client, hears_ctrl_c: None) -> None:
    service.content = b": ping\r\n\r\n"
    stream = client.session(SESSION).follow(run_id=RUN)
    interrupt_when(service.is_asked)

    with pytest.raises(KeyboardInterrupt):
        next(stream)

    assert service.is_left.wait(PATIENCE_S)
    service.content = message(event(1, EventType.RUN_COMPLETED))
    assert [1] == [one.seq for one in stream]


def test_a_call_that_waits_when_the_client_is_closed_says_so(service: Service, client: Client) -> None:
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            client.session(SESSION).await_run(RUN)
        except greenroom.InvalidOperation as exc:
            raised.append(exc)

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert service.is_asked.wait(PATIENCE_S)
    client.close()
    waiter.join(PATIENCE_S)

    assert 1 == len(raised)
    with pytest.raises(greenroom.InvalidOperation):
        client.providers()
    client.close()


def test_a_client_that_was_not_used_has_no_thread() -> None:
    before = threading.active_count()

    with Client("http://127.0.0.1:1", key=KEY) as client:
        client.session(SESSION).follow().close()
        assert before == threading.active_count()


def test_a_closed_client_leaves_no_thread(service: Service) -> None:
    with Client(service.url, key=KEY) as client:
        client.session(SESSION).record()
        assert "greenroom-client" in {thread.name for thread in threading.enumerate()}

    assert "greenroom-client" not in {thread.name for thread in threading.enumerate()}


def test_a_service_that_is_not_there_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    with Client(f"http://127.0.0.1:{port}", key=KEY) as client, pytest.raises(greenroom.RuntimeGone) as caught:
        client.providers()

    assert str(port) in caught.value.message


def test_the_loopback_is_reached_past_any_proxy(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)

    with Client(service.url, key=KEY) as client:
        assert session_record() == client.session(SESSION).record()


def test_other_addresses_are_reached_through_the_proxy(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, service.url)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)

    with Client("http://service.example", key=KEY) as client:
        client.session(SESSION).record()

    assert [f"http://service.example/v1/sessions/{SESSION}"] == service.seen
