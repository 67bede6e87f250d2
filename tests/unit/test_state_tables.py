"""The tables of sessions and runs: only their moves are legal, and nothing leaves a terminal state."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, strategies as st

from greenroom.domain.errors import InvalidTransition
from greenroom.domain.event import RUN_ENDINGS, SESSION_ENDINGS, EventType
from greenroom.domain.run import RUN_TRANSITIONS, RunStatus, next_run_status
from greenroom.domain.session import SESSION_TRANSITIONS, SessionState, next_session_status

TABLES = {"run": (RUN_TRANSITIONS, RunStatus), "session": (SESSION_TRANSITIONS, SessionState)}

walks = st.lists(st.sampled_from(EventType), max_size=30)

LEGAL_RUN_MOVES = {
    ("pending", "run_started", "running"),
    ("pending", "run_failed", "failed"),
    ("pending", "run_cancelled", "cancelled"),
    ("pending", "run_timeout", "timeout"),
    ("running", "run_queued", "pending"),
    ("running", "run_completed", "completed"),
    ("running", "run_failed", "failed"),
    ("running", "run_cancelled", "cancelled"),
    ("running", "run_timeout", "timeout"),
}

LEGAL_SESSION_MOVES = {
    ("pending", "session_started", "active"),
    ("pending", "session_failed", "failed"),
    ("pending", "session_cancelled", "cancelled"),
    ("active", "session_paused", "paused"),
    ("active", "session_completed", "completed"),
    ("active", "session_failed", "failed"),
    ("active", "session_cancelled", "cancelled"),
    ("paused", "session_resumed", "active"),
    ("paused", "session_completed", "completed"),
    ("paused", "session_failed", "failed"),
    ("paused", "session_cancelled", "cancelled"),
}


def moves_of(
    walk: Sequence[EventType], state: Any, step: Callable[[Any, EventType], Any]
) -> list[tuple[str, str, str]]:
    """The moves that were accepted; a refused event must name itself and the state."""
    moves: list[tuple[str, str, str]] = []
    for event in walk:
        try:
            after = step(state, event)
        except InvalidTransition as exc:
            assert {"status": state.value, "event": event.value} == exc.details  # noqa: PT017
            continue
        moves.append((state.value, event.value, after.value))
        state = after
    return moves


@given(walks)
def test_any_walk_of_a_run_makes_only_the_legal_moves(walk: list[EventType]) -> None:
    assert LEGAL_RUN_MOVES >= set(moves_of(walk, RunStatus.PENDING, next_run_status))


@given(walks)
def test_any_walk_of_a_session_makes_only_the_legal_moves(walk: list[EventType]) -> None:
    assert LEGAL_SESSION_MOVES >= set(moves_of(walk, SessionState.PENDING, next_session_status))


@given(walks)
def test_a_run_ends_at_most_once_on_any_walk(walk: list[EventType]) -> None:
    moves = moves_of(walk, RunStatus.PENDING, next_run_status)

    endings = [index for index, (_, event, _) in enumerate(moves) if event in RUN_ENDINGS]

    assert endings in ([], [len(moves) - 1])


@given(walks)
def test_a_session_ends_at_most_once_on_any_walk(walk: list[EventType]) -> None:
    moves = moves_of(walk, SessionState.PENDING, next_session_status)

    endings = [index for index, (_, event, _) in enumerate(moves) if event in SESSION_ENDINGS]

    assert endings in ([], [len(moves) - 1])


def test_every_legal_move_is_taken() -> None:
    runs = {(state, event, next_run_status(RunStatus(state), EventType(event))) for state, event, _ in LEGAL_RUN_MOVES}
    sessions = {
        (state, event, next_session_status(SessionState(state), EventType(event)))
        for state, event, _ in LEGAL_SESSION_MOVES
    }

    assert LEGAL_RUN_MOVES == runs
    assert LEGAL_SESSION_MOVES == sessions


@pytest.mark.parametrize("name", TABLES)
def test_every_state_is_in_its_table(name: str) -> None:
    table, states = TABLES[name]

    assert set(states) == set(table)


@pytest.mark.parametrize("status", [RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.TIMEOUT])
@pytest.mark.parametrize("event", EventType)
def test_no_event_moves_a_run_that_has_ended(status: RunStatus, event: EventType) -> None:
    assert status.is_terminal

    with pytest.raises(InvalidTransition, match=f"{status} cannot take {event}"):
        next_run_status(status, event)


@pytest.mark.parametrize("state", [SessionState.COMPLETED, SessionState.FAILED, SessionState.CANCELLED])
@pytest.mark.parametrize("event", EventType)
def test_no_event_moves_a_session_that_has_ended(state: SessionState, event: EventType) -> None:
    assert state.is_terminal

    with pytest.raises(InvalidTransition, match=f"{state} cannot take {event}"):
        next_session_status(state, event)


def test_states_that_have_a_way_out_are_not_terminal() -> None:
    assert [RunStatus.PENDING, RunStatus.RUNNING] == [status for status in RunStatus if not status.is_terminal]
    assert [SessionState.PENDING, SessionState.ACTIVE, SessionState.PAUSED] == [
        state for state in SessionState if not state.is_terminal
    ]
