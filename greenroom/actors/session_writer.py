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
    ) -> None:
        self.session_id = session_id
        self.epoch = epoch
        self.log = log
        self.ids = ids
        self.now_us = now_us
        self.under_way = 0
        """Appends that are not committed yet."""
        self._on_lost = on_lost
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
        return NewEvent(
            self.ids.event_id(),
            event_type,
            at_us or self.now_us(),
            run.run_id if run else None,
            run.attempt if run else None,
            run.provider if run and run.is_placed else None,
            data,
            metadata or {},
        )

    def append(self, events: Sequence[NewEvent]) -> "asyncio.Future[Committed]":
        """Append the events in one step; done when they are durable."""
        committed = self.log.append(self.session_id, self.epoch, events)
        self.under_way += 1
        committed.add_done_callback(self._written)
        return committed

    def record(self, event: NewEvent) -> None:
        """Append an event that nobody waits for."""
        self.log.record(self.session_id, self.epoch, (event,))

    def close(self) -> None:
        """Write no more; what was not committed is given up."""
        self._closed = True
        self.log.release(self.session_id, self.epoch)

    def _written(self, committed: "asyncio.Future[Committed]") -> None:
        self.under_way -= 1
        error = None if committed.cancelled() else committed.exception()
        if error is not None and not self._closed:
            _log.warning("session_lost", session_id=self.session_id, epoch=self.epoch, error=str(error))
            self._on_lost()
