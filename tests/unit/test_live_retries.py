"""Attempts that fail and are made again, over a live session without Ray."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from greenroom.adapters.tool_definition import tool
from greenroom.adapters.tools import CallableToolbox
from greenroom.domain.errors import (
    Cancelled,
    DeadlineExceeded,
    ProviderAuthenticationFailed,
    ProviderOverloaded,
    ProviderRateLimited,
    RunInterrupted,
)
from greenroom.domain.event import Event, EventType
from greenroom.domain.provider import ProviderConversation, ProviderRequest as Request
from greenroom.domain.run import RunStatus
from greenroom.domain.run_outcome import outcome_of
from tests.unit.live_session_world import (
    TERMINAL,
    Answers,
    PlayProvider,
    World,
    count_of,
    error_of,
    outcome,
    streamed,
    tool_started,
)

AGAIN = {"retry_budget_s": 30.0}


@pytest.fixture
async def world() -> AsyncGenerator[World]:
    made = World()
    yield made
    await made.aclose()


class Flaky(PlayProvider):
    """Fails so many times, with what is given, after it has said something; then answers."""

    def __init__(self, times: int, *before: Any, error: Exception | None = None) -> None:
        super().__init__(self.fail_first)
        self.left = times
        self.before = before
        self.error = error or ProviderOverloaded("busy")
        self.requests: list[Request] = []

    async def fail_first(self, request: Request) -> Answers:
        self.requests.append(request)
        if self.left > 0:
            self.left -= 1
            for item in self.before:
                yield item
            raise self.error
        yield streamed("well")
        yield outcome("well")


def of_type(events: list[Event], *types: EventType) -> list[Event]:
    return [event for event in events if event.type in types]


@pytest.fixture(autouse=True)
def no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backoffs are decided as ever, and take no time."""
    monkeypatch.setattr("greenroom.domain.failover.BACKOFF_BASE_S", 0.001)


async def test_without_a_time_budget_afail_firsture_is_told_at_once(world: World) -> None:
    live = await world.open(Flaky(1))
    (run_id,) = await world.submit(live, "x")

    error = await error_of(live, run_id)

    assert (ProviderOverloaded, 1) == (type(error), (await world.record(run_id)).attempt)


async def test_afail_firsture_that_may_pass_is_tried_again_as_the_next_attempt(world: World) -> None:
    flaky = Flaky(2, streamed("half a sen"), ProviderConversation({"id": "lost"}))
    live = await world.open(flaky)
    (run_id,) = await world.submit(live, "x", options=AGAIN)

    result = await live.await_run(run_id)
    events = await world.events(run_id)

    assert (3, "well") == (result.attempts, result.output["content"])
    assert [1, 2, 3] == [request.attempt for request in flaky.requests]
    assert [1, 2, 3] == [event.attempt for event in of_type(events, EventType.RUN_STARTED)]
    assert [1, 2, 3] == [event.attempt for event in of_type(events, EventType.RUN_QUEUED)]
    told = of_type(events, EventType.ERROR_OCCURRED)
    assert [(1, "retry"), (2, "retry")] == [(event.attempt, event.data["recourse"]) for event in told]
    assert result.routing is not None
    assert [1, 2] == [one["attempt"] for one in result.routing["failed"]]
    assert result == outcome_of(await world.record(run_id))
    assert "conversation" not in events[-1].metadata, "what a failed attempt began is not gone on with"
    assert 1 == count_of([event.type.value for event in events], *TERMINAL)


async def test_afail_firsture_that_does_not_pass_by_itself_is_not(world: World) -> None:
    live = await world.open(Flaky(1, error=ProviderAuthenticationFailed("no")))
    (run_id,) = await world.submit(live, "x", options=AGAIN)

    assert isinstance(await error_of(live, run_id), ProviderAuthenticationFailed)
    assert 1 == (await world.record(run_id)).attempt


async def test_the_runfail_firsts_with_the_last_error_when_its_time_is_used_up(world: World) -> None:
    live = await world.open(Flaky(1_000))
    (run_id,) = await world.submit(live, "x", options={"retry_budget_s": 0.05})

    error = await error_of(live, run_id)

    assert isinstance(error, ProviderOverloaded)
    assert (await world.record(run_id)).attempt > 1


async def test_a_refusal_for_the_rate_is_not_repeated_before_its_time_and_outlasts_the_budget(world: World) -> None:
    refusal = ProviderRateLimited("later", details={"retry_after_s": 0.1})
    live = await world.open(Flaky(2, error=refusal))
    (run_id,) = await world.submit(live, "x", options={"retry_budget_s": 0.05})

    await live.await_run(run_id)

    events = await world.events(run_id)
    refused, begun = of_type(events, EventType.ERROR_OCCURRED), of_type(events, EventType.RUN_STARTED)
    waits = [(start.timestamp - no.timestamp).total_seconds() for no, start in zip(refused, begun[1:], strict=True)]
    assert min(waits) >= 0.1


