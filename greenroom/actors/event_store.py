"""The event store's actor: a thin shell around DuckDBEventStore, reached by Ray calls and by a socket on its node."""

import asyncio
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from ..adapters.collector import collect_seldom
from ..adapters.data_dir import MEMORY_DATA_DIR, socket_name, store_folder
from ..adapters.event_codec import Slab
from ..adapters.logs import get_logger, log_to_stderr
from ..adapters.socket_lane import SocketLaneServer
from ..adapters.store_options import StoreOptions
from ..domain.batch_row import LedgerEntry
from ..domain.errors import StorageConnectionFailed, StorageFull, StorageWriteFailed
from ..domain.event_log import EventQuery, Ownership, SessionRecords
from ..domain.run import Run
from ..domain.session import Session
from ..domain.verification import Verification

if TYPE_CHECKING:  # whoever starts this actor must not pay for DuckDB (23 MB, and its chatter at exit)
    from ..adapters.duckdb.commit_feed import FeedEnd, FeedPage
    from ..adapters.duckdb.event_store import DuckDBEventStore

_log = get_logger(__name__)

_MAY_PASS = (StorageFull, StorageConnectionFailed, StorageWriteFailed)


class EventStore:
    """Owns the DuckDB file of one data_dir. Restarted by Ray without end, it comes back with all that it acknowledged.

    Opening happens in the background of the constructor; every call waits for it, and raises the reason if it failed.
    When a write fails the process ends itself: what the file holds is the truth, and the next process starts from that.
    """

    def __init__(self, data_dir: str, shard: int, options: StoreOptions) -> None:
        log_to_stderr()
        from ..adapters.actor_notes import ActorNotes  # noqa: PLC0415
        from ..adapters.duckdb.event_store import DuckDBEventStore  # noqa: PLC0415

        os.umask(0o077)  # the log is for this user's eyes, whatever the data_dir allows
        memory = data_dir == MEMORY_DATA_DIR
        self._scratch = tempfile.TemporaryDirectory(prefix="greenroom-") if memory else None
        folder = Path(self._scratch.name if self._scratch else data_dir)
        self._shard = shard
        self._data_dir = None if memory else folder
        self._notes = ActorNotes(folder)
        self._make_store = partial(DuckDBEventStore, store_folder(folder, shard), options, on_fatal=_end_process)
        self._store = self._make_store()
        self._socket = SocketLaneServer(folder / socket_name(shard), self._submit)
        self._opening = self._start_opening()

    def _submit(self, frame: bytes, reply: Callable[[bytes], None]) -> None:
        self._store.submit(frame, reply)

    def _start_opening(self) -> "asyncio.Task[None]":
        return asyncio.get_running_loop().create_task(self._open(), name="greenroom-open-store")

    async def _opened(self) -> "DuckDBEventStore":
        """The store, once it is open. Opening that failed for want of what may come back, such as room on the disk, is
        tried again by the next call."""
        if self._opening.done() and isinstance(self._opening.exception(), _MAY_PASS):
            self._store = self._make_store()
            self._opening = self._start_opening()
        await asyncio.shield(self._opening)
        return self._store

    async def _open(self) -> None:
        from ..adapters.duckdb.migration import upgrade  # noqa: PLC0415  loads DuckDB

        if self._data_dir is not None and self._shard == 0:
            await asyncio.to_thread(upgrade, self._data_dir)
        await self._store.open()
        collect_seldom(50_000)  # the heads and spans of sessions
        try:
            await self._socket.start()
        except OSError:
            _log.exception("no_socket_lane", path=str(self._socket.path))  # the Ray lane works from everywhere

    async def hello(self) -> dict[str, Any]:
        """Where its fast lane is: node and path of the socket. Raises the reason if the file does not open."""
        await self._opened()
        return {
            "node_id": ray.get_runtime_context().get_node_id(),
            "socket": str(self._socket.path),
            "pid": os.getpid(),
        }

    async def append(self, frame: bytes) -> bytes:
        """The Ray lane: a frame of batches in, its answers out."""
        return await (await self._opened()).append(frame)

    async def put_artifact(self, session_id: str, content: bytes) -> str:
        return await (await self._opened()).put_artifact(session_id, content)

    async def artifact(self, session_id: str, reference: str) -> bytes:
        return await (await self._opened()).artifact(session_id, reference)

    async def is_short_of_room(self) -> bool:
        return await (await self._opened()).is_short_of_room()

    async def take_over(self, session_id: str, owner: str, must_exist: bool) -> Ownership:
        return await (await self._opened()).take_over(session_id, owner, must_exist=must_exist)

    async def take_over_new(self, session_ids: Sequence[str], owner: str) -> list[Ownership | None]:
        return await (await self._opened()).take_over_new(session_ids, owner)

    async def read(self, session_id: str, query: EventQuery, wait_s: float = 0) -> list[Slab]:
        return await (await self._opened()).read(session_id, query, wait_s=wait_s)

    async def end_of(self, session_id: str, run_id: str | None) -> tuple[int, int | None]:
        return await (await self._opened()).end_of(session_id, run_id)

    async def status_counts(self) -> dict[str, dict[str, int]]:
        return await (await self._opened()).status_counts()

    async def end_of_feed(self) -> "FeedEnd":
        return (await self._opened()).end_of_feed()

    async def read_feed(self, after: int, tenant: str, types: int, wait_s: float) -> "FeedPage":
        return await (await self._opened()).read_feed(after, tenant=tenant, types=types, wait_s=wait_s)

    async def load(self, session_id: str) -> SessionRecords:
        return await (await self._opened()).load(session_id)

    async def owner(self, session_id: str) -> str | None:
        return await (await self._opened()).owner(session_id)

    async def find_session(self, session_id: str) -> Session | None:
        return await (await self._opened()).find_session(session_id)

    async def find_session_by_key(self, idempotency_key: str) -> str | None:
        return await (await self._opened()).find_session_by_key(idempotency_key)

    async def find_run(self, run_id: str) -> Run | None:
        return await (await self._opened()).find_run(run_id)

    async def find_run_by_key(self, session_id: str, idempotency_key: str) -> str | None:
        return await (await self._opened()).find_run_by_key(session_id, idempotency_key)

    async def list_sessions(self, filters: dict[str, Any]) -> list[Session]:
        return await (await self._opened()).list_sessions(**filters)

    async def list_runs(self, filters: dict[str, Any]) -> list[Run]:
        return await (await self._opened()).list_runs(**filters)

    async def sessions_with_open_runs(self) -> list[str]:
        return await (await self._opened()).sessions_with_open_runs()

    async def sessions_of(self, owner: str) -> list[str]:
        return await (await self._opened()).sessions_of(owner)

    async def save_tools(self, session_id: str, tools: bytes) -> None:
        await (await self._opened()).save_tools(session_id, tools)

    async def save_tools_of_all(self, session_ids: Sequence[str], tools: bytes) -> None:
        await (await self._opened()).save_tools_of_all(session_ids, tools)

    async def ledger(self, session_ids: Sequence[str]) -> dict[str, LedgerEntry]:
        return await (await self._opened()).ledger(session_ids)

    async def row_counts(self, tag: str) -> dict[str, int]:
        return await (await self._opened()).row_counts(tag)

    async def has_jobs(self) -> bool:
        return await (await self._opened()).has_jobs()

    async def tools(self, session_id: str) -> bytes | None:
        return await (await self._opened()).tools(session_id)

    async def verify_session(self, session_id: str) -> Verification:
        return await (await self._opened()).verify_session(session_id)

    async def delete_session(self, session_id: str) -> None:
        await (await self._opened()).delete_session(session_id)

    async def export_session(self, session_id: str, path: Path) -> int:
        return await (await self._opened()).export_session(session_id, path)

    async def import_session(self, session_id: str, path: Path) -> None:
        await (await self._opened()).import_session(path)

    async def compact(self) -> None:
        await (await self._opened()).compact()

    async def back_up(self, target: Path) -> int:
        """Copy this store into the backup of the data_dir."""
        return await (await self._opened()).back_up(store_folder(target, self._shard))

    async def expired_sessions(self, statuses: Sequence[str], before_us: int) -> list[str]:
        return await (await self._opened()).expired_sessions(statuses, before_us)

    async def refresh_mirror(self) -> Path:
        return await (await self._opened()).refresh_mirror()

    async def query(self, paths: list[Path], sql: str, params: Any, limit: int, tenant: str | None) -> tuple[Any, ...]:
        """Columns, packed rows, and whether there were more."""
        return tuple(await (await self._opened()).query(paths, sql, params, limit=limit, tenant=tenant))

    async def keep_note(self, actor_id: str, note: dict[str, Any]) -> None:
        """Keep what the actor of this id must know when it is started anew; durable when it returns."""
        await self._opened()
        await asyncio.to_thread(self._notes.write, actor_id, note)

    async def note(self, actor_id: str) -> dict[str, Any] | None:
        return await asyncio.to_thread(self._notes.read, actor_id)

    async def counts(self) -> dict[str, int]:
        return await (await self._opened()).counts()

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
