"""The events that the harness writes: each can be told from its id alone, so that nothing else passes for one."""

import hashlib
from typing import NamedTuple

from greenroom.domain.event import Event, EventType, NewEvent

from ..conformance.event_log_suite import created, queued, sent

_STREAMED = {4, 5}
_MESSAGE = 7
"""Of each so many events some are pieces of a message, which may be pruned once the message has been received."""

_SIZES = (5, 40, 200, 200, 1_000, 6_000)
_LARGE = 120_000


class Place(NamedTuple):
    """Where an event belongs: the stream is one owner's, and its events count 1, 2, 3 ..."""

    session: str
    stream: int
    counter: int


def event_at(place: Place, *, opens: bool) -> NewEvent:
    """The event of this place; the first of a stream that opens a session says so."""
    kind = _kind(place.counter, opens=opens)
    run_id = run_of(place)
    if kind is EventType.SESSION_CREATED:
        made = created()
    elif kind is EventType.RUN_QUEUED:
        made = queued(run_id, key=f"key_{run_id}")
    elif kind is EventType.MESSAGE_SENT:
        made = sent(run_id)
    else:
        run = f"{run_id}.{place.counter // _MESSAGE}"
        made = NewEvent("", kind, 1, run, 1, None, {"content": _content(place)}, {})
    return made._replace(id=_id(place))


def run_of(place: Place) -> str:
    """The run that the stream begins with its second event."""
    return f"run_{place.session}_{place.stream}"


def place_of(event: Event) -> Place | None:
    """Where an event says that it belongs; None if it is not one of ours, or not as it was made."""
    head, _, rest = event.id.partition("|")
    stream, _, counter = rest.partition("|")
    if head != event.session_id or not (stream.isdigit() and counter.isdigit()):
        return None
    place = Place(head, int(stream), int(counter))
    made = event_at(place, opens=event.type is EventType.SESSION_CREATED)
    same = (made.id, made.type, made.run_id, made.data) == (event.id, event.type, event.run_id, event.data)
    return place if same else None


def may_be_pruned(counter: int) -> bool:
    """Whether pruning may take the event with this number."""
    return counter > _MESSAGE and counter % _MESSAGE in _STREAMED


def _kind(counter: int, *, opens: bool) -> EventType:
    if counter == 1 and opens:
        return EventType.SESSION_CREATED
    if counter == 2:
        return EventType.RUN_QUEUED
    if counter == 3:
        return EventType.MESSAGE_SENT
    if may_be_pruned(counter):
        return EventType.MESSAGE_STREAMED
    if counter % _MESSAGE == max(_STREAMED) + 1:
        return EventType.MESSAGE_RECEIVED
    return EventType.TOOL_CALL_STARTED


def _id(place: Place) -> str:
    return f"{place.session}|{place.stream}|{place.counter}"


def _content(place: Place) -> str:
    """Text that only this place has, of a size that only it has."""
    digest = hashlib.sha256(_id(place).encode()).hexdigest()
    size = _LARGE if digest.startswith("000") else _SIZES[int(digest[:8], 16) % len(_SIZES)]
    return (digest * (size // len(digest) + 1))[:size]
