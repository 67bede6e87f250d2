"""Streams of events, over as many connections as it takes."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

import httpx2

from ...domain.errors import GreenroomError, ResyncRequired, RuntimeGone, error_from_record
from ...domain.event import RUN_ENDINGS, SESSION_ENDINGS, Event
from ...domain.run import Run
from ...domain.session import Session
from .backoff import MAX_PAUSE_S, Backoff
from .connection import Connection, Params
from .records import items, json_object, parsed
from .streams import AsyncStream


class AsyncEventStream(AsyncStream[Event]):
    """Every matching event of a session past a seq, once, in order; ends when the session or the run has ended.

    `seq` is that of the last event given: a later stream can go on from there. Connections that break, fall silent or
    are closed by a service that restarts are made again; RuntimeGone when the service cannot be reached for the
    client's `timeout_s`. ResyncRequired, with the `lowest_seq` that there is, when events were deleted meanwhile.
    """

    def __init__(
        self, connection: Connection, session_path: str, *, from_seq: int, run_id: str | None, types: str | None
    ) -> None:
        super().__init__()
        self.seq = from_seq
        self._from_seq = from_seq
        self._connection = connection
        self._session_path = session_path
        self._run_id = run_id
        self._filters: Params = {"run_id": run_id, "types": types}

    async def _open(self) -> AsyncGenerator[Event]:
        params = {**self._filters, "after": self._from_seq}
        path = f"{self._session_path}/events/stream"
        async with aclosing(_messages(self._connection, path, params, self._last_event_id, self._is_over)) as messages:
            async for message in messages:
                event = parsed(Event, json_object(message.data))
                if event.seq <= self.seq:
                    continue
                yield event
                if self._is_end(event):
                    return

    def _gave(self, item: Event) -> None:
        self.seq = item.seq

    def _last_event_id(self) -> str | None:
        return None if self.seq == self._from_seq else str(self.seq)

    def _is_end(self, event: Event) -> bool:
        """Whether nothing can come after it."""
        if self._run_id is None:
            return event.type in SESSION_ENDINGS
        return event.run_id == self._run_id and event.type in RUN_ENDINGS

    async def _is_over(self) -> bool:
        """Whether the session or the run has ended and every matching event was given."""
        if self._run_id is None:
            has_ended = parsed(Session, await self._connection.get(self._session_path)).status.is_terminal
        else:
            record = await self._connection.get(f"{self._session_path}/runs/{self._run_id}")
            has_ended = parsed(Run, record).status.is_terminal
        if not has_ended:
            return False
        params = {**self._filters, "after": self.seq, "limit": 1}
        return not items(await self._connection.get(f"{self._session_path}/events", params), "events")


_READY = "ready"
"""What the feed's first message is: where it begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedEvent:
    """An event of the tenant's feed."""

    event: Event
    cursor: str
    """Where the feed goes on after it; opaque."""


class AsyncFeed(AsyncStream[FeedEvent]):
    """What happens in all sessions of the key's tenant, past a cursor; it never ends by itself.

    `cursor` is that of the last event given. Reconnects like a session's stream. Without a cursor it begins with what
    is new when it first connects.
    """

    def __init__(self, connection: Connection, *, after: str | None, types: str | None) -> None:
        super().__init__()
        self.cursor = after
        self._after = after
        self._connection = connection
        self._types = types

    async def _open(self) -> AsyncGenerator[FeedEvent]:
        params = {"after": self._after, "types": self._types}
        async with aclosing(
            _messages(self._connection, "/v1/events/stream", params, self._last_event_id, _never)
        ) as messages:
            async for message in messages:
                if message.event == _READY:
                    self.cursor = message.id
                    continue
                yield FeedEvent(event=parsed(Event, json_object(message.data)), cursor=message.id)

    def _gave(self, item: FeedEvent) -> None:
        self.cursor = item.cursor

    def _last_event_id(self) -> str | None:
        return None if self.cursor == self._after else self.cursor


async def _never() -> bool:
    return False


async def _messages(
    connection: Connection,
    path: str,
    params: Params,
    last_event_id: Callable[[], str | None],
    is_over: Callable[[], Awaitable[bool]],
) -> AsyncGenerator[httpx2.ServerSentEvent]:
    """The messages that carry events, over as many connections as it takes.

    That a connection ends in good order does not tell that the stream is over: a service that stops ends them all so.
    """
    now = asyncio.get_running_loop().time
    backoff = Backoff()
    reached_at = now()
    while True:
        try:
            async with connection.messages(path, params, last_event_id()) as messages:
                connected_at = now()
                try:
                    async for message in messages:
                        if _carries_event(message):
                            backoff.reset()
                            yield message
                finally:
                    reached_at = now()
            if reached_at - connected_at > MAX_PAUSE_S:
                backoff.reset()
            if await is_over():
                return
            failure: GreenroomError = RuntimeGone(f"The service at {connection.url} ends each stream at once.")
        except GreenroomError as exc:
            failure = exc
        pause_s = backoff.pause_s(failure, reached_at + connection.timeout_s - now())
        if pause_s is None:
            raise failure
        await asyncio.sleep(pause_s)


def _carries_event(message: httpx2.ServerSentEvent) -> bool:
    """Raises what the service says instead of an event. False for a message without data: httpx2 makes one of what is
    left when a connection ends within a message."""
    if not message.data:
        return False
    if message.event == ResyncRequired.code:
        raise ResyncRequired(details=json_object(message.data))
    if message.event == "error":
        raise error_from_record(json_object(message.data))
    return True
