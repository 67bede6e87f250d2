"""Following a session's events across restarts and moves of its actor, and while it has none."""

import asyncio
import time
from collections import deque
from dataclasses import replace
from enum import Enum, auto
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import ray
import ray.exceptions

from ..adapters.event_codec import Slab, SpilledData, decode_slab, unpack_data
from ..domain.errors import InvalidCursor, RuntimeGone, SessionMoved, WriterFenced
from ..domain.event import Event
from ..domain.event_log import EventQuery, parse_types
from .event_feed import PAGE_EVENTS
from .ray_errors import raise_bare

_RETRY_S = 0.1
_POLL_S = 10.0
"""How long a look into the store waits for something new, while the session is asleep."""


class Sources(Protocol):
    """Where a session's events come from. Each call gives a Ray reference, or a generator of them."""

    def whereabouts(self) -> Any: ...

    def subscribe(self, actor: Any, **query: Any) -> Any: ...

    def end_of(self, run_id: str | None) -> Any: ...

    def read(self, query: EventQuery, wait_s: float) -> Any: ...

    def artifact(self, reference: str) -> Any: ...


class _Kind(Enum):
    LOCATE = auto()
    """Ask who has the session."""
    STREAM = auto()
    """The next batch of the subscription."""
    END = auto()
    """Nobody has it: ask the store where it ends."""
    POLL = auto()
    """The next page from the store."""
    ARTIFACT = auto()
    """Large data of an event that came with a page."""


class _Step(NamedTuple):
    """One thing to wait for."""

    kind: _Kind
    what: Any


