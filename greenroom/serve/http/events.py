"""Routes of events: pages, and streams that a client takes up again where it left off."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from sse_starlette import EventSourceResponse

from ...domain.errors import GreenroomError, ResyncRequired, ValidationError
from ...domain.event import EventType
from .caller import Reader
from .runs import MAX_WAIT_S
from .service import TheService

router = APIRouter(prefix="/v1/sessions/{session_id}/events", tags=["events"])

HEARTBEAT_S = 15
SEND_TIMEOUT_S = 60.0
"""A client that takes nothing for so long is dropped; it comes back with its Last-Event-ID."""

Types = Annotated[str | None, Query(max_length=2_000, description="Names of event types, with commas between them.")]
RunId = Annotated[str | None, Query(max_length=200)]
After = Annotated[int | None, Query(ge=0)]


@router.get("")
async def read_events(
    session_id: str,
    key: Reader,
    service: TheService,
    after: Annotated[int, Query(ge=0)] = 0,
    before: Annotated[int | None, Query(ge=0)] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
    types: Types = None,
    run_id: RunId = None,
    wait_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 0,
) -> dict[str, Any]:
    """A page of events; `next_after` is where the next one begins. `wait_s` waits for a match."""
    handle = await service.handle(key, session_id)
    events = await service.ask(handle.read_events.remote(after, before, limit, run_id, _types(types), None, wait_s))
    return {"events": [event.to_dict() for event in events], "next_after": events[-1].seq if events else after}


@router.get("/stream", response_class=EventSourceResponse)
async def stream_events(
    session_id: str,
    key: Reader,
    service: TheService,
    after: After = None,
    run_id: RunId = None,
    types: Types = None,
    last_event_id: Annotated[str | None, Header(max_length=40)] = None,
) -> EventSourceResponse:
    """Server-sent events: `id` is the seq, `event` the type, `data` the event. Ends when the session (or the run) has
    ended and everything was sent; `Last-Event-ID` goes on where a connection broke."""
    handle = await service.handle(key, session_id)
    wanted = _types(types)
    if run_id is not None:
        await service.run(key, session_id, run_id)
    from_seq = _cursor(last_event_id, after)

    async def messages() -> AsyncGenerator[dict[str, Any]]:
        async with aclosing(handle.follow(from_seq, run_id=run_id, types=wanted)) as events:
            try:
                async for event in events:
                    yield {"id": str(event.seq), "event": event.type.value, "data": json.dumps(event.to_dict())}
            except ResyncRequired as exc:
                yield {"event": exc.code, "data": json.dumps({"lowest_seq": exc.details.get("lowest_seq")})}
            except GreenroomError as exc:
                yield {"event": "error", "data": json.dumps({"code": exc.code})}

    return EventSourceResponse(messages(), ping=HEARTBEAT_S, send_timeout=SEND_TIMEOUT_S)


def _types(given: str | None) -> list[str] | None:
    if given is None:
        return None
    names = [name for name in given.split(",") if name]
    for name in names:
        if name not in set(EventType):
            raise ValidationError(f"types names {name[:80]!r}, which is no event type.", details={"field": "types"})
    return names


def _cursor(last_event_id: str | None, after: int | None) -> int:
    """Where to go on: a browser that reconnects says so in its header, whatever its address says."""
    if last_event_id is None:
        return after or 0
    if not last_event_id.isdecimal():
        raise ValidationError("Last-Event-ID must be a seq.", details={"field": "last-event-id"})
    return int(last_event_id)
