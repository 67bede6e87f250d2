"""Events of a session over a WebSocket, with the same cursor as over server-sent events."""

import asyncio
import json
from collections.abc import Callable
from contextlib import aclosing
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, WebSocket, WebSocketDisconnect

from ...actors.event_stream import EventStream
from ...domain.api_key import ApiKey, Scope
from ...domain.errors import GreenroomError, ResyncRequired, Unauthorized
from .caller import TheCallers, bearer_token
from .event_queries import MAX_SEQ, RunId, event_types
from .problems import status_of
from .service import Service, TheService

router = APIRouter()

PROTOCOL = "greenroom.v1"
_KEY_PREFIX = "key."
"""A browser cannot set headers on a WebSocket: it offers the protocols `greenroom.v1` and `key.<key>` instead."""

_NORMAL = 1000
_COME_AGAIN = 1012
_APPLICATION = 4000
"""Close codes of applications; the HTTP status of what went wrong is added: 4401, 4404."""

_SEND_TIMEOUT_S = 60.0


@router.websocket("/v1/sessions/{session_id}/events/ws")
async def follow(
    socket: WebSocket,
    session_id: str,
    service: TheService,
    callers: TheCallers,
    after: Annotated[int, Query(ge=0, le=MAX_SEQ)] = 0,
    run_id: RunId = None,
    types: Annotated[str | None, Query(max_length=2_000)] = None,
) -> None:
    """Each message is an event as JSON. What is no event has `control`: `end` when the session (or the run) has ended
    and everything was sent, `resync_required` with `lowest_seq`. Who reconnects, as the code 1012 asks for, gives the
    last seq as `after`."""
    await socket.accept(subprotocol=PROTOCOL if PROTOCOL in socket.scope.get("subprotocols", ()) else None)
    try:
        with service.open_stream():
            key = callers.admit(socket, bearer_token(socket) or _offered_key(socket), Scope.READ)
            events = await _opened(service, key, session_id, run_id, after, types)
            await _served(socket, events, service.max_stream_s, lambda: callers.is_good(key))
    except ResyncRequired as exc:
        await socket.send_json({"control": exc.code, "lowest_seq": exc.details.get("lowest_seq")})
        await socket.close(_APPLICATION + HTTPStatus.GONE)
    except GreenroomError as exc:
        await socket.close(_APPLICATION + status_of(exc), exc.code)
    except (WebSocketDisconnect, TimeoutError):
        return  # nobody is there any more


async def _opened(
    service: Service, key: ApiKey, session_id: str, run_id: str | None, after: int, types: str | None
) -> EventStream:
    handle = await service.handle(key, session_id)
    wanted = event_types(types)
    if run_id is not None:
        await service.run(key, session_id, run_id)
    return handle.follow(after, run_id=run_id, types=wanted)


def _offered_key(socket: WebSocket) -> str | None:
    offered: list[str] = socket.scope.get("subprotocols", [])
    return next((name.removeprefix(_KEY_PREFIX) for name in offered if name.startswith(_KEY_PREFIX)), None)


async def _served(socket: WebSocket, events: EventStream, max_s: float, is_allowed: Callable[[], bool]) -> None:
    """Send what comes, until it ends, the client leaves, or it has lasted for long enough; what a client says is not
    listened to."""
    sending = asyncio.create_task(_send_all(socket, events, is_allowed))
    leaving = asyncio.create_task(_left(socket))
    try:
        done, _ = await asyncio.wait([sending, leaving], timeout=max_s, return_when=asyncio.FIRST_COMPLETED)
        if sending in done:
            sending.result()
            await socket.close(_NORMAL)
        elif not done:
            await socket.close(_COME_AGAIN)
    finally:
        for task in (sending, leaving):
            task.cancel()
        await asyncio.gather(sending, leaving, return_exceptions=True)


async def _send_all(socket: WebSocket, events: EventStream, is_allowed: Callable[[], bool]) -> None:
    async with aclosing(events):
        async for event in events:
            if not is_allowed():
                raise Unauthorized
            await _send(socket, event.to_dict())
        await _send(socket, {"control": "end"})


async def _send(socket: WebSocket, message: dict[str, Any]) -> None:
    async with asyncio.timeout(_SEND_TIMEOUT_S):
        await socket.send_text(json.dumps(message))


async def _left(socket: WebSocket) -> None:
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass
