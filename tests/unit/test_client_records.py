"""Records that a client makes of the JSON that a service made of them."""

import json
from dataclasses import replace

import pytest

from greenroom.domain.errors import InvalidFormat
from greenroom.domain.event import Event, EventType
from greenroom.domain.run import Run
from greenroom.domain.session import Session, SessionState, SessionStatus
from greenroom.serve.client.records import parsed

from .client_world import MOMENT, event, run_record, session_record

STATUS = SessionStatus(
    session_id="ses_1",
    state=SessionState.PAUSED,
    draining=False,
    epoch=2,
    queued=["run_2"],
    in_flight=["run_1"],
    max_concurrent_runs=1,
    max_queued_runs=100,
    subscribers=0,
    pending_approvals=[{"id": "apr_1"}],
    processes=[],
    last_seq=7,
    waiting={"run_1": {"provider": "claude", "reason": "rate", "since": MOMENT.isoformat(), "retry_in_s": None}},
)


@pytest.mark.parametrize("type", EventType)
def test_an_event_comes_back_from_json_as_it_was(type: EventType) -> None:
    one = event(3, type, run_id=None)

    assert one == Event.from_dict(json.loads(json.dumps(one.to_dict())))


def test_times_of_an_event_keep_their_zone() -> None:
    one = Event.from_dict(replace(event(1), timestamp=MOMENT.replace(microsecond=0)).to_dict())

    assert MOMENT.tzinfo == one.timestamp.tzinfo == one.recorded_at.tzinfo


def test_a_session_status_comes_back_from_json_as_it_was() -> None:
    assert STATUS == SessionStatus.from_dict(json.loads(json.dumps(STATUS.to_dict())))


def test_a_record_of_a_newer_service_is_read_without_what_is_not_known() -> None:
    assert run_record() == parsed(Run, {**run_record().to_dict(), "mood": "good"})


def test_records_are_read_without_what_the_service_keeps_to_itself() -> None:
    run, session = run_record().to_dict(), session_record().to_dict()
    for record, name in ((run, "call_id"), (session, "last_call_id"), (session, "conversations")):
        del record[name]

    assert (run_record(), session_record()) == (parsed(Run, run), parsed(Session, session))


@pytest.mark.parametrize("answer", [None, [], {}, {**run_record().to_dict(), "status": "odd"}, {"id": "run_1"}])
def test_what_is_no_record_is_refused(answer: object) -> None:
    with pytest.raises(InvalidFormat, match="Run"):
        parsed(Run, answer)
