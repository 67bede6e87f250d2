"""Approvals: a tool call that waits for a person."""

import json
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from .errors import ValidationError
from .event import Event, EventType, from_microseconds, to_microseconds

BY_CALLER = "caller"
"""Who decided, where the caller does not say."""

BY_GREENROOM = "greenroom"
"""Who decided, when it was time or the end of the run."""

MAX_DECIDER = 200


class Decision(StrEnum):
    """What a person says."""

    APPROVE = "approve"
    DENY = "deny"


def parse_decision(given: object) -> Decision:
    """The decision; ValidationError if it is none."""
    if given not in {"approve", "deny"}:
        raise ValidationError(f"decision is {given!r}; it must be 'approve' or 'deny'.", details={"field": "decision"})
    return Decision(str(given))


def parse_decider(given: object) -> str:
    """The name of who decides, for the log. ValidationError for what is no name, and for the runtime's own."""
    if (
        not isinstance(given, str)
        or not 0 < len(given) <= MAX_DECIDER
        or not given.isprintable()
        or given == BY_GREENROOM
    ):
        raise ValidationError(
            f"by must be the name of who decides: up to {MAX_DECIDER} printable characters, and not {BY_GREENROOM!r}.",
            details={"field": "by"},
        )
    return given


def call_key(tool_name: str, arguments: object) -> str:
    """What makes two calls the same: the tool and its arguments."""
    return f"{tool_name} {json.dumps(arguments, sort_keys=True)}"


@dataclass(slots=True, kw_only=True)
class Approval:
    """One question, and its answer."""

    id: str
    run_id: str
    tool_call_id: str
    """Of the newest attempt that asked."""
    tool_name: str
    input: dict[str, Any]
    expires_at_us: int
    attempt: int
    """The newest attempt that asked."""
    decision: Decision | None = None
    by: str | None = None
    reason: str | None = None

    @property
    def key(self) -> str:
        return call_key(self.tool_name, self.input)

    def to_record(self) -> dict[str, Any]:
        """As status shows one that is pending."""
        return {
            "id": self.id,
            "run_id": self.run_id,
            "tool_call_id": self.tool_call_id,
            "tool_name": self.tool_name,
            "input": self.input,
            "expires_at": from_microseconds(self.expires_at_us).isoformat(),
        }

    def request_data(self) -> dict[str, Any]:
        """The data of tool_approval_requested."""
        record = self.to_record()
        return {"approval_id": record.pop("id"), "tool_input": record.pop("input"), **record}

    def decision_data(self) -> dict[str, Any]:
        """The data of tool_approval_granted and tool_approval_denied."""
        return {
            "approval_id": self.id,
            "tool_call_id": self.tool_call_id,
            "tool_name": self.tool_name,
            "by": self.by,
            "reason": self.reason,
        }


APPROVAL_TYPES = frozenset(
    {EventType.TOOL_APPROVAL_REQUESTED, EventType.TOOL_APPROVAL_GRANTED, EventType.TOOL_APPROVAL_DENIED}
)

DECISION_EVENTS = {
    Decision.APPROVE: EventType.TOOL_APPROVAL_GRANTED,
    Decision.DENY: EventType.TOOL_APPROVAL_DENIED,
}


def fold_approvals(approvals: dict[str, Approval], event: Event) -> None:
    """Take one more event of APPROVAL_TYPES into the approvals by their ids."""
    data = event.data
    known = approvals.get(data["approval_id"])
    if event.type is EventType.TOOL_APPROVAL_REQUESTED:
        if known is not None:
            known.tool_call_id, known.attempt = data["tool_call_id"], event.attempt or 1
            return
        approvals[data["approval_id"]] = Approval(
            id=data["approval_id"],
            run_id=event.run_id or "",
            tool_call_id=data["tool_call_id"],
            tool_name=data["tool_name"],
            input=data["tool_input"],
            expires_at_us=_microseconds(data["expires_at"]),
            attempt=event.attempt or 1,
        )
    elif known is not None:
        granted = event.type is EventType.TOOL_APPROVAL_GRANTED
        known.decision = Decision.APPROVE if granted else Decision.DENY
        known.by, known.reason = data["by"], data["reason"]


def _microseconds(text: str) -> int:
    return to_microseconds(datetime.fromisoformat(text))
