"""What the routes share: the runtime, and sessions as the tenant of a key may see them."""

import asyncio
import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, NamedTuple

import ray.exceptions
from fastapi import Depends, Header
from starlette.requests import HTTPConnection

from ...actors.ray_errors import raise_bare
from ...actors.runtime import Runtime
from ...actors.session_handle import RemoteMethod, SessionHandle
from ...adapters.http_settings import HttpSettings
from ...domain.api_key import ApiKey
from ...domain.errors import RateLimited, RunNotFound, SessionMoved, SessionNotFound
from ...domain.identifiers import SESSION_ID
from ...domain.run import Run
from ...domain.session import Session
from .bodies import SessionCreate
from .grants import Grants

_RETRY_STREAM_S = 5.0

MAX_KNOWN_SESSIONS = 10_000
_KNOWN_S = 10.0

_MOVED_PAUSES_S = (0.05, 0.2, 1.0, 2.0)


class _Known(NamedTuple):
    """What is remembered of a session: whose it is, for a while, since the id may be another's after a deletion; and a
    handle, which is never stale. Whether it is still there, its own answers say."""

    tenant: str
    handle: SessionHandle
    good_until: float


class Service:
    """One tenant never sees another's anything: what is not its own does not exist for it."""

    def __init__(self, runtime: Runtime, settings: HttpSettings) -> None:
        self.runtime = runtime
        self._grants = Grants(settings)
        self._max_streams = settings.max_streams
        self.max_stream_s = settings.max_stream_s
        """How long a stream of events may last before its client has to take it up again."""
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self.streams = 0
        """Streams and long polls that are open."""

    async def check_session(self, key: ApiKey, body: SessionCreate) -> None:
        """Whether the key may open such a session. ValidationError; SessionNotFound for a parent of another tenant."""
        self._grants.check_tools(body.tools)
        await self._check(key, {"provider": body.provider or await self.runtime.adefault_provider()}, field="session")
        await self._check(key, body.run_defaults, field="run_defaults")
        if body.parent_session_id is not None:
            await self.session(key, body.parent_session_id)

    async def check_run(self, key: ApiKey, options: Mapping[str, Any]) -> None:
        """Whether the key may submit such a run. ValidationError."""
        await self._check(key, options, field="options")

    async def _check(self, key: ApiKey, options: Mapping[str, Any], *, field: str) -> None:
        self._grants.check_options(options, field=field)
        for name in (options.get("provider"), options.get("router")):
            if name is not None:
                self._grants.check_provider(str(name), key.tenant, *await self.runtime.adeclared())

    async def session(self, key: ApiKey, session_id: str) -> Session:
        """The session's record. SessionNotFound also for one of another tenant."""
        if not SESSION_ID.fullmatch(session_id):
            raise SessionNotFound
        session = await self.runtime.asession(session_id)
        if session.tenant != key.tenant:
            raise SessionNotFound
        return session

    async def handle(self, key: ApiKey, session_id: str) -> SessionHandle:
        """A handle of the session. SessionNotFound also for one of another tenant."""
        known = self._known.get(session_id)
        if known is None or known.tenant != key.tenant or known.good_until < time.monotonic():
            # One of another tenant is looked up too: a faster refusal would tell that it is there.
            await self.session(key, session_id)
            return self.remember(key, self.runtime.handle(session_id))
        return known.handle

    def remember(self, key: ApiKey, handle: SessionHandle) -> SessionHandle:
        """A session of the key's tenant need not be looked up again."""
        known = self._known.get(handle.session_id)
        kept = handle if known is None else known.handle
        self._known[handle.session_id] = _Known(key.tenant, kept, time.monotonic() + _KNOWN_S)
        if len(self._known) > MAX_KNOWN_SESSIONS:
            self._known.popitem(last=False)
        return kept

    async def run(self, key: ApiKey, session_id: str, run_id: str) -> Run:
        """The run's record. RunNotFound also for one of another session."""
        await self.handle(key, session_id)
        run = await self.runtime.aget_run(run_id)
        if run.session_id != session_id:
            raise RunNotFound
        return run

    @staticmethod
    async def ask(method: RemoteMethod, *args: Any, call_id: str | None = None) -> Any:
        """What a session answers; its errors are bare. What comes again with the same call id has its effect once.

        A server that goes while it is asked is nothing that a caller need know of: the session is asked again.
        """
        call = method.options(call_id=call_id or secrets.token_hex(12))
        for pause_s in _MOVED_PAUSES_S:
            try:
                return await _answer(call, args)
            except SessionMoved:
                await asyncio.sleep(pause_s)
        return await _answer(call, args)

    @contextmanager
    def open_stream(self) -> Generator[None]:
        """Of a request that may stay for long. RateLimited when there are too many."""
        if self.streams >= self._max_streams:
            raise RateLimited(
                f"{self.streams} streams are open here already.", details={"retry_after_s": _RETRY_STREAM_S}
            )
        self.streams += 1
        try:
            yield
        finally:
            self.streams -= 1


async def _answer(call: RemoteMethod, args: tuple[Any, ...]) -> Any:
    try:
        return await call.remote(*args)
    except ray.exceptions.RayError as exc:
        raise_bare(exc)


async def _service(connection: HTTPConnection) -> Service:
    return connection.app.state.service


TheService = Annotated[Service, Depends(_service)]

IdempotencyKey = Annotated[
    str | None,
    Header(min_length=1, max_length=200, description="What comes again with the same one gets the first answer."),
]


async def _call_id(connection: HTTPConnection, idempotency_key: IdempotencyKey = None) -> str | None:
    if idempotency_key is None:
        return None
    return hashlib.sha256(f"{connection.url.path}\n{idempotency_key}".encode()).hexdigest()


CallId = Annotated[str | None, Depends(_call_id)]
"""The call id of a request that brought an Idempotency-Key: the same for the same key at the same address."""
