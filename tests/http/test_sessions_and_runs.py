"""Sessions and runs over HTTP."""

import json
from typing import Any

import httpx2
import pytest

from greenroom.domain.api_key import Scope
from tests.http.conftest import Clients, frames, opened, problem_of, submitted
from tests.waiting import wait_until


def test_a_run_is_accepted_and_then_looked_at(clients: Clients) -> None:
    client = clients()
    session_id = opened(client, agent_id="reviewer", metadata={"why": "a test"})
    answer = client.post(f"/v1/sessions/{session_id}/runs", json={"input": "Hello!"})
    run = client.get(answer.headers["location"], params={"wait_s": 30}).json()

    assert ("completed", "ok") == (run["status"], run["output"]["content"])
    assert run["id"] == answer.json()["run_id"]
    session = client.get(f"/v1/sessions/{session_id}").json()
    assert {"why": "a test", "tenant": "acme"} == session["metadata"]
    assert [run["id"]] == [one["id"] for one in client.get(f"/v1/sessions/{session_id}/runs").json()["items"]]
    assert [session_id] == [
        one["id"] for one in client.get("/v1/sessions", params={"agent_id": "reviewer"}).json()["items"]
    ]
    said = client.get(f"/v1/sessions/{session_id}/transcript").json()["messages"]
    assert ["Hello!", "ok"] == [one["content"] for one in said]


def test_a_repeated_idempotency_key_gives_the_first_answer(clients: Clients) -> None:
    client, other = clients(), clients("other")
    headers = {"Idempotency-Key": "once"}
    first, second = (client.post("/v1/sessions", json={}, headers=headers).json()["id"] for _ in range(2))
    assert first == second
    assert first != other.post("/v1/sessions", json={}, headers=headers).json()["id"]
    runs = {
        client.post(f"/v1/sessions/{first}/runs", json={"input": "x"}, headers=headers).json()["run_id"]
        for _ in range(2)
    }
    assert 1 == len(runs)


