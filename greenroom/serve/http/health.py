"""Routes for whoever looks after the service."""

import asyncio
from http import HTTPStatus

from fastapi import APIRouter, Depends
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response

from ...domain.api_key import Scope
from ...domain.errors import GreenroomError
from .caller import bearer_token
from .metrics import registry_of
from .openapi import only_problems, problems
from .problems import problem
from .records import HealthRecord
from .service import TheService

router = APIRouter(tags=["health"])

_READY_S = 5.0


@router.get("/healthz", response_model=HealthRecord)
async def is_alive() -> Response:
    """Whether this process answers."""
    return JSONResponse({"status": "ok"})


@router.get("/readyz", response_model=HealthRecord, responses=only_problems(HTTPStatus.SERVICE_UNAVAILABLE))
async def is_ready(service: TheService) -> Response:
    """Whether the store, the directory and the routers answer, within five seconds."""
    try:
        async with asyncio.timeout(_READY_S):
            await service.runtime.aping()
    except (TimeoutError, GreenroomError):
        text = "The runtime does not answer."
        return problem(HTTPStatus.SERVICE_UNAVAILABLE, "not_ready", text, headers={"Retry-After": "1"})
    return JSONResponse({"status": "ok"})


async def _may_scrape(connection: HTTPConnection) -> None:
    """Whoever is on this machine; from elsewhere, a key with the scope admin."""
    app = connection.app
    if not app.state.is_local:
        app.state.callers.admit(connection, bearer_token(connection), Scope.ADMIN)


@router.get(
    "/metrics",
    response_class=Response,
    responses=problems()
    | {200: {"description": "Metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
    dependencies=[Depends(_may_scrape)],
)
async def show_metrics(service: TheService) -> Response:
    """Of the whole runtime, in the text format of Prometheus: the same from every replica. Those of requests are Ray
    Serve's."""
    registry = await registry_of(service.runtime)
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)
