"""Session and Run records as folds over events. The store and the recovery of a session read through these."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from .errors import InvalidTransition
from .event import RUN_ENDINGS, Event, EventType, NewEvent, from_microseconds
from .run import Run, RunStatus, next_run_status
from .session import Session, SessionState, next_session_status

CONVERSATION = "conversation"
"""Key in the metadata of the event that ends a run: the conversation that its provider had."""


def changes_session(event: Event) -> bool:
    """Whether the session's record is another one after this event, which may be a run's."""
    return event.run_id is None or (event.type in RUN_ENDINGS and CONVERSATION in event.metadata)


def fold_session(session: Session | None, event: Event, *, epoch: int) -> Session:
    """The session's record after one more event that changes it."""
    if session is None:
        return _created(event, epoch)
    if event.run_id is not None:
        conversations = {**session.conversations, event.provider or "": event.metadata[CONVERSATION]}
        return replace(session, conversations=conversations)
    status = next_session_status(session.status, event.type)
    return replace(
        session,
        status=status,
        updated_at=event.timestamp,
        epoch=epoch,
        error=event.data if event.type is EventType.SESSION_FAILED else session.error,
        pause_reason=event.data.get("reason") if event.type is EventType.SESSION_PAUSED else None,
        last_call_id=event.metadata.get("call_id"),
    )


def new_session(session_id: str, created: NewEvent, *, epoch: int) -> Session:
    """The record after session_created and a session_started of the same time, before they are stored: the same as
    their fold."""
    key = created.metadata.get("idempotency_key")
    at = from_microseconds(created.timestamp_us)
    return _session_of(session_id, created.data, SessionState.ACTIVE, at, epoch, key)


def _created(event: Event, epoch: int) -> Session:
    if event.type is not EventType.SESSION_CREATED:
        raise InvalidTransition(
            f"The first event of a session is session_created, not {event.type}.", details={"event": event.type.value}
        )
    key = event.metadata.get("idempotency_key")
    return _session_of(event.session_id, event.data, SessionState.PENDING, event.timestamp, epoch, key)


def _session_of(
    session_id: str, data: Mapping[str, Any], status: SessionState, at: datetime, epoch: int, key: str | None
) -> Session:
    return Session(
        id=session_id,
        agent_id=data["agent_id"],
        status=status,
        parent_session_id=data["parent_session_id"],
        metadata=data["metadata"],
        context=data["context"],
        tags=data["tags"],
        created_at=at,
        updated_at=at,
        epoch=epoch,
        provider=data["provider"],
        max_concurrent_runs=data["max_concurrent_runs"],
        max_queued_runs=data["max_queued_runs"],
        run_defaults=data["run_defaults"],
        error=None,
        idempotency_key=key,
        budget=data.get("budget"),
    )


def fold_run(run: Run | None, event: Event) -> Run:
    """The run's record after one more run_* or message_sent event."""
    if run is None:
        return _queued(event)
    if event.type is EventType.MESSAGE_SENT:
        message = {"role": event.data["role"], "content": event.data["content"]}
        return replace(run, input={"messages": [*run.input["messages"], message]}, last_seq=event.seq)
    status = next_run_status(run.status, event.type)
    changes: dict[str, Any] = {"status": status, "last_seq": event.seq}
    if event.attempt is not None:
        changes["attempt"] = event.attempt
    if event.type is EventType.RUN_QUEUED:
        changes["queued_at"] = event.timestamp
    elif event.type is EventType.RUN_STARTED:
        changes |= {
            "started_at": event.timestamp,
            "first_started_at": run.first_started_at or event.timestamp,
            "provider": event.provider,
            "model": event.data.get("model"),
        }
    elif event.type in RUN_ENDINGS:
        changes |= _ending(run, event)
    return replace(run, **changes)


def _queued(event: Event) -> Run:
    if event.type is not EventType.RUN_QUEUED:
        raise InvalidTransition(
            f"The first event of a run is run_queued, not {event.type}.", details={"event": event.type.value}
        )
    return Run(
        id=event.run_id or "",
        session_id=event.session_id,
        status=RunStatus.PENDING,
        input={"messages": []},
        options=event.data["options"],
        output=None,
        error=None,
        metadata=event.data["options"].get("metadata", {}),
        attempt=event.attempt or 1,
        turn_count=0,
        token_usage={},
        cost_usd=None,
        created_at=event.timestamp,
        queued_at=event.timestamp,
        started_at=None,
        ended_at=None,
        provider=None,
        model=None,
        stop_reason=None,
        queued_seq=event.seq,
        first_started_at=None,
        last_seq=event.seq,
        idempotency_key=event.metadata.get("idempotency_key"),
        call_id=event.metadata.get("call_id"),
    )


def _ending(run: Run, event: Event) -> dict[str, Any]:
    data = event.data
    return {
        "ended_at": event.timestamp,
        "output": data.get("output", run.output),
        "error": data.get("error"),
        "token_usage": data.get("token_usage", run.token_usage),
        "cost_usd": data.get("cost_usd"),
        "turn_count": data.get("turn_count", run.turn_count),
        "model": data.get("model") or run.model,
        "stop_reason": data.get("stop_reason"),
        "policy": data.get("policy"),
        "routing": data.get("routing"),
    }
