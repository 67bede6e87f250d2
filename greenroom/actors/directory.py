"""The actor that knows where each session is served, and finds a place for those that are nowhere."""

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import ray
import ray.exceptions

from ..adapters.clock import id_factory, now_us
from ..adapters.collector import collect_seldom
from ..adapters.logs import get_logger, log_to_stderr
from ..adapters.session_homes import remove_home
from ..domain.errors import GreenroomError, InvalidOperation, SessionDraining, ValidationError, WriterFenced
from ..domain.identifiers import SESSION_ID
from ..domain.placement import ANY, Need, Placement, Pool, SessionGroup, SessionLimits
from ..domain.provider import ProviderDeclaration
from ..domain.routing import RouterOptions
from ..domain.session import ROW, TENANT, Session, SessionSpec
from .actor_states import actor_is_dead, actor_table, named_actors
from .address import BREAKER_PREFIX, ROUTER_PREFIX, SESSION_SERVER_PREFIX, WEBHOOKS, RuntimeAddress
from .ray_errors import raise_bare
from .server_launcher import RayLauncher, held_by
from .server_pool import PlacedSession, ServerPool, Started
from .standing import HeldSession, Standing
from .store_shards import StoreShards

if TYPE_CHECKING:  # whoever is given a handle of this actor loads this module with it, and pydantic takes 60 ms
    from ..adapters.settings import RetentionSettings

_log = get_logger(__name__)

MAX_REMEMBERED_OPENS = 10_000
RETENTION_EVERY_S = 60.0
"""How often sessions are looked for that the retention rule deletes."""
LEAVE_S = 10.0
"""How long the actor of a session that is deleted may take to cancel its runs."""
MAX_RECONCILING = 16
"""Sessions with open runs that are placed at once after a start or a loss."""
REBUILD_S = 1.0
"""How long servers may take to say what they have to a Directory that was started anew."""
TELL_S = 1.0
"""How long a server may take to hear of changed settings."""
_WATCHES = 4
"""How often leases are looked at within their time."""
_STOP_SLACK_S = 10.0


