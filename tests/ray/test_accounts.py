"""Provider accounts over the whole cluster: breakers, rate budgets, and routers between them."""

import itertools
import threading
import time
from collections import Counter
from typing import Any

import pytest
import ray

import greenroom
from greenroom import Event, EventType
from greenroom.actors.address import BREAKER_PREFIX
from greenroom.actors.circuit_breaker import CircuitBreaker
from greenroom.domain.account import AttemptEnd, AttemptReport, Permit, PermitAsk
from greenroom.domain.circuit import BreakerOptions
from greenroom.domain.rate_budget import RateOptions
from greenroom.testing import Answer, MessagesServer, answers
from tests.conftest import API_KEY_VARIABLE
from tests.ray.conftest import Starts
from tests.ray.processes import kill_9
from tests.waiting import wait_until


def story(session: greenroom.SessionHandle, *types: EventType) -> list[Event]:
    return [event for event in session.follow(follow=False) if event.type in types or not types]


# Breakers


@ray.remote(num_cpus=0)
def hammer(breaker: Any, name: str) -> list[bool]:
    """Ask for permits as fast as it goes, a hundred at once, until a while after somebody was given one.

    Returns:
        Of each that was given, whether it is a probe.
    """
    given: list[bool] = []
    rounds_after = 0
    for number in itertools.count():
        keys = [f"{name}/{number}/{index}" for index in range(100)]
        answers = ray.get([breaker.acquire.remote(PermitAsk(key=key, holder=name), False) for key in keys])
        given += [answer.is_probe for answer in answers if isinstance(answer, Permit)]
        rounds_after += ray.get(breaker.state.remote()).state != "open"
        if rounds_after == 5:
            break
    return given


@pytest.mark.parametrize("probes", [1, 3])
def test_of_four_processes_that_hammer_a_half_open_breaker_exactly_so_many_get_through(
    cluster: str, probes: int
) -> None:
    options = BreakerOptions(failure_threshold=2, cooldown_s=2.0, half_open_probes=probes)
    breaker: Any = (
        ray.remote(CircuitBreaker)
        .options(num_cpus=0, max_concurrency=10_000)
        .remote("sick", options, RateOptions(), 60.0, None)
    )
    for key in ("a", "b"):
        assert isinstance(ray.get(breaker.acquire.remote(PermitAsk(key=key, holder="test"), False)), Permit)
        ray.get(breaker.ended.remote(key, AttemptReport(end=AttemptEnd.FAILED)))
    assert ray.get(breaker.state.remote()).state == "open"

    given = ray.get([hammer.remote(breaker, f"process {number}") for number in range(4)])

    assert [True] * probes == [is_probe for each in given for is_probe in each]
    ray.kill(breaker)


def test_attempts_wait_for_an_account_that_is_at_its_limit_and_status_says_so(starts: Starts) -> None:
    slow = {"kind": "scripted", "latency_s": 0.5, "rate": {"max_concurrent": 1}}
    runtime = starts(providers={"slow": slow}, warm_pool=3)
    sessions = [runtime.open_session(provider="slow") for _ in range(3)]

    run_ids = [ray.get(session.submit_run.remote("x")) for session in sessions]
    waiting = wait_until(
        lambda: [found for one in sessions if (found := ray.get(one.status.remote()).waiting)], what="somebody waits"
    )
    results = [ray.get(one.await_run.remote(run_id)) for one, run_id in zip(sessions, run_ids, strict=True)]

    assert {"slow"} == {wait["provider"] for found in waiting for wait in found.values()}
    assert {"concurrency", "line"} >= {wait["reason"] for found in waiting for wait in found.values()}
    assert all(result.status == "completed" for result in results)
    times = [
        (started.timestamp, ended.timestamp)
        for session in sessions
        for started, ended in [story(session, EventType.RUN_STARTED, EventType.RUN_COMPLETED)]
    ]
    times.sort()
    assert all(later[0] >= earlier[1] for earlier, later in itertools.pairwise(times)), "one at a time"


