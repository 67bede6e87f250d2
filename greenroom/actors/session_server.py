"""The actor that serves sessions: thin. It finds or takes over the session of each call, and hands the call on."""

import asyncio
import gc
import os
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar, cast
from weakref import WeakValueDictionary

import ray

from ..adapters.clock import id_factory, now_us
from ..adapters.logs import get_logger, log_to_stderr
from ..adapters.option_parsing import require_json_safe
from ..domain.errors import CapabilityNotSupported, GreenroomError, SessionMoved, ValidationError, WriterFenced
from ..domain.event import Event, to_microseconds
from ..domain.event_log import EventQuery, parse_types
from ..domain.provider import ProviderDeclaration
from ..domain.run import RunResult
from ..domain.session import SessionSpec, SessionStatus
from ..domain.tool import NoTools, Toolbox
from .activation import activate
from .live_session import LiveSession
from .provider_set import ProviderSet
from .ray_errors import raise_bare
from .store_shards import StoreShards

_log = get_logger(__name__)

ResultT = TypeVar("ResultT")

SUBSCRIBER_BATCHES_AHEAD = 8
"""Batches that a subscription may run ahead of its reader; then it waits, and keeps only its cursor."""


class SessionServer:
    """Serves whatever session it is bound to. After a restart it takes its sessions over again by itself.

    Each public method takes the session's id first; mutating ones then a call id, under which the answer is repeated
    when Ray sends the call again.
    """

    def __init__(self, name: str, stores: StoreShards, directory: Any, settings: Mapping[str, Any]) -> None:
        log_to_stderr()
        # What is there by now stays: the collector need not look at it again and again. A scripted run took 203 us of
        # CPU with the default thresholds and 186 with these (medians of four, noisy machine).
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        self._name = name
        self._directory = directory
        self._stores = stores
        self._log = stores.event_log(spill_bytes=settings["spill_bytes"])
        self._ids = id_factory()
        self._declarations: dict[str, ProviderDeclaration] = settings["providers"]
        self._default_provider: str = settings["default_provider"]
        self._max_input_bytes: int = settings["max_input_bytes"]
        self._live: dict[str, LiveSession] = {}
        self._toolboxes: dict[str, Any] = {}
        self._activating: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._cleanup: set[asyncio.Task[None]] = set()
        restored = ray.get_runtime_context().was_current_actor_reconstructed
        self._restoring = asyncio.get_running_loop().create_task(self._restore()) if restored else None

    async def _restore(self) -> None:
        """Go on with the sessions that the process before this one had; calls for them need not come first."""
        settings = await self._directory.settings.remote()
        self._declarations = settings["providers"]
        for session_id in await self._stores.joined("sessions_of", self._name):
            try:
                await self._session(session_id)
            except GreenroomError:
                _log.exception("session_not_restored", session_id=session_id)

    # Binding

    async def bind(self, session_id: str, spec: SessionSpec | None, idempotency_key: str | None) -> dict[str, Any]:
        """Take the session over, creating it from the spec if it does not exist yet."""
        async with self._lock(session_id):
            if session_id not in self._live:
                await self._activate(session_id, spec, idempotency_key)
        return {"pid": os.getpid(), "node_id": ray.get_runtime_context().get_node_id()}

    async def declare_providers(self, declarations: dict[str, ProviderDeclaration]) -> None:
        """Use these declarations for the runs that start from now on."""
        self._declarations = declarations
        for live in self._live.values():
            live.providers.declare(declarations)

    def _lock(self, session_id: str) -> asyncio.Lock:
        lock = self._activating.get(session_id)
        if lock is None:
            lock = self._activating[session_id] = asyncio.Lock()
        return lock

    async def _activate(self, session_id: str, spec: SessionSpec | None, idempotency_key: str | None) -> LiveSession:
        live = await activate(
            session_id,
            owner=self._name,
            spec=spec,
            idempotency_key=idempotency_key,
            log=self._log,
            providers=ProviderSet(self._declarations),
            default_provider=self._default_provider,
            max_input_bytes=self._max_input_bytes,
            tools=await self._toolbox(session_id),
            ids=self._ids,
            now_us=now_us,
            on_lost=lambda: self._forget(session_id),
        )
        self._live[session_id] = live
        return live

    async def _toolbox(self, session_id: str) -> Toolbox:
        packed: bytes | None = await self._stores.ask(session_id, "tools")
        if packed is None:
            return NoTools()
        from ..adapters.tool_packing import unpack_toolbox  # noqa: PLC0415  most sessions have none

        toolbox = self._toolboxes[session_id] = unpack_toolbox(packed)
        return toolbox

    def _forget(self, session_id: str) -> None:
        live = self._live.pop(session_id, None)
        toolbox = self._toolboxes.pop(session_id, None)
        if toolbox is not None:
            toolbox.close()
        if live is not None:
            closing = asyncio.get_running_loop().create_task(live.aclose())
            self._cleanup.add(closing)
            closing.add_done_callback(self._cleanup.discard)

    async def _session(self, session_id: str) -> LiveSession:
        """The live session, taken over now if it is this actor's. SessionMoved if another actor serves it."""
        live = self._live.get(session_id)
        if live is not None:
            return live
        async with self._lock(session_id):
            live = self._live.get(session_id)
            if live is not None:
                return live
            owner = await self._locate(session_id)
            if owner["name"] != self._name:
                raise SessionMoved(details={"session_id": session_id, "owner": owner["name"]})
            return await self._activate(session_id, None, None)

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
            try:
                live = self._live.get(session_id) or await self._session(session_id)
                return await call(live)
            except (SessionMoved, WriterFenced):
                owner = await self._locate(session_id)
            if owner["name"] != self._name:
                try:
                    return await getattr(owner["actor"], method).remote(session_id, *args)
                except ray.exceptions.RayError as exc:
                    raise_bare(exc)

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

    async def cancel_run(self, session_id: str, call_id: str, run_id: str, reason: str | None = None) -> bool:
        return await self._serve(
            session_id, lambda live: live.cancel_run(run_id, reason, call_id), "cancel_run", call_id, run_id, reason
        )

    async def interrupt_run(self, session_id: str, call_id: str, run_id: str) -> bool:
        return await self._serve(
            session_id, lambda live: live.interrupt_run(run_id, call_id), "interrupt_run", call_id, run_id
        )

    async def steer_run(self, session_id: str, call_id: str, run_id: str, message: str) -> None:
        raise CapabilityNotSupported("steer_run is not in this version.")

    async def pause(self, session_id: str, call_id: str) -> None:
        raise CapabilityNotSupported("pause is not in this version.")

    async def resume(self, session_id: str, call_id: str) -> None:
        raise CapabilityNotSupported("resume is not in this version.")

    async def decide_approval(
        self, session_id: str, call_id: str, approval_id: str, decision: str, reason: str | None = None
    ) -> None:
        raise CapabilityNotSupported("decide_approval is not in this version.")

    async def transcript(
        self, session_id: str, call_id: str, max_messages: int | None = None, max_tokens: int | None = None
    ) -> None:
        raise CapabilityNotSupported("transcript is not in this version.")

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
        return await self._serve(
            session_id,
            lambda live: live.read_events(query, wait_s=wait_s),
            "read_events",
            *(call_id, after, before, limit, run_id, types, since, wait_s),
        )

    @ray.method(max_task_retries=0, _generator_backpressure_num_objects=SUBSCRIBER_BATCHES_AHEAD)
    async def subscribe(
        self,
        session_id: str,
        call_id: str,
        from_seq: int = 0,
        run_id: str | None = None,
        types: Sequence[str] | str | None = None,
        follow: bool = True,
    ) -> AsyncGenerator[list[Event]]:
        """Never retried: a streaming generator that Ray retries loses items silently (97 of 200, tried)."""
        live = await self._session(session_id)
        async for events in live.subscribe(_checked_int(from_seq, "from_seq"), run_id, types, follow):
            yield events

    async def leave(self, session_id: str) -> None:
        """Cancel the session's runs and serve it no more: it is about to be deleted."""
        live = self._live.get(session_id)
        if live is not None:
            if not live.status.is_terminal:
                await live.cancel(secrets.token_hex(12))
            self._forget(session_id)
        await asyncio.gather(*self._cleanup)

    async def stop(self) -> None:
        """Leave all sessions; their providers are gone when this returns."""
        sessions, self._live = self._live, {}
        await asyncio.gather(*(live.aclose() for live in sessions.values()))


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
