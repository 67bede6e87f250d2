"""Streams over HTTP beside those of one session: all of a tenant's, WebSockets, AG-UI, webhooks."""

import json
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest
import ray
from ag_ui.core import RunFinishedEvent
from standardwebhooks import Webhook
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import ClientConnection, connect

import greenroom
from greenroom.adapters.http_settings import HttpSettings, WebhookSettings
from greenroom.domain.event import EventType
from greenroom.domain.webhook import WebhookTarget
from tests.conftest import WEBHOOK_SECRET, WEBHOOK_SECRET_VARIABLE
from tests.http.conftest import Clients, frames, opened, problem_of, serving, submitted
from tests.waiting import wait_until


def ended(client: httpx2.Client, session_id: str, run_id: str) -> dict[str, Any]:
    return client.get(f"/v1/sessions/{session_id}/runs/{run_id}", params={"wait_s": 30}).json()


# The feed of a tenant


def test_the_feed_has_every_event_of_the_tenants_sessions_once_and_no_others(clients: Clients) -> None:
    client, other = clients("feeding"), clients("other")
    with client.stream("GET", "/v1/events/stream") as answer:
        messages = frames(answer)
        assert "ready" == next(messages)["event"]
        sessions = [opened(client) for _ in range(3)]
        submitted(other, opened(other))
        for session_id in sessions * 2:
            ended(client, session_id, submitted(client, session_id, provider_options={"chunks": 3}))
        logs = {one: client.get(f"/v1/sessions/{one}/events?limit=1000").json()["events"] for one in sessions}
        seen: dict[str, list[dict[str, Any]]] = {one: [] for one in sessions}
        while any(len(seen[one]) < len(logs[one]) for one in sessions):
            event = json.loads(next(messages)["data"])
            seen[event["session_id"]].append(event)

    assert logs == seen


def test_the_feed_goes_on_after_any_of_its_messages(clients: Clients) -> None:
    client = clients("resuming")
    with client.stream("GET", "/v1/events/stream") as answer:
        messages = frames(answer)
        first = next(messages)
        session_id = opened(client)
        ended(client, session_id, submitted(client, session_id, provider_options={"chunks": 4}))
        whole = [next(messages) for _ in range(client.get(f"/v1/sessions/{session_id}/status").json()["last_seq"])]

    for index, message in enumerate([first, *whole[:-1]]):
        with client.stream("GET", "/v1/events/stream", headers={"Last-Event-ID": message["id"]}) as answer:
            messages = frames(answer)
            assert "ready" == next(messages)["event"]
            rest = [next(messages)["data"] for _ in whole[index:]]
        assert [one["data"] for one in whole[index:]] == rest


def test_the_feed_shows_the_types_that_were_asked_for(clients: Clients) -> None:
    client = clients("typed")
    with client.stream("GET", "/v1/events/stream", params={"types": "run_completed"}) as answer:
        messages = frames(answer)
        next(messages)
        session_id = opened(client)
        run_id = submitted(client, session_id)
        message = next(messages)

    assert ("run_completed", run_id) == (message["event"], json.loads(message["data"])["run_id"])


@pytest.mark.parametrize(
    ("after", "code", "status"),
    [
        ("nonsense", "validation_error", 422),
        ("00000000.1.0-00000000.1.0", "resync_required", 410),
        ("00000000.1.0", "resync_required", 410),
        ("9", "validation_error", 422),
    ],
)
def test_what_is_no_place_in_the_feed_is_refused(clients: Clients, after: str, code: str, status: int) -> None:
    problem_of(clients().get("/v1/events/stream", params={"after": after}), status, code)


# WebSockets


@contextmanager
def socket_of(client: httpx2.Client, path: str, **options: Any) -> Generator[ClientConnection]:
    url = str(client.base_url).replace("http", "ws").rstrip("/") + path
    socket: ClientConnection
    with connect(url, **options) as socket:  # pyright: ignore[reportUnknownVariableType]  its types are not whole
        yield socket


