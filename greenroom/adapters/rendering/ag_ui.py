"""A run in the words of the Agent User Interaction Protocol (AG-UI): its events, and its input.

Loading this loads all models of the protocol; only who serves it should.
"""

from collections.abc import Callable, Iterator, Mapping

from ag_ui.core import (
    PROTOCOL_VERSION,
    BaseEvent,
    ContentPart,
    CustomEvent,
    DeveloperMessage,
    RunAgentInput,
    RunErrorEvent,
    RunFinishedCancelledOutcome,
    RunFinishedEvent,
    RunStartedEvent,
    SystemMessage,
    TextPart,
    TokenUsage as AgUiTokenUsage,
    ToolCallArgsEvent,
    ToolCallEndEvent,
    ToolCallResultEvent,
    ToolCallStartEvent,
    UserMessage,
)

from ...domain.errors import DeadlineExceeded, UnknownError, ValidationError
from ...domain.event import RUN_ENDINGS, Event, EventType, to_microseconds
from ...domain.run_input import Message, Role, messages_to_input
from ...domain.token_usage import TokenUsage
from .ag_ui_speech import TEXT, THINKING, Speech
from .event_text import as_json

GREENROOM = "greenroom"
"""In the metadata of an AG-UI event the key of what the protocol has no field for; the prefix of custom events."""

_LARGEST_COUNT = 2**53 - 1
_KINDS = (TEXT, THINKING)
_UNTOLD = frozenset(
    {
        EventType.SESSION_CREATED,
        EventType.SESSION_STARTED,
        EventType.SESSION_PAUSED,
        EventType.SESSION_RESUMED,
        EventType.SESSION_COMPLETED,
        EventType.SESSION_FAILED,
        EventType.SESSION_CANCELLED,
        EventType.MESSAGE_SENT,
    }
)
"""What belongs to no run, and what the client has said itself."""


class AgUiRun:
    """The events of one run, told one after the other in the order of seq.

    What it gives begins with RUN_STARTED and, once the run has ended, ends with the one RUN_FINISHED or RUN_ERROR;
    nothing is open then, and nothing comes after. It may be RUN_STARTED before the run has started, where something is
    to be told of it: a run can be cancelled in the queue. An attempt after the first is told by the custom events
    greenroom.run_queued and greenroom.run_started; what a failed attempt has said stays with the client.

    Messages and tool calls have the ids of the events that opened them, the same each time they are told: a client
    knows a call by its id in the whole thread, and agents number theirs anew in each run. Custom events name calls so
    too.
    """

    def __init__(self, thread_id: str, run_id: str) -> None:
        """With the ids that the client gave: the protocol wants them back."""
        self._thread_id = thread_id
        self._run_id = run_id
        self._has_started = self._has_ended = False
        self._speech = Speech()
        self._calls: dict[str, str] = {}
        """What a tool call is called here, by the id that the agent gave it in this attempt."""
        self._tellers: Mapping[EventType, Callable[[Event], Iterator[BaseEvent]]] = {
            EventType.RUN_QUEUED: self._attempt,
            EventType.RUN_STARTED: self._attempt,
            EventType.MESSAGE_STREAMED: self._streamed,
            EventType.MESSAGE_RECEIVED: self._received,
            EventType.TOOL_CALL_STARTED: self._call_started,
            EventType.TOOL_CALL_COMPLETED: self._call_ended,
            EventType.TOOL_CALL_FAILED: self._call_failed,
            EventType.ERROR_OCCURRED: self._error,
            EventType.RUN_COMPLETED: self._completed,
            EventType.RUN_CANCELLED: self._cancelled,
            EventType.RUN_FAILED: self._failed,
            EventType.RUN_TIMEOUT: self._failed,
        }

    def map(self, event: Event) -> list[BaseEvent]:
        """What this event is in AG-UI; nothing for some."""
        if self._has_ended or event.type in _UNTOLD or (event.type is EventType.RUN_QUEUED and _is_first(event)):
            return []
        told = [*self._start(), *self._tell(event)]
        self._has_ended = event.type in RUN_ENDINGS
        for one in told:
            one.timestamp = to_microseconds(event.timestamp) // 1000
        return told

    def _start(self) -> Iterator[BaseEvent]:
        if not self._has_started:
            yield RunStartedEvent(thread_id=self._thread_id, run_id=self._run_id, protocol_version=PROTOCOL_VERSION)
        self._has_started = True

    def _tell(self, event: Event) -> Iterator[BaseEvent]:
        return self._tellers.get(event.type, self._custom)(event)

    def _custom(self, event: Event) -> Iterator[BaseEvent]:
        data = event.data
        if (call_id := self._calls.get(str(data.get("tool_call_id")))) is not None:
            data = {**data, "tool_call_id": call_id}
        yield CustomEvent(name=f"{GREENROOM}.{event.type}", value=data)

    # Attempts

    def _attempt(self, event: Event) -> Iterator[BaseEvent]:
        """The first one is RUN_STARTED."""
        if _is_first(event):
            return
        yield from self._speech.give_up()
        self._calls.clear()
        told = {**event.data, "attempt": event.attempt, "provider": event.provider}
        yield CustomEvent(name=f"{GREENROOM}.{event.type}", value=told)

    def _error(self, event: Event) -> Iterator[BaseEvent]:
        yield from self._speech.interrupt()
        yield from self._custom(event)

    # What the agent says

    def _streamed(self, event: Event) -> Iterator[BaseEvent]:
        kind = event.data.get("kind", TEXT)
        if kind not in _KINDS or event.data.get("stream") == "stderr":  # neither is part of the message
            return self._custom(event)
        return self._speech.stream(kind, _content(event), event.id)

    def _received(self, event: Event) -> Iterator[BaseEvent]:
        kind = event.data.get("kind", TEXT)
        return self._speech.receive(kind, _content(event), event.id) if kind in _KINDS else self._custom(event)

    # What it does

    def _call_started(self, event: Event) -> Iterator[BaseEvent]:
        yield from self._speech.end()
        self._calls[str(event.data.get("tool_call_id"))] = event.id
        name = str(event.data.get("tool_name") or "unknown")
        yield ToolCallStartEvent(tool_call_id=event.id, tool_call_name=name)
        yield ToolCallArgsEvent(tool_call_id=event.id, delta=as_json(event.data.get("tool_input") or {}))
        yield ToolCallEndEvent(tool_call_id=event.id)

    def _call_ended(self, event: Event) -> Iterator[BaseEvent]:
        given = str(event.data.get("tool_call_id"))
        if given not in self._calls:  # whoever listens came later than the call
            yield from self._call_started(event)
        content, how = _result(event), {name: event.data[name] for name in ("outcome", "error") if name in event.data}
        yield ToolCallResultEvent(
            message_id=f"{self._calls[given]}-result",
            tool_call_id=self._calls[given],
            content=content,
            metadata={GREENROOM: how} if how else None,
        )

    def _call_failed(self, event: Event) -> Iterator[BaseEvent]:
        """A call that the end of an attempt cut short comes before that end, and what is open has to end first."""
        yield from self._speech.end()
        yield from self._call_ended(event)

    # Its end

    def _completed(self, event: Event) -> Iterator[BaseEvent]:
        yield from self._speech.end()
        yield RunFinishedEvent(thread_id=self._thread_id, run_id=self._run_id, result=event.data, usage=_usage(event))

    def _cancelled(self, event: Event) -> Iterator[BaseEvent]:
        yield from self._speech.end()
        yield RunFinishedEvent(
            thread_id=self._thread_id,
            run_id=self._run_id,
            outcome=RunFinishedCancelledOutcome(),
            usage=_usage(event),
            metadata={GREENROOM: event.data},
        )

    def _failed(self, event: Event) -> Iterator[BaseEvent]:
        yield from self._speech.end()
        error = DeadlineExceeded() if event.type is EventType.RUN_TIMEOUT else UnknownError()
        yield RunErrorEvent(
            message=str(event.data.get("error_message") or error.message),
            code=str(event.data.get("error_code") or error.code),
            usage=_usage(event),
            metadata={GREENROOM: event.data},
        )