def test_a_refusal_for_the_rate_pauses_the_account_for_everybody(starts: Starts) -> None:
    busy = {"kind": "scripted", "rate": {"requests_per_minute": 10_000}}
    runtime = starts(providers={"busy": busy}, warm_pool=2)
    first, second = runtime.open_session(provider="busy"), runtime.open_session(provider="busy")
    refused = {"provider_options": {"fail_with": "provider_rate_limited", "fail_times": 1, "retry_after_s": 2.0}}

    first_run = ray.get(first.submit_run.remote("x", refused))
    (error,) = wait_until(lambda: story(first, EventType.ERROR_OCCURRED), what="it was refused")
    second_result = ray.get(second.execute_run.remote("x"))
    first_result = ray.get(first.await_run.remote(first_run))

    assert (2, 1) == (first_result.attempts, second_result.attempts)
    assert 2.0 == error.data["retry_after_s"]
    (started,) = story(second, EventType.RUN_STARTED)
    assert (started.timestamp - error.timestamp).total_seconds() >= 1.5, "it was asked for while the account rested"
    assert [] == first_result.routing["failed"][1:]
    told = story(second, EventType.ERROR_OCCURRED, EventType.ERROR_RECOVERED)
    assert [EventType.ERROR_OCCURRED, EventType.ERROR_RECOVERED] == [event.type for event in told]
    assert ("busy", "paused") == (told[0].data["waits_for"], told[0].data["reason"])


def test_an_account_whose_actor_was_killed_is_tried_before_it_is_trusted(starts: Starts) -> None:
    runtime = starts(providers={"one": {"kind": "scripted", "breaker": {}}}, lease_s=1.0)
    session = runtime.open_session(provider="one")
    ray.get(session.execute_run.remote("x"))

    kill_9(runtime, "CircuitBreaker")
    results = [ray.get(session.execute_run.remote("x")) for _ in range(5)]

    assert all(result.status == "completed" for result in results)


def test_an_account_whose_actor_was_killed_is_kept_as_it_was_declared_last(starts: Starts) -> None:
    def declared(failures: int) -> dict[str, Any]:
        return {"one": {"kind": "scripted", "breaker": {"failure_threshold": failures, "cooldown_s": 3600.0}}}

    runtime = starts(providers=declared(1_000), lease_s=2.0)
    starts(providers=declared(1))
    breaker: Any = ray.get_actor(BREAKER_PREFIX + "one", namespace=runtime.address.namespace)
    ask = PermitAsk(key="a", holder="test")

    kill_9(runtime, "CircuitBreaker")
    wait_until(
        lambda: isinstance(ray.get(breaker.acquire.remote(ask, False)), Permit), what="it lets somebody in again"
    )
    ray.get(breaker.ended.remote("a", AttemptReport(end=AttemptEnd.FAILED)))

    assert ray.get(breaker.state.remote()).retry_in_s > 1_000


# Routers


ROUTED = {"sick": {"kind": "scripted", "fail_with": "provider_overloaded"}, "well": {"kind": "scripted"}}


def test_everything_that_a_routed_run_records_names_the_provider_that_ran(starts: Starts) -> None:
    runtime = starts(providers=ROUTED, routers={"main": {"providers": ["sick", "well"]}})
    session = runtime.open_session(provider="main")

    result = ray.get(session.execute_run.remote("x"))
    record = runtime.get_run(result.run_id)
    events = [event for event in story(session) if event.run_id]

    assert ("well", "well") == (result.provider, record.provider)
    assert "main" not in {event.provider for event in events}
    failed = [event for event in events if event.provider == "sick"]
    assert {event.attempt for event in failed} == set(range(1, result.attempts)), "each attempt carries its number"
    selected = [event for event in events if event.type is EventType.PROVIDER_SELECTED]
    assert [event.data["provider"] for event in selected] == ["sick"] * (result.attempts - 1) + ["well"]
    (over,) = [event for event in events if event.type is EventType.PROVIDER_FAILED_OVER]
    assert over.data == {"from": "sick", "to": "well", "error_code": "provider_overloaded"}
    starts_and_queues = Counter(
        (event.type, event.attempt) for event in events if event.type in {EventType.RUN_QUEUED, EventType.RUN_STARTED}
    )
    assert set(starts_and_queues.values()) == {1}
    assert result.routing == record.routing
    assert [one["provider"] for one in result.routing["failed"]] == ["sick"] * (result.attempts - 1)
    assert [m["content"] for m in ray.get(session.transcript.remote())] == ["x", "ok"]


