"""The plain face of what is written for event loops: each verb is the coroutine of the same name, waited for."""

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from ...domain.errors import InvalidOperation
from .own_loop import OwnLoop
from .streams import AsyncStream

BehindT = TypeVar("BehindT")
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
P = ParamSpec("P")


class Plain(Generic[BehindT]):
    """An object for event loops, and the loop that its verbs run on."""

    def __init__(self, behind: BehindT, loop: OwnLoop) -> None:
        self._behind = behind
        self._loop = loop


def waits(
    verb: Callable[Concatenate[BehindT, P], Coroutine[Any, Any, ResultT]],
) -> Callable[Concatenate[Plain[BehindT], P], ResultT]:
    """The verb as a plain method of the same arguments."""

    @wraps(verb)
    def method(self: Plain[BehindT], /, *args: P.args, **kwargs: P.kwargs) -> ResultT:
        behind, loop = self._behind, self._loop  # pyright: ignore[reportPrivateUsage]  it is a method of the class
        return loop.wait(verb(behind, *args, **kwargs))

    return method


def iterates(
    verb: Callable[Concatenate[BehindT, P], AsyncStream[ItemT]],
) -> Callable[Concatenate[Plain[BehindT], P], "Stream[ItemT]"]:
    """The verb as a plain method of the same arguments, that gives a plain iterator."""

    @wraps(verb)
    def method(self: Plain[BehindT], /, *args: P.args, **kwargs: P.kwargs) -> Stream[ItemT]:
        behind, loop = self._behind, self._loop  # pyright: ignore[reportPrivateUsage]  it is a method of the class
        return Stream(verb(behind, *args, **kwargs), loop)

    return method


class Stream(Generic[ItemT]):
    """A plain iterator of the items of a stream, for one thread; `close` may come from another one.

    `close`, leaving a `with` block, and dropping it close its connection. A wait that is interrupted loses nothing.
    """

    def __init__(self, source: AsyncStream[ItemT], loop: OwnLoop) -> None:
        self._source = source
        self._loop = loop
        loop.keeps(source)
        self._ready: deque[ItemT] = deque(maxlen=1)
        """An item that came when nobody waited any more."""
        self._turn = asyncio.Lock()
        """An interrupted wait may still be ending when the next one begins."""
        self._fetching: asyncio.Task[Any] | None = None
        self._is_used = False
        self._has_ended = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ItemT:
        if not self._ready and not self._has_ended:
            self._is_used = True
            try:
                self._loop.wait(self._fetch())
            except InvalidOperation:
                if not self._has_ended:
                    raise
        if self._ready:
            return self._ready.popleft()
        raise StopIteration

    async def _fetch(self) -> None:
        async with self._turn:
            if self._ready or self._has_ended:
                return
            self._fetching = asyncio.current_task()
            try:
                self._ready.append(await anext(self._source))
            except StopAsyncIteration:
                self._has_ended = True
            finally:
                self._fetching = None

    def close(self) -> None:
        """Stop, and close the connection; nothing happens when it has ended already."""
        self._has_ended = True
        self._ready.clear()
        if self._is_used:
            with suppress(InvalidOperation):  # the client is closed, and its connections with it
                self._loop.wait(self._end())

    async def _end(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
        async with self._turn:
            await self._source.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._is_used and not self._has_ended and not sys.is_finalizing():
            with suppress(InvalidOperation):
                self._loop.start(self._source.aclose())
