"""Jobs as others see them: how far they are, and an end to them."""

from dataclasses import dataclass
from typing import Any

import ray

from ...actors.batch_job import find_job as find_live_job
from ...actors.ray_errors import RAY_TROUBLE
from ...actors.runtime import Runtime
from ...domain.batch_progress import Progress, Stop
from ...domain.errors import NotFound
from .progress import described
from .setup import JOB, find_job, job_tag

_ANSWER_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """What there is of a job."""

    job: str
    about: dict[str, Any]
    progress: Progress | None
    """None: nobody drives it now."""
    sessions: dict[str, int]
    """Sessions of its rows by status, of all times that it was under way."""
    waits: str

    def lines(self) -> list[str]:
        """For people."""
        if self.progress is not None:
            return [f"{self.job} is under way: {self.waits}"]
        counts = ", ".join(f"{count} {status}" for status, count in sorted(self.sessions.items())) or "none"
        return [
            f"{self.job} is not under way; rows that were begun: {counts}",
            f"from {self.about.get('source')} to {self.about.get('output')}",
        ]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-safe values."""
        live = None if self.progress is None else self.progress.to_dict()
        return {"job": self.job, "under_way": live is not None, **self.about, "progress": live, "rows": self.sessions}


def job_state(runtime: Runtime, job: str) -> JobState:
    """How far the job is. NotFound if there is no such job."""
    session = runtime.wait(find_job(runtime, job))
    if session is None:
        raise NotFound(f"There is no job {job!r} in {runtime.data_dir}.", details={"job": job})
    actor = find_live_job(runtime.address, job)
    progress: Progress | None = None
    if actor is not None:
        try:
            progress = ray.get(actor.progress.remote(), timeout=_ANSWER_S)
        except RAY_TROUBLE:
            progress = None
    return JobState(
        job=job,
        about={name: session.metadata[JOB].get(name) for name in ("source", "output")},
        progress=progress,
        sessions=runtime.wait(runtime.arow_counts(job_tag(job))),
        waits="" if progress is None else described(progress, runtime.accounts()),
    )


def stop_job(runtime: Runtime, job: str, stop: Stop, reason: str) -> bool:
    """Ask the job to end sooner than its rows do. False if nobody drives it now."""
    actor = find_live_job(runtime.address, job)
    if actor is None:
        return False
    try:
        ray.get(actor.stop.remote(stop, reason), timeout=_ANSWER_S)
    except RAY_TROUBLE:
        return False
    return True
