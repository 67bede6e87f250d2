"""Starting and ending session servers as Ray actors."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import psutil
import ray
import ray.exceptions

from ..adapters.clock import id_factory
from ..adapters.logs import get_logger
from .actor_states import process_of
from .address import SESSION_SERVER_PREFIX, RuntimeAddress
from .ray_errors import raise_bare
from .server_pool import Started
from .session_server import SessionServer
from .standing import IdleSession

_log = get_logger(__name__)

SERVER_MEMORY_BYTES = 96 * 1024 * 1024
"""What Ray sets aside for a server on its node (50-60 MB of private memory were measured for an idle one): nodes
without that much are not chosen."""

_OPTIONS: dict[str, Any] = {
    "lifetime": "detached",
    "num_cpus": 0,
    "memory": SERVER_MEMORY_BYTES,
    "scheduling_strategy": "SPREAD",
    "max_restarts": -1,
    "max_task_retries": -1,
    "enable_task_events": False,  # see starting
    "max_concurrency": 100_000,  # at Ray's default of 1,000 waiting calls starve cancel
}


class RayLauncher:
    """Starts servers on whatever node Ray chooses among those with room and the wanted labels."""

    def __init__(
        self,
        address: RuntimeAddress,
        *,
        arguments: Callable[[], tuple[Any, ...]],
        labels: Mapping[str, str],
        closed_nodes: Callable[[], set[str]],
    ) -> None:
        """`arguments` gives what a server is made with, after its name."""
        self._address = address
        self._arguments = arguments
        self._labels = dict(labels)
        self._closed_nodes = closed_nodes
        self._ids = id_factory()
        self._class: Any = ray.remote(SessionServer)  # once: Ray sends the class to its control store for each of these

    async def start(self) -> Started:
        name = SESSION_SERVER_PREFIX + self._ids.session_id()[4:]
        options = {**_OPTIONS, "name": name, "namespace": self._address.namespace}
        labels = dict(self._labels)
        if closed := self._closed_nodes():
            labels["ray.io/node-id"] = f"!in({','.join(sorted(closed))})"
        if labels:
            options["label_selector"] = labels
        actor: Any = self._class.options(**options).remote(name, *self._arguments())
        try:
            node_id: str = await actor.hello.remote()
            await self._tell_settings(actor)
        except ray.exceptions.RayError as exc:
            ray.kill(actor)
            raise_bare(exc)
        return Started(name, actor, node_id)

    async def _tell_settings(self, actor: Any) -> None:
        """They may have changed while it started, and change again while it hears of that."""
        told: Mapping[str, Any] = {}
        while told != (settings := dict(self._arguments()[-1])):
            await actor.change_settings.remote(settings)
            told = settings

    async def idle_sessions(self, actor: Any) -> list[IdleSession]:
        try:
            return await actor.idle_sessions.remote()
        except ray.exceptions.RayError as exc:
            raise_bare(exc)

    async def hibernate(self, actor: Any, session_id: str) -> None:
        try:
            await actor.hibernate.remote(session_id)
        except ray.exceptions.RayError as exc:
            raise_bare(exc)

    def end(self, actor: Any) -> None:
        ray.kill(actor)

    async def kill(self, actor: Any) -> None:
        await asyncio.to_thread(_kill_here, actor)
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(actor, no_restart=False)


def _kill_here(actor: Any) -> None:
    """SIGKILL, which also ends a process that was stopped and so does not hear Ray; nothing for one on another node."""
    found = process_of(actor)
    if found is None or found[0] != ray.get_runtime_context().get_node_id():
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(found[1])
        if "ray::" in " ".join(process.cmdline()):  # a pid may have been given to somebody else
            process.kill()
            _log.warning("silent_server_killed", pid=process.pid)


async def held_by(actor: Any, timeout_s: float) -> dict[str, Any] | None:
    """What a server has, from itself: node and sessions with their epochs. None if it does not answer in time."""
    try:
        return await asyncio.wait_for(_held(actor), timeout_s)
    except (TimeoutError, ray.exceptions.RayError):
        return None


async def _held(actor: Any) -> dict[str, Any]:
    return await actor.held.remote()