class EventStream:
    """Every matching event past a cursor, once, in order; ends when the session or the run has ended.

    A plain and an async iterator of single events, for one consumer. `seq` is the seq of the last event given: a later
    stream can go on from there. While the session is awake its actor sends them, while it sleeps the store is asked:
    following does not keep it awake. The end of the iteration, `close()` and leaving a `with` block stop what runs for
    it elsewhere; a stream that is dropped half-way is closed when it is collected.
    """

    def __init__(
        self,
        session_id: str,
        sources: Sources,
        *,
        from_seq: int,
        run_id: str | None,
        types: Any,
        follow: bool,
    ) -> None:
        self._batches: Any = None  # first: `__del__` looks at it, whatever goes wrong below
        self.seq = from_seq
        self._session_id = session_id
        self._sources = sources
        self._run_id = run_id
        self._given_types = types
        self._types = parse_types(types)
        self._follow = follow
        self._kind = _Kind.LOCATE if follow else _Kind.END
        self._events: deque[Event] = deque()
        self._page: list[Event] = []
        """Events of a page whose large data is not all here yet."""
        self._cursor = from_seq
        self._last_seq = 0
        """Where the log ended when the store was asked."""
        self._end: int | None = None
        self._closed = False
        self._after_artifacts = self._kind

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        while not self._events:
            if self._closed:
                raise StopIteration
            try:
                step = self._step()
                self._take(step, ray.get(next(step.what) if step.kind is _Kind.STREAM else step.what))
            except StopIteration:
                self.close()
            except SystemExit as exc:  # how Ray wakes a get when this process leaves a cluster that has ended
                raise RuntimeGone from exc
            except (ray.exceptions.RayError, SessionMoved) as exc:
                self._start_over(exc)
                time.sleep(_RETRY_S)
        return self._give()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            if self._closed:
                raise StopAsyncIteration
            try:
                step = self._step()
                self._take(step, await (await step.what.__anext__() if step.kind is _Kind.STREAM else step.what))
            except StopAsyncIteration:
                self.close()
            except (ray.exceptions.RayError, SessionMoved) as exc:
                self._start_over(exc)
                await asyncio.sleep(_RETRY_S)
        return self._give()

    def _step(self) -> _Step:
        """What to wait for next."""
        match self._kind:
            case _Kind.LOCATE:
                what = self._sources.whereabouts()
            case _Kind.STREAM:
                what = self._batches
            case _Kind.END:
                what = self._sources.end_of(self._run_id)
            case _Kind.POLL:
                behind = self._cursor < self._last_seq
                query = EventQuery(after=self._cursor, limit=PAGE_EVENTS, run_id=self._run_id, types=self._types)
                what = self._sources.read(query, 0 if behind or self._end is not None else _POLL_S)
            case _Kind.ARTIFACT:
                place = self._spilled()
                assert place is not None, "there is one, or the step would be another"
                what = self._sources.artifact(place[1].reference)
        return _Step(self._kind, what)

    def _take(self, step: _Step, answer: Any) -> None:
        """Go on from what was waited for."""
        match step.kind:
            case _Kind.LOCATE:
                self._located(answer)
            case _Kind.STREAM:
                self._events.extend(answer)
            case _Kind.END:
                self._last_seq, self._end = answer
                self._refuse_beyond_end()
                self._end = self._end if self._follow else self._last_seq
                self._kind = _Kind.POLL
                self._close_at_end()
            case _Kind.POLL:
                self._polled(answer)
            case _Kind.ARTIFACT:
                place = self._spilled()
                assert place is not None, "it was asked for"
                self._page[place[0]] = replace(self._page[place[0]], data=unpack_data(answer))
                self._give_page()

    def _refuse_beyond_end(self) -> None:
        if self._cursor > self._last_seq:
            self._closed = True
            raise InvalidCursor(
                f"from_seq is {self._cursor}, but the log ends at seq {self._last_seq}.",
                details={"field": "from_seq", "last_seq": self._last_seq},
            )

    def _located(self, actor: Any) -> None:
        if actor is None:
            self._kind = _Kind.END
            return
        self._kind = _Kind.STREAM
        self._batches = self._sources.subscribe(
            actor, from_seq=self._cursor, run_id=self._run_id, types=self._given_types, follow=True, wake=False
        )

    def _polled(self, slabs: list[Slab]) -> None:
        page = [event for slab in slabs for event in decode_slab(self._session_id, slab)]
        if len(page) < PAGE_EVENTS:
            if not page and self._end is None:
                self._kind = _Kind.LOCATE  # nothing new: somebody may have it by now
            self._cursor = max(self._cursor, self._last_seq)
        if page:
            self._cursor = max(self._cursor if len(page) < PAGE_EVENTS else 0, page[-1].seq)
            if self._cursor > self._last_seq:
                self._kind = _Kind.LOCATE  # it has woken up
        self._page = page if self._end is None else [event for event in page if event.seq <= self._end]
        self._give_page()

    def _give_page(self) -> None:
        """The page, once all of its data is here."""
        if self._spilled() is not None:
            self._after_artifacts = self._kind if self._kind is not _Kind.ARTIFACT else self._after_artifacts
            self._kind = _Kind.ARTIFACT
            return
        if self._kind is _Kind.ARTIFACT:
            self._kind = self._after_artifacts
        self._events.extend(self._page)
        self._page = []
        self._close_at_end()

    def _spilled(self) -> tuple[int, SpilledData] | None:
        """Place of the first event of the page whose data is elsewhere, and where; None if there is none."""
        for index, event in enumerate(self._page):
            if isinstance(event.data, SpilledData):
                return index, event.data
        return None

    def _close_at_end(self) -> None:
        if self._end is not None and self._cursor >= self._end and not self._page:
            self._closed = True

    def _give(self) -> Event:
        event = self._events.popleft()
        self.seq = event.seq
        if self._kind is _Kind.STREAM:
            self._cursor = event.seq
        return event

    def _start_over(self, exc: Exception) -> None:
        """Get ready to go on from the cursor; raises what is no matter of connection."""
        self._batches = None
        cause = getattr(exc, "cause", exc)
        moved = isinstance(cause, SessionMoved | WriterFenced)
        if not moved and isinstance(exc, ray.exceptions.RayTaskError):
            self._closed = True
            raise_bare(exc)
        self._page = []
        self._cursor = self.seq
        self._end = None
        self._kind = _Kind.LOCATE if self._follow else _Kind.END

    def close(self) -> None:
        """Stop; nothing happens when it has ended already."""
        self._closed = True
        batches, self._batches = self._batches, None
        if batches is not None and ray.is_initialized():
            ray.cancel(batches)

    async def aclose(self) -> None:
        """`close`, under the name that contextlib.aclosing uses."""
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._batches is not None:
            self.close()
