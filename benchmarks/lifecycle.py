"""What a session costs when it comes, sleeps, wakes up, and when there are thousands: times beside bare ones of Ray."""

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray

import greenroom
from greenroom import Runtime, SessionHandle

from .measuring import Figure, Pinger, median_ms, seconds

ACTIVATIONS = 60
COLD_STARTS = 8
MEBIBYTE = 1024 * 1024

_FULL = bool(os.environ.get("BENCH_FULL"))
HIBERNATED = 5_000 if _FULL else 1_500
HIBERNATED_BASE = 1_000 if _FULL else 500
HIBERNATED_ACTORS = 16
DENSE = 2_000
DENSE_PER_ACTOR = 250
DENSE_LIMIT_BYTES = 2 * 1024 * MEBIBYTE


@contextmanager
def _runtime(**settings: Any) -> Generator[Runtime]:
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=Path.cwd()) as data_dir:
        runtime = greenroom.start(data_dir=data_dir, **settings)
        try:
            yield runtime
        finally:
            runtime.shutdown()


def _ping_ms(pinger: Any, count: int = 200) -> float:
    return median_ms([seconds(lambda: ray.get(pinger.ping.remote())) for _ in range(count)])


def _busy(runtime: Runtime) -> set[str]:
    return {session_id for actor in runtime.stats().actors for session_id in actor["session_ids"]}


def _await(holds: Any) -> None:
    while not holds():
        time.sleep(0.05)


def activations(pinger: Any) -> list[Figure]:
    """Opening a session on a warm server, and the first call on one that sleeps."""
    with _runtime(warm_pool=4, idle_after_s=0.3) as runtime:
        ray.get(runtime.open_session().execute_run.remote("x"))
        opened: list[SessionHandle] = []
        opening: list[float] = []
        waking: list[float] = []
        before = _ping_ms(pinger)
        for _ in range(ACTIVATIONS):
            _await(lambda: not _busy(runtime))  # so that servers are free: none has to be started
            started = time.perf_counter()
            opened.append(runtime.open_session(agent_id="bench"))
            opening.append(time.perf_counter() - started)
        for session in opened:
            _await(lambda: not _busy(runtime))
            waking.append(seconds(lambda session=session: ray.get(session.status.remote())))
        limit = statistics.mean((before, _ping_ms(pinger)))
    shared: dict[str, Any] = {"unit": "ms", "limit_name": "bare round trip, p50", "limit": limit, "bound": "<= 25"}
    return [
        Figure(name="open a session on a warm server, p50", value=median_ms(opening), **shared),
        Figure(name="first call on a sleeping session, p50", value=median_ms(waking), **shared),
    ]


def cold_start() -> Figure:
    """Opening a session when there is no server for it, beside a bare named actor, in turns."""
    sessions: list[float] = []
    actors: list[float] = []
    with _runtime(warm_pool=0, idle_after_s=3_600.0) as runtime:
        runtime.open_session()
        for number in range(COLD_STARTS):
            options = {"name": f"bench-bare-{number}", "num_cpus": 0, "max_concurrency": 100_000}
            started = time.perf_counter()
            actor: Any = ray.remote(Pinger).options(**options).remote()
            ray.get(actor.ping.remote())
            actors.append(time.perf_counter() - started)
            ray.kill(actor)
            sessions.append(seconds(runtime.open_session))
    return Figure(
        name="open a session without a warm server, p50",
        value=median_ms(sessions),
        unit="ms",
        limit_name="a bare named actor, p50",
        limit=median_ms(actors),
        bound="<= 1.3",
    )


def hibernated() -> Figure:
    """Thousands of sessions opened, run once each, and asleep: the memory of everything, early and late."""
    settings: dict[str, Any] = {"max_live_actors": HIBERNATED_ACTORS, "warm_pool": 4, "idle_after_s": 0.5}
    with _runtime(**settings) as runtime:
        early, most = 0, 0
        began = time.perf_counter()
        for number in range(1, HIBERNATED + 1):
            ray.get(runtime.open_session(agent_id="bench").execute_run.remote("x"))
            if number % 100 == 0:
                most = max(most, sum(row["kind"] == "SessionServer" for row in runtime.stats().actors))
            if number == HIBERNATED_BASE:
                early = memory_bytes()
        taken_s = time.perf_counter() - began
        _await(lambda: not _busy(runtime))
        late = memory_bytes()
        assert most <= HIBERNATED_ACTORS
    return Figure(
        name=f"memory at {HIBERNATED:,} sessions asleep",
        value=late / MEBIBYTE,
        unit="MiB",
        limit_name=f"the same at {HIBERNATED_BASE:,}",
        limit=early / MEBIBYTE,
        bound="<= 1.1",
        note=f"at most {most} servers, {HIBERNATED / taken_s:,.0f} sessions/s",
    )


def dense() -> Figure:
    """Many sessions live at once on few servers, each of which has answered a run."""
    settings: dict[str, Any] = {"sessions_per_actor": DENSE_PER_ACTOR, "warm_pool": 1, "idle_after_s": 3_600.0}

    async def open_and_run(runtime: Runtime) -> None:
        gate = asyncio.Semaphore(64)

        async def one() -> None:
            async with gate:
                session = await runtime.aopen_session(agent_id="bench")
                await session.execute_run.remote("x")

        await asyncio.gather(*(one() for _ in range(DENSE)))

    with _runtime(**settings) as runtime:
        taken_s = seconds(lambda: asyncio.run(open_and_run(runtime)))
        assert len(_busy(runtime)) == DENSE
        servers = sum(row["kind"] == "SessionServer" for row in runtime.stats().actors)
        used = memory_bytes()
    return Figure(
        name=f"memory of {DENSE:,} live sessions",
        value=used / MEBIBYTE,
        unit="MiB",
        limit_name="the bound of the issue",
        limit=DENSE_LIMIT_BYTES / MEBIBYTE,
        bound="<= 1",
        note=f"{servers} servers, {DENSE / taken_s:,.0f} sessions/s",
    )


def memory_bytes() -> int:
    """What this process and everything below it hold (PSS: shared pages are counted once over all)."""
    total = 0
    root = psutil.Process()
    for process in (root, *root.children(recursive=True)):
        with suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total


def measure(pinger: Any) -> list[Figure]:
    """All of it, once."""
    return [*activations(pinger), cold_start(), hibernated(), dense()]