class Directory:
    """Session id -> server. What it knows it can lose: servers say what they have, the store who owned a session last.

    Two servers may believe for a moment that they have the same session; only the one with the newest epoch can write.
    It never waits on a server that may be frozen, but with a time, or until the server's lease has lapsed.
    """

    def __init__(self, address: RuntimeAddress, stores: StoreShards, settings: Mapping[str, Any]) -> None:
        log_to_stderr()
        collect_seldom()
        self._address = address
        self._stores = stores
        self._settings = dict(settings)
        self._self: Any = ray.get_runtime_context().current_actor
        self._actor_id: str = ray.get_runtime_context().get_actor_id()
        self._ids = id_factory()
        placement = Placement(
            sessions_per_server=settings["sessions_per_actor"],
            max_servers=settings["max_live_actors"],
            warm_servers=settings["warm_pool"],
            max_sessions=settings["session_limits"].total,
        )
        self._limits: SessionLimits = settings["session_limits"]
        launcher = RayLauncher(
            address,
            arguments=lambda: (self._stores, self._self, self._settings),
            labels=settings["placement_labels"],
            closed_nodes=lambda: placement.closed_nodes,
        )
        self._placement = placement
        self._pool = ServerPool(placement, launcher, lease_s=settings["lease_s"], on_lost=self._server_lost)
        self._epochs: dict[str, int] = {}
        """Of placed sessions: how a server's word on one that it has left is told from a later one's."""
        self._processes: dict[str, str] = {}
        """Of placed sessions: the process of the server that has said that it has them."""
        self._joined: dict[str, str] = {}
        """Of servers that have joined after a restart: the process that did."""
        self._lapsed: set[str] = set()
        self._has_rows = False
        """Whether there are, or were, rows of batches."""
        self._unconfirmed: dict[str, float] = {}
        """Rows that were given a server, which has not said that it has them; and when."""
        self._silent: set[str] = set()
        """Servers that did not answer this Directory when it was started: the store's word on them counts."""
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # a lock lives while it is used
        self._opens: dict[str, str] = {}
        self._settings_lock = asyncio.Lock()
        self._look_up_gate = asyncio.Semaphore(MAX_RECONCILING)
        self._gates: WeakValueDictionary[Need, asyncio.Semaphore] = WeakValueDictionary()
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._rebuilt = self._own(self._rebuild())
        self._own(self._watch())
        self._own(self._retain())

    async def address(self) -> RuntimeAddress:
        """Where the runtime lives."""
        return self._address

    async def settings(self) -> dict[str, Any]:
        """What session servers go by."""
        await asyncio.shield(self._rebuilt)
        return self._settings

    async def declare(self, providers: dict[str, ProviderDeclaration], routers: dict[str, RouterOptions]) -> None:
        """Add declarations, in place of those of the same names; they hold for the runs that start from now on."""
        await asyncio.shield(self._rebuilt)
        async with self._settings_lock:
            merged = {
                "providers": {**self._settings["providers"], **providers},
                "routers": {**self._settings["routers"], **routers},
            }
            if any(merged[name] != self._settings[name] for name in merged):
                await self._change_settings(**merged)

    async def _change_settings(self, **changes: Any) -> None:
        """Durable before anybody is told: a Directory that is started anew begins with what it was made with. Under the
        lock."""
        changes = {**changes, "revision": self._settings["revision"] + 1}
        changed = {**self._settings, **changes}
        note = {
            "revision": changed["revision"],
            "providers": {name: asdict(declared) for name, declared in changed["providers"].items()},
            "routers": {name: asdict(declared) for name, declared in changed["routers"].items()},
            "draining": changed["draining"],
        }
        await self._stores.ask_first("keep_note", self._actor_id, note)
        self._settings.update(changes)
        await asyncio.gather(*(self._tell_settings(actor) for actor in self._pool.actors()))

    async def _tell_settings(self, actor: Any) -> None:
        """Who changed them may rely on it, but for a server that is dead or frozen: that one hears of them later."""
        with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
            async with asyncio.timeout(TELL_S):
                await actor.change_settings.remote(self._settings)

    async def _remember_settings(self) -> None:
        note = await self._stores.ask_first("note", self._actor_id)
        if note is not None:
            declared = {name: ProviderDeclaration.from_record(one) for name, one in note["providers"].items()}
            routers = {name: RouterOptions.from_record(one) for name, one in note["routers"].items()}
            self._settings.update(
                providers=declared, routers=routers, draining=note["draining"], revision=note["revision"]
            )

    # Finding sessions

    async def open_session(
        self, session_id: str | None, spec: SessionSpec, tools: bytes | None, idempotency_key: str | None, call_id: str
    ) -> dict[str, Any]:
        """Open a session, or resume the one that has this id or this idempotency key."""
        key = idempotency_key or call_id
        async with self._lock(f"open:{key}"):
            known = session_id or self._opens.get(key) or await self._known(idempotency_key)
            chosen = _checked_id(known) if known else self._ids.session_id()
            self._opens[key] = chosen
            if len(self._opens) > MAX_REMEMBERED_OPENS:
                del self._opens[next(iter(self._opens))]
            return await self._place(chosen, spec, tools, idempotency_key, is_new=known is None)

    async def _known(self, idempotency_key: str | None) -> str | None:
        return await self._stores.first("find_session_by_key", idempotency_key) if idempotency_key else None

    async def delete_session(self, session_id: str) -> None:
        """Cancel what runs, let its server leave it, and delete every trace of it. SessionNotFound."""
        await asyncio.shield(self._rebuilt)
        async with self._lock(session_id):
            name = self._placement.server_of(session_id)
            if name is not None:
                await self._leave(name, session_id)
                self._pool.release(session_id)
                self._forget(session_id)
            await self._stores.ask(session_id, "delete_session")
            await asyncio.to_thread(remove_home, self._settings["homes"], session_id)
            self._opens = {key: opened for key, opened in self._opens.items() if opened != session_id}

    async def _leave(self, name: str, session_id: str) -> None:
        """The server has left the session, and what ran there is gone; one that does not answer is killed."""
        try:
            async with asyncio.timeout(LEAVE_S):
                await self._pool.actor(name).leave.remote(session_id)
        except (ray.exceptions.RayError, GreenroomError, TimeoutError):
            _log.warning("session_left_unasked", session_id=session_id, exc_info=True)
            self._pool.drop(name)

    async def locate(self, session_id: str, asker: str | None = None) -> dict[str, Any]:
        """The server that has the session, which is given one if it has none. SessionNotFound if it does not exist.

        An asker that is told its own name has the session when it hears this.
        """
        return await self._place(session_id, asker=asker)

    async def locate_alone(self, session_id: str) -> dict[str, Any]:
        """`locate`, for a session that must not share its server."""
        return await self._place(session_id, alone=True)

    async def whereabouts(self, session_id: str) -> Any:
        """The actor that has the session; None if it is nowhere. Wakes nobody."""
        await asyncio.shield(self._rebuilt)
        name = self._placement.server_of(session_id)
        return None if name is None else self._pool.actor(name)

    async def forward(self, session_id: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a method of a session for someone who does not know where it is served."""
        placed = await self.locate(session_id)
        try:
            return await getattr(placed["actor"], method).remote(session_id, *args, **kwargs)
        except ray.exceptions.RayError as exc:
            raise_bare(exc)

    async def _place(
        self,
        session_id: str,
        spec: SessionSpec | None = None,
        tools: bytes | None = None,
        idempotency_key: str | None = None,
        *,
        is_new: bool = False,
        alone: bool = False,
        asker: str | None = None,
    ) -> dict[str, Any]:
        await asyncio.shield(self._rebuilt)
        async with self._lock(session_id):
            name = await self._server_of(session_id, is_new=is_new)
            if name is None or name == asker:
                if name is None:
                    await self._prepare(session_id, spec, tools, is_new=is_new)
                name, session = await self._bind(session_id, spec, idempotency_key, alone=alone)
            else:
                session = None
            return {"session_id": session_id, "name": name, "actor": self._pool.actor(name), "session": session}

    async def _server_of(self, session_id: str, *, is_new: bool) -> str | None:
        """The server that has the session by all that is known here."""
        name = self._placed_on(session_id)
        if name is None and self._silent and not is_new:
            need = await self._need(session_id, None)
            owner: str | None = await self._stores.ask(session_id, "owner")
            if owner in self._silent and owner in self._placement:
                self._placement.put(session_id, owner, need)
                return owner
        return name

    def _placed_on(self, session_id: str) -> str | None:
        name = self._placement.server_of(session_id)
        if name is None or not actor_is_dead(self._pool.actor(name)):
            return name
        self._pool.lose(name)
        return None

    async def _need(self, session_id: str, spec: SessionSpec | None) -> Need:
        """What the session needs of a server; the store is asked only where there are limits, or rows of batches."""
        if not self._limits.has_groups and not self._has_rows:
            return ANY
        if spec is not None and not self._limits.has_groups:
            return Need(pool=Pool.ROWS if ROW in spec.metadata else Pool.SESSIONS)
        session: Session | None = await self._stores.ask(session_id, "find_session")
        if session is not None:
            groups = self._limits.groups(provider=session.provider, tenant=session.tenant)
            return Need(groups=groups, pool=Pool.SESSIONS if session.row is None else Pool.ROWS)
        if spec is None:
            return ANY
        return Need(groups=self._groups_of(spec), pool=Pool.ROWS if ROW in spec.metadata else Pool.SESSIONS)

    def _groups_of(self, spec: SessionSpec) -> tuple[SessionGroup, ...]:
        return self._limits.groups(
            provider=spec.provider or self._settings["default_provider"], tenant=spec.metadata.get(TENANT)
        )

    async def _prepare(self, session_id: str, spec: SessionSpec | None, tools: bytes | None, *, is_new: bool) -> None:
        """What must hold before a session is given a server."""
        if spec is not None and self._settings["draining"]:
            exists = not is_new and await self._stores.ask(session_id, "owner") is not None
            if not exists:
                raise SessionDraining("The runtime is draining and opens no new sessions; use it after resume().")
        if tools is not None:
            await self._stores.ask(session_id, "save_tools", tools)

    async def _bind(
        self, session_id: str, spec: SessionSpec | None, idempotency_key: str | None, *, alone: bool
    ) -> tuple[str, Session | None]:
        """Have a server take the session over; one that dies on the way is replaced by another. Its name, and the
        record as of now, if it did not have the session already."""
        need = (await self._need(session_id, spec))._replace(alone=alone)
        while True:
            name = self._placement.server_of(session_id)
            if name is None:
                name = await self._pool.claim(session_id, need)
            try:
                answer: dict[str, Any] = await self._pool.actor(name).bind.remote(
                    session_id, spec, idempotency_key, self._placement.is_shared(name)
                )
            except ray.exceptions.RayActorError:
                self._pool.lose(name)
                continue
            except WriterFenced:  # one that a former Directory asked has it by now: it is taken back
                self._pool.release(session_id)
                continue
            except BaseException as exc:
                self._pool.release(session_id)
                if isinstance(exc, ray.exceptions.RayError):
                    raise_bare(exc)
                raise
            self._pool.heard(name)
            if answer["needs_own"]:
                self._pool.release(session_id)
                need = need._replace(alone=True)
                continue
            if self._placement.server_of(session_id) is None and self._joined.get(name) == answer["process"]:
                self._placement.put(session_id, name, need)  # it joined meanwhile, and its former sessions were lost
            if self._placement.server_of(session_id) == name:
                self._epochs[session_id], self._processes[session_id] = answer["epoch"], answer["process"]
                self._unconfirmed.pop(session_id, None)
                return name, answer["session"]

    # Rows of batches

    async def place_rows(
        self,
        session_ids: Sequence[str],
        spec: SessionSpec,
        *,
        alone: bool,
        per_server: int,
        tools: Mapping[bytes, Sequence[str]],
    ) -> dict[str, list[str]]:
        """Names of servers for rows of a batch, as many as have or find a place now, and one at least: if there is
        none, this waits for it. The servers make the sessions; who gives them nothing to do loses the places.

        Whoever asks for the rest of them waits in line behind all other sessions. SessionDraining.
        """
        await asyncio.shield(self._rebuilt)
        if self._settings["draining"]:
            raise SessionDraining("The runtime is draining and takes no rows; go on after resume().")
        self._has_rows = True
        need = Need(alone, self._groups_of(spec), Pool.ROWS, per_server)
        given = {session_id: name for session_id in session_ids if (name := self._placed_on(session_id)) is not None}
        left = [session_id for session_id in session_ids if session_id not in given]
        given |= self._pool.claim_now(left, need)
        if left and not given:
            first = left.pop(0)
            given[first] = await self._pool.claim(first, need, behind=len(left))
            # Meanwhile others have come free, and some of the rows may have been placed for somebody else.
            given |= {one: name for one in left if (name := self._placed_on(one)) is not None}
            given |= self._pool.claim_now([one for one in left if one not in given], need)
        placed: dict[str, list[str]] = {}
        for session_id, name in given.items():
            placed.setdefault(name, []).append(session_id)
            if session_id not in self._epochs:
                self._unconfirmed[session_id] = self._loop.time()
        for packed, owners in tools.items():
            if mine := [session_id for session_id in owners if session_id in given]:
                await self._stores.save_tools(mine, packed)
        return placed

    async def took_rows(self, name: str, process: str, epochs: Mapping[str, int]) -> None:
        """The server has begun these rows."""
        await asyncio.shield(self._rebuilt)
        for session_id, epoch in epochs.items():
            self._unconfirmed.pop(session_id, None)
            if self._placement.server_of(session_id) is None and name in self._placement:
                self._placement.put(session_id, name, Need(pool=Pool.ROWS))  # it took longer than was waited for it
            if self._placement.server_of(session_id) == name:
                self._epochs[session_id], self._processes[session_id] = epoch, process

    def _release_unconfirmed(self) -> None:
        """Whoever asked for their places has gone."""
        late = self._loop.time() - 2 * self._settings["lease_s"]
        for session_id in [one for one, since in self._unconfirmed.items() if since < late]:
            del self._unconfirmed[session_id]
            if session_id not in self._epochs:
                self._pool.release(session_id)

    def _lock(self, key: str) -> asyncio.Lock:
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock

    # What servers say

    async def released(self, name: str, gone: Sequence[tuple[str, int]]) -> None:
        """The server has left the sessions, which have an owner of these epochs no more."""
        await asyncio.shield(self._rebuilt)
        left: list[str] = []
        for session_id, epoch in gone:
            if self._placement.server_of(session_id) == name and epoch >= self._epochs.get(session_id, epoch + 1):
                self._forget(session_id)
                left.append(session_id)
        self._pool.release(*left)

    async def became_idle(self) -> None:
        """A session somewhere has nothing to do."""
        self._pool.relieve()

    async def renew(self, name: str) -> Standing:
        """The server is alive."""
        await asyncio.shield(self._rebuilt)
        self._silent.discard(name)
        if self._pool.heard(name):
            return Standing.KNOWN
        return Standing.LAPSED if name in self._lapsed else Standing.UNKNOWN

    async def joined(self, name: str, held: Mapping[str, Any]) -> dict[str, Any]:
        """A server has begun anew, or was not known here: it has what it says, and what this process of it has taken
        over since it said that, for the Directory binds sessions to a server that Ray has restarted before it joins."""
        await asyncio.shield(self._rebuilt)
        actor = await self._actor_of(name)  # nothing waits from here on
        process: str = held["process"]
        newer = {
            session_id: (PlacedSession(session_id, self._placement.need_of(session_id)), self._epochs[session_id])
            for session_id in self._placement.sessions_of(name)
            if self._processes.get(session_id) == process and session_id not in held["sessions"]
        }
        if name in self._placement:
            self._pool.lose(name)
        self._lapsed.discard(name)
        self._joined[name] = process
        for session_id, (_, epoch) in newer.items():
            self._epochs[session_id], self._processes[session_id] = epoch, process
        self._join(Started(name, actor, held["node_id"]), held["sessions"], [session for session, _ in newer.values()])
        return self._settings

    async def _actor_of(self, name: str) -> Any:
        return await asyncio.to_thread(ray.get_actor, name, self._address.namespace)

    def _forget(self, session_id: str) -> None:
        """No server has the session any more."""
        self._epochs.pop(session_id, None)
        self._processes.pop(session_id, None)

    def _join(self, server: Started, sessions: Mapping[str, HeldSession], others: Sequence[PlacedSession] = ()) -> None:
        placed = [*others]
        for session_id, held in sessions.items():
            if held.epoch > self._epochs.get(session_id, 0):  # else it is somebody else's, and this one's writes fail
                groups = self._limits.groups(provider=held.provider, tenant=held.tenant)
                pool = Pool.ROWS if held.is_row else Pool.SESSIONS
                placed.append(PlacedSession(session_id, Need(held.alone, groups, pool)))
                self._epochs[session_id] = held.epoch
        self._pool.join(server, placed)

    def _server_lost(self, name: str, sessions: frozenset[str]) -> None:
        for session_id in sessions:
            self._forget(session_id)
        self._joined.pop(name, None)
        if self._settings["limiter"] is not None:
            self._settings["limiter"].drop.remote(name)
        self._own(self._recover(name))

    async def _recover(self, name: str) -> None:
        """Give the sessions that had open runs there to others."""
        await self._place_all(await self._stores.joined("sessions_of", name))

    # Keeping order

    async def _rebuild(self) -> None:
        """Learn what there is from those who are there already; then see to the runs that nobody has."""
        if ray.get_runtime_context().was_current_actor_reconstructed:
            await self._remember_settings()
        names = await asyncio.to_thread(named_actors, self._address.namespace, SESSION_SERVER_PREFIX)
        await asyncio.gather(*(self._rediscover(name) for name in names))
        self._has_rows = any(await self._stores.ask_all("has_jobs"))
        self._pool.warm_up()
        self._own(self._reconcile())

    async def _rediscover(self, name: str) -> None:
        try:
            actor = await self._actor_of(name)
        except ValueError:
            return
        actor.change_settings.remote(self._settings)  # it may have missed what was said last
        held = await held_by(actor, REBUILD_S)
        if held is None:
            self._silent.add(name)
        self._join(Started(name, actor, held["node_id"] if held else ""), held["sessions"] if held else {})

    async def _reconcile(self) -> None:
        """Give every session with open runs an owner: no run stays open without somebody who will end it."""
        await self._place_all(await self._stores.joined("sessions_with_open_runs"))

    async def _place_all(self, session_ids: Sequence[str]) -> None:
        async def place(session_id: str) -> None:
            try:
                async with self._look_up_gate:
                    need = await self._need(session_id, None)
                async with self._gate(need):
                    await self._place(session_id)
            except GreenroomError:
                _log.exception("session_not_reconciled", session_id=session_id)

        await asyncio.gather(*(place(session_id) for session_id in session_ids))

    def _gate(self, need: Need) -> asyncio.Semaphore:
        """One for each need: those who wait for a full group must not hold up the others."""
        gate = self._gates.get(need)
        if gate is None:
            gate = self._gates[need] = asyncio.Semaphore(MAX_RECONCILING)
        return gate

    async def _watch(self) -> None:
        """Look after leases and after the pool."""
        lease_s: float = self._settings["lease_s"]
        before = self._loop.time()
        while True:
            await asyncio.sleep(lease_s / _WATCHES)
            if self._loop.time() - before > lease_s / 2:
                self._pool.renew_all()  # this process was held up, and may have missed what others said
            before = self._loop.time()
            for name in self._placement.names:
                if actor_is_dead(self._pool.actor(name)):
                    self._pool.lose(name)
            self._lapsed.update(self._pool.reclaim_silent())
            self._release_unconfirmed()
            self._pool.warm_up()

    async def _retain(self) -> None:
        """Delete sessions that ended long enough ago, for as long as there is a rule for it."""
        retention: RetentionSettings | None = self._settings["retention"]
        while retention is not None:
            try:
                await self._delete_expired(retention)
            except GreenroomError:
                _log.exception("retention_failed")
            await asyncio.sleep(min(RETENTION_EVERY_S, retention.ended_after_s))

    async def _delete_expired(self, retention: "RetentionSettings") -> None:
        before_us = now_us() - round(retention.ended_after_s * 1_000_000)
        for session_id in await self._stores.joined("expired_sessions", retention.statuses, before_us):
            await self.delete_session(session_id)
            _log.info("session_expired", session_id=session_id)

    # Draining

    async def drain(self, timeout_s: float, node_id: str | None = None) -> dict[str, int]:
        """See Runtime.drain. Counts of runs that were `cancelled` at the deadline, and `left` in queues."""
        await asyncio.shield(self._rebuilt)
        if node_id is None:
            async with self._settings_lock:
                await self._change_settings(draining=True)
            names = list(self._placement.names)
        else:
            names = await self._close_node(node_id)
        counts = await asyncio.gather(*(self._wind_down(name, timeout_s, node_id is None) for name in names))
        if node_id is not None:
            await self._reconcile()
        return {kind: sum(count[kind] for count in counts) for kind in ("cancelled", "left")}

    async def _close_node(self, node_id: str) -> list[str]:
        nodes = await asyncio.to_thread(ray.nodes)
        if node_id not in {node["NodeID"] for node in nodes}:
            raise InvalidOperation(f"The cluster has no node {node_id}.", details={"field": "node_id"})
        self._placement.closed_nodes.add(node_id)
        return self._placement.servers_on(node_id)

    async def _wind_down(self, name: str, timeout_s: float, finish_queue: bool) -> dict[str, int]:
        try:
            async with asyncio.timeout(timeout_s + _STOP_SLACK_S):
                return await self._pool.actor(name).wind_down.remote(timeout_s, finish_queue)
        except (ray.exceptions.RayError, TimeoutError) as exc:
            _log.warning("server_not_wound_down", server=name, error=str(exc))
            self._pool.drop(name)
            return {"cancelled": 0, "left": 0}

    async def resume(self) -> None:
        """Take new sessions and runs again, on all nodes."""
        self._placement.closed_nodes.clear()
        async with self._settings_lock:
            await self._change_settings(draining=False)
        await self._reconcile()

    # Looking

    async def actors(self) -> list[dict[str, Any]]:
        """Every actor of this runtime, from Ray's own table: waits for none of them."""
        rows = await asyncio.to_thread(self._actor_rows)
        return [{**row, "session_ids": sorted(self._placement.sessions_of(row["name"]))} for row in rows]

    def _actor_rows(self) -> list[dict[str, Any]]:
        named: list[Any] = [*self._stores.actors, self._self, self._settings["limiter"]]
        for prefix in (BREAKER_PREFIX, ROUTER_PREFIX, WEBHOOKS):
            for name in named_actors(self._address.namespace, prefix):
                with contextlib.suppress(ValueError):
                    named.append(ray.get_actor(name, self._address.namespace))
        shared = {actor._actor_id.hex() for actor in named if actor is not None}  # noqa: SLF001
        names = set(named_actors(self._address.namespace, SESSION_SERVER_PREFIX))
        return actor_table(actor_ids=shared, names=names)

    async def session_servers(self) -> list[str]:
        """Names of all session servers, also of those that this actor has not dealt with since it started."""
        return await asyncio.to_thread(named_actors, self._address.namespace, SESSION_SERVER_PREFIX)

    def _own(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _checked_id(session_id: str) -> str:
    if not SESSION_ID.fullmatch(session_id):
        raise ValidationError(
            f"session_id {session_id[:140]!r} is not usable; give letters, digits and . _ : - (at most 128), or none.",
            details={"field": "session_id"},
        )
    return session_id