def test_a_socket_gives_what_a_stream_gives_and_goes_on_from_a_cursor(clients: Clients) -> None:
    client = clients()
    session_id = opened(client)
    submitted(client, session_id, provider_options={"chunks": 5, "chunk_delay_s": 0.02})
    path = f"/v1/sessions/{session_id}/events/ws"
    headers = {"Authorization": client.headers["authorization"]}
    with socket_of(client, path, additional_headers=headers) as socket:
        seen = [json.loads(socket.recv(30)) for _ in range(4)]
    ended(client, session_id, seen[2]["run_id"])
    client.post(f"/v1/sessions/{session_id}/complete")
    with socket_of(client, f"{path}?after=4", additional_headers=headers) as socket:
        seen += [json.loads(message) for message in socket]

    assert {"control": "end"} == seen.pop()
    assert client.get(f"/v1/sessions/{session_id}/events?limit=1000").json()["events"] == seen


def test_a_browser_brings_its_key_as_a_protocol(clients: Clients) -> None:
    client = clients()
    session_id = opened(client)
    key = client.headers["authorization"].removeprefix("Bearer ")
    path = f"/v1/sessions/{session_id}/events/ws"
    with socket_of(client, path, subprotocols=["greenroom.v1", f"key.{key}"]) as socket:
        assert "greenroom.v1" == socket.subprotocol
        assert 1 == json.loads(socket.recv(30))["seq"]


@pytest.mark.parametrize(
    ("query", "key", "close_code"),
    [("", False, 4401), ("?types=nonsense", True, 4422), ("?run_id=run_none", True, 4404), ("?after=99", True, 4422)],
)
def test_a_socket_that_may_not_be_is_closed_with_its_reason(
    clients: Clients, query: str, key: bool, close_code: int
) -> None:
    client = clients()
    headers = {"Authorization": client.headers["authorization"]} if key else {}
    with socket_of(client, f"/v1/sessions/{opened(client)}/events/ws{query}", additional_headers=headers) as socket:
        with pytest.raises(ConnectionClosedError):
            socket.recv(30)
        assert close_code == socket.close_code


def test_a_socket_of_another_tenant_is_closed_as_one_of_nothing(clients: Clients) -> None:
    client, thief = clients(), clients("thief")
    closed: list[tuple[int | None, str | None]] = []
    for session_id in (opened(client), "ses_none"):
        headers = {"Authorization": thief.headers["authorization"]}
        with socket_of(client, f"/v1/sessions/{session_id}/events/ws", additional_headers=headers) as socket:
            with pytest.raises(ConnectionClosedError):
                socket.recv(30)
            closed.append((socket.close_code, socket.close_reason))
    assert [(4404, "session_not_found")] * 2 == closed


# AG-UI


def ag_ui_input(session_id: str, run_id: str, text: str = "Hello!") -> dict[str, Any]:
    message = {"id": "m1", "role": "user", "content": text}
    return {
        "threadId": session_id,
        "runId": run_id,
        "messages": [message],
        "tools": [],
        "context": [],
        "state": {},
        "forwardedProps": {},
    }


def ag_ui_events(client: httpx2.Client, method: str, path: str, **more: Any) -> list[dict[str, Any]]:
    with client.stream(method, path, **more) as answer:
        assert 200 == answer.status_code, answer.read()
        return [json.loads(message["data"]) for message in frames(answer)]


def test_an_ag_ui_front_end_runs_an_agent_and_may_come_again(clients: Clients) -> None:
    client = clients()
    session_id = opened(client)
    path = f"/v1/sessions/{session_id}/ag-ui"

    first = ag_ui_events(client, "POST", path, json=ag_ui_input(session_id, "theirs"))
    again = ag_ui_events(client, "POST", path, json=ag_ui_input(session_id, "theirs"))

    assert first == again
    assert ("RUN_STARTED", "theirs") == (first[0]["type"], first[0]["runId"])
    assert "ok" == "".join(one["delta"] for one in first if one["type"] == "TEXT_MESSAGE_CONTENT")
    RunFinishedEvent.model_validate(first[-1])
    runs = client.get(f"/v1/sessions/{session_id}/runs").json()["items"]
    assert 1 == len(runs), "it was one run"
    attached = ag_ui_events(client, "GET", f"/v1/sessions/{session_id}/runs/{runs[0]['id']}/ag-ui")
    assert [one["type"] for one in first] == [one["type"] for one in attached]


