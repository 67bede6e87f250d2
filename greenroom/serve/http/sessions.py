"""Routes of sessions."""

from enum import StrEnum
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import JSONResponse, Response

from ...domain.api_key import ApiKey
from ...domain.errors import ValidationError
from ...domain.session import TENANT, Session, SessionState
from .bodies import SessionCreate
from .caller import Admin, Reader, Runner
from .openapi import problems
from .records import SessionPage, SessionRecord, StatusRecord, TranscriptRecord
from .service import CallId, IdempotencyKey, TheService

router = APIRouter(prefix="/v1/sessions", tags=["sessions"], responses=problems(HTTPStatus.NOT_FOUND))

Limit = Annotated[int, Query(ge=1, le=1_000)]
Cursor = Annotated[str | None, Query(max_length=200, description="The `next_cursor` of the page before.")]

_KEPT_TO_OURSELVES = ("last_call_id", "conversations")
_ENDS = problems(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT)


class Order(StrEnum):
    """By when they were made."""

    OLDEST_FIRST = "asc"
    NEWEST_FIRST = "desc"


def public(session: Session) -> dict[str, Any]:
    """The record as its tenant sees it."""
    record = session.to_dict()
    for name in _KEPT_TO_OURSELVES:
        del record[name]
    if session.idempotency_key is not None:
        record["idempotency_key"] = session.idempotency_key.removeprefix(f"{session.tenant}/")
    return record


def _answer(session: Session) -> JSONResponse:
    return JSONResponse(public(session))


@router.post(
    "",
    status_code=HTTPStatus.CREATED,
    response_model=SessionRecord,
    responses=problems(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.INSUFFICIENT_STORAGE, body=True),
)
async def open_session(
    body: SessionCreate, key: Runner, service: TheService, idempotency_key: IdempotencyKey = None
) -> Response:
    """Open a session."""
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
    session = handle.opened_as or await service.session(key, handle.session_id)
    service.remember(key, handle)
    headers = {"Location": f"/v1/sessions/{session.id}"}
    return JSONResponse(public(session), status_code=HTTPStatus.CREATED, headers=headers)


@router.get("", response_model=SessionPage)
async def list_sessions(
    key: Reader,
    service: TheService,
    status: SessionState | None = None,
    agent_id: Annotated[str | None, Query(max_length=200)] = None,
    tag: Annotated[str | None, Query(max_length=200)] = None,
    cursor: Cursor = None,
    limit: Limit = 100,
    order: Order = Order.OLDEST_FIRST,
) -> Response:
    """Sessions of the key's tenant."""
    found = await service.runtime.alist_sessions(
        status=status,
        agent_id=agent_id,
        tag=tag,
        tenant=key.tenant,
        newest_first=order is Order.NEWEST_FIRST,
        after=cursor,
        limit=limit,
    )
    next_cursor = found[-1].id if len(found) == limit else None
    return JSONResponse({"items": [public(session) for session in found], "next_cursor": next_cursor})


@router.get("/{session_id}", response_model=SessionRecord)
async def show_session(session_id: str, key: Reader, service: TheService) -> Response:
    """The session's record."""
    return _answer(await service.session(key, session_id))


@router.delete("/{session_id}", status_code=HTTPStatus.NO_CONTENT, response_class=Response)
async def delete_session(session_id: str, key: Admin, service: TheService) -> None:
    """Cancel the session's runs and delete every trace of it."""
    await service.session(key, session_id)
    await service.runtime.adelete_session(session_id)


@router.get("/{session_id}/status", response_model=StatusRecord)
async def show_status(session_id: str, key: Reader, service: TheService) -> Response:
    """What the session is doing right now. Wakes it if it sleeps."""
    handle = await service.handle(key, session_id)
    return JSONResponse((await service.ask(handle.status)).to_dict())


@router.post("/{session_id}/pause", response_model=SessionRecord, responses=_ENDS)
async def pause(session_id: str, key: Runner, service: TheService, call_id: CallId) -> Response:
    """Start no more of the session's runs."""
    return await _changed(session_id, "pause", key, service, call_id)


@router.post("/{session_id}/resume", response_model=SessionRecord, responses=_ENDS)
async def resume(session_id: str, key: Runner, service: TheService, call_id: CallId) -> Response:
    """Take runs off the queue again."""
    return await _changed(session_id, "resume", key, service, call_id)


@router.post("/{session_id}/complete", response_model=SessionRecord, responses=_ENDS)
async def complete(session_id: str, key: Runner, service: TheService, call_id: CallId) -> Response:
    """End the session, all of whose runs have ended."""
    return await _changed(session_id, "complete", key, service, call_id)


@router.post("/{session_id}/cancel", response_model=SessionRecord, responses=_ENDS)
async def cancel(session_id: str, key: Runner, service: TheService, call_id: CallId) -> Response:
    """End the session, and cancel its runs."""
    return await _changed(session_id, "cancel", key, service, call_id)


async def _changed(session_id: str, verb: str, key: ApiKey, service: TheService, call_id: str | None) -> Response:
    handle = await service.handle(key, session_id)
    await service.ask(getattr(handle, verb), call_id=call_id)
    return _answer(await service.session(key, session_id))


@router.get("/{session_id}/transcript", response_model=TranscriptRecord)
async def show_transcript(
    session_id: str,
    key: Reader,
    service: TheService,
    max_messages: Annotated[int | None, Query(ge=1)] = None,
    max_tokens: Annotated[int | None, Query(ge=1)] = None,
) -> Response:
    """What was said in the session."""
    handle = await service.handle(key, session_id)
    return JSONResponse({"messages": await service.ask(handle.transcript, max_messages, max_tokens)})
