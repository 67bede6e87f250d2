"""Control of a live session: pause, drain, steering, what a busy session does, approvals, policies. No Ray."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

from greenroom.actors.live_session import LiveSession, NeedsOwnServer
from greenroom.adapters.tool_definition import tool
from greenroom.adapters.tools import CallableToolbox
from greenroom.domain.amount import Amount
from greenroom.domain.budget import BudgetAnswer, BudgetDecision
from greenroom.domain.errors import (
    Cancelled,
    InvalidOperation,
    InvalidTransition,
    NotFound,
    PolicyViolation,
    QueueFull,
    RunInterrupted,
    SessionDraining,
    Timeout,
    ValidationError,
)
from greenroom.domain.event import Event, EventType
from greenroom.domain.provider import ProviderRequest as Request
from greenroom.domain.session import SessionState
from greenroom.domain.slots import Slot
from greenroom.domain.tool import ToolResult

from .live_session_world import Answers, Gates, PlayProvider, World, count_of, error_of, settled, streamed

MINUTE_US = 60_000_000
CHARGE = {"provider_options": {"tool_calls": [{"name": "charge", "input": {"amount": 3}}]}}


@pytest.fixture
async def world() -> AsyncGenerator[World]:
    made = World()
    yield made
    await made.aclose()


@pytest.fixture
def gates() -> Gates:
    return Gates()


class Till:
    """A tool with effects that can be counted."""

    def __init__(self, **options: Any) -> None:
        self.charged: list[int] = []
        self.running = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        options.setdefault("approval", "always")
        self.toolbox = CallableToolbox([tool(self.charge, name="charge", **options)])

    async def charge(self, amount: int) -> str:
        self.running.set()
        await self.go_on.wait()
        self.charged.append(amount)
        return f"charged {amount}"


async def waiting_approval(live: LiveSession) -> dict[str, Any]:
    """The one approval that is pending, once there is one."""
    async with asyncio.timeout(5):
        while not (pending := live.state().pending_approvals):
            await asyncio.sleep(0)
    assert 1 == len(pending)
    return pending[0]


def of_type(events: Sequence[Event], event_type: EventType) -> list[Event]:
    return [event for event in events if event.type is event_type]


# The queue


async def test_a_paused_session_starts_nothing_and_goes_on_when_resumed(world: World, gates: Gates) -> None:
    live = await world.open(gates)
    await world.submit(live, "a")
    await gates.entered("a")

    await live.pause(world.call())
    await world.submit(live, "b")
    gates.open("a", "b")
    await settled()
    assert (["a"], SessionState.PAUSED) == (gates.started, live.state().state)
    await live.resume(world.call())
    await gates.entered("b")

    assert SessionState.ACTIVE == live.state().state


async def test_a_pause_outlives_its_owner(world: World, gates: Gates) -> None:
    live = await world.open(gates)
    await live.pause(world.call())
    await world.submit(live, "a")

    after = await world.open(gates, create=False)
    await settled()
    assert ([], 1, SessionState.PAUSED) == (gates.started, len(after.state().queued), after.state().state)
    await after.resume(world.call())
    await gates.entered("a")


async def test_pausing_twice_and_resuming_what_runs_are_refused_and_change_nothing(world: World) -> None:
    live = await world.open()
    with pytest.raises(InvalidTransition):
        await live.resume(world.call())
    await live.pause(world.call())
    with pytest.raises(InvalidTransition):
        await live.pause(world.call())

    assert 1 == count_of(await world.types(), "session_paused")


async def test_a_pause_that_comes_again_is_answered_again_also_by_the_next_owner(world: World) -> None:
    live = await world.open()
    call = world.call()
    await live.pause(call)
    await live.pause(call)
    after = await world.open(create=False)
    await after.pause(call)

    assert 1 == count_of(await world.types(), "session_paused")


async def test_a_session_that_has_ended_is_neither_paused_nor_resumed(world: World) -> None:
    live = await world.open()
    await live.complete(world.call())

    for change in (live.pause, live.resume):
        with pytest.raises(InvalidTransition):
            await change(world.call())


async def test_a_drained_session_takes_runs_again_when_it_is_resumed(world: World) -> None:
    live = await world.open()
    assert await live.drain(5)
    with pytest.raises(SessionDraining):
        await world.submit(live, "a")

    after = await world.open(create=False)
    with pytest.raises(SessionDraining):
        await world.submit(after, "a")
    await after.resume(world.call())
    (run_id,) = await world.submit(after, "a")

    assert "ok" == (await after.await_run(run_id)).output["content"]


async def test_a_drain_that_is_not_over_is_given_up_by_resume(world: World, gates: Gates) -> None:
    live = await world.open(gates)
    await world.submit(live, "a")
    with pytest.raises(Timeout):
        await live.drain(0.01)
    with pytest.raises(SessionDraining):
        await world.submit(live, "b")

    await live.resume(world.call())

    await world.submit(live, "b")


async def test_a_session_that_winds_down_waits_then_cancels_and_leaves_its_queue(world: World, gates: Gates) -> None:
    live = await world.open(gates)
    first, second = await world.submit(live, "a", "b")
    await gates.entered("a")

    assert (1, 1) == await live.wind_down(0.01, finish_queue=True)

    assert "drained" == (await error_of(live, first)).details["reason"]
    assert [second] == list(live.queue.waiting)
    after = await world.open(gates, create=False)
    gates.open("b")
    assert "b!" == (await after.await_run(second)).output["content"]


async def test_a_session_that_moves_finishes_what_runs_and_starts_nothing_more(world: World, gates: Gates) -> None:
    live = await world.open(gates)
    first, _ = await world.submit(live, "a", "b")
    await gates.entered("a")
    winding = asyncio.create_task(live.wind_down(5, finish_queue=False))
    await settled()
    gates.open("a")

    assert (0, 1) == await winding
    assert "a!" == (await live.await_run(first)).output["content"]
    assert ["a"] == gates.started


async def test_a_session_is_idle_when_nothing_runs_waits_or_is_being_written(world: World, gates: Gates) -> None:
    live = await world.open(gates)
    assert live.idle_since is not None
    (run_id,) = await world.submit(live, "a")
    assert live.idle_since is None
    gates.open("a")
    await live.await_run(run_id)

    assert live.idle_since is not None


async def test_cancel_all_ends_every_run_and_names_those_it_ended(world: World, gates: Gates) -> None:
    live = await world.open(gates)
    run_ids = await world.submit(live, "a", "b", "c")

    assert set(run_ids) == set(await live.cancel_all("enough", world.call()))
    assert [] == await live.cancel_all(None, world.call())
    assert isinstance(await error_of(live, run_ids[1]), Cancelled)
    assert ["a"] == gates.started


# A busy session


async def test_busy_interrupt_stops_the_run_under_way_and_takes_its_turn(world: World, gates: Gates) -> None:
    live = await world.open(gates, max_queued_runs=0)
    (first,) = await world.submit(live, "a")
    await gates.entered("a")

    await world.submit(live, "b", options={"busy": "interrupt"})

    assert "interrupted" == (await error_of(live, first)).details["reason"]
    await gates.entered("b")


async def test_busy_interrupt_overtakes_nobody(world: World, gates: Gates) -> None:
    live = await world.open(gates)
    await world.submit(live, "a", "b")
    await gates.entered("a")

    await world.submit(live, "c", options={"busy": "interrupt"})
    await gates.entered("b")

    assert ["a", "b"] == gates.started


async def test_a_free_slot_needs_no_interruption(world: World, gates: Gates) -> None:
    live = await world.open(gates, max_concurrent_runs=2)
    await world.submit(live, "a", "b", options={"busy": "interrupt"})
    await gates.entered("b")

    assert 2 == len(live.state().in_flight)


async def test_busy_steer_hands_the_input_to_the_run_under_way(world: World) -> None:
    live = await world.open()
    slow = {"provider_options": {"echo": True, "latency_s": 0.05}}
    (first,) = await world.submit(live, "a", options=slow)
    await settled()

    steered = await live.submit_runs(["b"], {"busy": "steer"}, ["key"], world.call())
    again = await live.submit_runs(["b"], {"busy": "steer"}, ["key"], world.call())

    assert [first] == steered == again
    assert "b" == (await live.await_run(first)).output["content"]
    assert 1 == count_of(await world.types(), "session_steered")


async def test_a_key_that_was_steered_with_is_known_to_the_next_owner(world: World) -> None:
    live = await world.open()
    (first,) = await world.submit(live, "a", options={"provider_options": {"hang": True}})
    await settled()
    await live.submit_runs(["b"], {"busy": "steer"}, ["key"], world.call())

    after = await world.open(create=False)

    assert [first] == await after.submit_runs(["b"], {"busy": "steer"}, ["key"], world.call())


async def test_busy_steer_starts_a_run_where_there_is_a_free_slot(world: World) -> None:
    live = await world.open()
    (run_id,) = await live.submit_runs(["a"], {"busy": "steer"}, [None], world.call())

    assert "ok" == (await live.await_run(run_id)).output["content"]


# Steering


async def test_steering_gives_a_receipt_and_an_event_once_for_each_call(world: World) -> None:
    live = await world.open()
    (run_id,) = await world.submit(live, "a", options={"provider_options": {"echo": True, "latency_s": 0.05}})
    await settled()
    call = world.call()

    receipt = await live.steer_run(run_id, "turn left", call)

    assert receipt == await live.steer_run(run_id, "turn left", call)
    assert receipt.delivered
    (event,) = of_type(await world.events(), EventType.SESSION_STEERED)
    assert (receipt.seq, "turn left", True) == (event.seq, event.data["message"], event.data["delivered"])
    assert "turn left" == (await live.await_run(run_id)).output["content"]


async def test_a_run_that_is_not_under_way_cannot_be_steered(world: World, gates: Gates) -> None:
    live = await world.open(gates)
    gates.open("a")
    first, second, queued = await world.submit(live, "a", "b", "c")
    await live.await_run(first)
    await gates.entered("b")

    for run_id in (first, queued):
        with pytest.raises(InvalidOperation):
            await live.steer_run(run_id, "x", world.call())
    with pytest.raises(ValidationError):
        await live.steer_run(second, "", world.call())


# Approvals


async def test_promise_12_a_tool_runs_only_when_it_was_approved(world: World) -> None:
    till = Till()
    live = await world.open(tools=till.toolbox)
    (run_id,) = await world.submit(live, "x", options=CHARGE)

    approval = await waiting_approval(live)
    assert ([], "charge", {"amount": 3}) == (till.charged, approval["tool_name"], approval["input"])
    await live.decide_approval(approval["id"], "approve", "fine", world.call(), "Ada")
    await live.await_run(run_id)

    assert ([3], []) == (till.charged, live.state().pending_approvals)
    events = await world.events(run_id)
    (granted,) = of_type(events, EventType.TOOL_APPROVAL_GRANTED)
    assert ("fine", "Ada", approval["id"]) == tuple(granted.data[name] for name in ("reason", "by", "approval_id"))
    (done,) = of_type(events, EventType.TOOL_CALL_COMPLETED)
    assert granted.seq < done.seq


async def test_a_denied_call_does_not_run_and_the_agent_is_told(world: World) -> None:
    till = Till()
    live = await world.open(tools=till.toolbox)
    (run_id,) = await world.submit(live, "x", options=CHARGE)

    approval = await waiting_approval(live)
    await live.decide_approval(approval["id"], "deny", "too much", world.call())
    await live.await_run(run_id)

    (failed,) = of_type(await world.events(run_id), EventType.TOOL_CALL_FAILED)
    assert ([], "denied") == (till.charged, failed.data["outcome"])
    assert "too much" in failed.data["tool_output"]


async def test_an_approval_that_nobody_decides_is_denied_when_its_time_is_over(world: World) -> None:
    world.approval_expires_s = 0.01
    till = Till()
    live = await world.open(tools=till.toolbox)
    (run_id,) = await world.submit(live, "x", options=CHARGE)
    await live.await_run(run_id)

    (denied,) = of_type(await world.events(run_id), EventType.TOOL_APPROVAL_DENIED)
    assert ("greenroom", "expired", []) == (denied.data["by"], denied.data["reason"], till.charged)
    with pytest.raises(InvalidOperation) as late:
        await live.decide_approval(denied.data["approval_id"], "approve", None, world.call())
    assert "deny" == late.value.details["decision"]


async def test_an_approval_is_decided_once_and_a_call_that_comes_again_changes_nothing(world: World) -> None:
    till = Till()
    live = await world.open(tools=till.toolbox)
    (run_id,) = await world.submit(live, "x", options=CHARGE)
    approval = await waiting_approval(live)
    call = world.call()

    await live.decide_approval(approval["id"], "approve", None, call)
    await live.decide_approval(approval["id"], "approve", None, call)
    with pytest.raises(InvalidOperation):
        await live.decide_approval(approval["id"], "deny", None, world.call())
    await live.await_run(run_id)
    await live.decide_approval(approval["id"], "approve", None, call)

    assert 1 == count_of(await world.types(run_id), "tool_approval_granted", "tool_approval_denied")


async def test_what_is_no_approval_and_what_is_no_decision_are_refused(world: World) -> None:
    till = Till()
    live = await world.open(tools=till.toolbox)
    await world.submit(live, "x", options=CHARGE)
    approval = await waiting_approval(live)

    with pytest.raises(NotFound):
        await live.decide_approval("apr_none", "approve", None, world.call())
    with pytest.raises(ValidationError):
        await live.decide_approval(approval["id"], "perhaps", None, world.call())
    for nobody in ("", "greenroom", "a\nb", 7, "x" * 201):
        with pytest.raises(ValidationError):
            await live.decide_approval(approval["id"], "approve", None, world.call(), nobody)
    assert 1 == len(live.state().pending_approvals)


async def test_an_approval_asked_before_a_crash_is_granted_after_it_and_the_tool_runs_once(world: World) -> None:
    till = Till()
    live = await world.open(tools=till.toolbox)
    (run_id,) = await world.submit(live, "x", options=CHARGE)
    approval = await waiting_approval(live)

    after = await world.open(create=False, tools=till.toolbox)
    assert [] == till.charged
    assert approval["id"] == (await waiting_approval(after))["id"]
    await after.decide_approval(approval["id"], "approve", None, world.call())
    result = await after.await_run(run_id)

    assert (2, [3]) == (result.attempts, till.charged)
    assert 1 == count_of(await world.types(run_id), "tool_approval_granted")


async def test_a_decision_made_before_the_next_attempt_asks_counts(world: World) -> None:
    till = Till()
    live = await world.open(tools=till.toolbox)
    (run_id,) = await world.submit(live, "x", options=CHARGE)
    approval = await waiting_approval(live)
    await live.pause(world.call())

    after = await world.open(create=False, tools=till.toolbox)  # paused: the next attempt cannot begin
    await after.decide_approval(approval["id"], "deny", "no", world.call())
    await after.resume(world.call())
    await after.await_run(run_id)

    assert ([], 1) == (till.charged, count_of(await world.types(run_id), "tool_approval_denied"))


async def test_an_approval_that_expired_while_nobody_served_the_session_is_denied(world: World) -> None:
    till = Till()
    live = await world.open(tools=till.toolbox)
    (run_id,) = await world.submit(live, "x", options={**CHARGE, "deadline_s": 1e6})
    await waiting_approval(live)
    live.close()
    world.ahead_us = 120 * MINUTE_US

    after = await world.open(create=False, tools=till.toolbox)
    await after.await_run(run_id)

    assert ([], 1) == (till.charged, count_of(await world.types(run_id), "tool_approval_denied"))


async def test_a_run_that_is_cancelled_while_it_waits_closes_its_approval(world: World) -> None:
    till = Till()
    live = await world.open(tools=till.toolbox)
    (run_id,) = await world.submit(live, "x", options=CHARGE)
    approval = await waiting_approval(live)

    assert await live.cancel_run(run_id, None, world.call())

    assert ["tool_call_failed", "tool_approval_denied", "run_cancelled"] == (await world.types(run_id))[-3:]
    with pytest.raises(InvalidOperation):
        await live.decide_approval(approval["id"], "approve", None, world.call())
    assert [] == till.charged


async def test_a_run_that_did_more_than_wait_when_its_process_died_is_not_resumed(world: World) -> None:
    till = Till()
    till.go_on.clear()
    live = await world.open(tools=till.toolbox)
    (run_id,) = await world.submit(live, "x", options=CHARGE)
    approval = await waiting_approval(live)
    await live.decide_approval(approval["id"], "approve", None, world.call())
    await till.running.wait()

    after = await world.open(create=False, tools=till.toolbox)

    assert isinstance(await error_of(after, run_id), RunInterrupted)
    (failed,) = of_type(await world.events(run_id), EventType.TOOL_CALL_FAILED)
    assert "in_doubt" == failed.data["outcome"]


# What a retried run does not do again


async def test_a_retried_run_is_told_of_a_call_in_doubt_and_given_what_was_done(world: World) -> None:
    done, hanging = Till(approval="never"), Till(approval="never")
    hanging.go_on.clear()

    class Both(CallableToolbox):
        async def invoke(self, name: str, arguments: dict[str, Any], call_id: str) -> ToolResult:
            till = done if arguments["amount"] == 1 else hanging
            return await till.toolbox.invoke(name, arguments, call_id)

    toolbox = Both([tool(done.charge, name="charge")])
    calls = [{"name": "charge", "input": {"amount": amount}} for amount in (1, 2)]
    options = {"provider_options": {"tool_calls": calls}, "on_crash": "retry"}
    live = await world.open(tools=toolbox)
    (run_id,) = await world.submit(live, "x", options=options)
    await hanging.running.wait()

    after = await world.open(create=False, tools=toolbox)
    await after.await_run(run_id)

    assert ([1], []) == (done.charged, hanging.charged)
    events = [event for event in await world.events(run_id) if event.attempt == 2]
    (again,) = of_type(events, EventType.TOOL_CALL_COMPLETED)
    (doubt,) = of_type(events, EventType.TOOL_CALL_FAILED)
    assert ("charged 1", "in_doubt") == (again.data["tool_output"], doubt.data["outcome"])


async def test_a_tool_without_side_effects_simply_runs_again(world: World) -> None:
    till = Till(approval="never", side_effects=False)
    till.go_on.clear()
    live = await world.open(tools=till.toolbox)
    (run_id,) = await world.submit(live, "x", options={**CHARGE, "on_crash": "retry"})
    await till.running.wait()

    after = await world.open(create=False, tools=till.toolbox)
    till.go_on.set()
    await after.await_run(run_id)

    assert 3 in till.charged


# Policies


@pytest.mark.parametrize("output", [{}, {"output": "scripted"}])
async def test_a_denied_tool_does_not_run_and_ends_the_run(world: World, output: dict[str, Any]) -> None:
    till = Till(approval="never")
    live = await world.open(tools=till.toolbox)
    calls = [{"name": "charge", "input": {"amount": 3}, **output}]
    options = {"provider_options": {"tool_calls": calls}, "policy": {"tool_rules": [{"deny": ["charge"]}]}}
    (run_id,) = await world.submit(live, "x", options=options)

    error = await error_of(live, run_id)

    assert ([], True) == (till.charged, isinstance(error, PolicyViolation))
    assert ["tool_call_started", "policy_violation", "tool_call_failed", "run_failed"] == (await world.types(run_id))[
        -4:
    ]


async def test_on_violation_warn_denies_the_call_and_lets_the_run_go_on_with_one_event(world: World) -> None:
    till = Till(approval="never")
    live = await world.open(tools=till.toolbox)
    calls = [{"name": "charge", "input": {"amount": amount}} for amount in (1, 2)]
    policy = {"tool_rules": [{"deny": ["charge"]}], "on_violation": "warn"}
    (run_id,) = await world.submit(live, "x", options={"provider_options": {"tool_calls": calls}, "policy": policy})
    await live.await_run(run_id)

    types = await world.types(run_id)
    assert ([], 1, 2) == (till.charged, count_of(types, "policy_violation"), count_of(types, "tool_call_failed"))


async def test_an_ask_rule_makes_an_approval_of_a_tool_that_wants_none(world: World) -> None:
    till = Till(approval="never")
    live = await world.open(tools=till.toolbox)
    (run_id,) = await world.submit(live, "x", options={**CHARGE, "policy": {"tool_rules": [{"ask": ["charge"]}]}})

    approval = await waiting_approval(live)
    await live.decide_approval(approval["id"], "approve", None, world.call())
    await live.await_run(run_id)

    assert [3] == till.charged


async def test_a_run_cannot_loosen_the_policy_of_its_session(world: World) -> None:
    till = Till(approval="never")
    defaults = {"policy": {"tool_rules": [{"deny": ["charge"]}]}}
    live = await world.open(tools=till.toolbox, run_defaults=defaults)
    (run_id,) = await world.submit(live, "x", options={**CHARGE, "policy": {"tool_rules": [{"allow": ["*"]}]}})

    assert isinstance(await error_of(live, run_id), PolicyViolation)
    assert [] == till.charged


# Limits from outside


class OneAtATime:
    """A gate with one slot for all."""

    def __init__(self) -> None:
        self.free = asyncio.Semaphore(1)
        self.holders: set[str] = set()

    async def enter(self, slot: Slot) -> BudgetDecision:
        await self.free.acquire()
        self.holders.add(slot.run_id)
        return BudgetDecision(BudgetAnswer.GRANTED)

    def move(self, run_id: str, provider: str) -> None:
        return None

    def leave(self, run_id: str, used: Amount) -> None:
        if run_id in self.holders:
            self.holders.discard(run_id)
            self.free.release()


async def test_a_run_waits_for_the_gate_and_nobody_overtakes_it(world: World, gates: Gates) -> None:
    gate = OneAtATime()
    live = await world.open(gates, max_concurrent_runs=3, gate=gate)
    await world.submit(live, "a", "b", "c")
    await gates.entered("a")
    await settled()
    assert (["a"], 2) == (gates.started, len(live.state().queued))

    gates.open("a", "b")
    await gates.entered("c")

    assert (["a", "b", "c"], 1) == (gates.started, gates.most_at_once)


async def test_a_session_on_a_shared_server_refuses_runs_that_need_one_of_their_own(world: World) -> None:
    live = await world.open(shared=True)

    with pytest.raises(NeedsOwnServer):
        await world.submit(live, "true", options={"provider": "shell"})
    assert [] == live.state().queued


async def test_a_run_that_was_under_way_when_a_shared_server_died_is_not_taken_over_by_another(world: World) -> None:
    live = await world.open()
    (run_id,) = await world.submit(live, "x", options={"provider_options": {"hang": True}, "on_crash": "retry"})
    await settled()

    with pytest.raises(NeedsOwnServer):
        await world.open(create=False, shared=True)
    await world.open(create=False)

    assert 2 == (await world.record(run_id)).attempt


async def test_a_provider_that_cannot_be_steered_says_so_and_nothing_is_kept(world: World) -> None:
    async def play(_: Request) -> Answers:
        await asyncio.Event().wait()
        yield streamed("never")

    live = await world.open(PlayProvider(play))
    (run_id,) = await world.submit(live, "a")
    await settled()

    with pytest.raises(Exception, match="capability_not_supported"):
        await live.steer_run(run_id, "x", world.call())
    assert 0 == count_of(await world.types(), "session_steered")


async def test_a_full_queue_is_full_also_for_those_who_would_interrupt(world: World, gates: Gates) -> None:
    live = await world.open(gates, max_queued_runs=1)
    await world.submit(live, "a", "b")
    await gates.entered("a")

    await world.submit(live, "c", options={"busy": "interrupt"})
    await gates.entered("b")
    with pytest.raises(QueueFull):
        await world.submit(live, "d")
