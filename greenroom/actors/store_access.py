"""The event store as other actors reach it: by Ray calls, and by its socket where that is on the same node."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.exceptions

from ..adapters.event_codec import Slab
from ..adapters.event_log_client import Lane
from ..adapters.socket_lane import SocketLane
from ..domain.errors import GreenroomError, StorageConnectionFailed
from ..domain.event_log import EventQuery, Ownership, SessionRecords
from ..domain.run import Run
from .ray_errors import raise_bare


class RayLane:
    """Appends as Ray calls; Ray retries them when the store restarts."""

    def __init__(self, store: Any, on_reply: Callable[[bytes], None], on_broken: Callable[[], None]) -> None:
        self._store = store
        self._on_reply = on_reply
        self._on_broken = on_broken
        self._calls: set[asyncio.Task[None]] = set()

    def send(self, frame: bytes) -> None:
        call = asyncio.get_running_loop().create_task(self._send(frame))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _send(self, frame: bytes) -> None:
        try:
            reply: bytes = await self._store.append.remote(frame)
        except (ray.exceptions.RayError, GreenroomError):
            self._on_broken()
        else:
            self._on_reply(reply)

    def close(self) -> None:
        for call in self._calls:
            if call is not asyncio.current_task():
                call.cancel()


class RayStoreAccess:
    """StoreAccess over the store's actor handle. `use_socket=False` keeps to the Ray lane."""

    def __init__(self, store: Any, *, use_socket: bool = True) -> None:
        self._store = store
        self._use_socket = use_socket

    async def open_lane(self, *, on_reply: Callable[[bytes], None], on_broken: Callable[[], None]) -> Lane:
        try:
            hello: dict[str, Any] = await self._store.hello.remote()
        except ray.exceptions.RayTaskError as exc:
            raise_bare(exc)
        except ray.exceptions.RayError as exc:
            raise StorageConnectionFailed(f"The event store does not answer: {type(exc).__name__}.") from exc
        if self._use_socket and hello["node_id"] == ray.get_runtime_context().get_node_id():
            path = Path(hello["socket"])
            if await asyncio.to_thread(path.is_socket):
                return await SocketLane.connect(path, on_reply=on_reply, on_broken=on_broken)
        return RayLane(self._store, on_reply, on_broken)

    async def take_over(self, session_id: str, owner: str, *, must_exist: bool) -> Ownership:
        return await self._call("take_over", session_id, owner, must_exist)

    async def take_over_new(self, session_ids: Sequence[str], owner: str) -> list[Ownership | None]:
        return await self._call("take_over_new", session_ids, owner)

    async def read(self, session_id: str, query: EventQuery, *, wait_s: float = 0) -> list[Slab]:
        return await self._call("read", session_id, query, wait_s)

    async def put_artifact(self, session_id: str, content: bytes) -> str:
        return await self._call("put_artifact", session_id, content)

    async def artifact(self, session_id: str, reference: str) -> bytes:
        return await self._call("artifact", session_id, reference)

    async def is_short_of_room(self) -> bool:
        return await self._call("is_short_of_room")

    async def load(self, session_id: str) -> SessionRecords:
        return await self._call("load", session_id)

    async def find_run(self, run_id: str) -> Run | None:
        return await self._call("find_run", run_id)

    async def find_run_by_key(self, session_id: str, idempotency_key: str) -> str | None:
        return await self._call("find_run_by_key", session_id, idempotency_key)

    async def _call(self, method: str, *args: Any) -> Any:
        try:
            return await getattr(self._store, method).remote(*args)
        except ray.exceptions.RayError as exc:
            raise_bare(exc)
