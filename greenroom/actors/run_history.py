"""What a run did, used and asked for in all its attempts, as the log has it."""

from collections.abc import Iterable, Sequence
from typing import Any

from ..domain.approval import APPROVAL_TYPES
from ..domain.event import Event, EventType
from ..domain.event_log import EventLog, EventQuery
from ..domain.past_calls import PAST_CALL_TYPES, PastCalls

_TYPES = (
    PAST_CALL_TYPES
    | APPROVAL_TYPES
    | {
        EventType.RUN_QUEUED,
        EventType.TOKEN_USAGE_UPDATED,
        EventType.TURN_COMPLETED,
        EventType.POLICY_VIOLATION,
    }
)
_PAGE = 10_000


async def run_history(log: EventLog, session_id: str, run_id: str, after: int) -> list[Event]:
    """Its calls of tools, its approvals, what it used and broke, and the beginnings of its attempts, in order."""
    events: list[Event] = []
    while page := await log.read(session_id, EventQuery(after=after, run_id=run_id, types=_TYPES, limit=_PAGE)):
        events += page
        after = page[-1].seq
    return events


def past_calls_of(history: Iterable[Event], *, in_doubt: Sequence[tuple[int, dict[str, Any]]] = ()) -> PastCalls:
    """What a next attempt need not do again."""
    return PastCalls(
        ((event.attempt or 1, event.type, event.data) for event in history if event.type in PAST_CALL_TYPES),
        in_doubt=in_doubt,
    )
