"""What answers hold, for the OpenAPI file. Answers are not made through these: records are sent as they are."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ...domain.event import EventType
from ...domain.run import RunStatus
from ...domain.session import SessionState

Mapping = dict[str, Any]


class Record(BaseModel):
    """All fields are always there."""

    model_config = ConfigDict(extra="forbid")


class SessionRecord(Record):
    """A session."""

    id: str = Field(examples=["ses_0193e6b8c1f27d4a9c3b5e7f1a2b3c4d"])
    agent_id: str
    status: SessionState
    parent_session_id: str | None
    metadata: Mapping
    context: Mapping
    tags: list[str]
    created_at: str = Field(json_schema_extra={"format": "date-time"})
    updated_at: str = Field(json_schema_extra={"format": "date-time"})
    epoch: int
    provider: str
    max_concurrent_runs: int
    max_queued_runs: int
    run_defaults: Mapping
    error: Mapping | None
    idempotency_key: str | None
    budget: Mapping | None
    pause_reason: str | None


class RunRecord(Record):
    """A run."""

    id: str = Field(examples=["run_0193e6b8c1f27d4a9c3b5e7f1a2b3c4d"])
    session_id: str
    status: RunStatus
    input: Mapping
    options: Mapping
    output: Mapping | None
    error: Mapping | None
    metadata: Mapping
    attempt: int
    turn_count: int
    token_usage: dict[str, int]
    cost_usd: float | None
    created_at: str
    queued_at: str
    started_at: str | None
    ended_at: str | None
    provider: str | None
    model: str | None
    stop_reason: str | None
    queued_seq: int
    first_started_at: str | None
    last_seq: int
    idempotency_key: str | None
    policy: Mapping | None
    routing: Mapping | None


class EventRecord(Record):
    """An event."""

    seq: int
    id: str
    session_id: str
    run_id: str | None
    attempt: int | None
    type: EventType
    timestamp: str
    recorded_at: str
    provider: str | None
    data: Mapping
    metadata: Mapping
    schema_version: int


class StatusRecord(Record):
    """What a session is doing right now."""

    session_id: str
    state: SessionState
    draining: bool
    epoch: int
    queued: list[str]
    in_flight: list[str]
    max_concurrent_runs: int
    max_queued_runs: int
    subscribers: int
    pending_approvals: list[Mapping]
    processes: list[Mapping]
    last_seq: int
    waiting: dict[str, Mapping]


class SessionPage(Record):
    """Some sessions, and where the next page begins; null: there is none."""

    items: list[SessionRecord]
    next_cursor: str | None


class RunPage(Record):
    """Some runs, and where the next page begins; null: there is none."""

    items: list[RunRecord]
    next_cursor: str | None


class EventPage(Record):
    """Some events, and the `after` of the next page."""

    events: list[EventRecord]
    next_after: int


class RunAccepted(Record):
    """A run that is durably queued."""

    run_id: str


class Cancelled(Record):
    """Whether this call stopped the run; false: it had ended."""

    cancelled: bool


class SteerReceiptRecord(Record):
    """Whether the message was taken up at once (`seq` says where), or goes with the next turn."""

    run_id: str
    delivered: bool
    seq: int | None


class TranscriptRecord(Record):
    """What was said, in order."""

    messages: list[Mapping]


class ApprovalRecord(Record):
    """A tool call that waits for a person."""

    id: str
    session_id: str
    run_id: str
    tool_name: str
    input: Any
    expires_at: str


class ApprovalList(Record):
    """Those that wait, over all sessions of the tenant."""

    items: list[ApprovalRecord]


class ProviderRecord(Record):
    """A provider, and its account where attempts are counted."""

    name: str
    kind: str
    account: Mapping | None


class ProviderList(Record):
    """All that runs may name."""

    items: list[ProviderRecord]


class BudgetRecord(Record):
    """A budget that concerns the tenant."""

    scope: str
    limits: Mapping
    spent: Mapping


class BudgetList(Record):
    """Of the runtime and of the tenant."""

    items: list[BudgetRecord]


class StatsRecord(Record):
    """How much there is, over all tenants."""

    sessions: int
    runs: int
    events: int
    bytes: int
    processes: int


class HealthRecord(Record):
    """All is well."""

    status: str = Field(examples=["ok"])