def test_a_session_stays_with_the_provider_that_served_it(starts: Starts) -> None:
    drawn = {"providers": ["a", "b"], "strategy": "weighted"}
    runtime = starts(
        providers={"a": {"kind": "scripted"}, "b": {"kind": "scripted"}},
        routers={"sticky": drawn, "free": {**drawn, "sticky_ttl_s": 0}},
    )
    sticky, free = runtime.open_session(provider="sticky"), runtime.open_session()

    stayed = {ray.get(sticky.execute_run.remote("x")).provider for _ in range(20)}
    went = {ray.get(free.execute_run.remote("x", {"router": "free"})).provider for _ in range(40)}

    assert 1 == len(stayed)
    assert {"a", "b"} == went


def test_a_router_that_was_killed_goes_on_deciding(starts: Starts) -> None:
    runtime = starts(
        providers={"a": {"kind": "scripted"}, "b": {"kind": "scripted"}},
        routers={"main": {"providers": ["a", "b"], "sticky_ttl_s": 0}},
    )
    session = runtime.open_session(provider="main")
    ray.get(session.execute_run.remote("x"))

    kill_9(runtime, "ProviderRouter")
    results = [ray.get(session.execute_run.remote("x")) for _ in range(20)]

    assert {"a"} == {result.provider for result in results}


def test_a_run_says_otherwise_than_its_router(starts: Starts) -> None:
    runtime = starts(
        providers={"a": {"kind": "scripted"}, "b": {"kind": "scripted"}}, routers={"main": {"providers": ["a", "b"]}}
    )
    session = runtime.open_session(provider="main")

    def ran(**routing: Any) -> str | None:
        return ray.get(session.execute_run.remote("x", {"routing": routing})).provider

    assert "b" == ran(exclude=["a"])
    assert ("a", "b") == runtime.router("main").options.providers
    assert {"a", "b"} == set(runtime.accounts())
    with pytest.raises(greenroom.ValidationError):
        runtime.router("mian")
    assert "a" == ran(prefer=["a"])
    with pytest.raises(greenroom.ValidationError):
        ran(exclude=["c"])
    with pytest.raises(greenroom.ValidationError):
        ran(weights={"c": 1})


def test_a_run_that_has_used_a_tool_with_side_effects_is_not_tried_elsewhere(starts: Starts) -> None:
    sick = {
        "kind": "scripted",
        "fail_with": "provider_overloaded",
        "fail_after_chunks": 0,
        "tool_calls": [{"name": "pay", "output": "paid"}],
    }
    runtime = starts(
        providers={"sick": sick, "well": {"kind": "scripted"}}, routers={"main": {"providers": ["sick", "well"]}}
    )
    session = runtime.open_session(provider="main")

    with pytest.raises(greenroom.ProviderOverloaded):
        ray.get(session.execute_run.remote("x"))
    agreed = ray.get(session.execute_run.remote("x", {"on_crash": "retry"}))

    assert "well" == agreed.provider


def _two_with_breakers(starts: Starts, cooldown_s: float) -> greenroom.Runtime:
    breaker = {"failure_threshold": 1, "cooldown_s": cooldown_s}
    return starts(
        providers={name: {"kind": "scripted", "breaker": breaker} for name in ("a", "b")},
        routers={"main": {"providers": ["a", "b"]}},
    )


_BROKEN = {"retry_budget_s": 0, "provider_options": {"fail_with": "provider_unavailable"}}


