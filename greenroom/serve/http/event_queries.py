"""What requests for events say: which types, and from where on."""

from typing import Annotated

from fastapi import Header, Query

from ...domain.event import EventType

MAX_SEQ = 10**18 - 1

CURSOR = r"^[0-9a-f]{8}[.][0-9a-f.-]{3,3000}$"
"""Of the feed, roughly; what it means is nobody's business but the feed's."""

_NAME = "|".join(EventType)

Types = Annotated[
    str | None,
    Query(
        pattern=rf"^({_NAME})(,({_NAME}))*$",
        max_length=2_000,
        description="Names of event types, with commas between them.",
        examples=["run_started,run_completed"],
    ),
]
RunId = Annotated[str | None, Query(max_length=200)]
After = Annotated[int | None, Query(ge=0, le=MAX_SEQ, description="The seq after which to begin.")]
LastEventId = Annotated[
    str | None, Header(pattern=r"^\d{0,18}$", description="The seq that a client saw last; goes before `after`.")
]


def event_types(given: str | None) -> list[str] | None:
    """The names."""
    return None if given is None else given.split(",")


def seq_to_follow(last_event_id: str | None, after: int | None) -> int:
    """Where to go on: a browser that reconnects says so in its header, whatever its address says."""
    return int(last_event_id) if last_event_id else after or 0
