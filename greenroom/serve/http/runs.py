"""Routes of runs. A run never lives inside a request: it is accepted, and then looked at."""

import contextlib
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from ...domain.errors import GreenroomError
from ...domain.run import RunStatus
from .bodies import Reason, RunCreate, Steering
from .caller import Reader, Runner
from .service import TheService
from .sessions import Cursor, IdempotencyKey, Limit

router = APIRouter(prefix="/v1/sessions/{session_id}/runs", tags=["runs"])

MAX_WAIT_S = 60.0
"""How long one request may wait; whoever wants to wait longer asks again."""

WaitS = Annotated[float, Query(ge=0, le=MAX_WAIT_S)]


@router.post("", status_code=HTTPStatus.ACCEPTED)
async def submit_run(
    session_id: str,
    body: RunCreate,
    key: Runner,
    service: TheService,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> dict[str, str]:
    """Queue a run: answered once that is durable. A client that leaves cancels nothing."""
    handle = await service.handle(key, session_id)
    await service.check_run(key, body.options)
    run_id = await service.ask(handle.submit_run.remote(body.input, body.options, idempotency_key))
    response.headers["Location"] = f"/v1/sessions/{session_id}/runs/{run_id}"
    return {"run_id": run_id}


@router.get("")
async def list_runs(
    session_id: str,
    key: Reader,
    service: TheService,
    status: RunStatus | None = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> dict[str, Any]:
    """The session's runs, in the order in which they were made."""
    await service.session(key, session_id)
    found = await service.runtime.alist_runs(session_id=session_id, status=status, after=cursor, limit=limit)
    return {"items": [one.to_dict() for one in found], "next_cursor": found[-1].id if len(found) == limit else None}


@router.get("/{run_id}")
async def show_run(session_id: str, run_id: str, key: Reader, service: TheService, wait_s: WaitS = 0) -> dict[str, Any]:
    """The run's record; with `wait_s` once it has ended, or the wait is over."""
    run = await service.run(key, session_id, run_id)
    if wait_s and not run.status.is_terminal:
        handle = service.runtime.handle(session_id)
        with contextlib.suppress(GreenroomError):  # how it ended, and if it has, is in its record
            await service.ask(handle.await_run.remote(run_id, wait_s))
        run = await service.run(key, session_id, run_id)
    return run.to_dict()


@router.post("/{run_id}/cancel")
async def cancel_run(
    session_id: str, run_id: str, key: Runner, service: TheService, body: Reason | None = None
) -> dict[str, bool]:
    """Stop the run; `cancelled` is whether this call did it."""
    await service.run(key, session_id, run_id)
    handle = service.runtime.handle(session_id)
    return {"cancelled": await service.ask(handle.cancel_run.remote(run_id, body.reason if body else None))}


@router.post("/{run_id}/interrupt")
async def interrupt_run(session_id: str, run_id: str, key: Runner, service: TheService) -> dict[str, bool]:
    """Stop the run's current turn, and keep what it has produced."""
    await service.run(key, session_id, run_id)
    handle = service.runtime.handle(session_id)
    return {"cancelled": await service.ask(handle.interrupt_run.remote(run_id))}


@router.post("/{run_id}/steer")
async def steer_run(session_id: str, run_id: str, body: Steering, key: Runner, service: TheService) -> dict[str, Any]:
    """Hand a message to a run that is under way."""
    await service.run(key, session_id, run_id)
    handle = service.runtime.handle(session_id)
    receipt = await service.ask(handle.steer_run.remote(run_id, body.message))
    return {"run_id": receipt.run_id, "delivered": receipt.delivered, "seq": receipt.seq}
