"""What an ended run means for whoever waits for it: a result, or a typed error."""

from datetime import datetime

from .errors import Cancelled, DeadlineExceeded, GreenroomError, error_from_record
from .run import Run, RunResult, RunStatus

KEPT_OF_FAILURES = ("output", "token_usage", "cost_usd")
"""What the details of the error tell of a run that did not complete, where there is any."""


def outcome_of(run: Run) -> RunResult | GreenroomError:
    """The result of a completed run, or the error that its await raises. The run has ended."""
    if run.status is RunStatus.COMPLETED:
        return RunResult(
            run_id=run.id,
            session_id=run.session_id,
            status=run.status,
            output=run.output or {},
            token_usage=run.token_usage,
            cost_usd=run.cost_usd,
            provider=run.provider,
            model=run.model,
            attempts=run.attempt,
            stop_reason=run.stop_reason,
            timings={
                "queued_s": seconds_between(run.queued_at, run.started_at),
                "running_s": seconds_between(run.started_at, run.ended_at),
            },
            workspace=None,
            policy=run.policy,
            routing=run.routing,
            last_seq=run.last_seq,
        )
    details: dict[str, object] = {
        "run_id": run.id,
        "session_id": run.session_id,
        "last_seq": run.last_seq,
        "attempts": run.attempt,
    }
    details |= {name: value for name in KEPT_OF_FAILURES if (value := getattr(run, name)) not in (None, {})}
    if run.status is RunStatus.CANCELLED:
        return cancelled_error(details, run.stop_reason)
    if run.status is RunStatus.TIMEOUT:
        return deadline_error(details)
    error = error_from_record(run.error or {})
    error.details = {**error.details, **details}
    return error


def cancelled_error(details: dict[str, object], reason: str | None) -> Cancelled:
    """The error that awaiting a cancelled run raises."""
    message = f"The run was cancelled: {reason}." if reason else None
    return Cancelled(message, details={**details, "reason": reason})


def deadline_error(details: dict[str, object]) -> DeadlineExceeded:
    """The error that awaiting a run past its deadline raises."""
    return DeadlineExceeded(details=details)


def seconds_between(start: datetime | None, end: datetime | None) -> float:
    """Seconds from start to end; 0 where one of them is unknown."""
    return (end - start).total_seconds() if start and end else 0.0
