"""The newest committed events of a live session, for those who follow it: a bounded tail, and a bell."""

import asyncio
from bisect import bisect_right
from itertools import islice

from ..domain.errors import SessionMoved
from ..domain.event import Event
from ..domain.event_log import CommittedBatch

MAX_TAIL_BYTES = 4 * 1024 * 1024
"""Kept per session; a subscriber that has fallen further behind reads from the store."""

PAGE_EVENTS = 512
"""Events in one batch for a subscriber, at most about that many."""


class EventFeed:
    """Subscribers keep a cursor and nothing else: a slow one costs no memory here, and holds up nobody."""

    def __init__(self, last_seq: int) -> None:
        self.last_seq = last_seq
        self._tail: list[CommittedBatch] = []
        self._tail_bytes = 0
        self._bell: asyncio.Future[None] | None = None
        """There is one while somebody waits."""
        self._closed = False

    def add(self, batch: CommittedBatch) -> None:
        """A batch has been committed; it follows the last one."""
        self._tail.append(batch)
        self._tail_bytes += batch.size
        self.last_seq = batch.last_seq
        if self._tail_bytes > MAX_TAIL_BYTES:
            self._shorten()
        self.ring()

    def _shorten(self) -> None:
        """To three quarters, so that it is not done for each batch; the newest one stays."""
        count = 0
        while self._tail_bytes > MAX_TAIL_BYTES * 3 // 4 and count < len(self._tail) - 1:
            self._tail_bytes -= self._tail[count].size
            count += 1
        del self._tail[:count]

    def close(self) -> None:
        """The session is served elsewhere now: whoever follows it here is told so."""
        self._closed = True
        self.ring()

    def page(self, after: int) -> list[Event] | None:
        """Some of the events past `after`, in order; None if they are not all here any more."""
        if after >= self.last_seq:
            return []
        if not self._tail or self._tail[0].first_seq > after + 1:
            return None
        events: list[Event] = []
        start = bisect_right(self._tail, after, key=lambda batch: batch.last_seq)
        for batch in islice(self._tail, start, None):
            events += [event for event in batch.events() if event.seq > after]
            if len(events) >= PAGE_EVENTS:
                break
        return events

    async def wait(self, after: int) -> None:
        """Return when there may be events past `after`. SessionMoved when there will be none here."""
        if self._closed:
            raise SessionMoved
        if self.last_seq <= after:
            if self._bell is None:
                self._bell = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._bell)

    def ring(self) -> None:
        """Wake whoever waits, to look again."""
        bell, self._bell = self._bell, None
        if bell is not None:
            bell.set_result(None)
