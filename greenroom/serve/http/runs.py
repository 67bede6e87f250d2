"""Routes of runs. A run never lives inside a request: it is accepted, and then looked at."""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import JSONResponse, Response

from ...domain.errors import GreenroomError, Timeout
from ...domain.run import Run, RunStatus
from .bodies import Reason, RunCreate, Steering
from .caller import Reader, Runner
from .openapi import problems
from .records import Cancelled, RunAccepted, RunPage, RunRecord, SteerReceiptRecord
from .service import CallId, IdempotencyKey, TheService
from .sessions import Cursor, Limit

router = APIRouter(prefix="/v1/sessions/{session_id}/runs", tags=["runs"], responses=problems(HTTPStatus.NOT_FOUND))

MAX_WAIT_S = 60.0
"""How long one request may wait; whoever wants to wait longer asks again."""

WaitS = Annotated[float, Query(ge=0, le=MAX_WAIT_S, description="Seconds to wait for the end.")]

_CHANGES = problems(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, body=True)


def public(run: Run) -> dict[str, Any]:
    """The record as its tenant sees it."""
    record = run.to_dict()
    del record["call_id"]
    return record


@router.post(
    "",
    status_code=HTTPStatus.ACCEPTED,
    response_model=RunAccepted,
    responses=problems(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.INSUFFICIENT_STORAGE, body=True),
)
async def submit_run(
    session_id: str, body: RunCreate, key: Runner, service: TheService, idempotency_key: IdempotencyKey = None
) -> Response:
    """Queue a run: answered once that is durable. A client that leaves cancels nothing."""
    handle = await service.handle(key, session_id)
    await service.check_run(key, body.options)
    run_id = await service.ask(handle.submit_run, body.input, body.options, idempotency_key)
    headers = {"Location": f"/v1/sessions/{session_id}/runs/{run_id}"}
    return JSONResponse({"run_id": run_id}, status_code=HTTPStatus.ACCEPTED, headers=headers)


@router.get("", response_model=RunPage)
async def list_runs(
    session_id: str,
    key: Reader,
    service: TheService,
    status: RunStatus | None = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> Response:
    """The session's runs, in the order in which they were made."""
    await service.session(key, session_id)
    found = await service.runtime.alist_runs(session_id=session_id, status=status, after=cursor, limit=limit)
    next_cursor = found[-1].id if len(found) == limit else None
    return JSONResponse({"items": [public(run) for run in found], "next_cursor": next_cursor})


@router.get("/{run_id}", response_model=RunRecord)
async def show_run(session_id: str, run_id: str, key: Reader, service: TheService, wait_s: WaitS = 0) -> Response:
    """The run's record; with `wait_s` once it has ended, or the wait is over."""
    run = await service.run(key, session_id, run_id)
    if not wait_s or run.status.is_terminal:
        return JSONResponse(public(run))
    handle = await service.handle(key, session_id)
    failure: GreenroomError | None = None
    with service.open_stream():
        try:
            await service.ask(handle.await_run, run_id, wait_s)
        except GreenroomError as exc:  # its own end, or something that kept us from hearing of it
            failure = exc
    run = await service.run(key, session_id, run_id)
    if failure is not None and not run.status.is_terminal and not isinstance(failure, Timeout):
        raise failure
    return JSONResponse(public(run))


@router.post("/{run_id}/cancel", response_model=Cancelled, responses=_CHANGES)
async def cancel_run(
    session_id: str, run_id: str, key: Runner, service: TheService, call_id: CallId, body: Reason | None = None
) -> Response:
    """Stop the run; `cancelled` is whether this call did it."""
    await service.run(key, session_id, run_id)
    handle = await service.handle(key, session_id)
    reason = body.reason if body else None
    return JSONResponse({"cancelled": await service.ask(handle.cancel_run, run_id, reason, call_id=call_id)})


@router.post("/{run_id}/interrupt", response_model=Cancelled, responses=_CHANGES)
async def interrupt_run(session_id: str, run_id: str, key: Runner, service: TheService, call_id: CallId) -> Response:
    """Stop the run's current turn, and keep what it has produced."""
    await service.run(key, session_id, run_id)
    handle = await service.handle(key, session_id)
    return JSONResponse({"cancelled": await service.ask(handle.interrupt_run, run_id, call_id=call_id)})


@router.post("/{run_id}/steer", response_model=SteerReceiptRecord, responses=_CHANGES)
async def steer_run(
    session_id: str, run_id: str, body: Steering, key: Runner, service: TheService, call_id: CallId
) -> Response:
    """Hand a message to a run that is under way."""
    await service.run(key, session_id, run_id)
    handle = await service.handle(key, session_id)
    receipt = await service.ask(handle.steer_run, run_id, body.message, call_id=call_id)
    return JSONResponse({"run_id": receipt.run_id, "delivered": receipt.delivered, "seq": receipt.seq})
