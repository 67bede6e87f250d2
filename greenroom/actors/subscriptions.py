"""Those who follow a live session: a bounded number of cursors over its feed and its log."""

from collections.abc import AsyncGenerator, Awaitable, Callable

from ..domain.errors import InvalidCursor, QueueFull
from ..domain.event import Event
from ..domain.event_log import EventLog, EventQuery
from .event_feed import EventFeed
from .event_following import follow_events

MAX_SUBSCRIBERS = 1_000
"""Subscriptions at once; one more is refused with queue_full."""


class Subscriptions:
    """Belongs to one live session."""

    def __init__(self, session_id: str, feed: EventFeed, log: EventLog) -> None:
        self._session_id = session_id
        self._feed = feed
        self._log = log
        self.count = 0
        """How many there are."""

    async def follow(
        self, query: EventQuery, *, follow: bool, end_seq: Callable[[], Awaitable[int | None]]
    ) -> AsyncGenerator[list[Event]]:
        """Batches of all matching events past the cursor: what there is, then what comes, until `end_seq`, which gives
        None while that is open. Without `follow` only what there is now. InvalidCursor beyond the end; QueueFull."""
        stop_at = self._feed.last_seq
        if query.after > stop_at:
            raise InvalidCursor(
                f"from_seq is {query.after}, but the log ends at seq {stop_at}.",
                details={"field": "from_seq", "last_seq": stop_at},
            )
        if self.count >= MAX_SUBSCRIBERS:
            raise QueueFull(f"The session has {self.count} subscribers already.")

        async def stop() -> int | None:
            return await end_seq() if follow else stop_at

        self.count += 1
        try:
            async for events in follow_events(self._session_id, query, feed=self._feed, log=self._log, end_seq=stop):
                yield events
        finally:
            self.count -= 1
