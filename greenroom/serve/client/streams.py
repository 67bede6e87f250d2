"""Items that come one after the other, and go on where they were when a wait is given up."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Generic, Self, TypeVar

from .connection import Connection, Params
from .records import items, parsed

ItemT = TypeVar("ItemT")

PAGE_ITEMS = 100


class AsyncStream(ABC, Generic[ItemT]):
    """An async iterator, for one consumer. `aclose` and leaving an `async with` block close its connection.

    A wait for the next item that is cancelled, or that raises, loses nothing: the next one goes on from the last item
    that was given.
    """

    def __init__(self) -> None:
        self._source: AsyncGenerator[ItemT] | None = None
        self._has_ended = False

    @abstractmethod
    def _open(self) -> AsyncGenerator[ItemT]:
        """The items after the last one that was given."""

    @abstractmethod
    def _gave(self, item: ItemT) -> None:
        """The item is the caller's now."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ItemT:
        if self._has_ended:
            raise StopAsyncIteration
        if self._source is None:
            self._source = self._open()
        try:
            item = await anext(self._source)
        except StopAsyncIteration:
            self._has_ended = True
            raise
        except BaseException:
            self._source = None  # it has ended with what it raised
            raise
        self._gave(item)
        return item

    async def aclose(self) -> None:
        """Stop, and close the connection; nothing happens when it has ended already."""
        self._has_ended = True
        source, self._source = self._source, None
        if source is not None:
            await source.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class AsyncPages(AsyncStream[ItemT]):
    """All items of a list; one page of them is held at a time."""

    def __init__(self, connection: Connection, path: str, params: Params, kind: type[ItemT]) -> None:
        super().__init__()
        self._connection = connection
        self._path = path
        self._params = params
        self._kind = kind
        self._cursor: str | None = None
        self._given = 0
        """How many of the page that begins at the cursor."""

    async def _open(self) -> AsyncGenerator[ItemT]:
        while True:
            page = await self._connection.get(self._path, {**self._params, "cursor": self._cursor})
            for record in items(page)[self._given :]:
                yield parsed(self._kind, record)
            self._cursor, self._given = page.get("next_cursor"), 0
            if self._cursor is None:
                return

    def _gave(self, item: ItemT) -> None:
        self._given += 1
