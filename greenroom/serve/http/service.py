"""What the routes share: the runtime, and sessions as the tenant of a key may see them."""

from collections.abc import Mapping
from typing import Annotated, Any

import ray.exceptions
from fastapi import Depends, Request

from ...actors.ray_errors import raise_bare
from ...actors.runtime import Runtime
from ...actors.session_handle import SessionHandle
from ...adapters.http_settings import HttpSettings
from ...domain.api_key import ApiKey
from ...domain.errors import RunNotFound, SessionNotFound
from ...domain.identifiers import SESSION_ID
from ...domain.run import Run
from ...domain.session import Session
from .bodies import SessionCreate
from .grants import Grants


class Service:
    """One tenant never sees another's anything: what is not its own does not exist for it."""

    def __init__(self, runtime: Runtime, settings: HttpSettings) -> None:
        self.runtime = runtime
        self._grants = Grants(settings)

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
        """A handle of the session, made anew for each request: what serves it may have moved."""
        await self.session(key, session_id)
        return self.runtime.handle(session_id)

    async def run(self, key: ApiKey, session_id: str, run_id: str) -> Run:
        """The run's record. RunNotFound also for one of another session."""
        await self.session(key, session_id)
        run = await self.runtime.aget_run(run_id)
        if run.session_id != session_id:
            raise RunNotFound
        return run

    @staticmethod
    async def ask(answer: Any) -> Any:
        """The answer of a session, its errors bare."""
        try:
            return await answer
        except ray.exceptions.RayError as exc:
            raise_bare(exc)


def _service(request: Request) -> Service:
    return request.app.state.service


TheService = Annotated[Service, Depends(_service)]
