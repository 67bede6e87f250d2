"""The ASGI app: routes over one runtime. Holds ids, never handles: what serves a session may move at any time."""

from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.responses import Response

from ...actors.runtime import Runtime
from ...adapters.http_settings import HttpSettings
from ...adapters.key_file import KeyFile
from ...domain.errors import GreenroomError
from . import events, problems, runs, sessions
from .caller import Admin, Reader, Refused, answer_refused
from .service import Service
from .too_large import TooLarge

_SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def create_app(runtime: Runtime, keys: KeyFile, settings: HttpSettings) -> FastAPI:
    """The app over a runtime that lives."""
    app = FastAPI(
        title="Greenroom",
        version=version("greenroom"),
        description="AI-agent sessions: runs that are queued, and one durable, sequenced stream of what happens.",
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = Service(runtime, settings)
    app.state.keys = keys
    for router in (sessions.router, runs.router, events.router):
        app.include_router(router)
    _add_whole_runtime(app, runtime)
    for kind, answer in (
        (GreenroomError, problems.answer_greenroom_error),
        (RequestValidationError, problems.answer_invalid_request),
        (HTTPException, problems.answer_http_error),
        (Refused, answer_refused),
        (Exception, problems.answer_fault),
    ):
        app.add_exception_handler(kind, answer)
    app.middleware("http")(_secured)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.max_body_bytes)
    app.add_middleware(TooLarge)
    return app


async def _secured(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await answer(request)
    for name, value in _SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def _add_whole_runtime(app: FastAPI, runtime: Runtime) -> None:
    """Routes that belong to no session."""

    @app.get("/v1/providers", tags=["runtime"])
    async def list_providers(key: Reader) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]  FastAPI calls it
        """The providers that runs may name, without their options."""
        found = await runtime.aproviders()
        return {"items": [{"name": name, "kind": one.kind} for name, one in sorted(found.items())]}

    @app.get("/v1/stats", tags=["runtime"])
    async def show_stats(key: Admin) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """How much there is, over all tenants."""
        stats = await runtime.astats()
        counts = ("sessions", "runs", "events", "bytes", "processes")
        return {name: getattr(stats, name) for name in counts}

    @app.get("/healthz", tags=["health"])
    async def is_alive() -> dict[str, str]:  # pyright: ignore[reportUnusedFunction]
        """Whether this process answers."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["health"])
    async def is_ready() -> dict[str, str]:  # pyright: ignore[reportUnusedFunction]
        """Whether the store and the directory answer."""
        await runtime.astats()
        return {"status": "ok"}
