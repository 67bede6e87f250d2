"""The actor that serves sessions: thin. It finds or takes over the session of each call, and hands the call on."""

import asyncio
import gc
import os
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakValueDictionary

import ray

from ..adapters.clock import id_factory, now_us
from ..adapters.collector import collect_seldom
from ..adapters.json_safety import require_json_safe
from ..adapters.logs import get_logger, log_to_stderr
from ..adapters.run_option_parsing import load_parser
from ..adapters.session_homes import home_path
from ..domain.approval import BY_CALLER
from ..domain.batch_row import RowsPlan, RowWork
from ..domain.errors import (
    GreenroomError,
    InvalidOperation,
    SessionMoved,
    SessionNotFound,
    ValidationError,
    WriterFenced,
)
from ..domain.event import Event, to_microseconds
from ..domain.event_log import EventQuery, parse_types
from ..domain.run import RunResult
from ..domain.session import SessionSpec, SessionStatus
from ..domain.steering import SteerReceipt
from ..domain.tool import NoTools, Toolbox
from .account_names import managed
from .activation import Activation
from .live_session import LiveSession, NeedsOwnServer, row_call_id
from .provider_set import ProviderSet
from .ray_errors import raise_bare
from .row_desk import RowDesk, RowEnd, unpacked
from .run_outcomes import Outcome
from .standing import HeldSession, IdleSession, Standing
from .store_shards import StoreShards

if TYPE_CHECKING:
    from .accounts import Accounts
    from .run_permits import RunPermits

_log = get_logger(__name__)

ResultT = TypeVar("ResultT")

SUBSCRIBER_BATCHES_AHEAD = 8
"""Batches that a subscription may run ahead of its reader; then it waits, and keeps only its cursor."""

_RENEWALS = 3
"""How often a lease is renewed within its time."""

_IDLE_LOOKS = 4
_MIN_LOOK_S, _MAX_LOOK_S = 0.05, 5.0
_JOIN_RETRY_S = 0.5
_LOOK_AROUND_AFTER_S = 1.0

_LEFT_SESSIONS = 16
"""After so many sessions have left, what they leave in memory is collected."""
_FORWARD_RETRY_S = 0.05


