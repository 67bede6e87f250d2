"""What was said in a session, without regard to who it was said to: made of its events, and cut to a limit."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .errors import ValidationError
from .event import RUN_ENDINGS, Event, EventType
from .run_input import Role

TOOL = "tool"
"""The role of what a tool gave."""

CHARACTERS_PER_TOKEN = 4
"""Rule of thumb for text in English; what a limit in tokens is measured with."""

TRANSCRIPT_TYPES = frozenset(
    {
        EventType.RUN_QUEUED,
        EventType.MESSAGE_SENT,
        EventType.MESSAGE_RECEIVED,
        EventType.SESSION_STEERED,
        EventType.TOOL_CALL_STARTED,
        EventType.TOOL_CALL_COMPLETED,
        EventType.TOOL_CALL_FAILED,
        *RUN_ENDINGS,
    }
)
"""Events that a transcript is made of. Streamed pieces are not among them: whole messages are the truth."""

MAX_MESSAGES = 10_000
MAX_CHARACTERS = 4_000_000
"""So much of the newest is kept, whatever is asked for."""

_TOOL_ENDINGS = (EventType.TOOL_CALL_COMPLETED, EventType.TOOL_CALL_FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscriptMessage:
    """One message, one call of a tool, or what a call gave."""

    role: str
    """system, user, assistant or tool."""
    content: str | None
    """None for a call and its result."""
    tool_call_id: str | None = None
    tool_name: str | None = None
    tool_input: dict[str, Any] | None = None
    tool_output: Any = None
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    """run_id, seq and attempt of the event."""

    @property
    def size(self) -> int:
        """Characters of what was said, or of a tool's name, input and output."""
        return len(self.text() if self.content is None else self.content)

    def text(self) -> str:
        """As a line of plain text."""
        if self.role == TOOL:
            return f"tool_result({self.tool_call_id}): {self.tool_name} {_plain(self.tool_output)}"
        if self.content is None:
            return f"tool_call({self.tool_call_id}): {self.tool_name} {_plain(self.tool_input)}"
        return f"{self.role}: {self.content}"

    def to_dict(self) -> dict[str, Any]:
        """The message as JSON-safe values."""
        return {
            "role": self.role,
            "content": self.content,
            "tool_call_id": self.tool_call_id,
            "tool_name": self.tool_name,
            "tool_input": self.tool_input,
            "tool_output": self.tool_output,
            "metadata": self.metadata,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscriptLimits:
    """How much of the past is kept: the newest of it. The lower of the limits in characters and tokens counts."""

    max_messages: int | None = None
    max_chars: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_messages", "max_chars", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValidationError(f"{name} is {value}; it must be at least 1.", details={"field": name})

    @property
    def characters(self) -> int | None:
        """The budget in characters."""
        budgets = [self.max_chars, None if self.max_tokens is None else self.max_tokens * CHARACTERS_PER_TOKEN]
        return min((budget for budget in budgets if budget is not None), default=None)


@dataclass(slots=True)
class _Run:
    sent: list[TranscriptMessage] = field(default_factory=list[TranscriptMessage])
    """Its input."""
    said: list[TranscriptMessage] = field(default_factory=list[TranscriptMessage])
    """In the newest attempt, by the agent and by who steered it."""
    has_ended: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Messages and characters."""
        return len(self.sent) + len(self.said), sum(message.size for message in (*self.sent, *self.said))


class Transcript:
    """Built event by event, in the order of seq. Of each run the newest attempt counts: what a failed attempt said
    before the next one began is left out."""

    def __init__(self) -> None:
        self._runs: dict[str, _Run] = {}
        """In the order in which they were queued."""
        self._messages = self._characters = 0
        """Of the runs that have ended."""

    def add(self, event: Event) -> None:
        """Take one more event; those of other types than TRANSCRIPT_TYPES say nothing."""
        if event.run_id is None:
            return
        run = self._runs.setdefault(event.run_id, _Run())
        if event.type is EventType.RUN_QUEUED:
            run.said.clear()
        elif event.type in RUN_ENDINGS:
            run.has_ended = True
            self._forget_the_oldest(run)
        elif (message := _message(event)) is not None:
            (run.sent if event.type is EventType.MESSAGE_SENT else run.said).append(message)

    def _forget_the_oldest(self, ended: _Run) -> None:
        """Runs that ended and that no limit could reach any more."""
        messages, characters = ended.size
        self._messages, self._characters = self._messages + messages, self._characters + characters
        while self._messages > MAX_MESSAGES or self._characters > MAX_CHARACTERS:
            oldest = next((run_id for run_id, run in self._runs.items() if run.has_ended and run is not ended), None)
            if oldest is None:
                break
            messages, characters = self._runs.pop(oldest).size
            self._messages, self._characters = self._messages - messages, self._characters - characters

    def messages(
        self, limits: TranscriptLimits, *, ended_only: bool = False, without: str | None = None
    ) -> list[TranscriptMessage]:
        """The newest messages within the limits, oldest first; of runs that have ended, and without one of them.

        The oldest one that is told is cut at its beginning where it does not fit whole.
        """
        everything = [
            message
            for run_id, run in self._runs.items()
            if run_id != without and (run.has_ended or not ended_only)
            for message in (*run.sent, *run.said)
        ]
        if limits.max_messages is not None:
            everything = everything[-limits.max_messages :]
        return _within(everything, limits.characters)


def _within(messages: Sequence[TranscriptMessage], budget: int | None) -> list[TranscriptMessage]:
    if budget is None:
        return list(messages)
    kept: list[TranscriptMessage] = []
    for message in reversed(messages):
        if message.size > budget:
            if (cut := _cut(message, budget)) is not None:
                kept.append(cut)
            break
        budget -= message.size
        kept.append(message)
    return kept[::-1]


def _cut(message: TranscriptMessage, budget: int) -> TranscriptMessage | None:
    """The end of it within the budget; None where nothing of it would be left, or it is a call of a tool."""
    text = message.content if message.content is not None else _plain(message.tool_output)
    room = budget - (message.size - len(text))
    if room <= 0 or (message.content is None and message.role != TOOL):
        return None
    cut = text[-room:]
    metadata = {**message.metadata, "truncated": True}
    if message.content is not None:
        return replace(message, content=cut, metadata=metadata)
    return replace(message, tool_output=cut, metadata=metadata)


def _message(event: Event) -> TranscriptMessage | None:
    data = event.data
    metadata: dict[str, Any] = {"run_id": event.run_id, "seq": event.seq, "attempt": event.attempt}
    if event.type is EventType.TOOL_CALL_STARTED:
        return TranscriptMessage(
            role=Role.ASSISTANT.value,
            content=None,
            tool_call_id=data.get("tool_call_id"),
            tool_name=data.get("tool_name"),
            tool_input=data.get("tool_input") or {},
            metadata=metadata,
        )
    if event.type in _TOOL_ENDINGS:
        return TranscriptMessage(
            role=TOOL,
            content=None,
            tool_call_id=data.get("tool_call_id"),
            tool_name=data.get("tool_name"),
            tool_output=data.get("tool_output"),
            metadata=metadata,
        )
    if event.type is EventType.SESSION_STEERED:
        return TranscriptMessage(role=Role.USER.value, content=data["message"], metadata=metadata)
    content = data.get("content")
    if not content or data.get("kind", "text") != "text":
        return None
    role = data.get("role") or (Role.USER.value if event.type is EventType.MESSAGE_SENT else Role.ASSISTANT.value)
    return TranscriptMessage(role=role, content=content, metadata=metadata)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def transcript_text(messages: Iterable[TranscriptMessage]) -> str:
    """The messages as plain text, one after another: for agents that take nothing but a prompt."""
    return "\n".join(message.text() for message in messages)
