"""A live session: order, slots, ends, deadlines, repeated calls, recovery and subscriptions. No Ray."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import pytest

from greenroom.actors import event_feed, live_session, run_outcomes, subscriptions
from greenroom.actors.live_session import LiveSession
from greenroom.adapters.memory_event_log import MemoryEventLog
from greenroom.domain.errors import (
    Cancelled,
    DeadlineExceeded,
    GreenroomError,
    InternalError,
    InvalidCursor,
    InvalidOperation,
    InvalidTransition,
    ProviderError,
    ProviderOverloaded,
    ProviderRateLimited,
    QueueFull,
    RunInterrupted,
    RunNotFound,
    SessionDraining,
    SessionMoved,
    SessionNotFound,
    Timeout,
    ValidationError,
    WriterFenced,
)
from greenroom.domain.event import Event, EventType, NewEvent
from greenroom.domain.provider import ProviderEvent, ProviderRequest as Request
from greenroom.domain.run import RunResult, RunStatus
from greenroom.domain.run_options import RunOptions
from greenroom.domain.session import SessionState

from .live_session_world import (
    SESSION,
    TERMINAL,
    Answers,
    Gates,
    PlayProvider,
    World,
    count_of,
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


@pytest.fixture
def gates() -> Gates:
    return Gates()


def seqs(events: list[Event]) -> list[int]:
    return [event.seq for event in events]


def subscribed(
    live: LiveSession,
    *,
    from_seq: int = 0,
    run_id: str | None = None,
    types: Sequence[str] | str | None = None,
    follow: bool = True,
) -> AsyncGenerator[list[Event]]:
    return live.subscribe(from_seq, run_id, types, follow)


async def taken(live: LiveSession, count: int, **subscription: Any) -> list[Event]:
    """The first so many events of a subscription."""
    found: list[Event] = []
    stream = subscribed(live, **subscription)
    while len(found) < count:
        found += await anext(stream)
    await stream.aclose()
    return found


async def all_of(live: LiveSession, **subscription: Any) -> list[Event]:
    """All events of a subscription that ends by itself."""
    found: list[Event] = []
    async for events in subscribed(live, **subscription):
        assert events
        found += events
    return found


# One run


async def test_a_run_has_its_events_in_the_order_of_the_contract(world: World) -> None:
    live = await world.open()
    given = {"messages": [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "Hi."}]}

    (run_id,) = await live.submit_runs([given], {"provider_options": {"reply": "Hello."}}, [None], world.call())
    result = await live.await_run(run_id)

    expected = [
        *("run_queued", "message_sent", "message_sent", "run_started"),
        *("message_streamed", "message_received", "token_usage_updated", "run_completed"),
    ]
    events = await world.events(run_id)
    assert expected == [event.type for event in events]
    assert ["Be terse.", "Hi."] == [event.data["content"] for event in events[1:3]]
    assert {1} == {event.attempt for event in events}
    assert ("Hello.", events[-1].seq) == (result.output["content"], result.last_seq)
    assert ["session_created", "session_started"] == (await world.types())[:2]
    assert list(range(1, 11)) == seqs(await world.events())


async def test_the_result_is_the_same_from_the_session_and_from_the_log(world: World) -> None:
    live = await world.open()
    (run_id,) = await world.submit(live, "Hi.", options={"model": "m-1"})

    result = await live.await_run(run_id)

    assert await world.recorded_outcome(run_id) == result
    assert ("m-1", "scripted", 1) == (result.model, result.provider, result.attempts)
    assert 15 == result.token_usage["total_tokens"]


async def test_options_that_were_made_as_such_are_checked_like_any_others(world: World) -> None:
    live = await world.open()

    for options in (RunOptions(metadata={"a": b"bytes"}), RunOptions(policies=({"name": "p", "limits": {"no": 1}},))):
        with pytest.raises(ValidationError):
            await live.submit_runs(["Hi."], options, [None], world.call())

    assert not [one for one in await world.types() if one.startswith("run_")]


@pytest.mark.parametrize(
    "options",
    [
        {"fail_with": "provider_rate_limited", "retry_after_s": 3.0},
        {"fail_with": "provider_overloaded", "fail_after_chunks": 2, "chunks": 3, "reply": "abcdef"},
    ],
)
async def test_the_error_is_the_same_from_the_session_and_from_the_log(world: World, options: dict[str, Any]) -> None:
    live = await world.open()
    (run_id,) = await world.submit(live, "Hi.", options={"provider_options": options})

    error = await error_of(live, run_id)

    recorded = await world.recorded_outcome(run_id)
    assert isinstance(recorded, ProviderRateLimited | ProviderOverloaded)
    assert (type(recorded), recorded.to_record()) == (type(error), error.to_record())
    assert ("abcd" if "chunks" in options else None) == error.details.get("output", {}).get("content")


async def test_a_run_that_never_was_is_not_found_at_once(world: World, gates: Gates) -> None:
    live = await world.open(gates)
    (running,) = await world.submit(live, "a")

    assert isinstance(await error_of(live, "run_unknown"), RunNotFound)
    with pytest.raises(RunNotFound):
        await asyncio.wait_for(live.await_runs([running, "run_unknown"]), 5)
    with pytest.raises(RunNotFound):
        await live.cancel_run("run_unknown", None, world.call())


async def test_a_run_of_another_session_is_not_found(world: World) -> None:
    live, other = await world.open(), await world.open(session_id="ses_2")
    (run_id,) = await world.submit(other, "Hi.")
    await other.await_run(run_id)

    assert isinstance(await error_of(live, run_id), RunNotFound)


async def test_a_result_can_be_awaited_again_and_by_many(world: World, gates: Gates) -> None:
    live = await world.open(gates)
    (run_id,) = await world.submit(live, "a")
    waiting = [asyncio.create_task(live.await_run(run_id)) for _ in range(3)]
    await gates.entered("a")

    gates.open("a")

    results = [*(await asyncio.gather(*waiting)), await live.await_run(run_id)]
    assert ["a!"] * 4 == [result.output["content"] for result in results]


async def test_a_turn_that_the_provider_itself_cancelled_ends_the_run_cancelled(world: World) -> None:
    live = await world.open()
    options = {"provider_options": {"fail_with": "cancelled", "fail_after_chunks": 1, "chunks": 2, "reply": "abcd"}}
    (run_id,) = await world.submit(live, "a", options=options)

    with pytest.raises(Cancelled):
        await live.await_run(run_id)

    ending = (await world.events(run_id))[-1]
    assert (EventType.RUN_CANCELLED, "ab") == (ending.type, ending.data["output"]["content"])
    assert ending.data["reason"]


async def test_awaiting_a_failed_run_again_does_not_grow_its_error(world: World) -> None:
    live = await world.open()
    (run_id,) = await world.submit(live, "a", options={"provider_options": {"fail_with": "provider_error"}})
    depths: list[int] = []

    for _ in range(4):
        traceback, depth = (await error_of(live, run_id)).__traceback__, 0
        while traceback is not None:
            traceback, depth = traceback.tb_next, depth + 1
        depths.append(depth)

    assert depths[1] == depths[-1]


async def test_a_result_no_longer_in_memory_comes_from_the_log(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_outcomes, "MAX_KEPT_OUTCOMES", 1)
    live = await world.open()
    run_ids = await world.submit(live, "a", "b", "c")
    expected = [await live.await_run(run_id) for run_id in run_ids]

    assert expected == await live.await_runs(run_ids)


async def test_an_own_wait_that_is_over_leaves_the_run_alone(world: World, gates: Gates) -> None:
    live = await world.open(gates)
    run_ids = await world.submit(live, "a", "b")

    with pytest.raises(Timeout):
        await live.await_run(run_ids[0], 0.01)
    with pytest.raises(Timeout) as over:
        await live.await_runs(run_ids, 0.01)
    gates.open("a", "b")

    assert {"left": 2} == over.value.details
    results = await live.await_runs(run_ids)
    assert ["completed", "completed"] == [result.status for result in results if isinstance(result, RunResult)]


async def test_outcomes_of_many_come_in_the_order_asked_for_with_errors_in_place(world: World, gates: Gates) -> None:
    live = await world.open(gates)
    first, second = await world.submit(live, "a", "b")
    waiting = asyncio.create_task(live.await_runs([second, first, second]))
    await live.cancel_run(second, None, world.call())
    gates.open("a")

    found = await waiting

    assert [Cancelled, RunResult, Cancelled] == [type(one) for one in found]


async def test_one_wait_too_many_is_refused_and_the_session_goes_on(
    world: World, gates: Gates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_outcomes, "MAX_WAITERS", 1)
    live = await world.open(gates)
    run_ids = await world.submit(live, "a", "b")

    with pytest.raises(QueueFull):
        await live.await_runs(run_ids)
    gates.open("a", "b")

    assert "a!" == (await live.await_run(run_ids[0])).output["content"]
    assert not world.lost


async def test_waits_that_were_given_up_are_forgotten(
    world: World, gates: Gates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_outcomes, "MAX_WAITERS", 2)
    live = await world.open(gates)
    run_ids = await world.submit(live, "a", "b")

    for _ in range(3):
        waiting = asyncio.create_task(live.await_runs(run_ids))
        await settled()
        waiting.cancel()
        await asyncio.wait([waiting])
    gates.open("a", "b")

    assert 2 == len(await live.await_runs(run_ids))


# Order and slots


async def test_runs_start_in_the_order_in_which_they_were_submitted(world: World, gates: Gates) -> None:
    live = await world.open(gates)
    names = [f"run {index}" for index in range(8)]
    gates.open(*names)

    run_ids = await world.submit(live, *names)
    await live.await_runs(run_ids)

    assert names == gates.started
    assert list(range(1, 9)) == [request.run_number for request in gates.requests]


async def test_runs_of_concurrent_submits_start_in_the_order_of_their_acknowledgement(
    world: World, gates: Gates
) -> None:
    live = await world.open(gates)
    names = [f"run {index}" for index in range(20)]
    gates.open(*names)
    acknowledged: list[str] = []

    async def submit(name: str) -> None:
        run_ids = await world.submit(live, name)
        acknowledged.append(name)
        await live.await_runs(run_ids)

    await asyncio.gather(*map(submit, names))

    assert acknowledged == gates.started


async def test_five_runs_never_take_more_than_two_slots(world: World, gates: Gates) -> None:
    live = await world.open(gates, max_concurrent_runs=2)
    run_ids = await world.submit(live, *"abcde")
    await settled()
    started_at_first = list(gates.started)

    gates.open("b")
    await gates.entered("c")
    await settled()
    started_then = list(gates.started)
    gates.open(*"abcde")
    await live.await_runs(run_ids)

    assert (["a", "b"], ["a", "b", "c"]) == (started_at_first, started_then)
    assert ([*"abcde"], 2) == (gates.started, gates.most_at_once)


async def test_a_failing_run_frees_its_slot(world: World) -> None:
    live = await world.open()
    options = {"provider_options": {"script": [{"fail_with": "provider_error"}, {}]}}
    first, second = await world.submit(live, "a", "b", options=options)

    assert isinstance(await error_of(live, first), ProviderError)
    assert "ok" == (await live.await_run(second)).output["content"]


async def test_a_run_starts_at_its_provider_only_when_its_start_is_committed(world: World) -> None:
    committed: list[int] = []

    async def play(request: Request) -> Answers:
        committed.append(count_of(await world.types(request.run_id), "run_started"))
        yield outcome()

    live = await world.open(PlayProvider(play), max_concurrent_runs=2)
    await live.await_runs(await world.submit(live, "a", "b", "c"))

    assert [1, 1, 1] == committed


async def test_a_full_queue_keeps_nothing_of_the_call(world: World, gates: Gates) -> None:
    live = await world.open(gates, max_queued_runs=2)
    await world.submit(live, "a", "b")
    before = await world.events()

    with pytest.raises(QueueFull):
        await live.submit_runs(["c", "d"], None, [None, None], world.call())

    await settled()
    assert before == (await world.events())[: len(before)]
    assert 2 == count_of(await world.types(), "run_queued")
    assert 1 == len(live.state().queued)
    assert ["c"] == [
        event.data["content"]
        for run_id in await world.submit(live, "c")
        for event in await world.events(run_id)
        if event.type is EventType.MESSAGE_SENT
    ]


async def test_with_no_room_to_wait_only_a_free_slot_takes_a_run(world: World, gates: Gates) -> None:
    live = await world.open(gates, max_queued_runs=0)
    (run_id,) = await world.submit(live, "a")

    with pytest.raises(QueueFull):
        await world.submit(live, "b")
    gates.open("a", "c")
    await live.await_run(run_id)
    (later,) = await world.submit(live, "c")

    assert "c!" == (await live.await_run(later)).output["content"]
    assert ["a", "c"] == gates.started


async def test_busy_reject_refuses_a_run_that_would_wait(world: World, gates: Gates) -> None:
    live = await world.open(gates)
    await world.submit(live, "a", options={"busy": "reject"})

    with pytest.raises(QueueFull, match="busy='reject'"):
        await world.submit(live, "b", options={"busy": "reject"})

    assert 1 == count_of(await world.types(), "run_queued")


@pytest.mark.parametrize(
    ("given_input", "options"),
    [
        ("", None),
        ({"messages": []}, None),
        ("x" * 2_000, None),
        ("Hi.", {"deadline": 3}),
        ("Hi.", {"provider": "scriptd"}),
        ("Hi.", {"provider_options": {"replay": "x"}}),
        ("Hi.", {"max_turns": 1 << 70}),
        ("Hi.", {"model": "\ud800"}),
        ("Hi.", {"metadata": {"raw": b"x"}}),
    ],
)
async def test_what_is_malformed_is_refused_before_anything_is_stored(
    world: World, given_input: Any, options: Any
) -> None:
    live = await world.open()

    with pytest.raises(ValidationError):
        await live.submit_runs(["fine", given_input], options, [None, None], world.call())

    await settled()
    assert ["session_created", "session_started"] == await world.types()
    assert live.queue.is_idle
    (run_id,) = await world.submit(live, "Hi.")
    assert RunStatus.COMPLETED == (await live.await_run(run_id)).status


@pytest.mark.parametrize("key", ["", 7, b"k", "\ud800", ["k"]])
async def test_an_idempotency_key_that_is_no_text_is_refused(world: World, key: Any) -> None:
    live = await world.open()

    with pytest.raises(ValidationError) as refused:
        await live.submit_runs(["Hi."], None, [key], world.call())

    assert "idempotency_key" == refused.value.details["field"]
    assert live.queue.is_idle


async def test_the_status_tells_who_waits_and_who_runs(world: World, gates: Gates) -> None:
    live = await world.open(gates, max_concurrent_runs=2, max_queued_runs=7)
    run_ids = await world.submit(live, *"abcd")
    await settled()

    state = live.state()

    assert (run_ids[2:], run_ids[:2]) == ([*state.queued], [*state.in_flight])
    assert (SessionState.ACTIVE, 1, 2, 7, False) == (
        state.state,
        state.epoch,
        state.max_concurrent_runs,
        state.max_queued_runs,
        state.draining,
    )
    assert (await world.events())[-1].seq == state.last_seq


# Cancelling


async def test_a_queued_run_that_is_cancelled_never_reaches_the_provider(world: World, gates: Gates) -> None:
    live = await world.open(gates)
    first, second, third = await world.submit(live, "a", "b", "c")
    await gates.entered("a")

    assert await live.cancel_run(second, "no need", world.call())

    error = await error_of(live, second)
    gates.open("a", "c")
    await live.await_runs([first, third])
    assert isinstance(error, Cancelled)
    assert "no need" == error.details["reason"]
    assert ["a", "c"] == gates.started
    assert ["run_queued", "message_sent", "run_cancelled"] == await world.types(second)
    assert error.to_record() == _record_of(await world.recorded_outcome(second))


async def test_a_running_run_that_is_cancelled_frees_its_slot_at_once(world: World) -> None:
    cancelled, release = asyncio.Event(), asyncio.Event()

    async def play(request: Request) -> Answers:
        if request.messages[-1].content == "slow":
            try:
                yield streamed("half")
                await asyncio.Event().wait()
            finally:
                cancelled.set()
                await release.wait()
        yield outcome()

    live = await world.open(PlayProvider(play))
    slow, next_one = await world.submit(live, "slow", "next")
    await taken(live, 1, types=["message_streamed"])

    assert await live.cancel_run(slow, None, world.call())
    result = await live.await_run(next_one, 5)

    assert cancelled.is_set()
    assert "completed" == result.status
    release.set()
    await settled()
    error = await error_of(live, slow)
    assert {"content": "half"} == error.details["output"]
    types = await world.types(slow)
    assert (1, "run_cancelled") == (count_of(types, *TERMINAL), types[-1])
    assert error.to_record() == _record_of(await world.recorded_outcome(slow))


async def test_a_provider_that_ignores_cancellation_cannot_take_it_back(world: World) -> None:
    entered, left = asyncio.Event(), asyncio.Event()

    async def play(request: Request) -> Answers:
        try:
            entered.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            try:
                yield streamed("still here")
                yield outcome("done all the same")
            finally:
                left.set()

    live = await world.open(PlayProvider(play))
    (run_id,) = await world.submit(live, "a")
    await entered.wait()
    await live.cancel_run(run_id, None, world.call())
    await left.wait()
    await settled()

    assert ["run_queued", "message_sent", "run_started", "run_cancelled"] == await world.types(run_id)
    assert RunStatus.CANCELLED == (await world.record(run_id)).status
    assert isinstance(await error_of(live, run_id), Cancelled)


async def test_a_provider_that_never_stops_streaming_is_stopped(world: World) -> None:
    closed = asyncio.Event()

    async def play(request: Request) -> Answers:
        try:
            while True:
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError:
                    continue
                yield streamed("more")
        finally:
            closed.set()

    live = await world.open(PlayProvider(play))
    (run_id,) = await world.submit(live, "a")
    await taken(live, 2, types=["message_streamed"])

    await live.cancel_run(run_id, None, world.call())

    await asyncio.wait_for(closed.wait(), 5)
    assert "run_cancelled" == (await world.types(run_id))[-1]


async def test_tool_calls_that_are_open_when_a_run_is_cancelled_are_closed(world: World) -> None:
    ended = ProviderEvent(EventType.TOOL_CALL_COMPLETED, {"tool_call_id": "call_a", "tool_output": 1})

    async def play(request: Request) -> Answers:
        for event in (tool_started("call_a"), ended, tool_started("call_b"), streamed("x")):
            yield event
        await asyncio.Event().wait()

    live = await world.open(PlayProvider(play))
    (run_id,) = await world.submit(live, "a")
    await taken(live, 1, types=["message_streamed"])

    await live.cancel_run(run_id, None, world.call())

    closing, last = (await world.events(run_id))[-2:]
    assert (EventType.TOOL_CALL_FAILED, EventType.RUN_CANCELLED) == (closing.type, last.type)
    assert ("call_b", "search", "cancelled") == (
        closing.data["tool_call_id"],
        closing.data["tool_name"],
        closing.data["outcome"],
    )
    assert 1 == count_of(await world.types(run_id), "tool_call_failed")


async def test_only_the_call_that_cancelled_says_true(world: World, gates: Gates) -> None:
    live = await world.open(gates)
    (run_id,) = await world.submit(live, "a")
    await gates.entered("a")

    found = await asyncio.gather(*(live.cancel_run(run_id, None, f"cancel {index}") for index in range(3)))

    assert [True, False, False] == found
    assert not await live.cancel_run(run_id, None, "cancel 3")
    assert await live.cancel_run(run_id, None, "cancel 0")
    assert 1 == count_of(await world.types(run_id), *TERMINAL)


async def test_the_cancel_that_comes_again_after_a_crash_says_true_again(world: World, gates: Gates) -> None:
    live = await world.open(gates)
    (run_id,) = await world.submit(live, "a")
    await live.cancel_run(run_id, None, "cancel 0")

    live = await world.open(gates)

    assert await live.cancel_run(run_id, None, "cancel 0")
    assert not await live.cancel_run(run_id, None, "cancel 1")


async def test_a_run_that_has_ended_cannot_be_cancelled(world: World) -> None:
    live = await world.open()
    (run_id,) = await world.submit(live, "a")
    await live.await_run(run_id)

    assert not await live.cancel_run(run_id, None, world.call())
    assert RunStatus.COMPLETED == (await world.record(run_id)).status


@pytest.mark.parametrize("reason", [b"x", "\ud800", float("nan")])
async def test_a_reason_that_cannot_be_stored_is_refused_and_the_run_goes_on(
    world: World, gates: Gates, reason: Any
) -> None:
    live = await world.open(gates)
    (run_id,) = await world.submit(live, "a")

    with pytest.raises(ValidationError):
        await live.cancel_run(run_id, reason, world.call())
    gates.open("a")

    assert "a!" == (await live.await_run(run_id, 5)).output["content"]


async def test_an_interrupted_run_keeps_what_it_produced(world: World, gates: Gates) -> None:
    live = await world.open(gates)
    (run_id,) = await world.submit(live, "a")
    await taken(live, 1, types=["message_streamed"])

    assert await live.interrupt_run(run_id, world.call())

    error = await error_of(live, run_id)
    assert ("interrupted", {"content": "a..."}) == (error.details["reason"], error.details["output"])


# Deadlines and failures


async def test_a_silent_provider_is_stopped_at_the_deadline(world: World, gates: Gates) -> None:
    live = await world.open(gates)
    (run_id,) = await world.submit(live, "a", options={"deadline_s": 0.05})
    (next_one,) = await world.submit(live, "b")
    gates.open("b")

    error = await error_of(live, run_id)

    assert isinstance(error, DeadlineExceeded)
    assert {"content": "a..."} == error.details["output"]
    assert "run_timeout" == (await world.types(run_id))[-1]
    assert RunStatus.TIMEOUT == (await world.record(run_id)).status
    assert error.to_record() == _record_of(await world.recorded_outcome(run_id))
    assert "b!" == (await live.await_run(next_one, 5)).output["content"]


async def test_the_deadline_does_not_count_the_time_in_the_queue(world: World, gates: Gates) -> None:
    live = await world.open(gates)
    first, second = await world.submit(live, "a", "b", options={"deadline_s": 30})
    world.ahead_us = 3_600_000_000

    gates.open("a", "b")

    assert ["completed", "completed"] == [(await live.await_run(one, 5)).status for one in (first, second)]


async def test_a_foreign_exception_becomes_an_internal_error_without_its_text(world: World) -> None:
    async def play(request: Request) -> Answers:
        yield streamed("x")
        raise RuntimeError("api_key=sk-secret")

    live = await world.open(PlayProvider(play))
    (run_id,) = await world.submit(live, "a")

    error = await error_of(live, run_id)

    assert isinstance(error, InternalError)
    assert "RuntimeError" in error.message
    assert "sk-secret" not in str(error.to_record()) + str([event.data for event in await world.events()])


async def test_a_provider_that_ends_without_an_outcome_has_failed(world: World) -> None:
    async def play(request: Request) -> Answers:
        yield streamed("x")

    live = await world.open(PlayProvider(play))
    (run_id,) = await world.submit(live, "a")

    error = await error_of(live, run_id)

    assert (ProviderError, "provider_error") == (type(error), error.code)
    assert "without an outcome" in error.message


async def test_a_provider_that_cancels_itself_has_failed(world: World) -> None:
    async def play(request: Request) -> Answers:
        yield streamed("x")
        raise asyncio.CancelledError

    live = await world.open(PlayProvider(play))
    (run_id,) = await world.submit(live, "a")

    assert isinstance(await error_of(live, run_id), ProviderError)


@pytest.mark.parametrize(
    "event_type",
    [EventType.RUN_COMPLETED, EventType.RUN_QUEUED, EventType.SESSION_COMPLETED, EventType.MESSAGE_SENT],
)
async def test_a_provider_cannot_give_the_events_of_the_session(world: World, event_type: EventType) -> None:
    async def play(request: Request) -> Answers:
        yield ProviderEvent(event_type, {})
        yield outcome()

    live = await world.open(PlayProvider(play))
    (run_id,) = await world.submit(live, "a")

    error = await error_of(live, run_id)

    assert isinstance(error, ProviderError)
    assert ["run_queued", "message_sent", "run_started", "run_failed"] == await world.types(run_id)
    assert SessionState.ACTIVE == live.status


def _bad_text(request: Request) -> Answers:
    return _given(streamed("\ud83d"), outcome())


def _bad_tool_input(request: Request) -> Answers:
    started = tool_started("call_a")
    started.data["tool_input"] = {"raw": b"x"}
    return _given(started, outcome())


def _bad_usage(request: Request) -> Answers:
    return _given(ProviderEvent(EventType.TOKEN_USAGE_UPDATED, {"input_tokens": float("nan")}), outcome())


def _bad_tool_call(request: Request) -> Answers:
    return _given(ProviderEvent(EventType.TOOL_CALL_STARTED, {}), outcome())


def _bad_outcome(request: Request) -> Answers:
    return _given(streamed("x"), outcome(structured={"raw": b"x"}))


def _bad_content(request: Request) -> Answers:
    return _given(outcome("\ud83d"))


def _bad_metadata(request: Request) -> Answers:
    return _given(outcome(metadata={"at": object()}))


def _bad_error(request: Request) -> Answers:
    return _failing(ProviderError("It broke \ud83d.", details={"raw": object()}, provider_error={"body": b"x"}))


class _OwnError(ProviderOverloaded):
    def __init__(self, status: int) -> None:
        super().__init__(f"Status {status}.")


def _own_error(request: Request) -> Answers:
    return _failing(_OwnError(529))


def _fenced(request: Request) -> Answers:
    return _failing(WriterFenced())


def _moved(request: Request) -> Answers:
    return _failing(SessionMoved())


async def _given(*items: Any) -> Answers:
    for item in items:
        yield item


async def _failing(error: GreenroomError) -> Answers:
    yield streamed("x")
    raise error


@pytest.mark.parametrize(
    "play",
    [
        *(_bad_text, _bad_tool_input, _bad_usage, _bad_tool_call, _bad_outcome, _bad_content, _bad_metadata),
        *(_bad_error, _own_error, _fenced, _moved),
    ],
)
async def test_whatever_a_provider_gives_the_run_ends_once_and_the_session_goes_on(
    world: World, play: Callable[[Request], Answers]
) -> None:
    live = await world.open(PlayProvider(play))
    (run_id,) = await world.submit(live, "a")

    error = await error_of(live, run_id, 5)

    types = await world.types(run_id)
    assert (1, "run_failed") == (count_of(types, *TERMINAL), types[-1])
    assert error.to_record() == _record_of(await world.recorded_outcome(run_id))
    assert not isinstance(error, SessionMoved | WriterFenced | Timeout)
    assert live.queue.is_idle
    (again,) = await world.submit(live, "b", options={"provider": "scripted"})
    assert "completed" == (await live.await_run(again, 5)).status
    assert not world.lost


def _record_of(outcome_: RunResult | GreenroomError) -> dict[str, Any]:
    assert isinstance(outcome_, GreenroomError)
    return outcome_.to_record()


# Calls that come again


async def test_a_repeated_call_gets_its_first_answer(world: World, gates: Gates) -> None:
    live = await world.open(gates)

    first = await live.submit_runs(["a", "b"], None, [None, None], "call_x")
    again = await live.submit_runs(["a", "b"], None, [None, None], "call_x")

    assert first == again
    assert 2 == count_of(await world.types(), "run_queued")


class SlowKeys(MemoryEventLog):
    """A log that takes its time to look a key up, as one in another process does."""

    async def find_run_by_key(self, session_id: str, idempotency_key: str) -> str | None:
        found = await super().find_run_by_key(session_id, idempotency_key)
        await asyncio.sleep(0)
        return found


@pytest.mark.parametrize("keys", [["k"], [None], ["k", "l"], ["k", None], [None, "k"]])
@pytest.mark.parametrize("same_call", [True, False])
async def test_the_same_keys_at_once_make_the_same_runs(keys: list[str | None], same_call: bool) -> None:
    world = World(SlowKeys())
    live = await world.open(Gates())

    found = await asyncio.gather(
        *(live.submit_runs(["a"] * len(keys), None, keys, "x" if same_call else f"x{index}") for index in range(3))
    )

    for place, key in enumerate(keys):
        expected = 1 if key is not None or same_call else 3
        assert expected == len({run_ids[place] for run_ids in found})
    assert len({run_id for run_ids in found for run_id in run_ids}) == count_of(await world.types(), "run_queued")
    await world.aclose()


async def test_a_key_that_comes_twice_in_one_call_makes_one_run(world: World, gates: Gates) -> None:
    live = await world.open(gates)

    first, second, third, again = await live.submit_runs(["a", "b", "c", "d"], None, ["k", None, "l", "k"], "x")

    assert first == again
    assert 3 == len({first, second, third})
    sent = [event.data["content"] for event in await world.events() if event.type is EventType.MESSAGE_SENT]
    assert ["a", "b", "c"] == sent


async def test_a_key_gives_its_run_after_the_end_and_after_a_crash(world: World) -> None:
    live = await world.open()
    (first,) = await live.submit_runs(["a"], None, ["k"], world.call())
    await live.await_run(first)
    (after_the_end,) = await live.submit_runs(["a"], None, ["k"], world.call())

    live = await world.open()
    (after_the_crash,) = await live.submit_runs(["other"], None, ["k"], world.call())

    assert [first, first] == [after_the_end, after_the_crash]
    assert first == (await world.record(first)).id
    assert "k" == (await world.record(first)).idempotency_key


async def test_a_key_is_not_taken_by_a_submit_that_was_refused(world: World, gates: Gates) -> None:
    live = await world.open(gates, max_queued_runs=0)
    (running,) = await world.submit(live, "a")
    with pytest.raises(QueueFull):
        await live.submit_runs(["b"], None, ["k"], "call_x")
    gates.open("a", "b")
    await live.await_run(running)

    (run_id,) = await live.submit_runs(["b"], None, ["k"], "call_x")

    assert "b!" == (await live.await_run(run_id)).output["content"]


async def test_a_call_repeated_after_a_crash_gets_its_first_answer(world: World, gates: Gates) -> None:
    live = await world.open(gates)
    first = await live.submit_runs(["a", "b"], None, [None, None], "call_x")

    live = await world.open(gates)

    assert first == await live.submit_runs(["a", "b"], None, [None, None], "call_x")
    assert 2 == len({event.run_id for event in await world.events() if event.type is EventType.RUN_QUEUED})


# The end of a session


async def test_a_draining_session_refuses_new_runs_and_waits_for_the_rest(world: World, gates: Gates) -> None:
    live = await world.open(gates)
    run_ids = await world.submit(live, "a", "b")
    draining = asyncio.create_task(live.drain(None))
    await settled()

    with pytest.raises(SessionDraining):
        await world.submit(live, "c")
    assert not draining.done()
    with pytest.raises(Timeout) as over:
        await live.drain(0.01)
    gates.open("a", "b")

    assert await draining
    assert await live.drain(0)
    assert {"left": 2} == over.value.details
    assert (True, ["a", "b"]) == (live.state().draining, gates.started)
    assert 2 == len(await live.await_runs(run_ids))


async def test_a_session_with_open_runs_is_not_completed(world: World, gates: Gates) -> None:
    live = await world.open(gates)
    (run_id,) = await world.submit(live, "a")

    with pytest.raises(InvalidOperation) as refused:
        await live.complete(world.call())
    gates.open("a")
    await live.await_run(run_id)
    await live.complete(world.call())

    assert {"left": 1} == refused.value.details
    assert "session_completed" == (await world.types())[-1]


async def test_a_session_is_completed_once(world: World) -> None:
    live = await world.open()
    await live.complete("call_x")
    await live.complete("call_x")

    for end in (live.complete, live.cancel):
        with pytest.raises(InvalidTransition):
            await end(world.call())
    with pytest.raises(InvalidTransition):
        await live.fail({"error_code": "x"}, world.call())
    with pytest.raises(InvalidOperation):
        await world.submit(live, "a")

    assert ["session_created", "session_started", "session_completed"] == await world.types()
    assert SessionState.COMPLETED == live.state().state


async def test_an_ended_session_stays_ended_when_it_is_taken_over(world: World) -> None:
    live = await world.open()
    (run_id,) = await world.submit(live, "a")
    await live.await_run(run_id)
    await live.complete("call_x")
    before = await world.events()

    live = await world.open()
    await live.complete("call_x")

    with pytest.raises(InvalidTransition):
        await live.complete("call_y")
    with pytest.raises(InvalidOperation):
        await world.submit(live, "b")
    assert "completed" == (await live.await_run(run_id)).status
    assert before == await world.events() == await all_of(live)


@pytest.mark.parametrize("end", ["cancel", "fail"])
async def test_ending_a_session_cancels_its_runs(world: World, gates: Gates, end: str) -> None:
    live = await world.open(gates)
    run_ids = await world.submit(live, "a", "b", "c")
    waiting = asyncio.create_task(live.await_runs(run_ids))
    await gates.entered("a")

    if end == "cancel":
        await live.cancel(world.call())
    else:
        await live.fail({"error_code": "x"}, world.call())

    outcomes = await waiting
    assert [Cancelled] * 3 == [type(one) for one in outcomes]
    assert [_record_of(one) for one in outcomes] == [_record_of(await world.recorded_outcome(one)) for one in run_ids]
    types = await world.types()
    assert (["a"], 3, f"session_{end}{'led' if end == 'cancel' else 'ed'}") == (
        gates.started,
        count_of(types, *TERMINAL),
        types[-1],
    )
    assert live.queue.is_idle


async def test_an_error_that_cannot_be_stored_does_not_end_the_session(world: World, gates: Gates) -> None:
    live = await world.open(gates)
    (run_id,) = await world.submit(live, "a")

    with pytest.raises(ValidationError):
        await live.fail({"raw": b"x"}, world.call())
    gates.open("a")

    assert SessionState.ACTIVE == live.status
    assert "a!" == (await live.await_run(run_id, 5)).output["content"]


async def test_a_session_that_never_was_is_not_taken_over(world: World) -> None:
    with pytest.raises(SessionNotFound):
        await world.open(create=False)


async def test_a_session_is_made_as_it_was_specified_and_once(world: World) -> None:
    live = await world.open(agent_id="reviewer", tags=("x",), context={"system_prompt": "Hi."}, key="k")
    again = await world.open(agent_id="other")

    assert ("reviewer", ["x"], {"system_prompt": "Hi."}, "k", "scripted") == (
        live.session.agent_id,
        [*live.session.tags],
        live.session.context,
        live.session.idempotency_key,
        live.session.provider,
    )
    assert ("reviewer", 2) == (again.session.agent_id, again.epoch)
    assert ["session_created", "session_started"] == await world.types()


# Recovery


async def test_after_a_crash_the_run_in_flight_is_interrupted_and_the_queue_runs_in_order(
    world: World, gates: Gates
) -> None:
    live = await world.open(gates)
    run_ids = await world.submit(live, *"abcdef")
    await taken(live, 1, types=["message_streamed"])
    later = Gates()
    later.open(*"abcdef")

    live = await world.open(later)
    outcomes = await live.await_runs(run_ids)

    assert [RunInterrupted, *[RunResult] * 5] == [type(one) for one in outcomes]
    assert [*"bcdef"] == later.started
    assert [2, 3, 4, 5, 6] == [request.run_number for request in later.requests]
    types = await world.types()
    assert (6, 0) == (count_of(types, *TERMINAL), count_of(types, "error_occurred"))
    assert [*range(1, len(types) + 1)] == seqs(await world.events())
    assert "run_interrupted" == (await world.record(run_ids[0])).to_dict()["error"]["code"]


async def test_a_run_to_be_retried_becomes_the_next_attempt_before_those_that_wait(world: World, gates: Gates) -> None:
    live = await world.open(gates)
    first, second = await world.submit(live, "a", "b", options={"on_crash": "retry"})
    await gates.entered("a")
    later = Gates()
    later.open("a", "b")

    live = await world.open(later)
    result = await live.await_run(first)
    await live.await_run(second)

    assert (["a", "b"], [2, 1]) == (later.started, [request.attempt for request in later.requests])
    assert await world.recorded_outcome(first) == result
    assert 2 == result.attempts
    types = await world.types(first)
    assert (2, 2, 1) == (
        count_of(types, "run_queued"),
        count_of(types, "run_started"),
        count_of(types, *TERMINAL),
    )
    attempts = [event.attempt for event in await world.events(first)]
    assert sorted(attempts, key=lambda attempt: attempt or 0) == attempts


async def test_a_run_is_not_retried_beyond_its_attempts(world: World) -> None:
    live = await world.open(Gates())
    (run_id,) = await world.submit(live, "a", options={"on_crash": "retry", "max_attempts": 2})
    live = await world.open(Gates())
    await settled()
    gates = Gates()
    live = await world.open(gates)

    error = await error_of(live, run_id)

    assert isinstance(error, RunInterrupted)
    assert 2 == error.details["attempt"]
    assert [] == gates.started
    types = await world.types(run_id)
    assert (2, 1) == (count_of(types, "run_started"), count_of(types, *TERMINAL))


async def test_what_a_run_says_of_itself_holds_against_its_session_after_a_crash(world: World, gates: Gates) -> None:
    defaults = {"on_crash": "retry", "deadline_s": 5.0}
    live = await world.open(gates, run_defaults=defaults, max_concurrent_runs=2)
    (own,) = await world.submit(live, "a", options={"on_crash": "fail", "deadline_s": 600})
    (default,) = await world.submit(live, "b")
    await gates.entered("b")
    world.ahead_us = 4_000_000
    later = Gates()
    later.open("b")

    live = await world.open(later)
    outcomes = await live.await_runs([own, default])

    assert [RunInterrupted, RunResult] == [type(one) for one in outcomes]
    assert ["b"] == later.started


async def test_the_deadline_counts_from_the_first_attempt_over_a_crash(world: World, gates: Gates) -> None:
    live = await world.open(gates)
    (run_id,) = await world.submit(live, "a", options={"deadline_s": 60, "on_crash": "retry"})
    await gates.entered("a")
    world.ahead_us = 61_000_000
    later = Gates()

    live = await world.open(later)

    error = await error_of(live, run_id)
    assert isinstance(error, DeadlineExceeded)
    assert error.to_record() == _record_of(await world.recorded_outcome(run_id))
    assert ("run_timeout", []) == ((await world.types(run_id))[-1], later.started)


async def test_what_is_left_of_the_deadline_holds_for_the_next_attempt(world: World, gates: Gates) -> None:
    live = await world.open(gates)
    (run_id,) = await world.submit(live, "a", options={"deadline_s": 60, "on_crash": "retry"})
    await gates.entered("a")
    world.ahead_us = 59_950_000

    live = await world.open(Gates())

    assert isinstance(await error_of(live, run_id), DeadlineExceeded)
    assert 2 == count_of(await world.types(run_id), "run_started")


@pytest.mark.parametrize("on_crash", ["fail", "retry"])
async def test_a_tool_call_open_at_the_crash_is_in_doubt(world: World, on_crash: str) -> None:
    async def play(request: Request) -> Answers:
        yield tool_started("call_a")
        await asyncio.Event().wait()

    live = await world.open(PlayProvider(play))
    (run_id,) = await world.submit(live, "a", options={"on_crash": on_crash})
    await taken(live, 1, types=["tool_call_started"])
    gates = Gates()
    gates.open("a")

    live = await world.open(gates)
    await live.await_runs([run_id])

    (failed,) = [event for event in await world.events(run_id) if event.type is EventType.TOOL_CALL_FAILED]
    assert ("call_a", "in_doubt", 1) == (failed.data["tool_call_id"], failed.data["outcome"], failed.attempt)
    types = await world.types(run_id)
    assert ("tool_call_failed", 1) == (types[types.index("tool_call_started") + 1], count_of(types, *TERMINAL))


async def test_the_earlier_owner_is_told_that_the_session_moved_and_writes_nothing(world: World, gates: Gates) -> None:
    old = await world.open(gates)
    (run_id,) = await world.submit(old, "a", options={"on_crash": "retry"})
    await gates.entered("a")
    waiting = asyncio.create_task(old.await_run(run_id))
    following = asyncio.create_task(all_of(old, from_seq=old.feed.last_seq))
    later = Gates()
    await world.open(later)
    await later.entered("a")
    await settled()
    before = await world.events()

    gates.open("a")

    for told in (waiting, following):
        with pytest.raises(SessionMoved):
            await told
    for call in (
        old.await_run(run_id, 5),
        old.await_runs([run_id], 5),
        old.cancel_run(run_id, None, world.call()),
        old.submit_runs(["b"], None, [None], world.call()),
        old.drain(5),
        old.cancel(world.call()),
    ):
        with pytest.raises(SessionMoved):
            await call
    assert before == await world.events()
    assert {"owner_1": 1} == world.lost


async def test_a_submit_to_an_earlier_owner_is_not_acknowledged(world: World, gates: Gates) -> None:
    old = await world.open(gates)
    await world.open(Gates())

    with pytest.raises((WriterFenced, SessionMoved)):
        await world.submit(old, "a")

    await settled()
    assert 0 == count_of(await world.types(), "run_queued")
    assert [] == gates.started


async def test_a_session_that_is_left_before_a_start_is_answered_starts_nothing(world: World, gates: Gates) -> None:
    live = await world.open(gates)
    submitting = asyncio.create_task(world.submit(live, "a"))
    while count_of(await world.types(), "run_started") == 0:
        await asyncio.sleep(0)

    live.close()

    await asyncio.wait([submitting])
    await settled()
    assert [] == gates.started


async def test_leaving_a_session_stops_its_providers(world: World) -> None:
    stopped = asyncio.Event()

    async def play(request: Request) -> Answers:
        try:
            yield streamed("x")
            await asyncio.Event().wait()
        finally:
            stopped.set()

    live = await world.open(PlayProvider(play))
    await world.submit(live, "a")
    await taken(live, 1, types=["message_streamed"])

    await live.aclose()

    assert stopped.is_set()
    assert 0 == count_of(await world.types(), *TERMINAL)


# Subscriptions


async def test_a_subscription_gives_what_there_is_and_then_what_comes(world: World) -> None:
    live = await world.open()
    await live.await_runs(await world.submit(live, "a"))
    following = asyncio.create_task(all_of(live))
    await settled()

    await live.await_runs(await world.submit(live, "b", "c"))
    await live.complete(world.call())

    found = await asyncio.wait_for(following, 5)
    assert await world.events() == found
    assert [*range(1, len(found) + 1)] == seqs(found)


@pytest.mark.parametrize("from_seq", [1, 2, 5, 9])
async def test_a_subscriber_that_comes_back_gets_the_rest_and_nothing_twice(world: World, from_seq: int) -> None:
    live = await world.open()
    await live.await_runs(await world.submit(live, "a", "b"))
    await live.complete(world.call())

    found = await all_of(live, from_seq=from_seq)

    assert await world.events(after=from_seq) == found


async def test_a_subscription_to_a_run_ends_with_it(world: World, gates: Gates) -> None:
    live = await world.open(gates, max_concurrent_runs=2)
    first, second = await world.submit(live, "a", "b")
    following = asyncio.create_task(all_of(live, run_id=first))
    gates.open("b")
    await live.await_run(second)
    await settled()
    assert not following.done()

    gates.open("a")

    assert await asyncio.wait_for(following, 5) == await world.events(first)
    assert await world.events(second) == await asyncio.wait_for(all_of(live, run_id=second), 5)


async def test_a_subscription_to_a_run_that_never_was_is_refused(world: World) -> None:
    live = await world.open()

    with pytest.raises(RunNotFound):
        await all_of(live, run_id="run_unknown")


async def test_filters_of_run_and_type_go_together(world: World) -> None:
    live = await world.open()
    first, second = await world.submit(live, "a", "b")
    await live.await_runs([first, second])
    await live.complete(world.call())

    found = await all_of(live, run_id=second, types=["run_completed", "run_queued"])

    assert [("run_queued", second), ("run_completed", second)] == [(event.type, event.run_id) for event in found]
    assert 2 == len(await all_of(live, types="run_completed"))
    with pytest.raises(ValidationError, match="run_complete"):
        await all_of(live, types=["run_complete"])


async def test_without_follow_a_subscription_ends_after_the_backlog(world: World, gates: Gates) -> None:
    live = await world.open(gates)
    await world.submit(live, "a")
    await taken(live, 1, types=["message_streamed"])

    found = await asyncio.wait_for(all_of(live, follow=False), 5)

    assert await world.events() == found
    assert [] == await all_of(live, from_seq=len(found), follow=False)
    assert [found[-1]] == await all_of(live, types=["message_streamed"], follow=False)


async def test_without_follow_what_comes_meanwhile_is_not_given(
    world: World, gates: Gates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_feed, "PAGE_EVENTS", 3)
    live = await world.open(gates)
    await world.submit(live, "a")
    await taken(live, 1, types=["message_streamed"])
    backlog = await world.events()
    stream = subscribed(live, follow=False)
    found = await anext(stream)

    await live.submit_runs(["b", "c", "d"], None, [None] * 3, world.call())
    async for events in stream:
        found += events

    assert backlog == found


async def test_a_cursor_beyond_the_end_is_refused_with_the_end(world: World) -> None:
    live = await world.open()

    with pytest.raises(InvalidCursor) as refused:
        await all_of(live, from_seq=3)
    with pytest.raises(ValidationError):
        await all_of(live, from_seq=-1)

    assert {"field": "from_seq", "last_seq": 2} == refused.value.details


@pytest.mark.parametrize("tail_bytes", [1, 500, 5_000])
@pytest.mark.parametrize("subscription", [{}, {"types": ["message_streamed", "session_completed"]}])
async def test_a_slow_subscriber_reads_from_the_log_what_the_tail_has_dropped(
    world: World, monkeypatch: pytest.MonkeyPatch, tail_bytes: int, subscription: dict[str, Any]
) -> None:
    monkeypatch.setattr(event_feed, "MAX_TAIL_BYTES", tail_bytes)
    monkeypatch.setattr(event_feed, "PAGE_EVENTS", 7)
    monkeypatch.setattr(live_session, "PAGE_EVENTS", 7)
    live = await world.open()
    slow = live.subscribe(0, None, subscription.get("types"), True)
    found = list(await anext(slow)) if not subscription else []

    run_ids = await world.submit(live, *"abcdefgh", options={"provider_options": {"chunks": 20, "reply": "x" * 40}})
    await live.await_runs(run_ids)
    await live.complete(world.call())
    async for events in slow:
        found += events

    types = subscription.get("types")
    assert [event for event in await world.events() if types is None or event.type in types] == found
    assert len(found) > 160


async def test_a_feed_keeps_no_more_than_its_bytes() -> None:
    log, feed = MemoryEventLog(), event_feed.EventFeed(0)
    ownership = await log.acquire(SESSION, "owner", feed.add)
    data = {"content": "x" * 100_000}

    for index in range(100):
        event = NewEvent(f"evt_{index}", EventType.MESSAGE_STREAMED, 0, None, None, None, data, {})
        await log.append(SESSION, ownership.epoch, [event])

    page = feed.page(70)
    assert page is not None
    assert list(range(71, 101)) == seqs(page)
    assert feed.page(50) is None
    assert [] == feed.page(100)


async def test_subscribers_are_counted_and_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriptions, "MAX_SUBSCRIBERS", 1)
    live = await world.open()
    stream = live.subscribe(0, None, None, True)
    await anext(stream)

    assert 1 == live.state().subscribers
    with pytest.raises(QueueFull):
        await all_of(live)
    await stream.aclose()

    assert 0 == live.state().subscribers
