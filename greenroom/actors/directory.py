"""The actor that knows where each session is served, and finds a place for those that are nowhere."""

import asyncio
from collections.abc import Mapping
from typing import Any
from weakref import WeakValueDictionary

import ray
import ray.exceptions

from ..adapters.clock import id_factory, now_us
from ..adapters.logs import get_logger, log_to_stderr
from ..adapters.settings import RetentionSettings
from ..domain.errors import GreenroomError, SessionNotFound, ValidationError
from ..domain.identifiers import SESSION_ID
from ..domain.provider import ProviderDeclaration
from ..domain.session import SessionSpec
from .actor_states import actor_is_dead, actor_table, named_actors
from .address import SESSION_SERVER_PREFIX, RuntimeAddress
from .ray_errors import raise_bare
from .session_server import SessionServer
from .store_shards import StoreShards

_log = get_logger(__name__)

_SERVER_OPTIONS: dict[str, Any] = {
    "lifetime": "detached",
    "num_cpus": 0,
    "max_restarts": -1,
    "max_task_retries": -1,
    "max_concurrency": 100_000,  # at Ray's default of 1,000 waiting calls starve cancel
}
MAX_REMEMBERED_OPENS = 10_000
RETENTION_EVERY_S = 60.0
"""How often sessions are looked for that the retention rule deletes."""
DELETE_CANCEL_S = 10.0
"""How long the actor of a session that is deleted may take to cancel its runs."""
MAX_RECONCILING = 4
"""Sessions taken over at once when a runtime starts on a data_dir with open runs."""


