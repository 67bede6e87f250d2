"""Runs through sessions: latency of one, throughput of many, and how soon a subscriber hears of an event."""

import asyncio
import time
from typing import Any

import ray

from greenroom import EventType, Runtime, SessionHandle

from .measuring import Figure, median_ms, pinged, pipelined_calls_per_s, seconds

ROUND_TRIPS = 300
SESSIONS, RUNS_PER_SESSION = 50, 20
BATCH_SESSIONS, BATCH_RUNS = 10, 500
BATCH_SLOTS = 64
"""As in the contract's example of a batch; with 16 the ratio was 2.8."""
SUBSCRIBED_EVENTS = 300

FOUR_EVENTS = {"provider_options": {"chunks": 2}}
"""Two message_streamed, message_received, token_usage_updated: four events of the provider beside those of the run."""


def open_sessions(runtime: Runtime, count: int, **options: Any) -> list[SessionHandle]:
    async def open_all() -> list[SessionHandle]:
        return await asyncio.gather(*(runtime.aopen_session(**options) for _ in range(count)))

    return asyncio.run(open_all())


def submit_and_await(runtime: Runtime, pinger: Any) -> Figure:
    """One run, submitted and awaited in two calls, beside a bare round trip."""
    session = runtime.open_session(agent_id="bench")
    runs: list[float] = []
    pings: list[float] = []

    def run() -> None:
        run_id = ray.get(session.submit_run.remote("hello"))
        ray.get(session.await_run.remote(run_id))

    for index in range(ROUND_TRIPS + 30):
        run_s, ping_s = seconds(run), seconds(lambda: ray.get(pinger.ping.remote()))
        if index >= 30:  # the first ones pay for imports
            runs.append(run_s)
            pings.append(ping_s)
    ray.get(session.complete.remote())
    return Figure(
        name="submit + await, p50",
        value=median_ms(runs),
        unit="ms",
        limit_name="bare round trip, p50",
        limit=median_ms(pings),
        bound="<= 6",
    )


PROVIDERS = {"first": {"kind": "scripted"}, "second": {"kind": "scripted"}}
ROUTERS: dict[str, dict[str, Any]] = {
    "main": {"providers": ["first", "second"]},
    "drawn": {"providers": ["first", "second"], "strategy": "weighted", "sticky_ttl_s": 0},
}
"""Sessions stay with a provider by the first; by the second each run is decided anew."""


def routed_over_direct(runtime: Runtime, pinger: Any, router: str) -> Figure:
    """What a router and the account of the provider add to a run, beside a bare round trip; in turns."""
    direct = runtime.open_session(agent_id="bench")
    routed = runtime.open_session(agent_id="bench", provider=router)
    runs: list[float] = []
    routed_runs: list[float] = []
    pings: list[float] = []
    for index in range(ROUND_TRIPS + 30):
        run_s = seconds(lambda: ray.get(direct.execute_run.remote("hello")))
        routed_s = seconds(lambda: ray.get(routed.execute_run.remote("hello")))
        ping_s = seconds(lambda: ray.get(pinger.ping.remote()))
        if index >= 30:  # the first ones pay for imports
            runs.append(run_s)
            routed_runs.append(routed_s)
            pings.append(ping_s)
    ray.get([direct.complete.remote(), routed.complete.remote()])
    return Figure(
        name=f"routed ({router}) over direct run, p50",
        value=median_ms(routed_runs) - median_ms(runs),
        unit="ms",
        limit_name="bare round trip, p50",
        limit=median_ms(pings),
        bound="<= 2",
        note=f"direct {median_ms(runs):.2f} ms",
    )


def many_sessions(sessions: list[SessionHandle], pinger: Any) -> Figure:
    """Every run by a call of its own, over sessions that are open already."""
    before = pipelined_calls_per_s(pinger)
    calls = [session.execute_run.remote for _ in range(RUNS_PER_SESSION) for session in sessions]
    taken_s = seconds(lambda: ray.get([call("hello", FOUR_EVENTS) for call in calls]))
    after = pipelined_calls_per_s(pinger)
    return Figure(
        name=f"{len(sessions)} sessions x {RUNS_PER_SESSION} runs, 2 slots",
        value=len(calls) / taken_s,
        unit="runs/s",
        limit_name="bare pipelined calls",
        limit=(before + after) / 2,
        bound=">= 0.25",
    )


def batches_of_runs(sessions: list[SessionHandle], pinger: Any) -> Figure:
    """submit_runs and await_runs: two calls for five hundred runs."""
    before = pipelined_calls_per_s(pinger)

    def run_all() -> None:
        submitted = ray.get([session.submit_runs.remote(["hello"] * BATCH_RUNS) for session in sessions])
        awaited = [session.await_runs.remote(run_ids) for session, run_ids in zip(sessions, submitted, strict=True)]
        for results in ray.get(awaited):
            assert len(results) == BATCH_RUNS

    taken_s = seconds(run_all)
    after = pipelined_calls_per_s(pinger)
    return Figure(
        name=f"submit_runs/await_runs, {len(sessions)} x {BATCH_RUNS}",
        value=len(sessions) * BATCH_RUNS / taken_s,
        unit="runs/s",
        limit_name="bare pipelined calls",
        limit=(before + after) / 2,
        bound=">= 3",
        note=f"{BATCH_SLOTS} slots a session",
    )


def event_to_subscriber(runtime: Runtime, pinger: Any) -> Figure:
    """From the moment that an event happens at the provider until a subscriber has it, durable."""
    session = runtime.open_session(agent_id="bench")
    options = {"provider_options": {"chunks": SUBSCRIBED_EVENTS, "chunk_delay_s": 0.004, "reply": "x" * 600}}
    delays: list[float] = []
    run_id = ray.get(session.submit_run.remote("hello", options))
    with pinged(pinger) as pings:
        for event in session.follow(run_id=run_id):
            if event.type is EventType.MESSAGE_STREAMED:
                delays.append(time.time() - event.timestamp.timestamp())
    ray.get(session.complete.remote())
    return Figure(
        name="event to subscriber, p50",
        value=median_ms(delays),
        unit="ms",
        limit_name="bare round trip, p50",
        limit=median_ms(pings),
        bound="<= 4",
    )


def end_sessions(runtime: Runtime, opened: list[SessionHandle]) -> None:
    """End the sessions and give their processes back: idle ones would weigh on what is measured next."""
    ray.get([session.complete.remote() for session in opened])
    ended = {session.session_id for session in opened}
    for actor in runtime.stats().actors:
        if ended & set(actor["session_ids"]):
            ray.kill(ray.get_actor(actor["name"], namespace=runtime.record().namespace))