@pytest.mark.parametrize(
    ("body", "field"),
    [({}, "threadId"), ({"messages": []}, "messages"), ({"messages": [{"role": "user"}]}, "messages")],
)
def test_what_is_no_ag_ui_input_is_refused(clients: Clients, body: dict[str, Any], field: str) -> None:
    client = clients()
    session_id = opened(client)
    given = {**ag_ui_input(session_id, "theirs"), **body} if body else {}

    answer = client.post(f"/v1/sessions/{session_id}/ag-ui", json=given)

    assert problem_of(answer, 422, "validation_error")["field"].startswith(field)


# Webhooks


class Receiver:
    """Takes deliveries; answers as `answer` says, by the number of the delivery."""

    def __init__(self, answer: Callable[[int], int]) -> None:
        self.deliveries: list[tuple[int, dict[str, Any]]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                event = Webhook(WEBHOOK_SECRET).verify(body, dict(self.headers.items()))
                assert event["id"] == self.headers["webhook-id"]
                status = answer(len(receiver.deliveries))
                receiver.deliveries.append((status, event))
                self.send_response(status)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def taken(self) -> list[dict[str, Any]]:
        return [event for status, event in self.deliveries if status == 200]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def receiving(answer: Callable[[int], int] = lambda _: 200) -> Generator[Receiver]:
    receiver = Receiver(answer)
    try:
        yield receiver
    finally:
        receiver.close()


def hooked(receiver: Receiver, tenant: str, *types: EventType) -> HttpSettings:
    hook = WebhookSettings(url=receiver.url, tenant=tenant, types=types or None, secret_env=WEBHOOK_SECRET_VARIABLE)
    return HttpSettings(webhooks={tenant: hook}, provider_options=("chunks",))


def test_a_webhook_gets_each_event_signed_in_order_and_what_failed_again(
    clients: Clients, runtime: greenroom.Runtime
) -> None:
    with (
        receiving(lambda number: 500 if number in {1, 4} else 200) as receiver,
        serving(runtime, hooked(receiver, "hooked")) as url,
    ):
        client = clients("hooked", url=url)
        session_id = opened(client)
        ended(client, session_id, submitted(client, session_id, provider_options={"chunks": 5}))
        log = client.get(f"/v1/sessions/{session_id}/events?limit=100").json()["events"]
        wanted = [event for event in log if event["type"] != "message_streamed"]
        wait_until(lambda: len(receiver.taken()) == len(wanted), what="all was delivered")

    assert wanted == receiver.taken()
    assert 2 == len(receiver.deliveries) - len(wanted), "those that failed came again"


def test_a_sender_of_webhooks_that_is_killed_goes_on_where_it_was(clients: Clients, runtime: greenroom.Runtime) -> None:
    with receiving() as receiver, serving(runtime, hooked(receiver, "killed", EventType.RUN_COMPLETED)) as url:
        client = clients("killed", url=url)
        session_id = opened(client)
        ended(client, session_id, submitted(client, session_id))
        wait_until(receiver.taken, what="the first was delivered")
        ray.kill(ray.get_actor("webhooks", namespace=runtime.record().namespace), no_restart=False)
        runs = [submitted(client, session_id) for _ in range(3)]
        wait_until(
            lambda: set(runs) <= {event["run_id"] for event in receiver.taken()}, what="the others were delivered"
        )


def test_a_webhook_without_a_secret_is_refused_by_name(runtime: greenroom.Runtime) -> None:
    target = WebhookTarget(
        name="x", url="http://127.0.0.1:1/", tenant="acme", types=None, secret_env="NO_SUCH_VARIABLE"
    )
    with pytest.raises(greenroom.ValidationError) as refused:
        runtime.set_webhooks([target])
    assert "http.webhooks.x.secret_env" == refused.value.details["field"]
