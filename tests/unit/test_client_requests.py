"""Requests of the client: what it sends, when it tries again, and what it makes of the answers."""

import asyncio
import logging
import traceback
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from importlib.metadata import version
from typing import Any

import httpx2
import pytest

import greenroom
from greenroom.domain.run import RunStatus
from greenroom.domain.run_options import RunOptions
from greenroom.domain.session import SessionState
from greenroom.domain.steering import SteerReceipt
from greenroom.serve.client import AsyncClient
from greenroom.serve.client.backoff import MAX_PAUSE_S, Backoff
from greenroom.serve.client.connection import MAX_TRIES
from greenroom.serve.client.failures import error_of_transport

from .client_world import KEY, RUN, SESSION, URL, FakeService, answered, event, problem, run_record, session_record

OK = httpx2.Response(200, json={"items": []})


def again() -> httpx2.Response:
    """A refusal that may be followed at once."""
    return problem(429, "queue_full", headers={"Retry-After": "0"})


async def test_a_session_is_opened_with_everything_that_was_given() -> None:
    service = FakeService(answered(session_record(), 201))

    async with service.client() as client:
        session = await client.open_session(agent_id="reviewer", context={"a": 1}, tags=("x",), budget={"b": 2})

    assert SESSION == session.session_id
    assert ["POST /v1/sessions"] == service.paths
    expected = {"agent_id": "reviewer", "context": {"a": 1}, "tags": ["x"], "budget": {"b": 2}, "max_queued_runs": 100}
    assert expected == {name: service.bodies[0][name] for name in expected}
    assert [f"Bearer {KEY}"] == service.sent("Authorization")
    assert [f"greenroom/{version('greenroom')}"] == service.sent("User-Agent")


async def test_an_argument_that_there_is_none_of_is_refused_without_a_request() -> None:
    service = FakeService()

    async with service.client() as client:
        with pytest.raises(TypeError, match="agent"):
            await client.open_session(agent="x")  # pyright: ignore[reportCallIssue]

    assert [] == service.paths


async def test_each_post_has_an_idempotency_key_of_its_own_which_its_tries_share() -> None:
    service = FakeService(again(), answered(session_record()), answered(session_record()))

    async with service.client() as client:
        await client.session(SESSION).pause()
        await client.session(SESSION).resume()

    first, second, third = service.sent("Idempotency-Key")
    assert first
    assert first == second
    assert third
    assert third != first


async def test_an_idempotency_key_that_was_given_is_the_one_that_is_sent() -> None:
    service = FakeService(httpx2.Response(202, json={"run_id": RUN}))

    async with service.client() as client:
        run_id = await client.session(SESSION).submit_run("Hello!", RunOptions(max_turns=2), idempotency_key="order 7")

    assert RUN == run_id
    assert ["order 7"] == service.sent("Idempotency-Key")
    assert [{"input": "Hello!", "options": {"max_turns": 2}}] == service.bodies


@pytest.mark.parametrize("key", ["", " x", "é", "a\nb", "x" * 201])
async def test_an_idempotency_key_that_no_header_can_carry_is_refused(key: str) -> None:
    service = FakeService()

    async with service.client() as client:
        with pytest.raises(greenroom.ValidationError) as caught:
            await client.session(SESSION).submit_run("Hello!", idempotency_key=key)

    assert "idempotency_key" == caught.value.details["field"]
    assert [] == service.paths


