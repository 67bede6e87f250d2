"""Following a session's events across restarts and moves of its actor."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import ray
import ray.exceptions

from ..domain.errors import RuntimeGone, SessionMoved, WriterFenced
from ..domain.event import Event
from .ray_errors import raise_bare

_RETRY_S = 0.1


class EventStream:
    """Every matching event past a cursor, once, in order; ends when the session or the run has ended.

    A plain and an async iterator of single events, for one consumer. `seq` is the seq of the last event given: a later
    stream can go on from there. The end of the iteration, `close()` and leaving a `with` block stop what runs for it in
    the session's actor; a stream that is dropped half-way is closed when it is collected.
    """

    def __init__(
        self, subscribe: Callable[..., Any], lost: Callable[[], None], *, from_seq: int, **filters: Any
    ) -> None:
        self.seq = from_seq
        self._subscribe = subscribe
        self._lost = lost
        self._filters = filters
        self._batches: Any = None
        self._events: deque[Event] = deque()
        self._closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        while not self._events:
            if self._closed:
                raise StopIteration
            try:
                self._events.extend(ray.get(next(self._open())))
            except StopIteration:
                self.close()
                raise
            except SystemExit as exc:  # how Ray wakes a get when this process leaves a cluster that has ended
                raise RuntimeGone from exc
            except (ray.exceptions.RayError, SessionMoved) as exc:
                self._reconnect(exc)
                time.sleep(_RETRY_S)
        return self._give()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            if self._closed:
                raise StopAsyncIteration
            try:
                batches = self._open()
                self._events.extend(await (await batches.__anext__()))
            except StopAsyncIteration:
                self.close()
                raise
            except (ray.exceptions.RayError, SessionMoved) as exc:
                self._reconnect(exc)
                await asyncio.sleep(_RETRY_S)
        return self._give()

    def _open(self) -> Any:
        if self._batches is None:
            self._batches = self._subscribe(from_seq=self.seq, **self._filters)
        return self._batches

    def _give(self) -> Event:
        event = self._events.popleft()
        self.seq = event.seq
        return event

    def _reconnect(self, exc: Exception) -> None:
        """Get ready to go on from the cursor; raises what is no matter of connection."""
        self._batches = None
        cause = getattr(exc, "cause", exc)
        moved = isinstance(cause, SessionMoved | WriterFenced)
        if not moved and isinstance(exc, ray.exceptions.RayTaskError):
            self._closed = True
            raise_bare(exc)
        self._lost()

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