def test_when_all_breakers_are_open_the_run_waits_for_one_of_them(starts: Starts) -> None:
    session = _two_with_breakers(starts, cooldown_s=1.0).open_session(provider="main")
    with pytest.raises(greenroom.ProviderUnavailable):
        ray.get(session.execute_run.remote("x", _BROKEN))

    result = ray.get(session.execute_run.remote("x"))

    assert (1, "completed") == (result.attempts, result.status)


def test_when_all_breakers_are_open_a_run_without_time_to_wait_fails_at_once(starts: Starts) -> None:
    session = _two_with_breakers(starts, cooldown_s=3600.0).open_session(provider="main")
    with pytest.raises(greenroom.ProviderUnavailable) as tried:
        ray.get(session.execute_run.remote("x", _BROKEN))

    with pytest.raises(greenroom.ProviderUnavailable) as refused:
        ray.get(session.execute_run.remote("x", {"retry_budget_s": 0}))

    assert 2 == tried.value.details["attempts"]
    assert "circuit_open" == refused.value.details["reason"]


def test_capabilities_are_required_before_anything_is_queued(starts: Starts) -> None:
    runtime = starts(
        providers={"plain": {"kind": "scripted"}, "local": {"kind": "shell"}},
        routers={"main": {"providers": ["local", "plain"]}},
    )
    session = runtime.open_session(provider="main")

    routed = ray.get(session.execute_run.remote("true", {"required_capabilities": ["tool_use"]}))
    degraded = ray.get(
        session.execute_run.remote("x", {"provider": "plain", "optional_capabilities": [{"name": "teleport"}]})
    )
    last_seq = ray.get(session.status.remote()).last_seq
    with pytest.raises(greenroom.MissingRequiredCapability) as refused:
        ray.get(session.submit_run.remote("x", {"required_capabilities": [{"type": "tool", "name": "teleport"}]}))

    assert "plain" == routed.provider
    assert "degraded" == degraded.routing["negotiation"]["status"]
    assert "teleport" in degraded.routing["negotiation"]["warnings"][0]
    assert ["tool 'teleport'"] == refused.value.details["missing"]
    assert last_seq == ray.get(session.status.remote()).last_seq


# Two servers, one of which is sick


class SickServer:
    """Refuses for the rate, then is overloaded, then is gone."""

    RETRY_AFTER_S = 4.0

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.seen: list[tuple[float, int]] = []
        """When each request came, and what it was answered."""

    def __call__(self, body: dict[str, Any]) -> Answer:
        with self._lock:
            now_s = time.time()
            first_s = self.seen[0][0] if self.seen else now_s
            status = 429 if now_s - first_s < self.RETRY_AFTER_S / 2 else 529
            self.seen.append((now_s, status))
        return answers.error(status, retry_after=self.RETRY_AFTER_S if status == 429 else None)


def test_two_hundred_runs_succeed_though_one_of_two_servers_is_sick(starts: Starts) -> None:
    cooldown_s, sick = 2.0, SickServer()
    with MessagesServer(default=sick) as sick_server, MessagesServer() as well_server:
        declared = {
            name: {"kind": "anthropic", "base_url": server.url, "api_key_env": API_KEY_VARIABLE}
            for name, server in (("sick", sick_server), ("well", well_server))
        }
        declared["sick"]["breaker"] = {"failure_threshold": 3, "cooldown_s": cooldown_s}  # pyright: ignore[reportArgumentType]
        runtime = starts(
            providers=declared,
            routers={"main": {"providers": ["sick", "well"], "sticky_ttl_s": 0}},
            sessions_per_actor=10,
        )
        sessions = [runtime.open_session(provider="main") for _ in range(20)]
        ray.get([session.execute_run.remote("warm up", {"provider": "well"}) for session in sessions])
        began_s = time.time()
        patient = {"retry_budget_s": SickServer.RETRY_AFTER_S * 2}
        submitted = [ray.get(session.submit_runs.remote(["hello"] * 5, patient)) for session in sessions]
        wait_until(lambda: [when for when, status in sick.seen if status == 529], what="the sick one is overloaded")
        results = [
            ray.get(one.await_runs.remote(run_ids, 120)) for one, run_ids in zip(sessions, submitted, strict=True)
        ]
        sick_server.stop()
        results += ray.get([session.execute_run.remote("hello") for session in sessions for _ in range(5)])
        taken_s = time.time() - began_s

    told = [event for session in sessions for event in story(session)]
    assert 20 + 200 == sum(event.type is EventType.RUN_COMPLETED for event in told)
    assert all(event.provider == "well" for event in told if event.type is EventType.RUN_COMPLETED)
    _check_the_rest(sick.seen)
    overloaded = [status for _, status in sick.seen if status == 529]
    probes = taken_s / cooldown_s + 1
    assert len(overloaded) <= 20 + probes, "those under way when it opened, and one a cooldown"
    failed = [event for event in told if event.type is EventType.ERROR_OCCURRED and "recourse" in event.data]
    assert {"provider_rate_limited", "provider_overloaded"} <= {event.data["error_code"] for event in failed}
    assert len(sick.seen) <= len(failed), "every request to the sick one is in the log"
    overs = [event for event in told if event.type is EventType.PROVIDER_FAILED_OVER]
    assert overs
    assert {("sick", "well")} == {(event.data["from"], event.data["to"]) for event in overs}


