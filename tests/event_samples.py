"""Events to append."""

from typing import Any

from greenroom.adapters.clock import id_factory, now_us
from greenroom.domain.event import EventType, NewEvent

_ids = id_factory()


def new_event(
    event_type: EventType = EventType.MESSAGE_STREAMED, *, run_id: str | None = "run_1", **data: Any
) -> NewEvent:
    """An event of some run, as a provider might give it."""
    return NewEvent(_ids.event_id(), event_type, now_us(), run_id, 1, "scripted", data or {"content": "x"}, {})