async def test_a_call_that_was_open_when_the_attemptfail_firsted_is_closed_before_the_next(world: World) -> None:
    live = await world.open(Flaky(1, tool_started("call_1")))
    (run_id,) = await world.submit(live, "x", options={**AGAIN, "on_crash": "retry"})
    await live.await_run(run_id)

    types = [event.type for event in await world.events(run_id)]
    assert types.index(EventType.TOOL_CALL_FAILED) < types.index(EventType.ERROR_OCCURRED)


async def test_nothing_is_tried_again_after_a_tool_with_side_effects(world: World) -> None:
    live = await world.open(Flaky(1, tool_started("call_1")))
    (run_id,) = await world.submit(live, "x", options=AGAIN)

    assert isinstance(await error_of(live, run_id), ProviderOverloaded)


PAYS = {"fail_with": "provider_overloaded", "fail_times": 1, "fail_after_chunks": 0, "tool_calls": [{"name": "pay"}]}


@pytest.mark.parametrize("side_effects", [True, False])
async def test_what_a_tool_has_done_is_not_done_again_by_the_next_attempt(world: World, side_effects: bool) -> None:
    paid: list[int] = []

    def pay() -> str:
        paid.append(1)
        return "paid"

    live = await world.open(tools=CallableToolbox([tool(pay, name="pay", side_effects=side_effects)]))
    options = {**AGAIN, "on_crash": "retry", "provider_options": PAYS}
    (run_id,) = await world.submit(live, "x", options=options)

    result = await live.await_run(run_id)

    assert (2, [1]) == (result.attempts, paid)


async def test_a_tool_without_side_effects_does_not_keep_a_run_from_its_next_attempt(world: World) -> None:
    live = await world.open(tools=CallableToolbox([tool(lambda: "looked", name="pay", side_effects=False)]))
    (run_id,) = await world.submit(live, "x", options={**AGAIN, "provider_options": PAYS})

    assert 2 == (await live.await_run(run_id)).attempts


async def test_a_run_that_waits_for_its_next_attempt_can_be_cancelled(world: World) -> None:
    refusal = ProviderRateLimited("later", details={"retry_after_s": 60.0})
    live = await world.open(Flaky(1, error=refusal))
    (run_id,) = await world.submit(live, "x", options=AGAIN)
    while (await world.record(run_id)).attempt == 1:
        await asyncio.sleep(0)

    assert RunStatus.PENDING is (await world.record(run_id)).status
    assert await live.cancel_run(run_id, "enough", world.call())
    assert isinstance(await error_of(live, run_id), Cancelled)


async def test_the_deadline_goes_on_while_a_run_waits_for_its_next_attempt(world: World) -> None:
    refusal = ProviderRateLimited("later", details={"retry_after_s": 60.0})
    live = await world.open(Flaky(1, error=refusal))
    (run_id,) = await world.submit(live, "x", options={**AGAIN, "deadline_s": 0.1})

    assert isinstance(await error_of(live, run_id), DeadlineExceeded)


async def test_a_run_that_waited_for_its_next_attempt_when_its_process_died_goes_on(world: World) -> None:
    refusal = ProviderRateLimited("later", details={"retry_after_s": 60.0})
    live = await world.open(Flaky(1, error=refusal))
    (run_id,) = await world.submit(live, "x", options=AGAIN)
    while (await world.record(run_id)).attempt == 1:
        await asyncio.sleep(0)

    again = await world.open(Flaky(0), create=False)

    assert 2 == (await again.await_run(run_id)).attempts


async def test_attempts_that_the_providerfail_firsted_do_not_use_up_those_after_crashes(world: World) -> None:
    async def hang(_: Request) -> Answers:
        await asyncio.Event().wait()
        yield outcome()

    flaky = Flaky(3)
    live = await world.open(flaky)
    options = {**AGAIN, "on_crash": "retry", "max_attempts": 2}
    flaky.play = _after(flaky, hang)
    (run_id,) = await world.submit(live, "x", options=options)
    while (await world.record(run_id)).attempt < 4 or (await world.record(run_id)).status is not RunStatus.RUNNING:
        await asyncio.sleep(0)

    await world.open(PlayProvider(hang), create=False)
    assert 5 == (await world.record(run_id)).attempt
    last = await world.open(PlayProvider(hang), create=False)

    assert isinstance(await error_of(last, run_id), RunInterrupted)


def _after(flaky: Flaky, then: Any) -> Any:
    async def play(request: Request) -> Answers:
        source = flaky.fail_first(request) if flaky.left else then(request)
        async for item in source:
            yield item

    return play
