"""Routes of events: pages, and streams that a client takes up again where it left off."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, nullcontext, suppress
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from sse_starlette import EventSourceResponse
from sse_starlette.sse import SendTimeoutError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...domain.errors import GreenroomError, ResyncRequired
from ...domain.event import Event
from ...domain.feed_cursor import FeedCursor
from .caller import Reader, TheCallers
from .event_queries import CURSOR, MAX_SEQ, After, LastEventId, RunId, Types, event_types, seq_to_follow
from .openapi import describe_stream, problems
from .records import EventPage
from .runs import MAX_WAIT_S
from .service import Service, TheService

router = APIRouter(prefix="/v1", tags=["events"])

_PART_EVENTS = 100  # an event may be 1 MiB
_PAGE_BYTES = 8 * 1024 * 1024
"""A page ends when it has that many bytes. It is read in parts, so that no more than one part is too much."""

HEARTBEAT_S = 15
SEND_TIMEOUT_S = 60.0
"""A client that takes nothing for so long is dropped; it comes back with its Last-Event-ID."""

_STREAM = {200: describe_stream({"id": "7", "event": "run_started", "data": '{"seq": 7, "type": "run_started"}'})}


@router.get(
    "/sessions/{session_id}/events",
    response_model=EventPage,
    responses=problems(HTTPStatus.NOT_FOUND, HTTPStatus.GONE),
)
async def read_events(
    session_id: str,
    key: Reader,
    service: TheService,
    after: Annotated[int, Query(ge=0, le=MAX_SEQ)] = 0,
    before: Annotated[int | None, Query(ge=1, le=MAX_SEQ)] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
    types: Types = None,
    run_id: RunId = None,
    wait_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S, description="Seconds to wait for a match.")] = 0,
) -> Response:
    """A page of events; `next_after` is where the next one begins. Where events are large, a page is shorter."""
    handle = await service.handle(key, session_id)
    wanted = event_types(types)

    async def read(past: int, count: int, wait_s: float = 0) -> list[Event]:
        return await service.ask(handle.read_events, past, before, count, run_id, wanted, None, wait_s)

    with service.open_stream() if wait_s else nullcontext():
        events = await read(after, min(limit, _PART_EVENTS), wait_s)
    page: list[str] = []
    size, next_after = 0, after
    while events:
        part = [json.dumps(event.to_dict()) for event in events]
        page += part
        size, next_after = size + sum(map(len, part)), events[-1].seq
        if len(page) >= limit or len(events) < _PART_EVENTS or size >= _PAGE_BYTES:
            break
        events = await read(next_after, min(limit - len(page), _PART_EVENTS))
    return Response(f'{{"events": [{", ".join(page)}], "next_after": {next_after}}}', media_type="application/json")


@router.get(
    "/sessions/{session_id}/events/stream",
    response_class=EventSourceResponse,
    responses=problems(HTTPStatus.NOT_FOUND) | _STREAM,
)
async def stream_events(
    session_id: str,
    key: Reader,
    service: TheService,
    callers: TheCallers,
    after: After = None,
    run_id: RunId = None,
    types: Types = None,
    last_event_id: LastEventId = None,
) -> Response:
    """Server-sent events: `id` is the seq, `event` the type, `data` the event. Ends when the session (or the run) has
    ended and everything was sent. `resync_required` says that events after the cursor were pruned, and the lowest seq
    there is; `error` that the stream cannot go on."""
    handle = await service.handle(key, session_id)
    wanted = event_types(types)
    if run_id is not None:
        await service.run(key, session_id, run_id)
    from_seq = seq_to_follow(last_event_id, after)

    async def messages() -> AsyncGenerator[dict[str, Any]]:
        async with aclosing(handle.follow(from_seq, run_id=run_id, types=wanted)) as events:
            async for event in events:
                yield message_of(event, str(event.seq))

    return event_stream(service, messages(), is_allowed=partial(callers.is_good, key))


@router.get("/events/stream", response_class=EventSourceResponse, responses=problems(HTTPStatus.GONE) | _STREAM)
async def stream_feed(
    key: Reader,
    service: TheService,
    callers: TheCallers,
    after: Annotated[str | None, Query(pattern=CURSOR, description="A cursor that this feed has sent.")] = None,
    types: Types = None,
    last_event_id: Annotated[str | None, Header(pattern=CURSOR, description="Goes before `after`.")] = None,
) -> Response:
    """All of the tenant's sessions in one stream, each session's events in their order. `id` is a cursor of this feed;
    without one it begins with what is new. `ready` comes first, and now and then while there is nothing for the client:
    it has no event, but a cursor to go on from."""
    feed = service.runtime.feed(key.tenant, event_types(types))
    given = last_event_id or after
    cursor = await feed.checked(given) if given else await feed.now()

    async def messages() -> AsyncGenerator[dict[str, Any]]:
        now = asyncio.get_running_loop().time
        yield _ready(cursor)  # a client that loses this stream knows where it was
        told_at = now()
        async with aclosing(feed.follow(cursor)) as items:
            async for item in items:
                if item.event is not None:
                    yield message_of(item.event, str(item.cursor))
                elif now() - told_at < HEARTBEAT_S:
                    continue
                else:
                    yield _ready(item.cursor)
                told_at = now()

    return event_stream(service, messages(), is_allowed=partial(callers.is_good, key))


def _ready(cursor: FeedCursor) -> dict[str, Any]:
    return {"id": str(cursor), "event": "ready", "data": "{}"}


def message_of(event: Event, cursor: str) -> dict[str, Any]:
    """An event as a message of a stream."""
    return {"id": cursor, "event": event.type.value, "data": json.dumps(event.to_dict())}


def _fault(error: GreenroomError) -> dict[str, Any]:
    if isinstance(error, ResyncRequired):
        return {"event": error.code, "data": json.dumps({"lowest_seq": error.details.get("lowest_seq")})}
    return {"event": "error", "data": json.dumps({"code": error.code})}


def event_stream(
    service: Service,
    messages: AsyncGenerator[dict[str, Any]],
    *,
    is_allowed: Callable[[], bool],
    fault: Callable[[GreenroomError], dict[str, Any]] = _fault,
    may_be_cut: bool = True,
) -> EventSourceResponse:
    """The messages as they come, while they are allowed; what goes wrong is the last one. Where the client can go on by
    a cursor, it may be cut when it has lasted for as long as a stream may."""
    ends_at = asyncio.get_running_loop().time() + service.max_stream_s if may_be_cut else None

    async def guarded() -> AsyncGenerator[dict[str, Any]]:
        async with aclosing(messages):
            try:
                while True:
                    async with asyncio.timeout_at(ends_at):
                        message = await anext(messages)
                    if not is_allowed():
                        return
                    yield message
            except (StopAsyncIteration, TimeoutError):
                return
            except GreenroomError as exc:
                yield fault(exc)

    return _CountedStream(service, guarded(), ping=HEARTBEAT_S, send_timeout=SEND_TIMEOUT_S)


class _CountedStream(EventSourceResponse):
    """One of those that may be open at once."""

    def __init__(self, service: Service, content: AsyncGenerator[dict[str, Any]], **options: Any) -> None:
        super().__init__(content, **options)  # pyright: ignore[reportUnknownMemberType]  its types are not whole
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._service.open_stream(), suppress(SendTimeoutError):
            await super().__call__(scope, receive, send)
