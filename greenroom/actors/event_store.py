"""The event store's actor: a thin shell around DuckDBEventStore, reached by Ray calls and by a socket on its node."""

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import ray

from ..adapters.data_dir import socket_name, store_folder
from ..adapters.event_codec import Slab
from ..adapters.logs import get_logger, log_to_stderr
from ..adapters.settings import MEMORY_DATA_DIR
from ..adapters.socket_lane import SocketLaneServer
from ..adapters.store_options import StoreOptions
from ..domain.event_log import EventQuery, Ownership, SessionRecords
from ..domain.run import Run
from ..domain.session import Session
from ..domain.verification import Verification

_log = get_logger(__name__)

_P = ParamSpec("_P")
_R = TypeVar("_R")


class EventStore:
    """Owns the DuckDB file of one data_dir. Restarted by Ray without end, it comes back with all that it acknowledged.

    Opening happens in the background of the constructor; every call waits for it, and raises the reason if it failed.
    When a write fails the process ends itself: what the file holds is the truth, and the next process starts from that.
    """

    def __init__(self, data_dir: str, shard: int, options: StoreOptions) -> None:
        log_to_stderr()
        # Here, not at the top: whoever starts this actor must not pay for DuckDB (23 MB, and its chatter at exit).
        from ..adapters.duckdb.event_store import DuckDBEventStore  # noqa: PLC0415

        os.umask(0o077)  # the log is for this user's eyes, whatever the data_dir allows
        memory = data_dir == MEMORY_DATA_DIR
        self._scratch = tempfile.TemporaryDirectory(prefix="greenroom-") if memory else None
        folder = Path(self._scratch.name if self._scratch else data_dir)
        self._shard = shard
        self._data_dir = None if memory else folder
        self._store = DuckDBEventStore(store_folder(folder, shard), options, on_fatal=_end_process)
        self._socket = SocketLaneServer(folder / socket_name(shard), self._store.submit)
        self._opening = asyncio.get_running_loop().create_task(self._open(), name="greenroom-open-store")

    async def _open(self) -> None:
        from ..adapters.duckdb.migration import upgrade  # noqa: PLC0415  loads DuckDB

        if self._data_dir is not None and self._shard == 0:
            await asyncio.to_thread(upgrade, self._data_dir)
        await self._store.open()
        try:
            await self._socket.start()
        except OSError:
            _log.exception("no_socket_lane", path=str(self._socket.path))  # the Ray lane works from everywhere

    async def _when_open(self, work: Callable[_P, Awaitable[_R]], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        await asyncio.shield(self._opening)
        return await work(*args, **kwargs)

    async def hello(self) -> dict[str, Any]:
        """Where its fast lane is: node and path of the socket. Raises the reason if the file does not open."""
        await asyncio.shield(self._opening)
        return {
            "node_id": ray.get_runtime_context().get_node_id(),
            "socket": str(self._socket.path),
            "pid": os.getpid(),
        }

    async def append(self, frame: bytes) -> bytes:
        """The Ray lane: a frame of batches in, its answers out."""
        return await self._when_open(self._store.append, frame)

    async def put_artifact(self, session_id: str, content: bytes) -> str:
        return await self._when_open(self._store.put_artifact, session_id, content)

    async def artifact(self, session_id: str, reference: str) -> bytes:
        return await self._when_open(self._store.artifact, session_id, reference)

    async def is_short_of_room(self) -> bool:
        return await self._when_open(self._store.is_short_of_room)

    async def grant(self, session_id: str, owner: str) -> Ownership:
        return await self._when_open(self._store.grant, session_id, owner)

    async def read(self, session_id: str, query: EventQuery, wait_s: float = 0) -> list[Slab]:
        return await self._when_open(self._store.read, session_id, query, wait_s=wait_s)

    async def load(self, session_id: str) -> SessionRecords:
        return await self._when_open(self._store.load, session_id)

    async def owner(self, session_id: str) -> str | None:
        return await self._when_open(self._store.owner, session_id)

    async def find_session(self, session_id: str) -> Session | None:
        return await self._when_open(self._store.find_session, session_id)

    async def find_session_by_key(self, idempotency_key: str) -> str | None:
        return await self._when_open(self._store.find_session_by_key, idempotency_key)

    async def find_run(self, run_id: str) -> Run | None:
        return await self._when_open(self._store.find_run, run_id)

    async def find_run_by_key(self, session_id: str, idempotency_key: str) -> str | None:
        return await self._when_open(self._store.find_run_by_key, session_id, idempotency_key)

    async def list_sessions(self, filters: dict[str, Any]) -> list[Session]:
        return await self._when_open(self._store.list_sessions, **filters)

    async def list_runs(self, filters: dict[str, Any]) -> list[Run]:
        return await self._when_open(self._store.list_runs, **filters)

    async def sessions_with_open_runs(self) -> list[str]:
        return await self._when_open(self._store.sessions_with_open_runs)

    async def sessions_of(self, owner: str) -> list[str]:
        return await self._when_open(self._store.sessions_of, owner)

    async def save_tools(self, session_id: str, tools: bytes) -> None:
        await self._when_open(self._store.save_tools, session_id, tools)

    async def tools(self, session_id: str) -> bytes | None:
        return await self._when_open(self._store.tools, session_id)

    async def verify_session(self, session_id: str) -> Verification:
        return await self._when_open(self._store.verify_session, session_id)

    async def delete_session(self, session_id: str) -> None:
        await self._when_open(self._store.delete_session, session_id)

    async def export_session(self, session_id: str, path: Path) -> int:
        return await self._when_open(self._store.export_session, session_id, path)

    async def import_session(self, session_id: str, path: Path) -> None:
        await self._when_open(self._store.import_session, path)

    async def compact(self) -> None:
        await self._when_open(self._store.compact)

    async def back_up(self, target: Path) -> int:
        """Copy this store into the backup of the data_dir."""
        return await self._when_open(self._store.back_up, store_folder(target, self._shard))

    async def expired_sessions(self, statuses: Sequence[str], before_us: int) -> list[str]:
        return await self._when_open(self._store.expired_sessions, statuses, before_us)

    async def refresh_mirror(self) -> Path:
        return await self._when_open(self._store.refresh_mirror)

    async def query(self, paths: list[Path], sql: str, params: Any, limit: int, tenant: str | None) -> tuple[Any, ...]:
        """Columns, packed rows, and whether there were more."""
        return tuple(await self._when_open(self._store.query, paths, sql, params, limit=limit, tenant=tenant))

    async def counts(self) -> dict[str, int]:
        return await self._when_open(self._store.counts)

    async def close(self) -> None:
        """Commit what has arrived and close the file; nothing can be called after."""
        await asyncio.shield(self._opening)
        await self._socket.close()
        await self._store.close()
        if self._scratch is not None:
            await asyncio.to_thread(self._scratch.cleanup)


def _end_process(exc: Exception) -> None:
    _log.error("event_store_ends_itself", error=str(exc))
    os._exit(1)  # not exit_actor: Ray must see a death, and restart