def _check_the_rest(seen: list[tuple[float, int]]) -> None:
    """After a refusal for the rate nothing comes until it may, but for what was under way."""
    under_way = [when for when, status in seen if status == 429]
    later = [when for when, status in seen if status == 529]
    assert min(later) - max(under_way) >= SickServer.RETRY_AFTER_S * 0.95


def test_a_run_may_be_awaited_while_its_account_rests_and_be_cancelled(starts: Starts) -> None:
    runtime = starts(providers={"busy": {"kind": "scripted", "rate": {"requests_per_minute": 1}}})
    session = runtime.open_session(provider="busy")
    ray.get(session.execute_run.remote("x"))

    run_id = ray.get(session.submit_run.remote("x"))
    wait_until(lambda: ray.get(session.status.remote()).waiting, what="it waits")
    assert ray.get(session.cancel_run.remote(run_id, "enough"))

    with pytest.raises(greenroom.Cancelled):
        ray.get(session.await_run.remote(run_id))
    assert not ray.get(session.status.remote()).waiting
    wait_until(lambda: not runtime.accounts()["busy"].waiting, what="nobody stands in line")


def test_a_run_under_way_at_an_account_gives_its_place_back_when_its_server_dies(starts: Starts) -> None:
    one = {"kind": "scripted", "rate": {"max_concurrent": 1}}
    runtime = starts(providers={"one": one}, lease_s=2.0, warm_pool=2)
    session, other = runtime.open_session(provider="one"), runtime.open_session(provider="one")
    ray.get(session.submit_run.remote("x", {"provider_options": {"hang": True, "chunks": 0}}))
    wait_until(lambda: runtime.accounts()["one"].under_way, what="it is under way")
    waiting = ray.get(other.submit_run.remote("x"))
    wait_until(lambda: runtime.accounts()["one"].waiting, what="the other waits")

    kill_9(runtime, "SessionServer", session.session_id)

    assert "completed" == ray.get(other.await_run.remote(waiting, 60)).status


def test_what_a_provider_can_do_is_told_for_each_of_its_models(starts: Starts) -> None:
    models = {"tiny-*": {"remove": ["tool_use"], "add": [{"name": "haste", "type": "sampling"}]}}
    runtime = starts(providers={"one": {"kind": "scripted", "models": models}})
    session = runtime.open_session(provider="one")

    whole = {one.name for one in runtime.capabilities("one").capabilities}
    tiny = {one.name for one in runtime.capabilities("one", "tiny-1").capabilities}
    with pytest.raises(greenroom.MissingRequiredCapability):
        ray.get(session.submit_run.remote("x", {"model": "tiny-1", "required_capabilities": ["tool_use"]}))

    assert ({"tool_use"}, {"haste"}) == (whole - tiny, tiny - whole)
    assert "completed" == ray.get(session.execute_run.remote("x", {"required_capabilities": ["tool_use"]})).status
    assert runtime.capabilities("claude").price_usd is not None
