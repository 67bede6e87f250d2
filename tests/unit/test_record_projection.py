"""Records are folds over events: each event changes what it should and nothing else, and records survive as JSON."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, strategies as st

from greenroom.domain.errors import DeadlineExceeded, InvalidTransition, ProviderOverloaded
from greenroom.domain.event import (
    RUN_ENDINGS,
    Event,
    EventType,
    NewEvent,
    from_microseconds,
    to_microseconds,
)
from greenroom.domain.record_projection import fold_run, fold_session, new_session
from greenroom.domain.run import Run, RunResult, RunStatus
from greenroom.domain.run_outcome import outcome_of
from greenroom.domain.session import Session, SessionState

CREATED_DATA: dict[str, Any] = {
    "agent_id": "reviewer",
    "provider": "scripted",
    "context": {"system_prompt": "Hi."},
    "metadata": {"a": 1},
    "tags": ["x", "y"],
    "parent_session_id": "ses_0",
    "max_concurrent_runs": 2,
    "max_queued_runs": 7,
    "run_defaults": {"deadline_s": 5},
}
QUEUED_DATA: dict[str, Any] = {"options": {"metadata": {"n": 1}, "model": "m"}, "message_count": 1}
COMPLETED_DATA: dict[str, Any] = {
    "output": {"content": "ok"},
    "token_usage": {"total_tokens": 3},
    "cost_usd": 0.5,
    "stop_reason": "end_turn",
    "turn_count": 2,
    "model": "m-2",
}


def at(seconds: float) -> datetime:
    return from_microseconds(1_800_000_000_000_000 + int(seconds * 1_000_000))


def event(
    seq: int,
    event_type: EventType,
    data: dict[str, Any] | None = None,
    *,
    run_id: str | None = "run_1",
    attempt: int | None = 1,
    metadata: dict[str, Any] | None = None,
) -> Event:
    return Event(
        seq=seq,
        id=f"evt_{seq}",
        session_id="ses_1",
        run_id=run_id,
        attempt=attempt,
        type=event_type,
        timestamp=at(seq),
        recorded_at=at(seq + 0.5),
        provider="scripted",
        data=data or {},
        metadata=metadata or {},
    )


def run_after(*events: Event) -> Run:
    run: Run | None = None
    for one in events:
        run = fold_run(run, one)
    assert run is not None
    return run


def queued(seq: int = 3, **changes: Any) -> Event:
    return event(seq, EventType.RUN_QUEUED, QUEUED_DATA, **changes)


def sent(seq: int, text: str) -> Event:
    return event(seq, EventType.MESSAGE_SENT, {"role": "user", "content": text})


def started(seq: int, **changes: Any) -> Event:
    return event(seq, EventType.RUN_STARTED, {"model": "m"}, **changes)


def session_after(*events: Event, epoch: int = 1) -> Session:
    session: Session | None = None
    for one in events:
        session = fold_session(session, one, epoch=epoch)
    assert session is not None
    return session


def of_session(seq: int, event_type: EventType, data: dict[str, Any] | None = None, **changes: Any) -> Event:
    return event(seq, event_type, data, run_id=None, attempt=None, **changes)


def test_a_session_begins_as_its_first_event_says() -> None:
    metadata = {"idempotency_key": "k"}

    session = session_after(of_session(1, EventType.SESSION_CREATED, CREATED_DATA, metadata=metadata), epoch=3)

    assert (SessionState.PENDING, "reviewer", ["x", "y"], "ses_0", 2, 7, 3, "k", at(1)) == (
        session.status,
        session.agent_id,
        [*session.tags],
        session.parent_session_id,
        session.max_concurrent_runs,
        session.max_queued_runs,
        session.epoch,
        session.idempotency_key,
        session.created_at,
    )


def test_a_session_before_it_is_stored_is_what_its_first_events_make_of_it() -> None:
    key = {"idempotency_key": "k"}
    created = of_session(1, EventType.SESSION_CREATED, CREATED_DATA, metadata=key)
    started = replace(of_session(2, EventType.SESSION_STARTED), timestamp=created.timestamp)
    at_us = to_microseconds(created.timestamp)

    made = new_session("ses_1", NewEvent(created.id, created.type, at_us, None, None, None, CREATED_DATA, key), epoch=2)

    assert replace(session_after(created, started, epoch=2), id="ses_1") == made


def test_a_session_moves_with_its_events_and_keeps_the_rest() -> None:
    created = of_session(1, EventType.SESSION_CREATED, CREATED_DATA)
    error = {"error_code": "x"}

    failed = session_after(
        created, of_session(2, EventType.SESSION_STARTED), of_session(3, EventType.SESSION_FAILED, error), epoch=2
    )

    before = session_after(created).to_dict()
    expected = {**before, "status": "failed", "error": error, "epoch": 2, "updated_at": at(3).isoformat()}
    assert expected == failed.to_dict()


@pytest.mark.parametrize("event_type", [one for one in EventType if one is not EventType.SESSION_CREATED])
def test_a_session_begins_with_nothing_else(event_type: EventType) -> None:
    with pytest.raises(InvalidTransition):
        fold_session(None, of_session(1, event_type, CREATED_DATA), epoch=1)


def test_a_run_is_queued_with_its_options_and_keys() -> None:
    run = run_after(queued(metadata={"idempotency_key": "k", "call_id": "c"}))

    assert (RunStatus.PENDING, {"messages": []}, QUEUED_DATA["options"], {"n": 1}, 3, 3, "k", "c") == (
        *(run.status, run.input, run.options, run.metadata),
        *(run.queued_seq, run.last_seq, run.idempotency_key, run.call_id),
    )
    assert (at(3), at(3), None, None, None) == (
        *(run.created_at, run.queued_at, run.started_at),
        *(run.first_started_at, run.ended_at),
    )


def test_its_messages_are_its_input_in_their_order() -> None:
    run = run_after(queued(), sent(4, "a"), sent(5, "b"))

    assert {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]} == run.input
    assert 5 == run.last_seq


def test_a_completed_run_holds_what_its_end_says() -> None:
    run = run_after(queued(), started(5), event(9, EventType.RUN_COMPLETED, COMPLETED_DATA))

    assert (RunStatus.COMPLETED, at(3), at(5), at(9), 9) == (
        *(run.status, run.queued_at, run.started_at, run.ended_at),
        run.last_seq,
    )
    assert COMPLETED_DATA == {
        "output": run.output,
        "token_usage": run.token_usage,
        "cost_usd": run.cost_usd,
        "stop_reason": run.stop_reason,
        "turn_count": run.turn_count,
        "model": run.model,
    }


def test_the_next_attempt_keeps_when_the_first_one_started() -> None:
    run = run_after(queued(), started(4), queued(6, attempt=2), started(8, attempt=2))

    assert (RunStatus.RUNNING, 2, at(3), at(6), at(4), at(8), 3) == (
        *(run.status, run.attempt, run.created_at, run.queued_at),
        *(run.first_started_at, run.started_at, run.queued_seq),
    )


@pytest.mark.parametrize("event_type", [one for one in EventType if one is not EventType.RUN_QUEUED])
def test_a_run_begins_with_nothing_else(event_type: EventType) -> None:
    with pytest.raises(InvalidTransition):
        fold_run(None, event(1, event_type, QUEUED_DATA))


@given(st.lists(st.sampled_from([EventType.RUN_QUEUED, EventType.RUN_STARTED, *RUN_ENDINGS]), max_size=8))
def test_an_illegal_event_changes_no_run(walk: list[EventType]) -> None:
    run = run_after(queued())
    ended = False
    for seq, event_type in enumerate(walk, start=4):
        before = run.to_dict()
        try:
            run = fold_run(run, event(seq, event_type, {**QUEUED_DATA, **COMPLETED_DATA}))
        except InvalidTransition:
            assert before == run.to_dict()
        else:
            assert not ended
            ended = event_type in RUN_ENDINGS
    assert ended == run.status.is_terminal == (run.ended_at is not None)


def test_records_come_back_from_json() -> None:
    run = run_after(queued(), sent(4, "é"), started(5), event(9, EventType.RUN_COMPLETED, COMPLETED_DATA))
    session = session_after(of_session(1, EventType.SESSION_CREATED, CREATED_DATA))

    assert run == Run.from_dict(json.loads(json.dumps(run.to_dict())))
    assert run_after(queued()) == Run.from_dict(json.loads(json.dumps(run_after(queued()).to_dict())))
    assert session == Session.from_dict(json.loads(json.dumps(session.to_dict())))


def test_the_result_of_a_completed_run_tells_its_times() -> None:
    run = run_after(queued(), started(5), event(9, EventType.RUN_COMPLETED, COMPLETED_DATA))

    result = outcome_of(run)

    assert isinstance(result, RunResult)
    assert ({"queued_s": 2.0, "running_s": 4.0}, 1, "m-2", 9) == (
        result.timings,
        result.attempts,
        result.model,
        result.last_seq,
    )


def test_a_run_that_failed_gives_its_error_again() -> None:
    error = ProviderOverloaded("Busy.", details={"status": 529}, provider_error={"type": "overloaded"}).to_record()
    data = {"error": error, "output": {"content": "half"}, "token_usage": {"total_tokens": 1}}

    found = outcome_of(run_after(queued(), started(4), event(5, EventType.RUN_FAILED, data)))

    assert isinstance(found, ProviderOverloaded)
    assert ("Busy.", {"type": "overloaded"}) == (found.message, found.provider_error)
    expected = {
        "status": 529,
        "run_id": "run_1",
        "session_id": "ses_1",
        "last_seq": 5,
        "attempts": 1,
        "output": {"content": "half"},
        "token_usage": {"total_tokens": 1},
    }
    assert expected == found.details


def test_a_run_past_its_deadline_gives_the_deadline_error() -> None:
    found = outcome_of(run_after(queued(), started(4), event(5, EventType.RUN_TIMEOUT)))

    assert isinstance(found, DeadlineExceeded)
    assert {"run_id": "run_1", "session_id": "ses_1", "last_seq": 5, "attempts": 1} == found.details


def test_times_are_utc() -> None:
    assert UTC == run_after(queued()).created_at.tzinfo