@pytest.mark.parametrize(
    "first",
    [
        httpx2.ConnectError("refused"),
        httpx2.ReadError("broke off"),
        httpx2.RemoteProtocolError("broke off"),
        httpx2.ReadTimeout(""),
        httpx2.Response(502, text="<html>bad gateway</html>"),
        problem(503, "session_draining", headers={"Retry-After": "0"}),
        problem(503, "unheard_of"),
        httpx2.Response(504),
        again(),
    ],
)
async def test_what_may_pass_is_tried_again(first: httpx2.Response | Exception) -> None:
    service = FakeService(first, httpx2.Response(202, json={"run_id": RUN}))

    async with service.client() as client:
        assert RUN == await client.session(SESSION).submit_run("Hello!")

    assert 2 == len(service.paths)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (problem(404, "session_not_found"), greenroom.SessionNotFound),
        (problem(409, "invalid_transition"), greenroom.InvalidTransition),
        (problem(422, "validation_error", field="input"), greenroom.ValidationError),
        (problem(429, "queue_full"), greenroom.QueueFull),
        (problem(500, "internal_error"), greenroom.InternalError),
        (problem(507, "storage_full"), greenroom.StorageFull),
        (problem(413, "body_too_large"), greenroom.ValidationError),
        (problem(401, "unauthorized"), greenroom.Unauthorized),
        (httpx2.Response(404, text="nothing"), greenroom.NotFound),
        (httpx2.Response(500, text="x" * 1000), greenroom.InternalError),
        (httpx2.Response(307, headers={"Location": "http://other.example/"}), greenroom.UnknownError),
        (httpx2.Response(418, json={"code": "queue_full"}), greenroom.UnknownError),
        (httpx2.Response(599), greenroom.UnknownError),
        (httpx2.Response(422, content=b"[1]", headers={"Content-Type": "application/problem+json"}),
         greenroom.ValidationError),
        (httpx2.Response(200, text="<html>"), greenroom.InvalidFormat),
        (httpx2.Response(200, json=[1]), greenroom.InvalidFormat),
        (httpx2.Response(200, json={"run": RUN}), greenroom.InvalidFormat),
        (httpx2.LocalProtocolError(f"Illegal header value b'Bearer {KEY}'"), greenroom.InvalidInput),
        (httpx2.DecodingError("gzip"), greenroom.InvalidFormat),
    ],
)  # fmt: skip
async def test_what_does_not_pass_is_told_at_once(answer: Any, kind: type[greenroom.GreenroomError]) -> None:
    service = FakeService(answer)

    async with service.client() as client:
        with pytest.raises(kind) as caught:
            await client.session(SESSION).submit_run("Hello!")

    assert kind is type(caught.value)
    assert KEY not in str(caught.value)
    assert 1 == len(service.paths)


async def test_an_error_has_the_details_that_the_service_gives() -> None:
    service = FakeService(problem(422, "invalid_cursor", last_seq=7), problem(403, "of_tomorrow"))

    async with service.client() as client:
        with pytest.raises(greenroom.InvalidCursor) as typed:
            await client.session(SESSION).read_events(after=99)
        with pytest.raises(greenroom.UnknownError) as unknown:
            await client.delete_session(SESSION)

    assert ("It is invalid_cursor.", {"last_seq": 7}) == (typed.value.message, typed.value.details)
    assert {"code": "of_tomorrow", "status": 403} == unknown.value.details


async def test_a_request_is_given_up_after_some_tries_with_the_last_error() -> None:
    service = FakeService(*(again() for _ in range(MAX_TRIES)))

    async with service.client() as client:
        with pytest.raises(greenroom.QueueFull) as caught:
            await client.session(SESSION).submit_run("Hello!")

    assert {"retry_after_s": 0.0} == caught.value.details
    assert MAX_TRIES == len(service.paths)


async def test_a_request_that_is_to_come_again_later_than_there_is_time_is_given_up_at_once() -> None:
    service = FakeService(problem(429, "queue_full", headers={"Retry-After": "30"}))

    async with service.client(timeout_s=20) as client:
        with pytest.raises(greenroom.QueueFull) as caught:
            await client.session(SESSION).submit_run("Hello!")

    assert 30.0 == caught.value.details["retry_after_s"]
    assert 1 == len(service.paths)


async def test_a_retry_after_may_be_a_date() -> None:
    moment = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    service = FakeService(problem(429, "queue_full", headers={"Retry-After": moment}))

    async with service.client() as client:
        with pytest.raises(greenroom.QueueFull) as caught:
            await client.session(SESSION).submit_run("Hello!")

    assert 3000 < caught.value.details["retry_after_s"] <= 3600


async def test_a_retry_after_that_says_nothing_counts_for_nothing() -> None:
    service = FakeService(problem(429, "queue_full", headers={"Retry-After": "soon"}))

    async with service.client() as client:
        with pytest.raises(greenroom.QueueFull) as caught:
            await client.session(SESSION).submit_run("Hello!")

    assert {} == caught.value.details


async def test_a_service_that_does_not_answer_is_a_timeout() -> None:
    async def never(request: httpx2.Request) -> httpx2.Response:
        return await asyncio.get_running_loop().create_future()

    async with AsyncClient(URL, key=KEY, timeout_s=0.05, transport=httpx2.MockTransport(never)) as client:
        with pytest.raises(greenroom.Timeout, match="did not answer within"):
            await client.providers()


async def test_a_deletion_is_sent_once() -> None:
    service = FakeService(httpx2.ReadError("broke off"))

    async with service.client() as client:
        with pytest.raises(greenroom.RuntimeGone):
            await client.delete_session(SESSION)

    assert [f"DELETE /v1/sessions/{SESSION}"] == service.paths


