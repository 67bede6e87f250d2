"""How the benchmarks measure: every figure beside its limit, timed in turns, so that a noisy machine slows both."""

import json
import platform
import statistics
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray

RESULTS = Path(__file__).parent / "results"

PIPELINED_CALLS = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured thing beside what bounds it."""

    name: str
    value: float
    unit: str
    limit_name: str
    limit: float
    bound: str
    """What the ratio value / limit must be, as written in the issue: '<= 6' or '>= 0.25'."""
    note: str = ""

    @property
    def ratio(self) -> float:
        return self.value / self.limit

    @property
    def holds(self) -> bool:
        relation, number = self.bound.split()
        return self.ratio <= float(number) if relation == "<=" else self.ratio >= float(number)


class Pinger:
    """The barest actor there can be, with Ray's defaults but for the concurrency that Greenroom's actors have.

    Ours also keep no history of their calls in Ray (starting.py); that is part of what is measured.
    """

    async def ping(self) -> None:
        return None


def start_pinger() -> Any:
    actor: Any = ray.remote(Pinger).options(num_cpus=0, max_concurrency=100_000).remote()
    ray.get([actor.ping.remote() for _ in range(200)])
    return actor


@contextmanager
def pinged(pinger: Any) -> Generator[list[float]]:
    """Seconds of bare round trips, one after the other for as long as the block runs."""
    pings: list[float] = []
    stop = threading.Event()

    def ping() -> None:
        while not stop.is_set():
            pings.append(seconds(lambda: ray.get(pinger.ping.remote())))
            stop.wait(0.005)

    pinging = threading.Thread(target=ping)
    pinging.start()
    try:
        yield pings
    finally:
        stop.set()
        pinging.join()


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def pipelined_calls_per_s(pinger: Any) -> float:
    """Bare calls per second when they are sent without waiting for each."""
    return PIPELINED_CALLS / seconds(lambda: ray.get([pinger.ping.remote() for _ in range(PIPELINED_CALLS)]))


def median_ms(samples: list[float]) -> float:
    return statistics.median(samples) * 1_000


def save(figures: list[Figure], rounds: list[list[Figure]]) -> Path:
    """Write the medians and every round to benchmarks/results/."""
    now = datetime.now(UTC)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{now:%Y-%m-%dT%H%M%S}.json"
    record = {
        "measured_at": now.isoformat(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("greenroom", "ray", "duckdb", "msgpack")},
        "figures": [{**asdict(figure), "ratio": figure.ratio, "holds": figure.holds} for figure in figures],
        "rounds": [[{**asdict(figure), "ratio": figure.ratio} for figure in figures] for figures in rounds],
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path
