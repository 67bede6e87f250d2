"""What becomes of the runs of a session whose process died: decided here, carried out by its next owner."""

from enum import StrEnum

from .run import Run, RunStatus
from .run_options import OnCrash, RunOptions


class Recovery(StrEnum):
    """The fate of an open run."""

    WAIT = "wait"
    """It was queued: it keeps its place."""
    RETRY = "retry"
    """It was in flight: it is queued again as the next attempt, at its old place."""
    RESUME = "resume"
    """It did nothing but wait for a person: its next attempt goes on waiting, and finds what it did before."""
    EXPIRE = "expire"
    """Its deadline has passed meanwhile."""
    INTERRUPT = "interrupt"
    """It was in flight and may not run again: it ends failed with run_interrupted."""


CRASH_REASONS = frozenset({f"{Recovery.RETRY} after crash", f"{Recovery.RESUME} after crash"})
"""What the run_queued of an attempt says that was begun because of a crash."""


def recovery_of(
    run: Run, options: RunOptions, *, crashes: int = 0, now_us: int, waits_for_approval: bool = False
) -> Recovery:
    """What to do with a run that the log shows as open. `crashes`: after how many it was begun again before; attempts
    that its provider failed do not count. `waits_for_approval`: all that was under way of it."""
    if run.first_started_at is not None:
        elapsed_s = now_us / 1e6 - run.first_started_at.timestamp()
        if elapsed_s >= options.deadline_s:
            return Recovery.EXPIRE
    if run.status is RunStatus.PENDING:
        return Recovery.WAIT
    if waits_for_approval:
        return Recovery.RESUME
    if options.on_crash is OnCrash.RETRY and crashes + 1 < options.max_attempts:
        return Recovery.RETRY
    return Recovery.INTERRUPT