class SessionServer:
    """Serves whatever sessions the Directory binds to it. After a restart it is empty, and says so.

    Each public method of a session takes the session's id first; mutating ones then a call id, under which the answer
    is repeated when Ray sends the call again. A call for a session that is not here goes on to where it is.
    """

    def __init__(self, name: str, stores: StoreShards, directory: Any, settings: Mapping[str, Any]) -> None:
        log_to_stderr()
        collect_seldom()
        self._name = name
        self._process = secrets.token_hex(8)
        self._directory = directory
        self._stores = stores
        self._log = stores.event_log(spill_bytes=settings["spill_bytes"])
        self._settings = dict(settings)
        self._live: dict[str, LiveSession] = {}
        self._toolboxes: dict[str, Any] = {}
        self._activating: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tells_idle = False
        self._left = 0
        limiter = settings["limiter"]
        self._permits = _permits(limiter, name) if limiter is not None else None
        self._accounts: Accounts | None = None
        self._manage_accounts()
        self._activation = Activation(
            name,
            log=self._log,
            default_provider=settings["default_provider"],
            max_input_bytes=settings["max_input_bytes"],
            approval_expires_s=settings["approval_expires_s"],
            ids=id_factory(),
            now_us=now_us,
            gate=self._permits,
            accounts=lambda: self._accounts,
            scope_policies=settings["scope_policies"],
            asks_before_start=settings["asks_before_start"],
        )
        self._tasks: set[asyncio.Task[Any]] = set()
        self._rows = RowDesk(
            settings, begin=self._begin_rows, elsewhere=self._execute_placed_row, leave=self._leave_row
        )
        self._gone: list[tuple[str, int]] = []
        """Sessions that were left in this turn of the loop, with their epochs."""
        restored = ray.get_runtime_context().was_current_actor_reconstructed
        self._is_current = asyncio.Event()
        """Set once the settings are those of today: a server that Ray restarts begins with those it was made with."""
        if not restored:
            self._is_current.set()
        self._own(self._look_around(at_once=restored))
        self._own(self._keep_lease(restored=restored))
        self._own(self._send_idle_away())

    async def hello(self) -> str:
        """The node that it is on."""
        return ray.get_runtime_context().get_node_id()

    # Sessions come and go

    async def bind(
        self, session_id: str, spec: SessionSpec | None, idempotency_key: str | None, shared: bool
    ) -> dict[str, Any]:
        """Take the session over, creating it from the spec if it does not exist yet.

        `needs_own` when it may not be here, since the server is shared: then nothing has changed. `session` is the
        record as of now, if it was not here before.
        """
        await self._is_current.wait()  # else queued runs of what was declared since would fail for want of it
        async with self._lock(session_id):
            live = self._live.get(session_id)
            if live is not None:
                return {"needs_own": False, "epoch": live.epoch, "session": None, "process": self._process}
            try:
                live = await self._activate(session_id, spec, idempotency_key, shared=shared)
            except NeedsOwnServer:
                return {"needs_own": True}
            return {"needs_own": False, "epoch": live.epoch, "session": live.session, "process": self._process}

    async def held(self) -> dict[str, Any]:
        """What it has by now, for a Directory that has just been started or takes this process for a former one.
        `process` is another one after each restart."""
        sessions = {
            session_id: HeldSession(
                live.epoch,
                live.session.provider,
                live.session.tenant,
                alone=not live.is_shared,
                is_row=live.session.row is not None,
            )
            for session_id, live in self._live.items()
        }
        return {"node_id": await self.hello(), "sessions": sessions, "process": self._process}

    async def idle_sessions(self) -> list[IdleSession]:
        """Sessions that have nothing to do. The Directory is told of the next one."""
        now = self._loop_time()
        idle = [
            IdleSession(now - live.idle_since, session_id)
            for session_id, live in self._live.items()
            if live.idle_since is not None
        ]
        self._tells_idle = True
        return idle

    async def hibernate(self, session_id: str) -> bool:
        """Let the session go, if it has nothing to do. It costs rows only, until somebody calls it again."""
        live = self._live.get(session_id)
        if live is None or live.idle_since is None:
            return False
        self._forget(session_id, live)
        return True

    async def leave(self, session_id: str) -> None:
        """Cancel the session's runs and serve it no more: it is about to be deleted."""
        live = self._live.get(session_id)
        if live is not None:
            if not live.status.is_terminal:
                await live.cancel(secrets.token_hex(12))
            await self._forget(session_id, live)

    async def wind_down(self, timeout_s: float, finish_queue: bool) -> dict[str, int]:
        """Let all sessions go when their runs have ended; what runs at the deadline is cancelled.

        Without `finish_queue` what waits does not start here any more. Queued runs stay queued for the next owner.
        Counts of runs `cancelled`, and `left` in queues.
        """
        sessions = list(self._live.items())
        counts = await asyncio.gather(*(live.wind_down(timeout_s, finish_queue=finish_queue) for _, live in sessions))
        await asyncio.gather(*(self._forget(session_id, live) for session_id, live in sessions))
        return {"cancelled": sum(one for one, _ in counts), "left": sum(one for _, one in counts)}

    async def change_settings(self, settings: Mapping[str, Any]) -> None:
        """Hold from now on: declared providers for the runs that start, draining for those that are submitted. What is
        older than what it has is left: the answer to `joined` may be overtaken."""
        if settings["revision"] < self._settings["revision"]:
            return
        self._settings.update(settings)
        self._manage_accounts()
        for live in self._live.values():
            live.providers.declare(self._settings["providers"], self._settings["routers"])
            live.refuses_runs = self._settings["draining"]
        self._rows.change_settings(self._settings)

    def _manage_accounts(self) -> None:
        names = managed(self._settings["providers"], self._settings["routers"])
        if names and self._accounts is None:
            self._accounts = _accounts(self._name, self._settings["namespace"])
        if self._accounts is not None:
            self._accounts.manage(names)

    async def stop(self) -> None:
        """Leave all sessions; their providers are gone when this returns."""
        sessions, self._live = self._live, {}
        await asyncio.gather(*(live.aclose() for live in sessions.values()))

    def _lock(self, session_id: str) -> asyncio.Lock:
        lock = self._activating.get(session_id)
        if lock is None:
            lock = self._activating[session_id] = asyncio.Lock()
        return lock

    async def _activate(
        self, session_id: str, spec: SessionSpec | None, idempotency_key: str | None, *, shared: bool
    ) -> LiveSession:
        live = await self._activation.activate(
            session_id,
            spec=spec,
            idempotency_key=idempotency_key,
            providers=ProviderSet(self._settings["providers"], self._settings["routers"]),
            home=self._home(session_id),
            unpack_tools=partial(self._toolbox, session_id),
            on_lost=lambda: self._lost(session_id),
            on_idle=lambda: self._idle(session_id),
            shared=shared,
        )
        live.providers.declare(self._settings["providers"], self._settings["routers"])  # they may be others by now
        live.refuses_runs = self._settings["draining"]
        self._live[session_id] = live
        return live

    def _home(self, session_id: str) -> str:
        return home_path(self._settings["homes"], session_id)

    def _toolbox(self, session_id: str, packed: bytes | None) -> Toolbox:
        if packed is None:
            return NoTools()
        toolbox = self._toolboxes[session_id] = unpacked(packed)
        return toolbox

    def _lost(self, session_id: str) -> None:
        live = self._live.get(session_id)
        if live is not None:
            self._forget(session_id, live)

    def _forget(self, session_id: str, live: LiveSession) -> "asyncio.Task[None]":
        """Serve the session no more; done when its providers are gone."""
        self._drop(session_id, live)
        return self._own(self._let_go(live))

    def _drop(self, session_id: str, live: LiveSession) -> None:
        """The session's calls go to the Directory from now on, which has heard of it before."""
        live.close()
        if self._live.get(session_id) is live:
            del self._live[session_id]
        toolbox = self._toolboxes.pop(session_id, None)
        if toolbox is not None:
            toolbox.close()
        self._gone.append((session_id, live.epoch))
        if len(self._gone) == 1:  # at the end of this turn of the loop: rows of batches end many at a time
            asyncio.get_running_loop().call_soon(self._say_gone)

    def _say_gone(self) -> None:
        gone, self._gone = self._gone, []
        self._directory.released.remote(self._name, gone)

    async def _let_go(self, live: LiveSession) -> None:
        await live.aclose()
        self._left += 1
        if self._left >= _LEFT_SESSIONS:  # by itself the collector, which is told to be lazy, would come much later
            self._left = 0
            gc.collect()

    def _idle(self, session_id: str) -> None:
        if self._tells_idle:
            self._tells_idle = False
            self._directory.became_idle.remote()

    def _own(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _loop_time(self) -> float:
        return asyncio.get_running_loop().time()

    async def _look_around(self, *, at_once: bool) -> None:
        """What has time until the first sessions are served: orphans of processes that died, and slow imports."""
        if not at_once:
            await asyncio.sleep(_LOOK_AROUND_AFTER_S)
        await asyncio.to_thread(_end_orphans)
        await asyncio.to_thread(load_parser)

    async def _send_idle_away(self) -> None:
        idle_after_s: float = self._settings["idle_after_s"]
        while True:
            await asyncio.sleep(min(max(idle_after_s / _IDLE_LOOKS, _MIN_LOOK_S), _MAX_LOOK_S))
            now = self._loop_time()
            for session_id, live in list(self._live.items()):
                if live.idle_since is not None and now - live.idle_since >= idle_after_s:
                    self._forget(session_id, live)

    async def _keep_lease(self, *, restored: bool) -> None:
        """Say that it is alive, for as long as the loop turns: a server that cannot say so is taken for dead."""
        joined = not restored
        if joined:
            await asyncio.sleep(self._settings["lease_s"] / _RENEWALS)  # whoever started it knows that it is there
        while True:
            try:
                if not joined:
                    settings: Mapping[str, Any] = await self._directory.joined.remote(self._name, await self.held())
                    await self.change_settings(settings)
                    self._is_current.set()
                standing: str = await self._directory.renew.remote(self._name)
                if self._permits is not None:
                    await self._permits.renew()
                if self._accounts is not None:
                    await self._accounts.renew()
            except ray.exceptions.RayError:
                standing = Standing.UNKNOWN
            if standing == Standing.LAPSED:  # somebody else has the sessions: what is here is of no use to anybody
                _log.warning("lease_lapsed_server_ends", server=self._name)
                os._exit(1)  # Ray starts it again, empty
            joined = standing == Standing.KNOWN
            await asyncio.sleep(self._settings["lease_s"] / _RENEWALS if joined else _JOIN_RETRY_S)

    async def _locate(self, session_id: str) -> dict[str, Any]:
        try:
            return await self._directory.locate.remote(session_id, self._name)
        except ray.exceptions.RayError as exc:
            raise_bare(exc)

    async def _serve(
        self, session_id: str, call: Callable[[LiveSession], Awaitable[ResultT]], method: str, *args: Any
    ) -> ResultT:
        """Run the call here, or send it to where the session is now."""
        while True:
            live = self._live.get(session_id)
            if live is not None:
                try:
                    return await call(live)
                except NeedsOwnServer:
                    await self._move_to_own_server(session_id, live)
                except (SessionMoved, WriterFenced):
                    pass
            owner = await self._locate(session_id)
            if owner["name"] == self._name:
                continue
            try:
                return await getattr(owner["actor"], method).remote(session_id, *args)
            except ray.exceptions.RayActorError:  # gone for good meanwhile
                await asyncio.sleep(_FORWARD_RETRY_S)
            except ray.exceptions.RayError as exc:
                raise_bare(exc)

    async def _move_to_own_server(self, session_id: str, live: LiveSession) -> None:
        """Its next run needs a process of its own. InvalidOperation while others are under way here."""
        if live.idle_since is None:
            raise InvalidOperation(
                "This run's provider needs a process of its own, and the session shares one while its other runs are"
                " under way. Submit it when they have ended, or open a session for it with that provider.",
                details={"session_id": session_id},
            )
        self._forget(session_id, live)
        await self._directory.locate_alone.remote(session_id)

    # The session's methods

    async def submit_run(
        self, session_id: str, call_id: str, input: object, options: object = None, idempotency_key: str | None = None
    ) -> str:
        async def call(live: LiveSession) -> str:
            return (await live.submit_runs([input], options, [idempotency_key], call_id))[0]

        return await self._serve(session_id, call, "submit_run", call_id, input, options, idempotency_key)

    async def submit_runs(
        self,
        session_id: str,
        call_id: str,
        inputs: Sequence[object],
        options: object = None,
        idempotency_key: str | None = None,
    ) -> list[str]:
        """With an idempotency key, each run has that key and its place in the list as its own."""
        keys = _keys(inputs, idempotency_key)

        async def call(live: LiveSession) -> list[str]:
            return await live.submit_runs(inputs, options, keys, call_id)

        return await self._serve(session_id, call, "submit_runs", call_id, inputs, options, idempotency_key)

    async def await_run(self, session_id: str, call_id: str, run_id: str, timeout_s: float | None = None) -> RunResult:
        return await self._serve(
            session_id, lambda live: live.await_run(run_id, timeout_s), "await_run", call_id, run_id, timeout_s
        )

    async def await_runs(
        self, session_id: str, call_id: str, run_ids: Sequence[str], timeout_s: float | None = None
    ) -> list[RunResult | GreenroomError]:
        return await self._serve(
            session_id, lambda live: live.await_runs(run_ids, timeout_s), "await_runs", call_id, run_ids, timeout_s
        )

    async def execute_run(
        self, session_id: str, call_id: str, input: object, options: object = None, idempotency_key: str | None = None
    ) -> RunResult:
        async def call(live: LiveSession) -> RunResult:
            (run_id,) = await live.submit_runs([input], options, [idempotency_key], call_id)
            return await live.await_run(run_id)

        return await self._serve(session_id, call, "execute_run", call_id, input, options, idempotency_key)

    @ray.method(max_task_retries=0)
    async def execute_rows(self, rows: Sequence[RowWork], plan: RowsPlan) -> AsyncGenerator[list[RowEnd]]:
        """See RowDesk.execute. Never retried: whoever asked sends what has not ended again."""
        await self._is_current.wait()
        async for ends in self._rows.execute(rows, plan):
            yield ends

    async def execute_row(self, session_id: str, call_id: str, row: RowWork, plan: RowsPlan) -> list[Outcome]:
        """One row, whose session exists."""
        return await self._serve(
            session_id, lambda live: self._rows.run(live, row, plan), "execute_row", call_id, row, plan
        )

    async def _execute_placed_row(self, row: RowWork, plan: RowsPlan) -> list[Outcome]:
        call_id = row_call_id(row.session_id)
        try:
            return await self.execute_row(row.session_id, call_id, row, plan)
        except SessionNotFound:  # whoever owned it first died before it said that the session was created
            await self._open_row(row, plan, call_id)
            return await self.execute_row(row.session_id, call_id, row, plan)

    async def _open_row(self, row: RowWork, plan: RowsPlan, call_id: str) -> None:
        try:
            await self._directory.open_session.remote(row.session_id, plan.spec_of(row), row.tools, None, call_id)
        except ray.exceptions.RayError as exc:
            raise_bare(exc)

    async def _begin_rows(
        self, rows: Sequence[RowWork], plan: RowsPlan, providers: ProviderSet, tools: Callable[[RowWork], Toolbox]
    ) -> dict[str, LiveSession]:
        begun = await self._activation.begin(
            [row for row in rows if row.session_id not in self._live],
            plan,
            providers=providers,
            tools=tools,
            on_lost=self._lost,
            on_idle=self._idle,
            home=self._home,
            shared=not plan.needs_own_server,
        )
        for live in begun.values():
            live.refuses_runs = self._settings["draining"]
        self._live.update(begun)
        epochs = {session_id: live.epoch for session_id, live in begun.items()}
        self._directory.took_rows.remote(self._name, self._process, epochs)
        return begun

    def _leave_row(self, live: LiveSession) -> None:
        """It has ended: nobody needs it here."""
        if self._live.get(live.session_id) is live:
            self._drop(live.session_id, live)
            if live.lingers:
                self._own(self._let_go(live))

    async def cancel_run(self, session_id: str, call_id: str, run_id: str, reason: str | None = None) -> bool:
        return await self._serve(
            session_id, lambda live: live.cancel_run(run_id, reason, call_id), "cancel_run", call_id, run_id, reason
        )

    async def interrupt_run(self, session_id: str, call_id: str, run_id: str) -> bool:
        return await self._serve(
            session_id, lambda live: live.interrupt_run(run_id, call_id), "interrupt_run", call_id, run_id
        )

    async def cancel_all(self, session_id: str, call_id: str, reason: str | None = None) -> list[str]:
        return await self._serve(
            session_id, lambda live: live.cancel_all(reason, call_id), "cancel_all", call_id, reason
        )

    async def steer_run(self, session_id: str, call_id: str, run_id: str, message: str) -> SteerReceipt:
        return await self._serve(
            session_id, lambda live: live.steer_run(run_id, message, call_id), "steer_run", call_id, run_id, message
        )

    async def pause(self, session_id: str, call_id: str) -> None:
        await self._serve(session_id, lambda live: live.pause(call_id), "pause", call_id)

    async def resume(self, session_id: str, call_id: str) -> None:
        await self._serve(session_id, lambda live: live.resume(call_id), "resume", call_id)

    async def decide_approval(
        self,
        session_id: str,
        call_id: str,
        approval_id: str,
        decision: str,
        reason: str | None = None,
        by: str = BY_CALLER,
    ) -> None:
        async def call(live: LiveSession) -> None:
            await live.decide_approval(approval_id, decision, reason, call_id, by)

        await self._serve(session_id, call, "decide_approval", call_id, approval_id, decision, reason, by)

    async def transcript(
        self, session_id: str, call_id: str, max_messages: int | None = None, max_tokens: int | None = None
    ) -> list[dict[str, Any]]:
        return await self._serve(
            session_id,
            lambda live: live.transcript(max_messages, max_tokens),
            "transcript",
            call_id,
            max_messages,
            max_tokens,
        )

    async def drain(self, session_id: str, call_id: str, timeout_s: float | None = None) -> bool:
        return await self._serve(session_id, lambda live: live.drain(timeout_s), "drain", call_id, timeout_s)

    async def complete(self, session_id: str, call_id: str) -> None:
        await self._serve(session_id, lambda live: live.complete(call_id), "complete", call_id)

    async def fail(self, session_id: str, call_id: str, error: object) -> None:
        record = _error_record(error)
        await self._serve(session_id, lambda live: live.fail(record, call_id), "fail", call_id, error)

    async def cancel(self, session_id: str, call_id: str) -> None:
        await self._serve(session_id, lambda live: live.cancel(call_id), "cancel", call_id)

    async def status(self, session_id: str, call_id: str) -> SessionStatus:
        async def call(live: LiveSession) -> SessionStatus:
            return live.state()

        return await self._serve(session_id, call, "status", call_id)

    async def read_events(
        self,
        session_id: str,
        call_id: str,
        after: int = 0,
        before: int | None = None,
        limit: int = 100,
        run_id: str | None = None,
        types: Sequence[str] | str | None = None,
        since: Any = None,
        wait_s: float = 0,
    ) -> list[Event]:
        query = EventQuery(
            after=_checked_int(after, "after"),
            before=_checked_int(before, "before") if before is not None else None,
            limit=_checked_int(limit, "limit"),
            run_id=run_id,
            types=parse_types(types),
            since_us=_since_us(since),
        )
        return await self._log.read(session_id, query, wait_s=wait_s)

    @ray.method(max_task_retries=0, _generator_backpressure_num_objects=SUBSCRIBER_BATCHES_AHEAD)
    async def subscribe(
        self,
        session_id: str,
        call_id: str,
        from_seq: int = 0,
        run_id: str | None = None,
        types: Sequence[str] | str | None = None,
        follow: bool = True,
        wake: bool = True,
    ) -> AsyncGenerator[list[Event]]:
        """Without `wake` a session that is not here is left alone, and SessionMoved raised.

        Never retried: a streaming generator that Ray retries loses items silently (97 of 200, tried)."""
        if session_id not in self._live and wake:
            await self._locate(session_id)
        live = self._live.get(session_id)
        if live is None:
            raise SessionMoved(details={"session_id": session_id})
        async for events in live.subscribe(_checked_int(from_seq, "from_seq"), run_id, types, follow):
            yield events


# What is imported when it is needed costs a server that is started for somebody who waits nothing.


def _permits(limiter: Any, name: str) -> "RunPermits":
    from .run_permits import RunPermits  # noqa: PLC0415

    return RunPermits(limiter, name)


def _accounts(name: str, namespace: str) -> "Accounts":
    from .accounts import Accounts  # noqa: PLC0415

    return Accounts(name, namespace)


def _end_orphans() -> None:
    from ..adapters.process_trees import end_orphans  # noqa: PLC0415

    end_orphans()


def _checked_int(value: object, field: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValidationError(f"{field} must be a whole number, not {value!r}.", details={"field": field})
    return value


def _keys(inputs: object, idempotency_key: str | None) -> list[str | None]:
    if not isinstance(inputs, list | tuple) or not inputs:
        raise ValidationError("inputs must be a list with at least one input.", details={"field": "inputs"})
    count = len(cast("Sequence[object]", inputs))
    return [idempotency_key and f"{idempotency_key}/{index}" for index in range(count)]


def _since_us(since: Any) -> int | None:
    if since is None:
        return None
    if isinstance(since, int | float):
        return int(since * 1_000_000)
    try:
        return to_microseconds(since)
    except (AttributeError, TypeError) as exc:
        raise ValidationError(
            "since must be a time: seconds since 1970, or an aware datetime.", details={"field": "since"}
        ) from exc


def _error_record(error: object) -> dict[str, Any]:
    if isinstance(error, GreenroomError):
        return {"error_code": error.code, "error_message": error.message, **error.to_record()}
    if isinstance(error, Mapping):
        record = dict(cast("Mapping[str, Any]", error))
        require_json_safe(record, field="error")
        return record
    return {"error_code": "unknown_error", "error_message": str(error)}
