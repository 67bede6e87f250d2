"""What a process holds of a runtime: a way to its actors, a loop to ask them on, and an end."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import ray
import ray.exceptions

from ..adapters.data_dir import MEMORY_DATA_DIR
from ..adapters.session_homes import homes_folder, remove_homes
from ..domain.errors import (
    GreenroomError,
    RuntimeGone,
)
from . import ray_cluster
from .actor_states import actor_is_dead, named_actors
from .address import BREAKER_PREFIX, LIMITER, ROUTER_PREFIX, WEBHOOKS, RuntimeAddress
from .ray_errors import raise_bare
from .runtime_file import RuntimeRecord, remove_record
from .runtime_watch import RuntimeWatch
from .store_shards import StoreShards

ResultT = TypeVar("ResultT")

_STOP_S = 10.0


class RuntimeConnection:
    """A connection to a runtime that was started or joined. RuntimeGone when the runtime has ended."""

    def __init__(self, address: RuntimeAddress, *, stores: StoreShards, directory: Any, owns_ray: bool) -> None:
        self._address = address
        self._stores = stores
        self._directory = directory
        self._owns_ray = owns_ray
        self._ended = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_lock = threading.Lock()
        self._pending: set[Future[Any]] = set()
        self._watch = None if owns_ray else RuntimeWatch(address.ray_address, self._gone)

    @property
    def data_dir(self) -> str:
        """Where everything is kept."""
        return self._address.data_dir

    @property
    def address(self) -> RuntimeAddress:
        """All that another process of the cluster needs to find its actors."""
        return self._address

    async def asettings(self) -> dict[str, Any]:
        """What its session servers go by: providers, routers, default_provider, max_input_bytes ..."""
        return await self._ask(self._directory.settings.remote())

    @property
    def is_alive(self) -> bool:
        """Whether this process is connected to it, and its store and directory are not gone for good."""
        if self._ended or not ray.is_initialized() or not _same_cluster(self._address):
            return False
        return not any(actor_is_dead(actor) for actor in (*self._stores.actors, self._directory))

    @property
    def owns_ray(self) -> bool:
        """Whether this process started the Ray cluster that the runtime lives on, and ends it with `shutdown`."""
        return self._owns_ray

    def record(self) -> RuntimeRecord:
        """What later processes need to join."""
        return RuntimeRecord(
            ray_address=self._address.ray_address,
            namespace=self._address.namespace,
            version=version("greenroom"),
            auth_mode=ray_cluster.auth_mode(),
            pid=os.getpid(),
        )

    async def ashutdown(self) -> None:
        """Stop the runtime's actors, for everybody who joined it; ends Ray if this process started it.

        Runs in flight are interrupted, and accounted for when a runtime starts on the data_dir again.
        """
        if self._watch is not None:
            self._watch.stop()
        if self._ended:
            return
        self._ended = True
        if ray.is_initialized() and _same_cluster(self._address):
            await self._stop_actors()
        if self.data_dir == MEMORY_DATA_DIR:
            await asyncio.to_thread(remove_homes, homes_folder(self.data_dir, self._address.namespace))
        else:
            remove_record(Path(self.data_dir))

    def shutdown(self) -> None:
        """See ashutdown."""
        self._wait(self.ashutdown())
        self._stop_loop()
        if self._owns_ray and ray.is_initialized():
            ray.shutdown()

    async def _stop_actors(self) -> None:
        try:
            async with asyncio.timeout(_STOP_S):  # Ray lets calls hang when its control store has died before us
                names: list[str] = await self._ask(self._directory.session_servers.remote())
        except (TimeoutError, GreenroomError):
            return
        ray.kill(self._directory)
        namespace = self._address.namespace
        deciding = [LIMITER, WEBHOOKS]
        for prefix in (BREAKER_PREFIX, ROUTER_PREFIX):
            deciding += await asyncio.to_thread(named_actors, namespace, prefix)
        for name in deciding:
            with contextlib.suppress(ValueError):
                ray.kill(await asyncio.to_thread(ray.get_actor, name, namespace))
        servers: list[Any] = []
        for name in names:
            with contextlib.suppress(ValueError):
                servers.append(await asyncio.to_thread(ray.get_actor, name, self._address.namespace))
        stops = [asyncio.wrap_future(server.stop.remote().future()) for server in servers]
        if stops:
            await asyncio.wait(stops, timeout=_STOP_S)
        for server in servers:
            ray.kill(server)
        with contextlib.suppress(GreenroomError, TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await self._stores.ask_all("close")
        for store in self._stores.actors:
            ray.kill(store)

    # Calls

    async def _ask(self, answer: Any) -> Any:
        """The answer of an actor, its errors bare."""
        if self._ended and not ray.is_initialized():
            raise RuntimeGone
        try:
            return await answer
        except (ray.exceptions.RayError, ConnectionError) as exc:
            raise_bare(exc)

    async def answer(self, answer: Any) -> Any:
        """The answer of one of its actors, its errors bare."""
        return await self._ask(answer)

    def wait(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Run what is asked of this runtime to its end, on its own loop: for callers without one."""
        return self._wait(work)

    def _wait(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Run it to its end on this runtime's own loop, whatever loop the calling thread may be in."""
        if self._ended and work.__name__ != "ashutdown":
            work.close()
            raise RuntimeGone
        future = asyncio.run_coroutine_threadsafe(work, self._own_loop())
        self._pending.add(future)
        try:
            return future.result()
        except CancelledError as exc:
            raise RuntimeGone from exc
        except BaseException:
            future.cancel()
            raise
        finally:
            self._pending.discard(future)

    def _gone(self) -> None:
        """The runtime's cluster has ended: whoever waits is told, and so is whoever asks from now on."""
        self._ended = True
        for future in list(self._pending):
            future.cancel()

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        with self._loop_lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=_run_loop, args=(self._loop,), name="greenroom-runtime", daemon=True).start()
            return self._loop

    def _stop_loop(self) -> None:
        with self._loop_lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._loop = None

    async def _ask_named(self, name: str, method: str) -> Any:
        actor: Any = await asyncio.to_thread(ray.get_actor, name, self._address.namespace)
        return await self._ask(getattr(actor, method).remote())


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _same_cluster(address: RuntimeAddress) -> bool:
    return ray.get_runtime_context().gcs_address == address.ray_address
