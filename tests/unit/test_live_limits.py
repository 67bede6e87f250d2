"""Limits of policies and budgets over runs of a live session, without Ray."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest

from greenroom.adapters.tool_definition import tool
from greenroom.adapters.tools import CallableToolbox
from greenroom.domain.budget_options import BudgetOptions
from greenroom.domain.errors import BudgetExceeded, PolicyViolation, ValidationError
from greenroom.domain.event import Event, EventType
from greenroom.domain.policy import OnViolation
from greenroom.domain.provider import ProviderEvent, ProviderRequest as Request
from greenroom.domain.run_outcome import outcome_of
from tests.unit.live_session_world import (
    Answers,
    PlayProvider,
    World,
    error_of,
    outcome,
    settled,
    streamed,
    tool_started,
)


@pytest.fixture
async def world() -> AsyncGenerator[World]:
    made = World()
    yield made
    await made.aclose()


def used(total: int) -> ProviderEvent:
    return ProviderEvent(EventType.TOKEN_USAGE_UPDATED, {"input_tokens": total, "total_tokens": total})


def limits(on_violation: str = "cancel", **limits: float) -> dict[str, Any]:
    return {"policy": {"name": "house", "limits": limits, "on_violation": on_violation}}


def of_type(events: list[Event], *types: EventType) -> list[Event]:
    return [event for event in events if event.type in types]


class Spender(PlayProvider):
    """Uses ten tokens a step, in five steps, a turn each."""

    def __init__(self) -> None:
        super().__init__(self._spend)
        self.steps = 0

    async def _spend(self, request: Request) -> Answers:
        for step in range(1, 6):
            yield streamed(f"{step} ")
            yield used(10 * step)
            yield ProviderEvent(EventType.TURN_COMPLETED, {"turn": step})
            self.steps += 1
        yield outcome("12345")


async def pending(live: Any) -> dict[str, Any]:
    async with asyncio.timeout(5):
        while not (found := live.state().pending_approvals):
            await asyncio.sleep(0)
    return found[0]


async def test_a_run_that_passes_its_tokens_is_stopped_and_keeps_what_it_said(world: World) -> None:
    spender = Spender()
    live = await world.open(spender)
    (run_id,) = await world.submit(live, "x", options=limits(max_total_tokens=25))

    error = await error_of(live, run_id)

    assert isinstance(error, PolicyViolation)
    assert ("house", "max_total_tokens", 25, 30) == tuple(
        error.details[name] for name in ("policy", "metric", "limit", "value")
    )
    assert "1 2 3 " == error.details["output"]["content"]
    assert spender.steps < 5
    (violation,) = of_type(await world.events(run_id), EventType.POLICY_VIOLATION)
    assert ("budget_exceeded", "cancel", 30) == tuple(violation.data[name] for name in ("kind", "action", "actual"))


async def test_a_warning_lets_the_run_go_on_and_is_told_once(world: World) -> None:
    live = await world.open(Spender())
    (run_id,) = await world.submit(live, "x", options=limits("warn", max_total_tokens=15, max_turns=2))

    result = await live.await_run(run_id)

    violations = of_type(await world.events(run_id), EventType.POLICY_VIOLATION)
    assert ["max_total_tokens", "max_turns"] == sorted(event.data["metric"] for event in violations)
    assert result.policy is not None
    assert [event.data for event in violations] == result.policy["violations"]
    assert result == outcome_of(await world.record(run_id))


@pytest.mark.parametrize("decision", ["approve", "deny"])
async def test_a_run_that_asks_stops_where_it_is_until_a_person_decides(world: World, decision: str) -> None:
    spender = Spender()
    live = await world.open(spender)
    (run_id,) = await world.submit(live, "x", options=limits("ask", max_total_tokens=25))

    approval = await pending(live)
    await settled()
    before = spender.steps
    await live.decide_approval(approval["id"], decision, None, world.call(), "Ada")

    assert ("greenroom.policy", 2) == (approval["tool_name"], before), "it goes no further than the event that told"
    if decision == "approve":
        assert "12345" == (await live.await_run(run_id)).output["content"]
    else:
        assert isinstance(await error_of(live, run_id), PolicyViolation)
        assert before == spender.steps


async def test_a_silent_provider_is_stopped_by_the_clock(world: World) -> None:
    live = await world.open()
    options = {**limits(max_duration_s=0.05), "provider_options": {"hang": True, "chunks": 0}}
    (run_id,) = await world.submit(live, "x", options=options)

    error = await error_of(live, run_id)

    assert isinstance(error, PolicyViolation)
    assert "max_duration_s" == error.details["metric"]


async def test_the_tightest_of_several_durations_stops_the_run_and_a_looser_one_only_warns_before(world: World) -> None:
    live = await world.open(run_defaults=limits("warn", max_duration_s=0.01))
    options = {**limits(max_duration_s=0.08), "provider_options": {"hang": True}}
    (run_id,) = await world.submit(live, "x", options=options)

    await error_of(live, run_id)

    violations = of_type(await world.events(run_id), EventType.POLICY_VIOLATION)
    assert ["warn", "cancel"] == [event.data["action"] for event in violations]


class Bell:
    def __init__(self) -> None:
        self.rung = 0
        self.toolbox = CallableToolbox([tool(self.ring, name="ring")])

    async def ring(self) -> str:
        self.rung += 1
        return "ding"


RINGS = {"provider_options": {"tool_calls": [{"name": "ring"}] * 3}}


async def test_a_tool_call_beyond_the_limit_never_runs(world: World) -> None:
    bell = Bell()
    live = await world.open(tools=bell.toolbox)
    (run_id,) = await world.submit(live, "x", options={**RINGS, **limits(max_tool_calls=2)})

    error = await error_of(live, run_id)

    assert (PolicyViolation, 2) == (type(error), bell.rung)


async def test_a_tool_call_beyond_the_limit_waits_for_a_person_who_was_to_be_asked(world: World) -> None:
    bell = Bell()
    live = await world.open(tools=bell.toolbox)
    (run_id,) = await world.submit(live, "x", options={**RINGS, **limits("ask", max_tool_calls=2)})

    approval = await pending(live)
    await settled()
    assert 2 == bell.rung
    await live.decide_approval(approval["id"], "approve", None, world.call())
    await live.await_run(run_id)

    assert 3 == bell.rung


async def test_an_agent_that_calls_tools_on_its_own_is_stopped_when_it_says_so(world: World) -> None:
    async def play(_: Request) -> Answers:
        for number in range(3):
            yield tool_started(f"call_{number}")
        yield outcome()

    live = await world.open(PlayProvider(play))
    (run_id,) = await world.submit(live, "x", options=limits(max_tool_calls=2))

    assert isinstance(await error_of(live, run_id), PolicyViolation)


async def test_what_a_run_cost_in_the_end_counts_though_it_has_succeeded(world: World) -> None:
    async def play(_: Request) -> Answers:
        yield outcome(cost_usd=0.2)

    live = await world.open(PlayProvider(play))
    (stopped,) = await world.submit(live, "x", options=limits(max_cost_usd=0.1))
    (warned,) = await world.submit(live, "x", options=limits("warn", max_cost_usd=0.1))

    error, result = await error_of(live, stopped), await live.await_run(warned)

    assert (PolicyViolation, 0.2) == (type(error), error.details["value"])
    assert result.policy is not None
    assert ["max_cost_usd"] == [one["metric"] for one in result.policy["violations"]]
    assert 0.2 == (await world.record(stopped)).cost_usd


async def test_a_cost_that_nobody_knows_is_said_not_to_be_known(world: World) -> None:
    live = await world.open()
    (run_id,) = await world.submit(live, "x", options=limits(max_cost_usd=0.1))

    result = await live.await_run(run_id)

    assert result.cost_usd is None
    assert result.policy is not None
    assert "scripted-1" in result.policy["warnings"][0]


async def test_the_policies_limit_of_turns_is_told_to_the_provider_and_running_out_is_a_violation(world: World) -> None:
    asked: list[int | None] = []

    async def play(request: Request) -> Answers:
        asked.append(request.max_turns)
        yield replace(outcome(), stop_reason="max_turns")

    live = await world.open(PlayProvider(play))
    (run_id,) = await world.submit(live, "x", options={**limits(max_turns=3), "max_turns": 9})

    error = await error_of(live, run_id)

    assert (PolicyViolation, [3]) == (type(error), asked)


async def test_impossible_policies_are_refused_and_nothing_is_kept(world: World) -> None:
    live = await world.open()
    before = len(await world.events())

    with pytest.raises(PolicyViolation) as refused:
        await world.submit(live, "x", options=limits(max_total_tokens=0))

    assert "zero_budget" == refused.value.details["check"]
    assert before == len(await world.events())


async def test_the_policies_of_tenant_and_project_hold_for_every_run(world: World) -> None:
    scopes = {
        "tenant:acme": {"name": "acme", "limits": {"max_total_tokens": 25}},
        "project:site": {"name": "site", "limits": {"max_total_tokens": 15}, "on_violation": "warn"},
        "tenant:other": {"name": "other", "limits": {"max_total_tokens": 1}},
    }
    live = await world.open(
        Spender(), metadata={"tenant": "acme", "project": "site"}, scope_policies=scopes, run_defaults={}
    )
    (run_id,) = await world.submit(live, "x", options=limits(max_total_tokens=1_000))

    error = await error_of(live, run_id)

    assert (PolicyViolation, "acme") == (type(error), error.details["policy"])
    violations = of_type(await world.events(run_id), EventType.POLICY_VIOLATION)
    assert ["site", "acme"] == [event.data["policy"] for event in violations]


# Budgets of a session

COSTS = {"provider_options": {"usage": {"cost_usd": 0.05}}}


async def test_a_session_stops_at_its_budget_and_starts_nothing_beyond(world: World) -> None:
    live = await world.open(budget=BudgetOptions(max_cost_usd=0.1), max_concurrent_runs=4)
    run_ids = await world.submit(live, "a", "b", "c", "d", options=COSTS)

    for run_id in run_ids[:2]:
        await live.await_run(run_id)
    for run_id in run_ids[2:]:
        error = await error_of(live, run_id)
        assert (BudgetExceeded, "session") == (type(error), error.details["scope"])
        assert "run_started" not in await world.types(run_id)


async def test_the_next_owner_of_a_session_knows_what_it_has_spent(world: World) -> None:
    budget = BudgetOptions(max_total_tokens=30)
    live = await world.open(budget=budget)
    for run_id in await world.submit(live, "a", "b"):
        await live.await_run(run_id)

    again = await world.open(create=False)
    (third,) = await world.submit(again, "c")

    assert isinstance(await error_of(again, third), BudgetExceeded)


async def test_a_budget_that_warns_lets_everything_run_and_says_so(world: World) -> None:
    live = await world.open(budget=BudgetOptions(max_total_tokens=15, on_violation=OnViolation.WARN))
    first, second = await world.submit(live, "a", "b")

    results = [await live.await_run(first), await live.await_run(second)]

    assert results[0].policy is None
    assert results[1].policy is not None
    assert ["budget of session"] == [one["policy"] for one in results[1].policy["violations"]]


@pytest.mark.parametrize("decision", ["approve", "deny"])
async def test_a_budget_that_asks_waits_for_a_person(world: World, decision: str) -> None:
    live = await world.open(budget=BudgetOptions(max_total_tokens=15, on_violation=OnViolation.ASK))
    first, second = await world.submit(live, "a", "b")
    await live.await_run(first)

    approval = await pending(live)
    assert ("greenroom.budget", "session") == (approval["tool_name"], approval["input"]["scope"])
    assert "run_started" not in await world.types(second)
    await live.decide_approval(approval["id"], decision, None, world.call())

    if decision == "approve":
        await live.await_run(second)
    else:
        assert isinstance(await error_of(live, second), BudgetExceeded)


async def test_a_cancelled_run_gives_back_what_it_set_aside(world: World) -> None:
    live = await world.open(budget=BudgetOptions(max_total_tokens=15), max_concurrent_runs=2)
    (hanging,) = await world.submit(live, "a", options={"provider_options": {"hang": True, "chunks": 0}})
    (waiting,) = await world.submit(live, "b")
    await settled()
    assert [waiting] == live.state().queued

    await live.cancel_run(hanging, None, world.call())

    assert 15 == (await live.await_run(waiting)).token_usage["total_tokens"]


async def test_a_budget_of_nothing_is_refused(world: World) -> None:
    with pytest.raises(ValidationError):
        BudgetOptions(max_cost_usd=0)


async def test_nobody_is_asked_about_a_call_that_has_ended_the_run(world: World) -> None:
    """An agent's own client asks before it runs a tool, whether or not the call was told of."""
    bell, refused = Bell(), list[bool]()

    async def play(request: Request) -> Answers:
        for number in range(3):
            refused.append(await request.tools.permit("ring", {}, f"call_{number}") is not None)
        yield outcome()

    live = await world.open(PlayProvider(play), tools=bell.toolbox)
    policies = [
        {"name": "few", "limits": {"max_tool_calls": 2}},
        {"tool_rules": [{"ask": ["ring"]}]},
    ]
    (run_id,) = await world.submit(live, "x", options={"policies": policies})
    for _ in range(2):
        approval = await pending(live)
        await live.decide_approval(approval["id"], "approve", None, world.call())

    assert isinstance(await error_of(live, run_id), PolicyViolation)
    await settled()
    assert [False, False, True] == refused
    types = await world.types(run_id)
    assert "run_failed" == types[-1], "nothing after its end"
    assert 2 == types.count("tool_approval_requested")