def test_pages_go_on_where_the_last_one_ended(clients: Clients) -> None:
    client = clients("pages")
    made = [opened(client) for _ in range(5)]
    found: list[str] = []
    cursor = None
    while True:
        page = client.get("/v1/sessions", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        found += [one["id"] for one in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert made == found


def test_runs_are_cancelled_steered_and_sessions_paused_and_ended(clients: Clients) -> None:
    client = clients()
    session_id = opened(client)
    run_id = submitted(client, session_id, provider_options={"hang": True})
    runs = f"/v1/sessions/{session_id}/runs/{run_id}"
    wait_until(lambda: client.get(f"/v1/sessions/{session_id}/status").json()["in_flight"], what="it is under way")

    assert client.post(f"{runs}/steer", json={"message": "Listen."}).json()["delivered"]
    problem_of(client.post(f"/v1/sessions/{session_id}/complete"), 409, "invalid_operation")
    assert client.post(f"{runs}/cancel", json={"reason": "enough"}).json() == {"cancelled": True}
    assert client.post(f"{runs}/cancel").json() == {"cancelled": False}
    assert "paused" == client.post(f"/v1/sessions/{session_id}/pause").json()["status"]
    problem_of(client.post(f"/v1/sessions/{session_id}/pause"), 409, "invalid_transition")
    assert "active" == client.post(f"/v1/sessions/{session_id}/resume").json()["status"]
    assert "completed" == client.post(f"/v1/sessions/{session_id}/complete").json()["status"]
    problem_of(client.post(f"/v1/sessions/{session_id}/runs", json={"input": "x"}), 409, "invalid_operation")


def test_a_full_queue_says_when_to_come_again(clients: Clients) -> None:
    client = clients()
    session_id = opened(client, max_queued_runs=0)
    submitted(client, session_id, provider_options={"hang": True})

    answer = client.post(f"/v1/sessions/{session_id}/runs", json={"input": "x"})

    problem_of(answer, 429, "queue_full")
    assert int(answer.headers["retry-after"]) >= 1


def test_an_approval_is_decided_by_the_key(clients: Clients) -> None:
    client = clients()
    policy = {"tool_rules": [{"ask": ["add"]}]}
    session_id = opened(client, tools=["tests.http.tools:add"], run_defaults={"policy": policy})
    run_id = submitted(
        client, session_id, provider_options={"tool_calls": [{"name": "add", "input": {"a": 1, "b": 2}}]}
    )

    def pending() -> list[dict[str, Any]]:
        return client.get(f"/v1/sessions/{session_id}/status").json()["pending_approvals"]

    (approval,) = wait_until(pending, what="a question")
    url = f"/v1/sessions/{session_id}/approvals/{approval['id']}"
    problem_of(client.post(url, json={"decision": "maybe"}), 422, "validation_error")
    assert 204 == client.post(url, json={"decision": "approve", "reason": "fine"}).status_code
    problem_of(client.post(url, json={"decision": "deny"}), 409, "invalid_operation")
    client.get(f"/v1/sessions/{session_id}/runs/{run_id}", params={"wait_s": 30})
    page = client.get(f"/v1/sessions/{session_id}/events", params={"types": "tool_approval_granted"}).json()
    assert page["events"][0]["data"]["by"].startswith("key ")


def test_a_session_that_is_deleted_is_gone(clients: Clients) -> None:
    client, admin = clients(), clients(scope=Scope.ADMIN)
    session_id = opened(client)

    problem_of(client.delete(f"/v1/sessions/{session_id}"), 403, "forbidden")
    assert 204 == admin.delete(f"/v1/sessions/{session_id}").status_code
    problem_of(client.get(f"/v1/sessions/{session_id}"), 404, "session_not_found")


# Events


def test_a_stream_is_taken_up_again_where_it_broke(clients: Clients) -> None:
    client = clients()
    session_id = opened(client)
    url = f"/v1/sessions/{session_id}/events/stream"
    submitted(client, session_id, provider_options={"chunks": 5, "chunk_delay_s": 0.02})
    with client.stream("GET", url) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        seen = [next(stream) for stream in [frames(answer)] for _ in range(4)]
    last = seen[-1]["id"]
    client.get(f"/v1/sessions/{session_id}/runs/{json.loads(seen[2]['data'])['run_id']}", params={"wait_s": 30})
    client.post(f"/v1/sessions/{session_id}/complete")
    with client.stream("GET", url, params={"after": 1}, headers={"Last-Event-ID": last}) as answer:
        seen += list(frames(answer))

    assert [str(seq) for seq in range(1, len(seen) + 1)] == [one["id"] for one in seen]
    assert "session_completed" == seen[-1]["event"], "it ends with the session"
    page = client.get(f"/v1/sessions/{session_id}/events", params={"limit": 1_000}).json()
    assert [json.loads(one["data"]) for one in seen] == page["events"]
    assert page["next_after"] == len(seen)


def test_a_stream_of_one_run_ends_with_it_and_shows_what_was_asked_for(clients: Clients) -> None:
    client = clients()
    session_id = opened(client)
    run_id = submitted(client, session_id)
    params = {"run_id": run_id, "types": "run_queued,run_completed"}
    with client.stream("GET", f"/v1/sessions/{session_id}/events/stream", params=params) as answer:
        assert ["run_queued", "run_completed"] == [one["event"] for one in frames(answer)]


def test_a_page_of_events_waits_for_a_match(clients: Clients) -> None:
    client = clients()
    session_id = opened(client)
    submitted(client, session_id, provider_options={"latency_s": 0.3})

    page = client.get(
        f"/v1/sessions/{session_id}/events", params={"types": "run_completed", "wait_s": 30, "after": 2}
    ).json()

    assert ["run_completed"] == [event["type"] for event in page["events"]]


# What is refused


def test_nothing_is_answered_without_a_valid_key(address: str, clients: Clients) -> None:
    client = clients()
    session_id = opened(client)
    routes = [
        ("GET", "/v1/sessions"),
        ("POST", "/v1/sessions"),
        ("GET", f"/v1/sessions/{session_id}"),
        ("GET", f"/v1/sessions/{session_id}/events/stream"),
        ("GET", "/v1/providers"),
        ("GET", "/v1/stats"),
    ]
    for method, path in routes:
        for headers in ({}, {"Authorization": "Bearer gk_x"}, {"Authorization": "Basic abc"}):
            answer = httpx2.request(method, address + path, headers=headers)
            problem_of(answer, 401, "unauthorized")
            assert "Bearer" == answer.headers["www-authenticate"]
    assert {"status": "ok"} == httpx2.get(address + "/healthz").json()
    assert {"status": "ok"} == httpx2.get(address + "/readyz").json()


def test_a_key_does_what_its_scope_says(clients: Clients) -> None:
    reader, runner = clients(scope=Scope.READ), clients()
    session_id = opened(runner)

    assert 200 == reader.get(f"/v1/sessions/{session_id}").status_code
    problem_of(reader.post("/v1/sessions", json={}), 403, "forbidden")
    problem_of(reader.post(f"/v1/sessions/{session_id}/runs", json={"input": "x"}), 403, "forbidden")
    problem_of(runner.get("/v1/stats"), 403, "forbidden")


BODIES: dict[str, dict[str, Any]] = {
    "/runs": {"input": "x"},
    "/steer": {"message": "x"},
    "/approvals/{approval_id}": {"decision": "approve"},
    "/ag-ui": {
        "threadId": "t",
        "runId": "r",
        "messages": [{"id": "m", "role": "user", "content": "x"}],
        "tools": [],
        "context": [],
        "state": {},
        "forwardedProps": {},
    },
}
"""What a route wants, by how its path ends: so that nothing but the id is wrong."""


def test_another_tenant_sees_nothing_on_any_route(clients: Clients, address: str) -> None:
    client, thief = clients(), clients("thief", Scope.ADMIN)
    session_id, own = opened(client), opened(thief)
    run_id = submitted(client, session_id)
    client.get(f"/v1/sessions/{session_id}/runs/{run_id}", params={"wait_s": 30})
    described = httpx2.get(address + "/openapi.json").json()["paths"]
    walked = [
        (method.upper(), path)
        for path, methods in described.items()
        for method in methods
        if path.startswith("/v1/") and path != "/v1/events/stream"  # never ends; it has tests of its own
    ]
    assert len(walked) >= 25
    for method, path in walked:
        body = next((found for end, found in BODIES.items() if path.endswith(end)), None) if method == "POST" else None
        answers = [
            thief.request(method, path.format(session_id=one, run_id=run, approval_id="apr_1"), json=body)
            for one, run in ((session_id, run_id), ("ses_none", "run_none"))
        ]
        if "{session_id}" in path:
            theirs, nobodys = answers
            assert (404, theirs.json()) == (nobodys.status_code, nobodys.json()), path
        else:
            assert session_id not in answers[0].text, path
            assert run_id not in answers[0].text, path
    problem_of(thief.get(f"/v1/sessions/{own}/runs/{run_id}"), 404, "run_not_found")
    problem_of(thief.post("/v1/sessions", json={"parent_session_id": session_id}), 404, "session_not_found")
    assert "active" == client.get(f"/v1/sessions/{session_id}").json()["status"], "nothing has happened to it"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"agent": "x"}, "agent"),
        ({"agent_id": ""}, "agent_id"),
        ({"max_concurrent_runs": 0}, "max_concurrent_runs"),
        ({"metadata": {"tenant": "other"}}, "metadata.tenant"),
        ({"provider": "nobody"}, "provider"),
        ({"provider": "shell"}, "provider"),
        ({"tools": ["os:system"]}, "tools"),
        ({"run_defaults": {"provider": "shell"}}, "provider"),
        ({"run_defaults": {"provider_options": {"base_url": "x"}}}, "run_defaults.provider_options"),
        ({"run_defaults": {"deadline": 1}}, "run_defaults.deadline"),
    ],
)
def test_a_session_that_may_not_be_is_refused_by_name(clients: Clients, body: dict[str, Any], field: str) -> None:
    answer = clients().post("/v1/sessions", json=body)

    assert field == problem_of(answer, 422, "validation_error")["field"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": 5}, "input"),
        ({"input": "x", "more": 1}, "more"),
        ({"input": "x", "options": {"deadline_s": -1}}, "options.deadline_s"),
        ({"input": "x", "options": {"provider": "shell"}}, "provider"),
        ({"input": "x", "options": {"provider_options": {"api_key_env": "HOME"}}}, "options.provider_options"),
    ],
)
def test_a_run_that_may_not_be_is_refused_by_name(clients: Clients, body: dict[str, Any], field: str) -> None:
    client = clients()
    answer = client.post(f"/v1/sessions/{opened(client)}/runs", json=body)

    assert problem_of(answer, 422, "validation_error")["field"].startswith(field)


def test_a_tenant_that_was_granted_commands_may_run_them(clients: Clients) -> None:
    client = clients("trusted")
    session_id = opened(client, provider="shell")
    run_id = submitted(client, session_id, "echo hello")

    run = client.get(f"/v1/sessions/{session_id}/runs/{run_id}", params={"wait_s": 30}).json()

    assert "hello" in run["output"]["content"]


def test_what_is_no_request_is_answered_in_one_form(clients: Clients) -> None:
    client = clients()
    problem_of(client.get("/v1/nothing"), 404, "not_found")
    problem_of(client.put("/v1/sessions"), 405, "method_not_allowed")
    problem_of(
        client.post("/v1/sessions", content=b"{", headers={"content-type": "application/json"}), 422, "validation_error"
    )
    problem_of(client.post("/v1/sessions", content=b"x" * 20_000), 413, "body_too_large")
    problem_of(client.post("/v1/sessions", content=iter([b"x" * 6_000] * 4)), 413, "body_too_large")
    problem_of(client.get("/v1/sessions/ses_%00"), 404, "session_not_found")
    answer = client.get("/v1/sessions")
    assert ("nosniff", "no-store") == (answer.headers["x-content-type-options"], answer.headers["cache-control"])
