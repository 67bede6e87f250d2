"""Who is let in, how often, and what a request may do that is slow, too large, or comes twice."""

import asyncio
import json
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest

import greenroom
from greenroom.adapters.audit_log import AuditLog
from greenroom.adapters.http_settings import HttpSettings
from greenroom.adapters.key_file import KeyFile
from greenroom.domain.api_key import Scope
from greenroom.serve.http.api import create_app
from tests.http.conftest import Clients, opened, problem_of, serving, submitted
from tests.waiting import wait_until


def test_a_key_may_ask_so_often_and_no_oftener_and_others_are_not_held_up(
    clients: Clients, runtime: greenroom.Runtime
) -> None:
    with serving(runtime, HttpSettings(requests_per_minute=3)) as url:
        busy, quiet = clients(url=url), clients(url=url)
        answers = [busy.get("/v1/sessions") for _ in range(5)]

        assert [200, 200, 200, 429, 429] == [answer.status_code for answer in answers]
        problem_of(answers[-1], 429, "rate_limited")
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 20
        assert 200 == quiet.get("/v1/sessions").status_code


def test_so_many_streams_are_held_open_and_no_more(clients: Clients, runtime: greenroom.Runtime) -> None:
    with serving(runtime, HttpSettings(max_streams=2)) as url:
        client = clients(url=url)
        session_id = opened(client)
        path = f"/v1/sessions/{session_id}/events/stream"
        with ExitStack() as stack:
            held = [stack.enter_context(client.stream("GET", path)).iter_lines() for _ in range(2)]
            for lines in held:
                next(lines)
            problem_of(client.get(path), 429, "rate_limited")
            problem_of(client.get(f"/v1/sessions/{session_id}/events", params={"wait_s": 1}), 429, "rate_limited")
            assert 200 == client.get(f"/v1/sessions/{session_id}/events").status_code, "what does not wait is answered"
        wait_until(lambda: _opens(client, path), what="places of streams that were left are free again")


def _opens(client: httpx2.Client, path: str) -> bool:
    with client.stream("GET", path) as answer:
        return answer.status_code == 200


def test_a_full_queue_says_when_a_run_is_likely_to_end(clients: Clients) -> None:
    client = clients()
    session_id = opened(client, max_queued_runs=0)
    first = submitted(client, session_id, provider_options={"latency_s": 3.0})
    client.get(f"/v1/sessions/{session_id}/runs/{first}", params={"wait_s": 30})
    submitted(client, session_id, provider_options={"hang": True})

    answer = client.post(f"/v1/sessions/{session_id}/runs", json={"input": "x"})

    problem_of(answer, 429, "queue_full")
    assert 2 <= int(answer.headers["retry-after"]) <= 4, "the one before took three seconds"


POSTS: list[tuple[str, dict[str, Any] | None]] = [
    ("/pause", None),
    ("/resume", None),
    ("/runs/{run}/steer", {"message": "Listen."}),
    ("/runs/{run}/cancel", {"reason": "enough"}),
    ("/complete", None),
]


def test_every_post_that_comes_again_with_its_key_has_its_effect_once(clients: Clients) -> None:
    client = clients()
    session_id = opened(client)
    run_id = submitted(client, session_id, provider_options={"hang": True})
    wait_until(lambda: client.get(f"/v1/sessions/{session_id}/status").json()["in_flight"], what="it is under way")

    for path, body in POSTS:
        url = f"/v1/sessions/{session_id}" + path.format(run=run_id)
        headers = {"Idempotency-Key": "once"}
        first, again = (client.post(url, json=body, headers=headers) for _ in range(2))
        assert (200, first.json()) == (again.status_code, again.json()), path

    events = client.get(f"/v1/sessions/{session_id}/events").json()["events"]
    once = ("session_paused", "session_resumed", "session_steered", "run_cancelled", "session_completed")
    assert [1] * 5 == [sum(event["type"] == name for event in events) for name in once]


