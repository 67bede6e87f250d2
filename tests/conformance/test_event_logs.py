"""The event log suite over every adapter: in memory, over DuckDB in this process, and over a real unix socket."""

from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest

from greenroom.adapters.direct_lane import DirectStore
from greenroom.adapters.duckdb.event_store import DuckDBEventStore
from greenroom.adapters.event_log_client import EventLogClient, Lane
from greenroom.adapters.memory_event_log import MemoryEventLog
from greenroom.adapters.socket_lane import SOCKET_NAME, SocketLane, SocketLaneServer
from greenroom.domain.event_log import EventLog

from .event_log_suite import EventLogSuite


class SocketStore(DuckDBEventStore):
    """A store whose lanes go through a socket, as between processes."""

    socket: Path

    async def open_lane(self, *, on_reply: Callable[[bytes], None], on_broken: Callable[[], None]) -> Lane:
        return await SocketLane.connect(self.socket, on_reply=on_reply, on_broken=on_broken)


def fail(exc: Exception) -> None:
    pytest.fail(f"the writer failed: {exc!r}")


class TestMemoryEventLog(EventLogSuite):
    @pytest.fixture
    async def log(self) -> EventLog:
        return MemoryEventLog()


class TestEventLogClientOverDuckDB(EventLogSuite):
    @pytest.fixture
    async def log(self, tmp_path: Path) -> AsyncGenerator[EventLog]:
        store = DirectStore(tmp_path / "store", on_fatal=fail)
        await store.open()
        client = EventLogClient(store)
        yield client
        await client.aclose()
        await store.close()


class TestEventLogClientOverASocket(EventLogSuite):
    @pytest.fixture
    async def log(self, tmp_path: Path) -> AsyncGenerator[EventLog]:
        store = SocketStore(tmp_path / "store", on_fatal=fail)
        store.socket = tmp_path / SOCKET_NAME
        await store.open()
        server = SocketLaneServer(store.socket, store.submit)
        await server.start()
        client = EventLogClient(store)
        yield client
        await client.aclose()
        await server.close()
        await store.close()
