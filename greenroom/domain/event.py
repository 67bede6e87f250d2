"""Events: what happened in a session, in one sequence without gap. Everything else is derived from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple

SCHEMA_VERSION = 1
"""Version of the event layout that this code writes; older ones are read, newer ones are refused."""


class EventType(StrEnum):
    """Everything that can happen. The order is fixed: a type's position is its bit in stored type masks."""

    SESSION_CREATED = "session_created"
    SESSION_STARTED = "session_started"
    SESSION_PAUSED = "session_paused"
    SESSION_RESUMED = "session_resumed"
    SESSION_COMPLETED = "session_completed"
    SESSION_FAILED = "session_failed"
    SESSION_CANCELLED = "session_cancelled"
    RUN_QUEUED = "run_queued"
    RUN_STARTED = "run_started"
    RUN_COMPLETED = "run_completed"
    RUN_FAILED = "run_failed"
    RUN_CANCELLED = "run_cancelled"
    RUN_TIMEOUT = "run_timeout"
    MESSAGE_SENT = "message_sent"
    MESSAGE_STREAMED = "message_streamed"
    MESSAGE_RECEIVED = "message_received"
    TOOL_CALL_STARTED = "tool_call_started"
    TOOL_CALL_COMPLETED = "tool_call_completed"
    TOOL_CALL_FAILED = "tool_call_failed"
    TOOL_APPROVAL_REQUESTED = "tool_approval_requested"
    TOOL_APPROVAL_GRANTED = "tool_approval_granted"
    TOOL_APPROVAL_DENIED = "tool_approval_denied"
    TOKEN_USAGE_UPDATED = "token_usage_updated"  # noqa: S105  not a password
    TURN_COMPLETED = "turn_completed"
    ERROR_OCCURRED = "error_occurred"
    ERROR_RECOVERED = "error_recovered"
    WORKSPACE_SNAPSHOT_TAKEN = "workspace_snapshot_taken"
    WORKSPACE_DIFF_COMPUTED = "workspace_diff_computed"
    WORKSPACE_ROLLED_BACK = "workspace_rolled_back"
    POLICY_VIOLATION = "policy_violation"
    PROVIDER_SELECTED = "provider_selected"
    PROVIDER_FAILED_OVER = "provider_failed_over"
    SESSION_STEERED = "session_steered"


TYPE_BITS: dict[EventType, int] = {event_type: 1 << position for position, event_type in enumerate(EventType)}
"""One bit per type; a batch of events keeps the union, so that a filtered read can pass over whole batches."""

RUN_ENDINGS = frozenset({EventType.RUN_COMPLETED, EventType.RUN_FAILED, EventType.RUN_CANCELLED, EventType.RUN_TIMEOUT})
"""A run has exactly one of these, and nothing after it."""

SESSION_ENDINGS = frozenset({EventType.SESSION_COMPLETED, EventType.SESSION_FAILED, EventType.SESSION_CANCELLED})
"""A session has at most one of these, and nothing after it."""

RECORD_TYPES = RUN_ENDINGS | {
    EventType.SESSION_CREATED,
    EventType.SESSION_STARTED,
    EventType.SESSION_PAUSED,
    EventType.SESSION_RESUMED,
    *SESSION_ENDINGS,
    EventType.RUN_QUEUED,
    EventType.RUN_STARTED,
    EventType.MESSAGE_SENT,
}
"""The types that change a Session or a Run record; the projections fold these and no others."""


class NewEvent(NamedTuple):
    """An event before it is stored: what happened, without a place in the sequence.

    A named tuple, not a dataclass: a run makes half a dozen of them, and a frozen dataclass of this size costs 4 µs to
    make against 0.5 µs. The order of the fields is the stored layout.
    """

    id: str
    type: EventType
    timestamp_us: int
    """When it happened, microseconds since 1970 UTC."""
    run_id: str | None
    attempt: int | None
    provider: str | None
    data: dict[str, Any]
    metadata: dict[str, Any]
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One stored event. `seq` counts 1, 2, 3 ... over all events of its session."""

    seq: int
    id: str
    session_id: str
    run_id: str | None
    attempt: int | None
    """Which attempt of the run it belongs to, from 1; None for what belongs to no run."""
    type: EventType
    timestamp: datetime
    """When it happened (UTC)."""
    recorded_at: datetime
    """When the store committed it (UTC)."""
    provider: str | None
    data: dict[str, Any]
    """JSON-safe values only."""
    metadata: dict[str, Any]
    schema_version: int = SCHEMA_VERSION

    def __reduce__(self) -> tuple[Any, ...]:
        return (
            _restore,
            (
                self.seq,
                self.id,
                self.session_id,
                self.run_id,
                self.attempt,
                self.type.value,
                to_microseconds(self.timestamp),
                to_microseconds(self.recorded_at),
                self.provider,
                self.data,
                self.metadata,
                self.schema_version,
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """The event as JSON-safe values, times in ISO 8601."""
        return {
            "seq": self.seq,
            "id": self.id,
            "session_id": self.session_id,
            "run_id": self.run_id,
            "attempt": self.attempt,
            "type": self.type.value,
            "timestamp": self.timestamp.isoformat(),
            "recorded_at": self.recorded_at.isoformat(),
            "provider": self.provider,
            "data": self.data,
            "metadata": self.metadata,
            "schema_version": self.schema_version,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Event":
        """The inverse of `to_dict`."""
        values: dict[str, Any] = {
            **record,
            "type": EventType(record["type"]),
            "timestamp": datetime.fromisoformat(record["timestamp"]),
            "recorded_at": datetime.fromisoformat(record["recorded_at"]),
        }
        return cls(**values)


def _restore(
    seq: int,
    id: str,
    session_id: str,
    run_id: str | None,
    attempt: int | None,
    type: str,
    timestamp_us: int,
    recorded_at_us: int,
    provider: str | None,
    data: dict[str, Any],
    metadata: dict[str, Any],
    schema_version: int,
) -> Event:
    return Event(
        seq=seq,
        id=id,
        session_id=session_id,
        run_id=run_id,
        attempt=attempt,
        type=EventType(type),
        timestamp=from_microseconds(timestamp_us),
        recorded_at=from_microseconds(recorded_at_us),
        provider=provider,
        data=data,
        metadata=metadata,
        schema_version=schema_version,
    )


_MICROSECONDS = 1_000_000


def from_microseconds(microseconds: int) -> datetime:
    """The UTC time that many microseconds after 1970, exact."""
    seconds, rest = divmod(microseconds, _MICROSECONDS)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)


def to_microseconds(moment: datetime) -> int:
    """Microseconds since 1970 UTC, exact; the inverse of `from_microseconds`."""
    return int(moment.replace(microsecond=0).timestamp()) * _MICROSECONDS + moment.microsecond


def mask_of(types: "set[EventType] | frozenset[EventType]") -> int:
    """The union of the types' bits."""
    mask = 0
    for event_type in types:
        mask |= TYPE_BITS[event_type]
    return mask
