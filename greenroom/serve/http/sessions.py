"""Routes of sessions."""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response

from ...domain.errors import ValidationError
from ...domain.session import TENANT, SessionState
from .bodies import DecisionOnCall, SessionCreate
from .caller import Admin, Reader, Runner
from .service import TheService

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])

IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=200)]
Limit = Annotated[int, Query(ge=1, le=1_000)]
Cursor = Annotated[str | None, Query(max_length=200)]


@router.post("", status_code=HTTPStatus.CREATED)
async def open_session(
    body: SessionCreate, key: Runner, service: TheService, response: Response, idempotency_key: IdempotencyKey = None
) -> dict[str, Any]:
    """Open a session. A repeated Idempotency-Key gives the one that the first call opened."""
    if TENANT in body.metadata and body.metadata[TENANT] != key.tenant:
        raise ValidationError(
            "metadata.tenant is the tenant of the key; leave it out.", details={"field": "metadata.tenant"}
        )
    await service.check_session(key, body)
    given: dict[str, Any] = body.model_dump()
    given["metadata"] = {**body.metadata, TENANT: key.tenant}
    handle = await service.runtime.aopen_session(
        **given, idempotency_key=None if idempotency_key is None else f"{key.tenant}/{idempotency_key}"
    )
    response.headers["Location"] = f"/v1/sessions/{handle.session_id}"
    return (await service.session(key, handle.session_id)).to_dict()


@router.get("")
async def list_sessions(
    key: Reader,
    service: TheService,
    status: SessionState | None = None,
    agent_id: Annotated[str | None, Query(max_length=200)] = None,
    tag: Annotated[str | None, Query(max_length=200)] = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> dict[str, Any]:
    """Sessions of the key's tenant, in the order in which they were made."""
    found = await service.runtime.alist_sessions(
        status=status, agent_id=agent_id, tag=tag, tenant=key.tenant, after=cursor, limit=limit
    )
    return {"items": [one.to_dict() for one in found], "next_cursor": found[-1].id if len(found) == limit else None}


@router.get("/{session_id}")
async def show_session(session_id: str, key: Reader, service: TheService) -> dict[str, Any]:
    """The session's record."""
    return (await service.session(key, session_id)).to_dict()


@router.delete("/{session_id}", status_code=HTTPStatus.NO_CONTENT)
async def delete_session(session_id: str, key: Admin, service: TheService) -> None:
    """Cancel the session's runs and delete every trace of it."""
    await service.session(key, session_id)
    await service.runtime.adelete_session(session_id)


@router.get("/{session_id}/status")
async def show_status(session_id: str, key: Reader, service: TheService) -> dict[str, Any]:
    """What the session is doing right now. Wakes it if it sleeps."""
    handle = await service.handle(key, session_id)
    return (await service.ask(handle.status.remote())).to_dict()


@router.post("/{session_id}/pause")
async def pause(session_id: str, key: Runner, service: TheService) -> dict[str, Any]:
    """Start no more of the session's runs."""
    await service.ask((await service.handle(key, session_id)).pause.remote())
    return await show_session(session_id, key, service)


@router.post("/{session_id}/resume")
async def resume(session_id: str, key: Runner, service: TheService) -> dict[str, Any]:
    """Take runs off the queue again."""
    await service.ask((await service.handle(key, session_id)).resume.remote())
    return await show_session(session_id, key, service)


@router.post("/{session_id}/complete")
async def complete(session_id: str, key: Runner, service: TheService) -> dict[str, Any]:
    """End the session, all of whose runs have ended."""
    await service.ask((await service.handle(key, session_id)).complete.remote())
    return await show_session(session_id, key, service)


@router.post("/{session_id}/cancel")
async def cancel(session_id: str, key: Runner, service: TheService) -> dict[str, Any]:
    """End the session, and cancel its runs."""
    await service.ask((await service.handle(key, session_id)).cancel.remote())
    return await show_session(session_id, key, service)


@router.post("/{session_id}/approvals/{approval_id}", status_code=HTTPStatus.NO_CONTENT)
async def decide_approval(
    session_id: str, approval_id: str, body: DecisionOnCall, key: Runner, service: TheService
) -> None:
    """Let a waiting tool call run, or not. The log says that the key decided."""
    handle = await service.handle(key, session_id)
    await service.ask(handle.decide_approval.remote(approval_id, body.decision, body.reason, f"key {key.id}"))


@router.get("/{session_id}/transcript")
async def show_transcript(
    session_id: str,
    key: Reader,
    service: TheService,
    max_messages: Annotated[int | None, Query(ge=1)] = None,
    max_tokens: Annotated[int | None, Query(ge=1)] = None,
) -> dict[str, Any]:
    """What was said in the session."""
    handle = await service.handle(key, session_id)
    return {"messages": await service.ask(handle.transcript.remote(max_messages, max_tokens))}
