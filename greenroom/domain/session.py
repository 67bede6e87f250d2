"""The Session record, and the table of what may become of a session."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, cast

from .budget_options import BudgetOptions
from .errors import InvalidTransition, ValidationError
from .event import EventType


class SessionState(StrEnum):
    """Where a session stands."""

    PENDING = "pending"
    ACTIVE = "active"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return not SESSION_TRANSITIONS[self]


SESSION_TRANSITIONS: Mapping[SessionState, Mapping[EventType, SessionState]] = {
    SessionState.PENDING: {
        EventType.SESSION_STARTED: SessionState.ACTIVE,
        EventType.SESSION_FAILED: SessionState.FAILED,
        EventType.SESSION_CANCELLED: SessionState.CANCELLED,
    },
    SessionState.ACTIVE: {
        EventType.SESSION_PAUSED: SessionState.PAUSED,
        EventType.SESSION_COMPLETED: SessionState.COMPLETED,
        EventType.SESSION_FAILED: SessionState.FAILED,
        EventType.SESSION_CANCELLED: SessionState.CANCELLED,
    },
    SessionState.PAUSED: {
        EventType.SESSION_RESUMED: SessionState.ACTIVE,
        EventType.SESSION_COMPLETED: SessionState.COMPLETED,
        EventType.SESSION_FAILED: SessionState.FAILED,
        EventType.SESSION_CANCELLED: SessionState.CANCELLED,
    },
    SessionState.COMPLETED: {},
    SessionState.FAILED: {},
    SessionState.CANCELLED: {},
}
"""(status, event) -> status. What is not in the table is refused and changes nothing."""


def next_session_status(status: SessionState, event_type: EventType) -> SessionState:
    """The status after the event, or InvalidTransition if the table has no such move."""
    try:
        return SESSION_TRANSITIONS[status][event_type]
    except KeyError:
        raise InvalidTransition(
            f"A session that is {status} cannot take {event_type}; nothing was changed.",
            details={"status": status.value, "event": event_type.value},
        ) from None


DRAINED = "drained"
"""Why a session is paused that took no new runs until the last one had ended."""

TENANT = "tenant"
"""The key of the metadata of a session that says whose it is."""

PROJECT = "project"
"""The key that says what it is for."""

ROW = "greenroom.row"
"""The key of the metadata of a session that carries out a row of a batch: which one."""

DEFAULT_MAX_CONCURRENT_RUNS = 1
DEFAULT_MAX_QUEUED_RUNS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSpec:
    """What a session is opened with. Checked when made: a bad value raises ValidationError that names the field."""

    agent_id: str = "agent"
    provider: str | None = None
    """Name of the declared provider that runs use unless they say otherwise; None: the runtime's default."""
    context: dict[str, Any] = field(default_factory=dict[str, Any])
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    tags: tuple[str, ...] = ()
    parent_session_id: str | None = None
    max_concurrent_runs: int = DEFAULT_MAX_CONCURRENT_RUNS
    max_queued_runs: int = DEFAULT_MAX_QUEUED_RUNS
    """How many runs may wait; a run that finds a free slot does not count. 0 is legal."""
    run_defaults: dict[str, Any] = field(default_factory=dict[str, Any])
    """Run options that hold for every run of the session unless the run gives its own."""
    budget: BudgetOptions | None = None
    """What all runs of the session may use together."""

    def __post_init__(self) -> None:
        if not self.agent_id:
            raise ValidationError("agent_id is empty; give the agent a name.", details={"field": "agent_id"})
        for key in (TENANT, PROJECT):
            if not isinstance(self.metadata.get(key, ""), str):
                raise ValidationError(f"metadata.{key} must be text.", details={"field": f"metadata.{key}"})
        if self.max_concurrent_runs < 1:
            raise ValidationError(
                f"max_concurrent_runs is {self.max_concurrent_runs}; it must be at least 1.",
                details={"field": "max_concurrent_runs"},
            )
        if self.max_queued_runs < 0:
            raise ValidationError(
                f"max_queued_runs is {self.max_queued_runs}; it must be at least 0.",
                details={"field": "max_queued_runs"},
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session as its events have made it."""

    id: str
    agent_id: str
    status: SessionState
    parent_session_id: str | None
    metadata: dict[str, Any]
    context: dict[str, Any]
    tags: list[str]
    created_at: datetime
    updated_at: datetime
    epoch: int
    """How often the session has been taken over by an owner; only the newest owner can write."""
    provider: str
    max_concurrent_runs: int
    max_queued_runs: int
    run_defaults: dict[str, Any]
    error: dict[str, Any] | None
    idempotency_key: str | None
    budget: dict[str, Any] | None = None
    """What its runs may use together, as given when it was opened."""
    pause_reason: str | None = None
    """Why it is paused, if something else than `pause` did that."""
    last_call_id: str | None = None
    """The call that brought it to its status: it may come again."""
    conversations: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    """By provider: what it needs to go on with the newest conversation that it had in this session."""

    @property
    def is_paused(self) -> bool:
        return self.status is SessionState.PAUSED

    @property
    def tenant(self) -> str | None:
        """Whose it is."""
        return self.metadata.get(TENANT)

    @property
    def project(self) -> str | None:
        """What it is for."""
        return self.metadata.get(PROJECT)

    @property
    def row(self) -> Mapping[str, Any] | None:
        """Which row of a batch it carries out: `job`, `keys`, `stops_at_failure`."""
        row: Any = self.metadata.get(ROW)
        return cast("Mapping[str, Any]", row) if isinstance(row, Mapping) else None

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON-safe values, times in ISO 8601."""
        return {
            "id": self.id,
            "agent_id": self.agent_id,
            "status": self.status.value,
            "parent_session_id": self.parent_session_id,
            "metadata": self.metadata,
            "context": self.context,
            "tags": self.tags,
            "created_at": self.created_at.isoformat(),
            "updated_at": self.updated_at.isoformat(),
            "epoch": self.epoch,
            "provider": self.provider,
            "max_concurrent_runs": self.max_concurrent_runs,
            "max_queued_runs": self.max_queued_runs,
            "run_defaults": self.run_defaults,
            "error": self.error,
            "idempotency_key": self.idempotency_key,
            "budget": self.budget,
            "pause_reason": self.pause_reason,
            "last_call_id": self.last_call_id,
            "conversations": self.conversations,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Session":
        """The inverse of `to_dict`."""
        values: dict[str, Any] = {
            **record,
            "status": SessionState(record["status"]),
            "created_at": datetime.fromisoformat(record["created_at"]),
            "updated_at": datetime.fromisoformat(record["updated_at"]),
        }
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStatus:
    """What a live session is doing right now (the answer of `status()`)."""

    session_id: str
    state: SessionState
    draining: bool
    epoch: int
    queued: list[str]
    """Run ids that wait, in the order in which they will start."""
    in_flight: list[str]
    """Run ids that hold a slot, in the order in which they started."""
    max_concurrent_runs: int
    max_queued_runs: int
    subscribers: int
    pending_approvals: list[dict[str, Any]]
    """Tool calls that wait for a person: id, run_id, tool_call_id, tool_name, input, expires_at."""
    processes: list[dict[str, Any]]
    """Of its providers: run_id, pid, count of processes in the tree, and memory_bytes of them together."""
    last_seq: int
    waiting: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    """By run id, of those that wait for a provider account: `provider`, `reason` (circuit_open, paused, rate,
    concurrency or line), `since`, and `retry_in_s` as it was then (None: when another run has ended)."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON-safe values."""
        return {**asdict(self), "state": self.state.value}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "SessionStatus":
        """The inverse of `to_dict`."""
        values: dict[str, Any] = {**record, "state": SessionState(record["state"])}
        return cls(**values)