class Directory:
    """Session id -> actor. What it knows it can lose: the store has the owner of every session.

    Two actors may believe for a moment that they serve the same session; only the one with the newest epoch can write.
    """

    def __init__(self, address: RuntimeAddress, stores: StoreShards, settings: Mapping[str, Any]) -> None:
        log_to_stderr()
        self._address = address
        self._stores = stores
        self._settings = dict(settings)
        self._self: Any = ray.get_runtime_context().current_actor
        self._ids = id_factory()
        self._placed: dict[str, tuple[str, Any]] = {}  # session id -> name and handle of its server
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # a lock lives while it is used
        self._opens: dict[str, str] = {}
        loop = asyncio.get_running_loop()
        self._reconciling = loop.create_task(self._reconcile(), name="greenroom-reconcile")
        self._retaining = loop.create_task(self._retain(), name="greenroom-retention")

    async def settings(self) -> dict[str, Any]:
        """What session servers are started with."""
        return self._settings

    async def declare_providers(self, declarations: dict[str, ProviderDeclaration]) -> None:
        """Add declarations, in place of those of the same names; they hold for the runs that start from now on."""
        merged = {**self._settings["providers"], **declarations}
        if merged == self._settings["providers"]:
            return
        self._settings["providers"] = merged
        for name, actor in set(self._placed.values()):
            if not actor_is_dead(actor):
                actor.declare_providers.remote(merged)
                _log.info("providers_declared", server=name)

    # Finding sessions

    async def open_session(
        self, session_id: str | None, spec: SessionSpec, tools: bytes | None, idempotency_key: str | None, call_id: str
    ) -> dict[str, Any]:
        """Open a session, or resume the one that has this id or this idempotency key."""
        key = idempotency_key or call_id
        async with self._lock(f"open:{key}"):
            session_id = session_id or self._opens.get(key) or await self._known(idempotency_key)
            session_id = _checked_id(session_id) if session_id else self._ids.session_id()
            self._opens[key] = session_id
            if len(self._opens) > MAX_REMEMBERED_OPENS:
                del self._opens[next(iter(self._opens))]
            return await self._place(session_id, spec, tools, idempotency_key)

    async def _known(self, idempotency_key: str | None) -> str | None:
        return await self._stores.first("find_session_by_key", idempotency_key) if idempotency_key else None

    async def delete_session(self, session_id: str) -> None:
        """Cancel what runs, end the session's actor, and delete every trace of it. SessionNotFound."""
        async with self._lock(session_id):
            placed = self._placed.pop(session_id, None) or await self._find(session_id)
            if placed is not None and not actor_is_dead(placed[1]):
                await self._end(session_id, placed[1])
            await self._stores.ask(session_id, "delete_session")
            self._opens = {key: opened for key, opened in self._opens.items() if opened != session_id}

    async def _end(self, session_id: str, actor: Any) -> None:
        """The session's actor is gone, and with it whatever ran there; one that does not answer is killed."""
        try:
            async with asyncio.timeout(DELETE_CANCEL_S):
                await actor.leave.remote(session_id)
        except (ray.exceptions.RayError, GreenroomError, TimeoutError):
            _log.warning("session_left_unasked", session_id=session_id, exc_info=True)
        ray.kill(actor)

    async def locate(self, session_id: str, asker: str | None = None) -> dict[str, Any]:
        """The actor that serves the session, found or started. SessionNotFound if it does not exist."""
        return await self._place(session_id, None, None, None)

    async def forward(self, session_id: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a method of a session for someone who does not know where it is served."""
        placed = await self.locate(session_id)
        try:
            return await getattr(placed["actor"], method).remote(session_id, *args, **kwargs)
        except ray.exceptions.RayError as exc:
            raise_bare(exc)

    async def _place(
        self, session_id: str, spec: SessionSpec | None, tools: bytes | None, idempotency_key: str | None
    ) -> dict[str, Any]:
        async with self._lock(session_id):
            placed = self._placed.get(session_id)
            if placed is None or actor_is_dead(placed[1]):
                placed = await self._find(session_id) or await self._start(session_id, spec, tools, idempotency_key)
                self._placed[session_id] = placed
        name, actor = placed
        return {"session_id": session_id, "name": name, "actor": actor}

    async def _find(self, session_id: str) -> tuple[str, Any] | None:
        """The actor that owns the session by the store's word, if it is alive or being restarted."""
        owner: str | None = await self._stores.ask(session_id, "owner")
        if owner is None:
            return None
        try:
            actor = await asyncio.to_thread(ray.get_actor, owner, self._address.namespace)
        except ValueError:
            return None
        return owner, actor

    async def _start(
        self, session_id: str, spec: SessionSpec | None, tools: bytes | None, idempotency_key: str | None
    ) -> tuple[str, Any]:
        """A new actor that takes the session over."""
        if spec is None and await self._stores.ask(session_id, "owner") is None:
            raise SessionNotFound(
                f"There is no session {session_id} in {self._address.data_dir}.", details={"session_id": session_id}
            )
        if tools is not None:
            await self._stores.ask(session_id, "save_tools", tools)
        name = SESSION_SERVER_PREFIX + self._ids.session_id()[4:]
        options = {**_SERVER_OPTIONS, "name": name, "namespace": self._address.namespace}
        actor: Any = ray.remote(SessionServer).options(**options).remote(name, self._stores, self._self, self._settings)
        try:
            await actor.bind.remote(session_id, spec, idempotency_key)
        except ray.exceptions.RayError as exc:
            ray.kill(actor)
            raise_bare(exc)
        return name, actor

    def _lock(self, key: str) -> asyncio.Lock:
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock

    async def _reconcile(self) -> None:
        """Give every session with open runs an owner: no run stays open without somebody who will end it."""
        gate = asyncio.Semaphore(MAX_RECONCILING)

        async def place(session_id: str) -> None:
            async with gate:
                try:
                    await self._place(session_id, None, None, None)
                except GreenroomError:
                    _log.exception("session_not_reconciled", session_id=session_id)

        session_ids: list[str] = await self._stores.joined("sessions_with_open_runs")
        await asyncio.gather(*(place(session_id) for session_id in session_ids))

    async def _retain(self) -> None:
        """Delete sessions that ended long enough ago, for as long as there is a rule for it."""
        retention: RetentionSettings | None = self._settings["retention"]
        while retention is not None:
            try:
                await self._delete_expired(retention)
            except GreenroomError:
                _log.exception("retention_failed")
            await asyncio.sleep(min(RETENTION_EVERY_S, retention.ended_after_s))

    async def _delete_expired(self, retention: RetentionSettings) -> None:
        before_us = now_us() - round(retention.ended_after_s * 1_000_000)
        for session_id in await self._stores.joined("expired_sessions", retention.statuses, before_us):
            await self.delete_session(session_id)
            _log.info("session_expired", session_id=session_id)

    # Looking

    async def actors(self) -> list[dict[str, Any]]:
        """Every actor of this runtime, from Ray's own table: waits for none of them."""
        sessions: dict[str, list[str]] = {}
        for session_id, (name, _) in self._placed.items():
            sessions.setdefault(name, []).append(session_id)
        rows = await asyncio.to_thread(self._actor_rows)
        return [{**row, "session_ids": sessions.get(row["name"], [])} for row in rows]

    def _actor_rows(self) -> list[dict[str, Any]]:
        shared = {actor._actor_id.hex() for actor in (*self._stores.actors, self._self)}  # noqa: SLF001
        names = set(named_actors(self._address.namespace, SESSION_SERVER_PREFIX))
        return actor_table(actor_ids=shared, names=names)

    async def session_servers(self) -> list[str]:
        """Names of all session servers, also of those that this actor has not dealt with since it started."""
        return await asyncio.to_thread(named_actors, self._address.namespace, SESSION_SERVER_PREFIX)


def _checked_id(session_id: str) -> str:
    if not SESSION_ID.fullmatch(session_id):
        raise ValidationError(
            f"session_id {session_id[:140]!r} is not usable; give letters, digits and . _ : - (at most 128), or none.",
            details={"field": "session_id"},
        )
    return session_id
