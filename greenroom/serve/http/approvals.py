"""Routes of tool calls that wait for a person."""

from http import HTTPStatus

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from .bodies import DecisionOnCall
from .caller import Reader, Runner
from .openapi import problems
from .records import ApprovalList
from .service import CallId, TheService

router = APIRouter(prefix="/v1", tags=["approvals"])


@router.get("/approvals", response_model=ApprovalList, responses=problems())
async def list_approvals(key: Reader, service: TheService) -> Response:
    """Those that wait, over all sessions of the tenant, the oldest first."""
    return JSONResponse({"items": await service.runtime.apending_approvals(tenant=key.tenant)})


@router.post(
    "/sessions/{session_id}/approvals/{approval_id}",
    status_code=HTTPStatus.NO_CONTENT,
    response_class=Response,
    responses=problems(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, body=True),
)
async def decide_approval(
    session_id: str, approval_id: str, body: DecisionOnCall, key: Runner, service: TheService, call_id: CallId
) -> None:
    """Let a waiting tool call run, or not. The log says that the key decided."""
    handle = await service.handle(key, session_id)
    await service.ask(handle.decide_approval, approval_id, body.decision, body.reason, f"key {key.id}", call_id=call_id)
