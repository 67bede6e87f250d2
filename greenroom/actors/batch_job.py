"""The actor of a job that is under way: adds up what its senders report, and tells them when to stop."""

import time
from collections.abc import Mapping
from typing import Any

import ray

from ..domain.batch_progress import Counts, Progress, Stop, Tally
from .address import RuntimeAddress

PREFIX = "batch:"

_OPTIONS: dict[str, Any] = {
    "num_cpus": 0,
    "max_restarts": -1,
    "max_task_retries": -1,
    "enable_task_events": False,
    "max_concurrency": 1_000,
}


class BatchJob:
    """Lives as long as the process that drives the job. Started anew it knows what it was made with, and hears the rest
    with the next reports."""

    def __init__(self, job: str, max_failures: int | None, about: Mapping[str, Any]) -> None:
        self._tally = Tally(job, total=None, max_failures=max_failures, now_s=time.monotonic())
        self._about = dict(about)

    async def about(self) -> dict[str, Any]:
        """What the job does, for people."""
        return self._about

    async def expect(self, total: int) -> None:
        """There are so many rows."""
        self._tally.total = total

    async def report(self, sender: str, counts: Counts) -> Stop:
        """All that the sender has counted so far; the answer says whether it is to stop."""
        self._tally.report(sender, counts, time.monotonic())
        return self._tally.stop

    async def stop(self, stop: Stop, reason: str) -> None:
        """End sooner than the rows do."""
        self._tally.ask_to_stop(stop, reason)

    async def progress(self) -> Progress:
        """How far it has come."""
        return self._tally.progress(time.monotonic())


def start_job(address: RuntimeAddress, job: str, *, max_failures: int | None, about: Mapping[str, Any]) -> Any:
    """Start the actor. ValueError if the job has one."""
    options = {**_OPTIONS, "name": PREFIX + job, "namespace": address.namespace}
    actor: Any = ray.remote(BatchJob).options(**options).remote(job, max_failures, about)
    return actor


def find_job(address: RuntimeAddress, job: str) -> Any:
    """The actor of a job that is under way; None if it is not."""
    try:
        return ray.get_actor(PREFIX + job, namespace=address.namespace)
    except ValueError:
        return None
