"""What it costs to run an agent's own client under Greenroom: start-up, first event, memory, beside the bare client.

`python -m benchmarks agents` (or `make bench-agents`) prints one row for each client that is installed, as Markdown for
docs/providers.md. The model is a loopback stand-in, so that nothing but the client and Greenroom is measured.
"""

import asyncio
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from greenroom.domain.event import EventType
from greenroom.testing import answers
from greenroom.testing.conformance import NATIVE, Rig, Stage
from tests.conformance.provider_rigs import RIGS

from .measuring import Figure

ROUNDS = 5
_SAID = (EventType.MESSAGE_STREAMED, EventType.MESSAGE_RECEIVED)
_PROMPT = "Say something."


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one client; medians, seconds from submit_run."""

    first_event_s: float
    """The first text, where the run has to start the client."""
    next_event_s: float
    """The first text of a run that goes on with the conversation."""
    whole_run_s: float
    """The end of the first kind of run."""
    bare_s: float | None
    """The bare client's whole process for the same prompt; None where it has no such command."""
    memory_mb: float
    """Resident memory of the client and everything under it, when it has answered."""


def measure(console: Console) -> list[Figure]:
    """A figure for each client that can be run bare; the table goes to the console."""
    costs: dict[str, Cost] = {}
    for rig_class in RIGS:
        if not rig_class.can.native:
            continue
        if reason := rig_class.missing():
            console.print(f"agents: {rig_class.name} is NOT measured: {reason}")
            continue
        costs[rig_class.name] = asyncio.run(_cost(rig_class))
        console.print(f"agents: {rig_class.name}: {costs[rig_class.name]}")
    console.print(_markdown(costs))
    return [
        Figure(
            name=f"{name}: whole run with a new client",
            value=cost.whole_run_s * 1_000,
            unit="ms",
            limit_name="the bare client's process",
            limit=cost.bare_s * 1_000,
            bound="<= 1.5",
        )
        for name, cost in costs.items()
        if cost.bare_s is not None
    ]


async def _cost(rig_class: type[Rig]) -> Cost:
    with tempfile.TemporaryDirectory() as folder:
        rig = rig_class(Path(folder))
        rig.start()
        try:
            return await _rounds(rig)
        finally:
            rig.stop()


async def _rounds(rig: Rig) -> Cost:
    first: list[float] = []
    after: list[float] = []
    whole: list[float] = []
    bare: list[float] = []
    memory: list[float] = []
    rig.always(answers.text("One two three.", chunks=3))
    for _ in range(ROUNDS):
        if (command := rig.bare_command(_PROMPT)) is not None:
            bare.append(await asyncio.to_thread(_timed, *command))
        stage = await Stage.open(rig)
        try:
            said_s, done_s, _ = await _run(stage)
            first.append(said_s)
            whole.append(done_s)
            said_s, _, used_mb = await _run(stage)
            after.append(said_s)
            memory.append(used_mb)
        finally:
            await stage.aclose()
    return Cost(
        statistics.median(first),
        statistics.median(after),
        statistics.median(whole),
        statistics.median(bare) if bare else None,
        max(memory),
    )


async def _run(stage: Stage) -> tuple[float, float, float]:
    """Seconds to the first text and to the end, and the memory of the client in between, in MB."""
    began = time.perf_counter()
    run_id = await stage.submit((_PROMPT, NATIVE))
    await stage.seen(run_id, *_SAID)
    said_s = time.perf_counter() - began
    used = sum(process["memory_bytes"] for process in stage.live.state().processes) / 1_000_000
    await stage.live.await_run(run_id, 60)
    return said_s, time.perf_counter() - began, used


def _timed(command: list[str], environment: dict[str, str], cwd: str) -> float:
    began = time.perf_counter()
    subprocess.run(command, env=environment, cwd=cwd, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return time.perf_counter() - began


def _markdown(costs: dict[str, Cost]) -> str:
    lines = [
        "| client | first text s | first text of the next run s | whole run s | bare client s | memory MB |",
        "|---|---|---|---|---|---|",
    ]
    for name, cost in costs.items():
        bare = "-" if cost.bare_s is None else f"{cost.bare_s:.2f}"
        lines.append(
            f"| {name} | {cost.first_event_s:.2f} | {cost.next_event_s:.2f} | {cost.whole_run_s:.2f} | {bare} |"
            f" {cost.memory_mb:.0f} |"
        )
    return "\n".join(lines)
