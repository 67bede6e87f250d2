"""The Run record, the table of what may become of a run, and the result that a caller gets."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from .errors import InvalidTransition
from .event import EventType


class RunStatus(StrEnum):
    """Where a run stands. `pending` is queued."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"

    @property
    def is_terminal(self) -> bool:
        return not RUN_TRANSITIONS[self]


RUN_TRANSITIONS: Mapping[RunStatus, Mapping[EventType, RunStatus]] = {
    RunStatus.PENDING: {
        EventType.RUN_STARTED: RunStatus.RUNNING,
        EventType.RUN_FAILED: RunStatus.FAILED,
        EventType.RUN_CANCELLED: RunStatus.CANCELLED,
        EventType.RUN_TIMEOUT: RunStatus.TIMEOUT,
    },
    RunStatus.RUNNING: {
        EventType.RUN_QUEUED: RunStatus.PENDING,  # the next attempt, after a crash
        EventType.RUN_COMPLETED: RunStatus.COMPLETED,
        EventType.RUN_FAILED: RunStatus.FAILED,
        EventType.RUN_CANCELLED: RunStatus.CANCELLED,
        EventType.RUN_TIMEOUT: RunStatus.TIMEOUT,
    },
    RunStatus.COMPLETED: {},
    RunStatus.FAILED: {},
    RunStatus.CANCELLED: {},
    RunStatus.TIMEOUT: {},
}
"""(status, event) -> status. What is not in the table is refused and changes nothing."""


def next_run_status(status: RunStatus, event_type: EventType) -> RunStatus:
    """The status after the event, or InvalidTransition if the table has no such move."""
    try:
        return RUN_TRANSITIONS[status][event_type]
    except KeyError:
        raise InvalidTransition(
            f"A run that is {status} cannot take {event_type}; nothing was changed.",
            details={"status": status.value, "event": event_type.value},
        ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as its events have made it."""

    id: str
    session_id: str
    status: RunStatus
    input: dict[str, Any]
    """`{"messages": [{"role", "content"}, ...]}`, whatever form it was submitted in."""
    options: dict[str, Any]
    """The run options that differ from their defaults, those of the session's run_defaults among them."""
    output: dict[str, Any] | None
    error: dict[str, Any] | None
    metadata: dict[str, Any]
    attempt: int
    turn_count: int
    token_usage: dict[str, int]
    cost_usd: float | None
    created_at: datetime
    queued_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    provider: str | None
    model: str | None
    stop_reason: str | None
    queued_seq: int
    """The seq of its first run_queued: the order of the queue."""
    first_started_at: datetime | None
    """When its first attempt started: what the deadline is measured from."""
    last_seq: int
    idempotency_key: str | None
    call_id: str | None
    policy: dict[str, Any] | None = None
    """What came of its policies: names, violations, warnings, usage."""
    routing: dict[str, Any] | None = None
    """How it got to its provider, where a router chose or an attempt failed."""

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON-safe values, times in ISO 8601."""
        return {
            "id": self.id,
            "session_id": self.session_id,
            "status": self.status.value,
            "input": self.input,
            "options": self.options,
            "output": self.output,
            "error": self.error,
            "metadata": self.metadata,
            "attempt": self.attempt,
            "turn_count": self.turn_count,
            "token_usage": self.token_usage,
            "cost_usd": self.cost_usd,
            "created_at": self.created_at.isoformat(),
            "queued_at": self.queued_at.isoformat(),
            "started_at": self.started_at.isoformat() if self.started_at else None,
            "ended_at": self.ended_at.isoformat() if self.ended_at else None,
            "provider": self.provider,
            "model": self.model,
            "stop_reason": self.stop_reason,
            "queued_seq": self.queued_seq,
            "first_started_at": self.first_started_at.isoformat() if self.first_started_at else None,
            "last_seq": self.last_seq,
            "idempotency_key": self.idempotency_key,
            "call_id": self.call_id,
            "policy": self.policy,
            "routing": self.routing,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Run":
        """The inverse of `to_dict`."""
        values: dict[str, Any] = {**record, "status": RunStatus(record["status"])}
        for name in ("created_at", "queued_at", "started_at", "ended_at", "first_started_at"):
            if record[name] is not None:
                values[name] = datetime.fromisoformat(record[name])
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a completed run gave."""

    run_id: str
    session_id: str
    status: RunStatus
    output: dict[str, Any]
    """`content` (text), and `structured` when a schema was asked for."""
    token_usage: dict[str, int]
    cost_usd: float | None
    """None when no price is known for the model."""
    provider: str | None
    model: str | None
    attempts: int
    stop_reason: str | None
    timings: dict[str, float]
    """`queued_s` and `running_s`, seconds."""
    workspace: dict[str, Any] | None
    policy: dict[str, Any] | None
    routing: dict[str, Any] | None
    last_seq: int
    """The seq of the event that ended the run."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Half the cost of the default for a slotted dataclass; await_runs sends hundreds of these in one answer.
        return (
            _restore_result,
            (
                self.run_id,
                self.session_id,
                self.status.value,
                self.output,
                self.token_usage,
                self.cost_usd,
                self.provider,
                self.model,
                self.attempts,
                self.stop_reason,
                self.timings,
                self.workspace,
                self.policy,
                self.routing,
                self.last_seq,
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON-safe values."""
        return {
            "run_id": self.run_id,
            "session_id": self.session_id,
            "status": self.status.value,
            "output": self.output,
            "token_usage": self.token_usage,
            "cost_usd": self.cost_usd,
            "provider": self.provider,
            "model": self.model,
            "attempts": self.attempts,
            "stop_reason": self.stop_reason,
            "timings": self.timings,
            "workspace": self.workspace,
            "policy": self.policy,
            "routing": self.routing,
            "last_seq": self.last_seq,
        }


def _restore_result(
    run_id: str,
    session_id: str,
    status: str,
    output: dict[str, Any],
    token_usage: dict[str, int],
    cost_usd: float | None,
    provider: str | None,
    model: str | None,
    attempts: int,
    stop_reason: str | None,
    timings: dict[str, float],
    workspace: dict[str, Any] | None,
    policy: dict[str, Any] | None,
    routing: dict[str, Any] | None,
    last_seq: int,
) -> RunResult:
    return RunResult(
        run_id=run_id,
        session_id=session_id,
        status=RunStatus(status),
        output=output,
        token_usage=token_usage,
        cost_usd=cost_usd,
        provider=provider,
        model=model,
        attempts=attempts,
        stop_reason=stop_reason,
        timings=timings,
        workspace=workspace,
        policy=policy,
        routing=routing,
        last_seq=last_seq,
    )