def encode(event: BaseEvent) -> str:
    """The event as the data of one server-sent event: JSON on one line, without the `data:` before it."""
    return event.model_dump_json(by_alias=True)


def _is_first(event: Event) -> bool:
    return (event.attempt or 1) == 1


def _content(event: Event) -> str:
    return str(event.data.get("content") or "")


def _result(event: Event) -> str:
    """What a tool gave, as text; why there is nothing, where it gave nothing."""
    data = event.data
    output = data.get("tool_output")
    if output is None and "outcome" in data:
        return f"No result: {data['outcome']}."
    return output if isinstance(output, str) else as_json(output)


def _usage(event: Event) -> list[AgUiTokenUsage] | None:
    """The protocol counts what came from a cache or went to one as input. What several attempts have used together
    bears no name: they may have been at several providers."""
    used = TokenUsage.from_dict(event.data.get("token_usage") or {})
    counts = (used.input_tokens, used.output_tokens, used.cache_read_tokens, used.cache_write_tokens)
    if min(counts) < 0 or not 0 < used.total_tokens <= _LARGEST_COUNT:
        return None
    return [
        AgUiTokenUsage(
            provider=event.provider if _is_first(event) else None,
            model=event.data.get("model") if _is_first(event) else None,
            input_tokens=used.total_tokens - used.output_tokens,
            output_tokens=used.output_tokens,
            total_tokens=used.total_tokens,
            cached_input_tokens=used.cache_read_tokens,
            cache_write_input_tokens=used.cache_write_tokens,
        )
    ]


# Input

_ROLES: Mapping[str, Role] = {"user": Role.USER, "system": Role.SYSTEM, "developer": Role.SYSTEM}


def run_input(given: RunAgentInput) -> dict[str, object]:
    """The input of the run that the client asks for: what was said to the agent since it last spoke, as the session
    keeps what came before. Instructions (system, developer) among that are given as those of the system.

    State, context, tools of the client and forwarded properties are not taken. Raises ValidationError that names the
    field where no user message is new, for a part that is not text, and for answers to interrupts: no run here ends
    with one.
    """
    if given.resume:
        raise _refusal("resume", "answers an interrupt, and no run here ends with one; decide approvals by their ids")
    first_new = len(given.messages)
    while first_new and given.messages[first_new - 1].role in _ROLES:
        first_new -= 1
    messages = [
        Message(_ROLES[message.role], _text(message.content, f"messages[{index}].content"))
        for index, message in enumerate(given.messages)
        if index >= first_new and isinstance(message, UserMessage | SystemMessage | DeveloperMessage)
    ]
    if all(message.role is not Role.USER for message in messages):
        raise _refusal("messages", "has no user message after the last one of the agent; say what the agent is to do")
    return messages_to_input(messages)


def _text(content: str | list[ContentPart], field: str) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(_text_of_part(part, f"{field}[{index}]") for index, part in enumerate(content))


def _text_of_part(part: ContentPart, field: str) -> str:
    if not isinstance(part, TextPart):
        raise _refusal(field, f"is a part of type {part.type!r}; only 'text' is taken")
    return part.text


def _refusal(field: str, reason: str) -> ValidationError:
    return ValidationError(f"{field} {reason}.", details={"field": field})