def test_each_error_of_httpx2_has_an_error_of_greenroom() -> None:
    kinds = [
        kind
        for kind in vars(httpx2).values()
        if isinstance(kind, type) and issubclass(kind, httpx2.HTTPError | httpx2.StreamError | httpx2.InvalidURL)
    ]
    assert len(kinds) > 20

    for kind in kinds:
        raised = Exception.__new__(kind)
        assert greenroom.InternalError is not type(error_of_transport(raised, URL)), kind


async def test_the_key_is_in_no_repr_no_error_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    service = FakeService(problem(401, "unauthorized"), *(httpx2.ConnectError("refused") for _ in range(MAX_TRIES)))

    async with service.client() as client:
        seen = [repr(client), repr(client.session(SESSION))]
        for _ in range(2):
            with pytest.raises(greenroom.GreenroomError) as caught:
                await client.providers()
            seen += [repr(caught.value), "".join(traceback.format_exception(caught.value))]

    assert KEY not in "".join([*seen, caplog.text])


@pytest.mark.parametrize("key", [None, "", "two words", "line\nbreak", "schlüssel"])
def test_a_key_that_is_none_is_refused_and_not_repeated(key: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GREENROOM_KEY", raising=False)

    with pytest.raises(greenroom.ValidationError) as caught:
        AsyncClient(URL, key=key)

    assert "key" == caught.value.details["field"]
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize("url", ["ftp://x", "x", "http://", "http://a:b@x", "http://x/?key=1", "http://x:y"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(greenroom.ValidationError) as caught:
        AsyncClient(url, key=KEY)

    assert "url" == caught.value.details["field"]


async def test_address_and_key_come_from_the_environment_when_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREENROOM_URL", "http://service.example/greenroom/")
    monkeypatch.setenv("GREENROOM_KEY", "gk_env")
    service = FakeService(OK)

    async with AsyncClient(transport=service.transport()) as client:
        await client.providers()

    assert ["GET /greenroom/v1/providers"] == service.paths
    assert ["Bearer gk_env"] == service.sent("Authorization")


async def test_the_result_of_a_run_is_waited_for() -> None:
    service = FakeService(
        httpx2.Response(202, json={"run_id": RUN}), answered(run_record(RunStatus.RUNNING)), answered(run_record())
    )

    async with service.client() as client:
        result = await client.session(SESSION).execute_run({"prompt": "Hello!"})

    assert (RUN, {"content": "ok"}, 9) == (result.run_id, result.output, result.last_seq)
    assert [None, "30.0", "30.0"] == [request.url.params.get("wait_s") for request in service.requests]


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (run_record(RunStatus.FAILED, error={"code": "provider_overloaded", "message": "x"}),
         greenroom.ProviderOverloaded),
        (run_record(RunStatus.CANCELLED, stop_reason="interrupted"), greenroom.Cancelled),
        (run_record(RunStatus.TIMEOUT), greenroom.DeadlineExceeded),
    ],
)  # fmt: skip
async def test_a_run_that_did_not_complete_raises_its_error_once(record: Any, kind: type[Exception]) -> None:
    service = FakeService(answered(record))

    async with service.client() as client:
        with pytest.raises(kind):
            await client.session(SESSION).await_run(RUN)

    assert 1 == len(service.paths)


async def test_a_wait_for_a_run_that_is_over_is_a_timeout() -> None:
    service = FakeService(answered(run_record(RunStatus.RUNNING)))

    async with service.client() as client:
        with pytest.raises(greenroom.Timeout) as caught:
            await client.session(SESSION).await_run(RUN, timeout_s=0)

    assert {"run_id": RUN} == caught.value.details


async def test_all_pages_of_a_list_are_read() -> None:
    pages = [
        {"items": [session_record(id=name).to_dict() for name in names], "next_cursor": cursor}
        for names, cursor in ((("ses_1", "ses_2"), "after 2"), (("ses_3",), None))
    ]
    service = FakeService(*(httpx2.Response(200, json=page) for page in pages))

    async with service.client() as client:
        found = [
            one.id async for one in client.list_sessions(status=SessionState.ACTIVE, newest_first=True, page_size=2)
        ]

    assert ["ses_1", "ses_2", "ses_3"] == found
    assert [(None, "active", "desc", "2"), ("after 2", "active", "desc", "2")] == [
        tuple(request.url.params.get(name) for name in ("cursor", "status", "order", "limit"))
        for request in service.requests
    ]


async def test_a_list_that_failed_goes_on_where_it_was() -> None:
    page = httpx2.Response(200, json={"items": [run_record().to_dict()], "next_cursor": "c"})
    rest = httpx2.Response(200, json={"items": [run_record(id="run_2").to_dict()], "next_cursor": None})
    service = FakeService(page, problem(500, "internal_error"), rest)

    async with service.client() as client:
        runs = client.session(SESSION).list_runs()
        first = await anext(runs)
        with pytest.raises(greenroom.InternalError):
            await anext(runs)

        assert [RUN, "run_2"] == [first.id, *[run.id async for run in runs]]

    assert [None, "c", "c"] == [request.url.params.get("cursor") for request in service.requests]


async def test_the_verbs_of_a_session_go_to_their_routes() -> None:
    run, cancelled = run_record(), httpx2.Response(200, json={"cancelled": True})
    service = FakeService(
        cancelled,
        cancelled,
        httpx2.Response(200, json={"run_id": RUN, "delivered": True, "seq": 4, "newer_than_this_client": 1}),
        answered(session_record(SessionState.COMPLETED)),
        answered(session_record(SessionState.CANCELLED)),
        httpx2.Response(204),
        httpx2.Response(200, json={"messages": [{"role": "user"}]}),
        httpx2.Response(200, json={"events": [event(1).to_dict()], "next_after": 1}),
        answered(run),
        answered(session_record()),
    )

    async with service.client() as client:
        session = client.session(SESSION)
        assert await session.cancel_run(RUN, "enough")
        assert await session.interrupt_run(RUN)
        assert SteerReceipt(run_id=RUN, delivered=True, seq=4) == await session.steer_run(RUN, "left")
        assert SessionState.COMPLETED is (await session.complete()).status
        assert SessionState.CANCELLED is (await session.cancel()).status
        await session.decide_approval("apr_1", "approve")
        assert [{"role": "user"}] == await session.transcript(max_messages=3)
        assert [event(1)] == await session.read_events(types=["run_started", "message_streamed"], limit=5)
        assert run == await session.get_run(RUN)
        assert session_record() == await session.record()

    base = f"/v1/sessions/{SESSION}"
    assert service.paths == [
        f"POST {base}/runs/{RUN}/cancel",
        f"POST {base}/runs/{RUN}/interrupt",
        f"POST {base}/runs/{RUN}/steer",
        f"POST {base}/complete",
        f"POST {base}/cancel",
        f"POST {base}/approvals/apr_1",
        f"GET {base}/transcript",
        f"GET {base}/events",
        f"GET {base}/runs/{RUN}",
        f"GET {base}",
    ]
    assert {"after": "0", "limit": "5", "types": "message_streamed,run_started"} == dict(service.requests[7].url.params)


async def test_an_id_that_can_be_none_asks_nobody() -> None:
    service = FakeService()

    async with service.client() as client:
        with pytest.raises(greenroom.SessionNotFound):
            client.session("../keys")
        with pytest.raises(greenroom.RunNotFound):
            await client.session(SESSION).cancel_run("")
        with pytest.raises(greenroom.NotFound):
            await client.session(SESSION).decide_approval("a/b", "deny")
        with pytest.raises(greenroom.ValidationError):
            await client.session(SESSION).read_events(types=["no_such_type"])

    assert [] == service.paths


async def test_what_json_cannot_hold_is_refused_before_it_is_sent() -> None:
    service = FakeService()

    async with service.client() as client:
        with pytest.raises(greenroom.ValidationError, match="datetime"):
            await client.open_session(context={"since": datetime.now(UTC)})
        with pytest.raises(greenroom.ValidationError, match="nan"):
            await client.session(SESSION).submit_run("x", {"deadline_s": float("nan")})

    assert [] == service.paths


async def test_a_client_that_is_closed_says_so() -> None:
    client = FakeService().client()
    await client.aclose()

    with pytest.raises(greenroom.InvalidOperation):
        await client.providers()
    with pytest.raises(greenroom.InvalidOperation):
        await anext(client.follow())


def test_pauses_grow_to_a_bound_and_are_drawn_at_random() -> None:
    error = greenroom.RuntimeGone()

    for draw in (0.0, 1.0):
        backoff = Backoff(draw=lambda drawn=draw: drawn)
        pauses = [backoff.pause_s(error, 1e9) or 0.0 for _ in range(40)]
        assert sorted(pauses) == pauses
        assert MAX_PAUSE_S * (1 + draw) / 2 == pauses[-1]
        backoff.reset()
        assert pauses[0] == backoff.pause_s(error, 1e9)


def test_a_pause_is_as_long_as_the_service_asks_for() -> None:
    error = greenroom.QueueFull(details={"retry_after_s": 3.0})

    pause_s = Backoff().pause_s(error, 60)

    assert pause_s is not None
    assert 3.0 < pause_s < 3.3
