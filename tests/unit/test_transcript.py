"""Transcripts: what was said, in order, cut from the front, without what failed attempts said."""

from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest
from hypothesis import given, strategies as st

from greenroom.domain.errors import ValidationError
from greenroom.domain.event import Event, EventType
from greenroom.domain.transcript import MAX_MESSAGES, Transcript, TranscriptLimits, TranscriptMessage, transcript_text

NOW = datetime(2026, 11, 24, tzinfo=UTC)
EVERYTHING = TranscriptLimits()


class Log:
    """Events with seqs, as they would be read."""

    def __init__(self) -> None:
        self.transcript = Transcript()
        self._seqs = count(1)

    def add(self, event_type: EventType, run_id: str = "run_1", attempt: int = 1, **data: Any) -> None:
        self.transcript.add(
            Event(
                seq=next(self._seqs),
                id="evt_1",
                session_id="ses_1",
                run_id=run_id,
                attempt=attempt,
                type=event_type,
                timestamp=NOW,
                recorded_at=NOW,
                provider="p",
                data=data,
                metadata={},
            )
        )

    def turn(self, run_id: str, said: str, answer: str, *, ended: bool = True) -> None:
        self.add(EventType.RUN_QUEUED, run_id, options={})
        self.add(EventType.MESSAGE_SENT, run_id, role="user", content=said)
        self.add(EventType.MESSAGE_RECEIVED, run_id, role="assistant", content=answer, kind="text")
        if ended:
            self.add(EventType.RUN_COMPLETED, run_id)

    def lines(self, limits: TranscriptLimits = EVERYTHING, **how: Any) -> list[str]:
        return [message.text() for message in self.transcript.messages(limits, **how)]


def test_it_tells_who_said_what_in_the_order_of_the_log() -> None:
    log = Log()
    log.turn("run_1", "Hi", "Hello.")
    log.turn("run_2", "And now?", "Bye.")

    assert log.lines() == ["user: Hi", "assistant: Hello.", "user: And now?", "assistant: Bye."]


def test_tool_calls_and_what_they_gave_are_in_it_and_thinking_is_not() -> None:
    log = Log()
    log.add(EventType.MESSAGE_RECEIVED, role="assistant", content="Hm.", kind="thinking")
    log.add(EventType.TOOL_CALL_STARTED, tool_call_id="c", tool_name="add", tool_input={"a": 1})
    log.add(EventType.TOOL_CALL_COMPLETED, tool_call_id="c", tool_name="add", tool_input={"a": 1}, tool_output=3)

    assert log.lines() == ['tool_call(c): add {"a": 1}', "tool_result(c): add 3"]


def test_what_a_failed_attempt_said_is_left_out() -> None:
    log = Log()
    log.turn("run_1", "Hi", "Half a", ended=False)
    log.add(EventType.RUN_QUEUED, "run_1", 2, reason="retry after crash")
    log.add(EventType.MESSAGE_RECEIVED, "run_1", 2, role="assistant", content="A whole one.", kind="text")

    assert log.lines() == ["user: Hi", "assistant: A whole one."]


def test_runs_that_go_on_and_a_run_itself_can_be_left_out() -> None:
    log = Log()
    log.turn("run_1", "one", "1")
    log.turn("run_2", "two", "2", ended=False)
    log.turn("run_3", "three", "3")

    assert log.lines(ended_only=True, without="run_3") == ["user: one", "assistant: 1"]


def test_the_newest_messages_are_kept_and_one_that_is_too_long_is_cut_at_its_beginning() -> None:
    log = Log()
    log.turn("run_1", "old", "x" * 100 + "the end")

    assert log.lines(TranscriptLimits(max_messages=1)) == ["assistant: " + "x" * 100 + "the end"]
    assert log.lines(TranscriptLimits(max_chars=7)) == ["assistant: the end"]
    assert log.lines(TranscriptLimits(max_tokens=2, max_chars=1_000)) == ["assistant: xthe end"]


def test_the_input_of_a_tool_counts() -> None:
    log = Log()
    log.add(EventType.TOOL_CALL_STARTED, tool_call_id="c", tool_name="add", tool_input={"text": "y" * 1_000})
    log.turn("run_1", "Hi", "Hello.")

    assert log.lines(TranscriptLimits(max_chars=100)) == ["user: Hi", "assistant: Hello."]


def test_a_large_result_of_a_tool_is_cut_and_does_not_push_out_everything() -> None:
    log = Log()
    log.turn("run_1", "Look.", "I look.", ended=False)
    log.add(EventType.TOOL_CALL_STARTED, tool_call_id="c", tool_name="read", tool_input={})
    log.add(EventType.TOOL_CALL_COMPLETED, tool_call_id="c", tool_name="read", tool_output="z" * 1_000 + "end")

    assert log.lines(TranscriptLimits(max_chars=30)) == ["tool_result(c): read " + "z" * 6 + "end"]


def test_what_a_run_was_steered_with_stands_where_it_was_said() -> None:
    log = Log()
    log.turn("run_1", "Hi", "Hello.", ended=False)
    log.add(EventType.SESSION_STEERED, message="In French.", delivered=True)
    log.add(EventType.MESSAGE_RECEIVED, role="assistant", content="Bonjour.", kind="text")

    assert log.lines() == ["user: Hi", "assistant: Hello.", "user: In French.", "assistant: Bonjour."]


def test_the_oldest_runs_are_forgotten_when_there_are_too_many() -> None:
    log = Log()
    for number in range(MAX_MESSAGES // 2 + 5):
        log.turn(f"run_{number}", f"{number}", "ok")

    kept = log.lines()

    assert len(kept) == MAX_MESSAGES
    assert kept[0] == "user: 5"


@pytest.mark.parametrize("name", ["max_messages", "max_chars", "max_tokens"])
def test_a_limit_below_one_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TranscriptLimits(**{name: 0})

    assert caught.value.details["field"] == name


@given(st.lists(st.text(min_size=1, max_size=30), max_size=20), st.integers(1, 200))
def test_the_budget_is_kept_and_what_is_kept_is_the_end(texts: list[str], budget: int) -> None:
    log = Log()
    for text in texts:
        log.add(EventType.MESSAGE_SENT, role="user", content=text)

    kept = log.transcript.messages(TranscriptLimits(max_chars=budget))

    assert sum(message.size for message in kept) == min(budget, sum(map(len, texts)))
    assert "".join(texts).endswith("".join(message.content or "" for message in kept))


def test_a_text_of_all_is_one_line_each() -> None:
    said = [TranscriptMessage(role="user", content="Hi"), TranscriptMessage(role="assistant", content="Hello.")]

    assert transcript_text(said) == "user: Hi\nassistant: Hello."
