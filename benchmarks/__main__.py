"""`make bench`: three rounds of everything, the median ratio of each against its bound, a table, and a file.

BENCH_FULL=1 adds a log of ten million events, and five thousand sessions instead of fifteen hundred: some minutes more.
"""

import asyncio
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from rich.console import Console
from rich.table import Table

import greenroom
from greenroom.actors import ray_cluster

from . import agents, appends, batch, http, lifecycle, sessions, store
from .measuring import Figure, save, start_pinger

ROUNDS = 3


def main() -> int:
    wanted = sys.argv[1:]
    console = Console(stderr=True, soft_wrap=True)
    figures = asyncio.run(store.measure(console)) if not wanted or "store" in wanted else []
    if not wanted or "lifecycle" in wanted:
        figures = _lifecycle(console) + figures
    if not wanted or "http" in wanted:
        figures = http.measure(console) + figures
    if not wanted or "batch" in wanted:
        figures = batch.measure(console) + figures
    if "agents" in wanted:
        figures = agents.measure(console) + figures
    rounds = (
        [] if wanted and set(wanted) <= {"store", "lifecycle", "agents", "http", "batch"} else _rounds(wanted, console)
    )
    if rounds:
        figures = [_median([each[index] for each in rounds]) for index in range(len(rounds[0]))] + figures
    Console(width=150).print(_table(figures))
    console.print(f"written to {save(figures, rounds)}")
    return 0 if all(figure.holds for figure in figures) else 1


def _lifecycle(console: Console) -> list[Figure]:
    ray_cluster.start_cluster()  # one for all of its runtimes
    try:
        figures = lifecycle.measure(start_pinger())
    finally:
        ray.shutdown()
    for figure in figures:
        console.print(f"{figure.name}: {figure.value:,.2f} {figure.unit}, ratio {figure.ratio:.2f} {figure.note}")
    return figures


def _rounds(wanted: list[str], console: Console) -> list[list[Figure]]:
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=Path.cwd()) as data_dir:
        runtime = greenroom.start(data_dir=data_dir, providers=sessions.PROVIDERS, routers=sessions.ROUTERS)
        try:
            return [_round(runtime, wanted, console, number) for number in range(1, ROUNDS + 1)]
        finally:
            runtime.shutdown()


def _round(runtime: greenroom.Runtime, wanted: list[str], console: Console, number: int) -> list[Figure]:
    pinger = start_pinger()
    measures: dict[str, Callable[[], Figure]] = {
        "latency": lambda: sessions.submit_and_await(runtime, pinger),
        "routed": lambda: sessions.routed_over_direct(runtime, pinger, "main"),
        "drawn": lambda: sessions.routed_over_direct(runtime, pinger, "drawn"),
        "subscriber": lambda: sessions.event_to_subscriber(runtime, pinger),
        "many": lambda: _over_sessions(
            runtime, sessions.SESSIONS, sessions.many_sessions, pinger, max_concurrent_runs=2
        ),
        "batches": lambda: _over_sessions(
            runtime,
            sessions.BATCH_SESSIONS,
            sessions.batches_of_runs,
            pinger,
            max_concurrent_runs=sessions.BATCH_SLOTS,
            max_queued_runs=10_000,
        ),
        "packed": lambda: appends.through_the_store(runtime, encoded=True),
        "appends": lambda: appends.through_the_store(runtime, encoded=False),
    }
    figures: list[Figure] = []
    for name, measure in measures.items():
        if wanted and name not in wanted:
            continue
        figure = measure()
        console.print(
            f"round {number}: {figure.name}: {figure.value:,.2f} {figure.unit}, ratio {figure.ratio:.2f} {figure.note}"
        )
        figures.append(figure)
    ray.kill(pinger)
    return figures


def _over_sessions(
    runtime: greenroom.Runtime, count: int, measure: Callable[[Any, Any], Figure], pinger: Any, **options: Any
) -> Figure:
    opened = sessions.open_sessions(runtime, count, agent_id="bench", **options)
    ray.get([session.execute_run.remote("warm up") for session in opened])
    try:
        return measure(opened, pinger)
    finally:
        sessions.end_sessions(runtime, opened)


def _median(figures: list[Figure]) -> Figure:
    return sorted(figures, key=lambda figure: figure.ratio)[len(figures) // 2]


def _table(figures: list[Figure]) -> Table:
    table = Table(
        "what",
        "measured",
        "beside",
        "limit",
        "ratio",
        "bound",
        "holds",
        title="median of three rounds; the store by itself and lives of sessions once",
    )
    for figure in figures:
        table.add_row(
            figure.name,
            f"{figure.value:,.2f} {figure.unit}",
            figure.limit_name,
            f"{figure.limit:,.2f}",
            f"{figure.ratio:.2f}",
            figure.bound,
            "yes" if figure.holds else "NO",
        )
    return table


sys.exit(main())
