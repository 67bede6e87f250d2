"""What requests for events say: which types, and from where on."""

from typing import Annotated

from fastapi import Header, Query

from ...domain.errors import ValidationError
from ...domain.event import EventType

MAX_SEQ = 10**18

Types = Annotated[
    str | None,
    Query(
        max_length=2_000,
        description="Names of event types, with commas between them.",
        examples=["run_started,run_completed"],
    ),
]
RunId = Annotated[str | None, Query(max_length=200)]
After = Annotated[int | None, Query(ge=0, le=MAX_SEQ, description="The seq after which to begin.")]
LastEventId = Annotated[
    str | None, Header(max_length=2_000, description="What a client that reconnects saw last; goes before `after`.")
]


def event_types(given: str | None) -> list[str] | None:
    """The names. ValidationError for one that is no type."""
    if given is None:
        return None
    names = [name for name in given.split(",") if name]
    for name in names:
        if name not in set(EventType):
            raise ValidationError(f"types names {name[:80]!r}, which is no event type.", details={"field": "types"})
    return names


def seq_to_follow(last_event_id: str | None, after: int | None) -> int:
    """Where to go on: a browser that reconnects says so in its header, whatever its address says."""
    if not last_event_id:
        return after or 0
    if not (last_event_id.isascii() and last_event_id.isdecimal() and int(last_event_id) <= MAX_SEQ):
        raise ValidationError("Last-Event-ID must be a seq.", details={"field": "last-event-id"})
    return int(last_event_id)