def test_an_approval_that_is_decided_twice_with_one_key_is_decided_once(clients: Clients) -> None:
    client = clients()
    policy = {"tool_rules": [{"ask": ["add"]}]}
    session_id = opened(client, tools=["tests.http.tools:add"], run_defaults={"policy": policy})
    submitted(client, session_id, provider_options={"tool_calls": [{"name": "add", "input": {"a": 1, "b": 2}}]})
    (approval,) = wait_until(lambda: client.get("/v1/approvals").json()["items"], what="a question")
    assert {"id", "session_id", "run_id", "tool_name", "input", "expires_at"} == set(approval)
    assert [] == clients("other").get("/v1/approvals").json()["items"]

    url = f"/v1/sessions/{session_id}/approvals/{approval['id']}"
    for _ in range(2):
        answer = client.post(url, json={"decision": "deny"}, headers={"Idempotency-Key": "once"})
        assert 204 == answer.status_code, answer.text
    problem_of(client.post(url, json={"decision": "deny"}), 409, "invalid_operation")


def test_a_body_that_does_not_come_is_not_waited_for(clients: Clients, runtime: greenroom.Runtime) -> None:
    with serving(runtime, HttpSettings(body_timeout_s=0.3)) as url:
        client = clients(url=url)
        head = (
            "POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
            f"Authorization: {client.headers['authorization']}\r\n\r\n{{"
        )
        with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=30) as raw:
            raw.sendall(head.encode())
            answer = raw.makefile("rb").read()
        status, _, rest = answer.partition(b"\r\n")
        assert b"408" in status
        assert "body_too_slow" == json.loads(rest.partition(b"\r\n\r\n")[2])["code"]


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /v1/sessions HTTP/1.1\r\nHost: x\r\nX-A: b\r\n\tmore: c\r\n\r\n",
        b"GET /v1/sessions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer a\rX: b\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"\x16\x03\x01\x00\xa5",
        b"GET / HTTP/9.9\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused_and_nothing_breaks(address: str, sent: bytes) -> None:
    url = httpx2.URL(address)
    with socket.create_connection((url.host, url.port or 80), timeout=30) as raw:
        raw.sendall(sent)
        raw.shutdown(socket.SHUT_WR)
        answer = raw.makefile("rb").read(200)
    assert not answer or answer.split()[1] in {b"400", b"401", b"404"}, answer
    assert 200 == httpx2.get(address + "/healthz").status_code


def test_a_header_of_the_caller_is_not_given_back(clients: Clients) -> None:
    answer = clients().get("/v1/sessions/ses_x%0d%0aSet-Cookie:%20a=b", headers={"Last-Event-ID": "7"})
    problem_of(answer, 404, "session_not_found")
    assert "set-cookie" not in answer.headers


def test_a_stream_whose_client_has_gone_is_left(clients: Clients, address: str) -> None:
    client = clients()
    session_id = opened(client)

    def subscribers() -> int:
        return client.get(f"/v1/sessions/{session_id}/status").json()["subscribers"]

    with client.stream("GET", f"/v1/sessions/{session_id}/events/stream") as answer:
        lines = answer.iter_lines()
        next(lines)
        wait_until(lambda: subscribers() == 1, what="it is followed")
    wait_until(lambda: subscribers() == 0, what="nobody follows it")


def test_a_client_that_leaves_cancels_nothing(clients: Clients) -> None:
    client = clients()
    session_id = opened(client)
    run_id = submitted(client, session_id, provider_options={"latency_s": 0.5})
    with pytest.raises(httpx2.ReadTimeout):
        client.get(f"/v1/sessions/{session_id}/runs/{run_id}", params={"wait_s": 30}, timeout=0.1)

    run = client.get(f"/v1/sessions/{session_id}/runs/{run_id}", params={"wait_s": 30}).json()
    assert "completed" == run["status"]


