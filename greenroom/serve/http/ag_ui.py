"""Routes for front ends that speak the AG-UI protocol: a thread of theirs is a session."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from http import HTTPStatus
from typing import Any

from ag_ui.core import RunAgentInput, RunErrorEvent
from fastapi import APIRouter
from starlette.responses import Response

from ...adapters.rendering.ag_ui import AgUiRun, encode, run_input
from ...domain.api_key import ApiKey
from ...domain.errors import GreenroomError
from .caller import Callers, Reader, Runner, TheCallers
from .events import EventSourceResponse, event_stream
from .openapi import describe_stream, problems
from .service import Service, TheService

router = APIRouter(prefix="/v1/sessions/{session_id}", tags=["ag-ui"])

_STREAM = {200: describe_stream({"data": '{"type": "RUN_STARTED", "threadId": "ses_1", "runId": "run_1"}'})}


@router.post(
    "/ag-ui",
    response_class=EventSourceResponse,
    responses=problems(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.INSUFFICIENT_STORAGE, body=True) | _STREAM,
)
async def run_agent(
    session_id: str, body: RunAgentInput, key: Runner, service: TheService, callers: TheCallers
) -> Response:
    """Submit what is new in a RunAgentInput as a run, and stream it. What comes again with the same `runId` is the same
    run; a client that leaves cancels nothing."""
    handle = await service.handle(key, session_id)
    run_id = await service.ask(handle.submit_run, run_input(body), {}, f"ag-ui/{body.run_id}")
    return await _stream(service, callers, key, session_id, run_id, body.run_id)


@router.get(
    "/runs/{run_id}/ag-ui",
    response_class=EventSourceResponse,
    responses=problems(HTTPStatus.NOT_FOUND) | _STREAM,
)
async def follow_run(session_id: str, run_id: str, key: Reader, service: TheService, callers: TheCallers) -> Response:
    """A run from its beginning, as AG-UI events, live."""
    return await _stream(service, callers, key, session_id, run_id, run_id)


async def _stream(
    service: Service, callers: Callers, key: ApiKey, session_id: str, run_id: str, told_run_id: str
) -> Response:
    run = await service.run(key, session_id, run_id)
    handle = await service.handle(key, session_id)
    mapping = AgUiRun(session_id, told_run_id)

    async def messages() -> AsyncGenerator[dict[str, Any]]:
        async with aclosing(handle.follow(run.queued_seq - 1, run_id=run_id)) as events:
            async for event in events:
                for told in mapping.map(event):
                    yield {"data": encode(told)}

    return event_stream(service, messages(), is_allowed=partial(callers.is_good, key), fault=_fault, may_be_cut=False)


def _fault(error: GreenroomError) -> dict[str, Any]:
    return {"data": encode(RunErrorEvent(message="The stream cannot go on.", code=error.code))}
