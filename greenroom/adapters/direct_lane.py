"""A lane to a store in the same process: for tests, and for whoever embeds the store."""

from collections.abc import Callable

from .duckdb.event_store import DuckDBEventStore
from .event_log_client import Lane


class DirectLane:
    """Hands frames over by a plain call."""

    def __init__(self, store: DuckDBEventStore, on_reply: Callable[[bytes], None]) -> None:
        self._store = store
        self._on_reply = on_reply

    def send(self, frame: bytes) -> None:
        self._store.submit(frame, self._on_reply)

    def close(self) -> None:
        return None


class DirectStore(DuckDBEventStore):
    """A store that opens lanes to itself."""

    async def open_lane(self, *, on_reply: Callable[[bytes], None], on_broken: Callable[[], None]) -> Lane:
        return DirectLane(self, on_reply)
