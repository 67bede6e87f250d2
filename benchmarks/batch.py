"""Ten thousand scripted rows through `greenroom.batch`: rows a second beside bare calls, processes, and memory."""

import json
import statistics
import tempfile
import threading
import time
from pathlib import Path

import psutil
from rich.console import Console

import greenroom
from greenroom.domain.batch_progress import Progress

from .measuring import Figure, pipelined_calls_per_s, start_pinger

ROWS = 10_000
CONCURRENCY = 1_024
BARE_ROUNDS = 5
MAX_PROCESSES = 12
"""Greenroom's and Ray Data's: store, Directory, session servers, and those of the pipeline; not Ray's own."""


_RAYS_OWN = ("IDLE", "Agent", "Pinger", "_StatsActor", "ActorLocationTracker", "_AutoscalingCoordinatorActor")


class _Watch(threading.Thread):
    """Counts the processes of actors and tasks, and the memory that is theirs alone."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples: list[tuple[float, int, int]] = []
        """Seconds, processes, bytes."""
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.5):
            found = [one for one in psutil.process_iter(["cmdline"]) if _is_ours(one)]
            self.samples.append((time.monotonic(), len(found), sum(map(_private_bytes, found))))

    def stop(self) -> None:
        self._over.set()
        self.join()


def _is_ours(process: psutil.Process) -> bool:
    line = " ".join(process.info["cmdline"] or [])
    return line.startswith("ray::") and not any(name in line for name in _RAYS_OWN)


def _private_bytes(process: psutil.Process) -> int:
    """What is resident and not of a file. The exact figure, from smaps, costs so much CPU that it would be measured."""
    try:
        memory = process.memory_info()
    except psutil.Error:
        return 0
    return int(memory.rss - memory.shared)


def measure(console: Console) -> list[Figure]:
    """All figures of one batch on a fresh runtime. The rate is that from a tenth of the rows to nine tenths,
    with as many under way at both ends: starting the pipeline's processes is not in it, and told beside it."""
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=Path.cwd()) as folder:
        runtime = greenroom.start(data_dir=Path(folder) / "data", warm_pool=0)
        try:
            figures = _measure(runtime, Path(folder))
        finally:
            runtime.shutdown()
    for figure in figures:
        console.print(f"{figure.name}: {figure.value:,.2f} {figure.unit}, ratio {figure.ratio:.2f} {figure.note}")
    return figures


def _measure(runtime: greenroom.Runtime, folder: Path) -> list[Figure]:
    source = folder / "rows.jsonl"
    source.write_text("".join(f"{json.dumps({'id': n, 'prompt': f'Say {n}'})}\n" for n in range(ROWS)))
    pinger = start_pinger()
    greenroom.batch(source, folder / "warm", runtime=runtime, limit=2_000, concurrency=CONCURRENCY)
    seen: list[tuple[float, int]] = []

    def see(progress: Progress) -> None:
        seen.append((time.monotonic(), progress.counts.ended))

    bare = [pipelined_calls_per_s(pinger) for _ in range(BARE_ROUNDS)]
    watch = _Watch()
    watch.start()
    summary = greenroom.batch(
        source, folder / "out", runtime=runtime, concurrency=CONCURRENCY, progress=see, job="bench"
    )
    watch.stop()
    bare += [pipelined_calls_per_s(pinger) for _ in range(BARE_ROUNDS)]
    assert (summary.statuses["completed"], summary.is_complete) == (ROWS, True)
    first = next(sample for sample in seen if sample[1] >= ROWS // 10)
    last = next(sample for sample in seen if sample[1] >= ROWS - ROWS // 10)
    busy = [sample for sample in watch.samples if first[0] <= sample[0] <= last[0]]
    half = len(busy) // 2
    peak = max(size for _, _, size in busy)
    return [
        Figure(
            name=f"batch of {ROWS:,} scripted rows",
            value=(last[1] - first[1]) / (last[0] - first[0]),
            unit="rows/s",
            limit_name="bare pipelined calls",
            limit=statistics.median(bare),
            bound=">= 1",
            note=f"{CONCURRENCY} under way; {summary.seconds:.1f} s in all",
        ),
        Figure(
            name="processes of the batch",
            value=max(count for _, count, _ in busy),
            unit="",
            limit_name="allowed",
            limit=MAX_PROCESSES,
            bound="<= 1",
        ),
        Figure(
            name="memory in the second half of the batch",
            value=max(size for _, _, size in busy[half:]) / 2**20,
            unit="MiB",
            limit_name="in the first half",
            limit=max(size for _, _, size in busy[: half or 1]) / 2**20,
            bound="<= 1.25",
            note=f"peak {peak / 2**20:,.0f} MiB",
        ),
    ]
