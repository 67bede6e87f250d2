"""The ASGI app: routes over one runtime. Holds ids, never handles: what serves a session may move at any time."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.cors import CORSMiddleware

from ...actors.runtime import Runtime
from ...adapters.audit_log import AuditLog
from ...adapters.http_settings import HttpSettings
from ...adapters.key_file import KeyFile
from ...domain.errors import GreenroomError
from ...domain.webhook import WebhookTarget
from . import ag_ui, approvals, events, health, problems, providers, runs, sessions, sockets
from .caller import Callers
from .edge import Edge
from .faults import Faults
from .openapi import describe
from .page import add_page
from .service import Service
from .slow_body import SlowBody
from .too_large import TooLarge

_TITLE = "Greenroom"
_DESCRIPTION = "AI-agent sessions: runs that are queued, and one durable, sequenced stream of everything that happens."


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None]:
    service: Service = app.state.service
    settings: HttpSettings = app.state.settings
    await service.runtime.aset_webhooks(
        [WebhookTarget(name=name, **webhook.model_dump()) for name, webhook in settings.webhooks.items()]
    )
    yield


def create_app(runtime: Runtime, keys: KeyFile, audit: AuditLog, settings: HttpSettings, *, is_local: bool) -> FastAPI:
    """The app over a runtime that lives; `is_local`: nobody reaches it from another machine."""
    app = FastAPI(title=_TITLE, docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=_lifespan)
    app.state.service = Service(runtime, settings)
    app.state.callers = Callers(keys, requests_per_minute=settings.requests_per_minute)
    app.state.settings = settings
    app.state.is_local = is_local
    for module in (sessions, runs, events, approvals, providers, ag_ui, health, sockets):
        app.include_router(module.router)
    add_page(app)
    describe(app, title=_TITLE, version=version("greenroom"), description=_DESCRIPTION)
    for kind, answer in (
        (GreenroomError, problems.answer_greenroom_error),
        (RequestValidationError, problems.answer_invalid_request),
        (HTTPException, problems.answer_http_error),
    ):
        app.add_exception_handler(kind, answer)
    app.add_middleware(Faults)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.max_body_bytes)
    app.add_middleware(TooLarge)
    app.add_middleware(SlowBody, timeout_s=settings.body_timeout_s)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID"],
            expose_headers=["Location", "Retry-After", "Trace-Id"],
        )
    app.add_middleware(Edge, audit=audit)
    return app