def test_pages_of_other_origins_may_call_only_where_that_is_configured(
    clients: Clients, runtime: greenroom.Runtime
) -> None:
    origin = {"Origin": "https://app.example"}
    assert "access-control-allow-origin" not in clients().get("/v1/sessions", headers=origin).headers
    with serving(runtime, HttpSettings(cors_origins=("https://app.example",))) as url:
        client = clients(url=url)
        assert (
            "https://app.example" == client.get("/v1/sessions", headers=origin).headers["access-control-allow-origin"]
        )
        other = client.get("/v1/sessions", headers={"Origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("path", ["", "/status"])
def test_it_takes_no_longer_to_refuse_another_tenants_session_than_one_of_nobody(clients: Clients, path: str) -> None:
    client, thief = clients(), clients("thief")
    session_id = opened(client)
    unknown = "ses_" + "0" * (len(session_id) - 4)

    def took_s(address: str) -> float:
        began = time.perf_counter()
        assert 404 == thief.get(address).status_code
        return time.perf_counter() - began

    client.get(f"/v1/sessions/{session_id}{path}").raise_for_status()  # what is kept of it must not answer either
    pairs = [(took_s(f"/v1/sessions/{session_id}{path}"), took_s(f"/v1/sessions/{unknown}{path}")) for _ in range(60)]
    theirs, nobodys = (sorted(column)[len(pairs) // 2] for column in zip(*pairs, strict=True))
    assert theirs < 3 * nobodys, "the store was asked for both"
    assert nobodys < 3 * theirs


def test_the_audit_log_says_who_asked_to_change_what(clients: Clients, runtime: greenroom.Runtime) -> None:
    client = clients("audited", Scope.ADMIN)
    session_id = opened(client, context={"system_prompt": "not to be seen"})
    client.get(f"/v1/sessions/{session_id}")
    client.delete(f"/v1/sessions/{session_id}")
    refused = clients("audited", Scope.READ).post(f"/v1/sessions/{session_id}/pause")
    nobody = httpx2.post(f"{client.base_url}/v1/sessions", json={}, headers={"Authorization": "Bearer gk_secret"})
    assert 401 == nobody.status_code

    text = (Path(runtime.data_dir) / "audit.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    told = [
        (line["method"], line["route"], line["status"], line.get("session_id"))
        for line in lines
        if line.get("tenant") == "audited"
    ]
    route = "/v1/sessions/{session_id}"
    assert [
        ("POST", "/v1/sessions", 201, None),
        ("DELETE", route, 204, session_id),
        ("POST", route + "/pause", 403, session_id),
    ] == told
    traces = {line["trace_id"] for line in lines}
    assert refused.headers["trace-id"] in traces
    assert nobody.headers["trace-id"] not in traces, "whoever has no key cannot fill the disk"
    assert "not to be seen" not in text
    assert "gk_" not in text


def test_a_trace_id_of_the_caller_is_taken_over(clients: Clients) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
    assert trace_id == clients().get("/v1/sessions", headers=headers).headers["trace-id"]
    for broken in ("", "00-xyz", f"00-{'0' * 32}-00f067aa0ba902b7-01", "00-" + "a" * 500):
        assert 32 == len(clients().get("/v1/sessions", headers={"traceparent": broken}).headers["trace-id"])


# For whoever looks after it


def test_metrics_tell_of_the_whole_runtime(clients: Clients, address: str) -> None:
    client = clients()
    session_id = opened(client)
    run_id = submitted(client, session_id)
    client.get(f"/v1/sessions/{session_id}/runs/{run_id}", params={"wait_s": 30})

    answer = httpx2.get(address + "/metrics")

    assert answer.headers["content-type"].startswith("text/plain")
    found = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
    assert float(found['greenroom_runs{status="completed"}']) >= 1
    assert float(found['greenroom_sessions{status="active"}']) >= 1
    assert float(found["greenroom_events_total"]) >= 7
    assert 1 == float(found['greenroom_actors{kind="EventStore"}'])


def test_metrics_want_a_key_where_others_can_reach_them(clients: Clients, runtime: greenroom.Runtime) -> None:
    with serving(runtime, HttpSettings(), is_local=False) as url:
        problem_of(httpx2.get(url + "/metrics"), 401, "unauthorized")
        problem_of(clients(url=url).get("/metrics"), 403, "forbidden")
        assert 200 == clients(scope=Scope.ADMIN, url=url).get("/metrics").status_code


def test_only_admins_see_what_concerns_all_tenants(clients: Clients) -> None:
    problem_of(clients().get("/v1/stats"), 403, "forbidden")
    stats = clients(scope=Scope.ADMIN).get("/v1/stats").json()
    assert {"sessions", "runs", "events", "bytes", "processes"} == set(stats)


def test_the_page_is_there_without_a_key_and_runs_nothing_of_others(address: str) -> None:
    page = httpx2.get(address + "/")

    assert (200, "text/html; charset=utf-8") == (page.status_code, page.headers["content-type"])
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    script = httpx2.get(address + "/assets/api.js")
    assert (200, policy) == (script.status_code, script.headers["content-security-policy"])
    assert 304 == httpx2.get(address + "/assets/api.js", headers={"If-None-Match": script.headers["etag"]}).status_code
    for path in ("/assets/../api.py", "/assets/%2e%2e/api.py", "/assets/nothing.js", "/assets//etc/passwd"):
        assert 404 == httpx2.get(address + path).status_code, path


class _Broken:
    """A runtime that fails in a way that nobody expected."""

    async def aproviders(self) -> None:
        raise ZeroDivisionError("of /a/path and gk_secret")

    async def aaccounts(self) -> None:
        return None

    async def aset_webhooks(self, targets: object) -> None:
        return None


def test_a_fault_of_ours_is_a_problem_like_any_other_and_says_nothing_of_itself(
    runtime: greenroom.Runtime, tmp_path: Path
) -> None:
    keys = KeyFile(tmp_path)
    _, key = keys.create("acme", Scope.READ)
    app = create_app(cast("greenroom.Runtime", _Broken()), keys, AuditLog(tmp_path), HttpSettings(), is_local=True)

    async def asked() -> httpx2.Response:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://service") as client:
            return await client.get("/v1/providers", headers={"Authorization": f"Bearer {key}"})

    answer = asyncio.run(asked())
    problem_of(answer, 500, "internal_error")
    assert "gk_secret" not in answer.text
    assert {"trace-id", "x-content-type-options"} <= set(answer.headers)


def test_what_is_no_unicode_is_refused_and_may_be_repeated_in_the_answer(clients: Clients) -> None:
    body = '{"run_defaults": {"\\ud800": 1}}'
    answer = clients().post("/v1/sessions", content=body, headers={"content-type": "application/json"})
    problem_of(answer, 422, "validation_error")


def test_a_revoked_key_hears_nothing_more(clients: Clients, address: str, runtime: greenroom.Runtime) -> None:
    keys = KeyFile(Path(runtime.data_dir))
    key, token = keys.create("acme", Scope.READ)
    client = clients()
    session_id = opened(client)
    headers = {"Authorization": f"Bearer {token}"}
    path = f"{address}/v1/sessions/{session_id}/events/stream"
    with httpx2.stream("GET", path, headers=headers, timeout=60) as answer:
        lines = answer.iter_lines()
        assert "id: 1" == next(lines)
        wait_until(lambda: "id: 2" == next(lines), what="all that there was")
        keys.revoke(key.id)
        submitted(client, session_id)
        assert [] == [line for line in lines if line.startswith("id: ") and line > "id: 2"], "it ends"


def test_a_page_of_large_events_is_shorter_and_says_where_to_go_on(clients: Clients) -> None:
    client = clients("large")
    session_id = opened(client)
    for _ in range(3):
        run_id = submitted(client, session_id, "x" * 8_000, provider_options={"chunks": 200})
        client.get(f"/v1/sessions/{session_id}/runs/{run_id}", params={"wait_s": 30})
    whole = client.get(f"/v1/sessions/{session_id}/events", params={"limit": 10_000}).json()["events"]
    assert list(range(1, len(whole) + 1)) == [event["seq"] for event in whole]
    assert len(whole) > 600, "it was read in parts"
    part = client.get(f"/v1/sessions/{session_id}/events", params={"limit": 150, "after": 7}).json()
    assert (whole[7:157], 157) == (part["events"], part["next_after"])
