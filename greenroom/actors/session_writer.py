"""The pen of a live session: makes events and appends them under its epoch, until somebody else owns the session."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from ..adapters.logs import get_logger
from ..domain.event import EventType, NewEvent
from ..domain.event_log import Committed, EventLog
from ..domain.identifiers import IdFactory
from .live_run import LiveRun

_log = get_logger(__name__)


class SessionWriter:
    """The order of the appends is the order of the log. A failed append means that the epoch is over: `on_lost`."""

    def __init__(
        self,
        session_id: str,
        epoch: int,
        *,
        log: EventLog,
        ids: IdFactory,
        now_us: Callable[[], int],
        on_lost: Callable[[], None],
        first_events: Sequence[NewEvent] = (),
    ) -> None:
        """`first_events` go in front of whatever is written first."""
        self.session_id = session_id
        self.epoch = epoch
        self.log = log
        self.ids = ids
        self.now_us = now_us
        self.under_way = 0
        """Appends that are not committed yet."""
        self._on_lost = on_lost
        self._first_events = first_events
        self._closed = False

    def event(
        self,
        event_type: EventType,
        run: LiveRun | None,
        data: dict[str, Any],
        *,
        metadata: dict[str, Any] | None = None,
        at_us: int | None = None,
    ) -> NewEvent:
        """Something that happened just now, or at that time."""
        id_, at_us = self.ids.event_id(), at_us or self.now_us()
        if run is None:
            return NewEvent(id_, event_type, at_us, None, None, None, data, metadata or {})
        provider = run.provider if run.is_placed else None
        return NewEvent(id_, event_type, at_us, run.run_id, run.attempt, provider, data, metadata or {})

    def append(self, events: Sequence[NewEvent]) -> "asyncio.Future[Committed]":
        """Append the events in one step; done when they are durable."""
        if self._first_events:
            self.write_first()
        committed = self.log.append(self.session_id, self.epoch, events)
        self.under_way += 1
        committed.add_done_callback(self._written)
        return committed

    def record(self, event: NewEvent) -> None:
        """Append an event that nobody waits for."""
        if self._first_events:
            self.write_first()
        self.log.record(self.session_id, self.epoch, (event,))

    def write_first(self) -> None:
        """Write the first events, if they are not written yet: in one append with what comes in this turn of the loop,
        and durable when that is."""
        events, self._first_events = self._first_events, ()
        if events:
            self.log.record(self.session_id, self.epoch, events)

    def close(self) -> None:
        """Write no more; what was not committed is given up."""
        self._closed = True
        self._on_lost = _nothing
        self.log.release(self.session_id, self.epoch)

    def _written(self, committed: "asyncio.Future[Committed]") -> None:
        self.under_way -= 1
        error = None if committed.cancelled() else committed.exception()
        if error is not None and not self._closed:
            _log.warning("session_lost", session_id=self.session_id, epoch=self.epoch, error=str(error))
            self._on_lost()


def _nothing() -> None:
    """Of a session that is not served here any more."""
