"""A run as AG-UI events: in the order that the protocol demands, and with everything that was said."""

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from ag_ui.core import (
    PROTOCOL_VERSION,
    BaseEvent,
    CustomEvent,
    Event as AnyAgUiEvent,
    EventType as AgUi,
    RunAgentInput,
    RunErrorEvent,
    RunFinishedEvent,
    RunStartedEvent,
    ToolCallArgsEvent,
    ToolCallResultEvent,
    ToolCallStartEvent,
)
from hypothesis import given, strategies as st
from pydantic import TypeAdapter

from greenroom import Event, EventType, ValidationError
from greenroom.adapters.rendering.ag_ui import AgUiRun, encode, run_input
from tests.provider_recordings import names, replay

NOW = datetime(2026, 1, 2, 3, 4, 5, 678_901, UTC)
ANY_EVENT: TypeAdapter[BaseEvent] = TypeAdapter(AnyAgUiEvent)
TERMINALS = {AgUi.RUN_FINISHED, AgUi.RUN_ERROR}
OPENERS = {
    AgUi.TEXT_MESSAGE_START: "text",
    AgUi.REASONING_START: "span",
    AgUi.REASONING_MESSAGE_START: "thinking",
    AgUi.TOOL_CALL_START: "call",
}
PIECES = {AgUi.TEXT_MESSAGE_CONTENT: "text", AgUi.REASONING_MESSAGE_CONTENT: "thinking", AgUi.TOOL_CALL_ARGS: "call"}
CLOSERS = {
    AgUi.TEXT_MESSAGE_END: "text",
    AgUi.REASONING_END: "span",
    AgUi.REASONING_MESSAGE_END: "thinking",
    AgUi.TOOL_CALL_END: "call",
}
CUSTOM_TYPES = [
    EventType.TURN_COMPLETED,
    EventType.TOKEN_USAGE_UPDATED,
    EventType.PROVIDER_SELECTED,
    EventType.PROVIDER_FAILED_OVER,
    EventType.TOOL_APPROVAL_REQUESTED,
    EventType.TOOL_APPROVAL_GRANTED,
    EventType.TOOL_APPROVAL_DENIED,
    EventType.POLICY_VIOLATION,
    EventType.SESSION_STEERED,
    EventType.ERROR_OCCURRED,
    EventType.ERROR_RECOVERED,
    EventType.WORKSPACE_SNAPSHOT_TAKEN,
    EventType.WORKSPACE_DIFF_COMPUTED,
    EventType.WORKSPACE_ROLLED_BACK,
]

Said = tuple[EventType, dict[str, Any]]
"""An event before it has its place."""


def an_event(event_type: EventType, data: dict[str, Any] | None = None, *, seq: int = 1, attempt: int = 1) -> Event:
    return Event(
        seq=seq,
        id=f"evt_{seq}",
        session_id="ses_1",
        run_id="run_1",
        attempt=attempt,
        type=event_type,
        timestamp=NOW,
        recorded_at=NOW,
        provider="scripted",
        data=data or {},
        metadata={},
    )


def log_of(said: Iterable[Said]) -> Iterator[Event]:
    """The events in sequence; each run_queued begins an attempt."""
    attempt = 0
    for seq, (event_type, data) in enumerate(said, start=1):
        attempt += event_type is EventType.RUN_QUEUED
        yield an_event(event_type, data, seq=seq, attempt=max(attempt, 1))


def told_of(said: Iterable[Said]) -> list[BaseEvent]:
    run = AgUiRun("thread", "run")
    return [one for event in log_of(said) for one in run.map(event)]


def streamed(text: str, kind: str = "text", **more: Any) -> Said:
    return EventType.MESSAGE_STREAMED, {"content": text, "kind": kind, **more}


def received(text: str, kind: str = "text") -> Said:
    return EventType.MESSAGE_RECEIVED, {"role": "assistant", "content": text, "kind": kind}


def call_started(call_id: str = "call_1", **arguments: Any) -> Said:
    return EventType.TOOL_CALL_STARTED, {"tool_call_id": call_id, "tool_name": "look", "tool_input": arguments}


def call_completed(output: Any, call_id: str = "call_1") -> Said:
    return EventType.TOOL_CALL_COMPLETED, {**call_started(call_id)[1], "tool_output": output}


def call_failed(outcome: str, output: Any = None, call_id: str = "call_1", **more: Any) -> Said:
    return EventType.TOOL_CALL_FAILED, {**call_started(call_id)[1], "tool_output": output, "outcome": outcome, **more}


QUEUED: Said = (EventType.RUN_QUEUED, {"reason": "retry after provider_unavailable"})
STARTED: Said = (EventType.RUN_STARTED, {"model": None})
FAULT: Said = (EventType.ERROR_OCCURRED, {"error_code": "provider_unavailable", "error_message": "Gone."})
COMPLETED: Said = (EventType.RUN_COMPLETED, {"output": {"content": "done"}, "stop_reason": "end_turn"})


def types_of(events: Iterable[BaseEvent]) -> list[AgUi]:
    return [event.type for event in events]


def messages_of(events: Iterable[BaseEvent]) -> list[tuple[str, str]]:
    """Kind and text of each message, in the order in which they began."""
    texts: dict[tuple[str, str], str] = {}
    for event in events:
        values = event.model_dump()
        if event.type in OPENERS and OPENERS[event.type] in ("text", "thinking"):
            texts[OPENERS[event.type], values["message_id"]] = ""
        elif event.type in PIECES and PIECES[event.type] != "call":
            texts[PIECES[event.type], values["message_id"]] += values["delta"]
    return [(kind, text) for (kind, _), text in texts.items()]


def check_order(events: list[BaseEvent], *, has_ended: bool = True) -> None:
    """What the protocol demands of a run."""
    types = types_of(events)
    assert types[0] is AgUi.RUN_STARTED
    assert types.count(AgUi.RUN_STARTED) == 1
    assert [kind for kind in types if kind in TERMINALS] == ([types[-1]] if has_ended else [])
    open_now: set[tuple[str, str]] = set()
    seen: set[tuple[str, str]] = set()
    filled: set[tuple[str, str]] = set()
    for event in events:
        values = event.model_dump()
        name = str(values.get("message_id") or values.get("tool_call_id"))
        if event.type in OPENERS:
            key = OPENERS[event.type], name
            assert key not in seen
            seen.add(key)
            open_now.add(key)
        elif event.type in PIECES:
            assert (PIECES[event.type], name) in open_now
            assert values["delta"]
            filled.add((PIECES[event.type], name))
        elif event.type in CLOSERS:
            key = CLOSERS[event.type], name
            open_now.remove(key)
            assert key in filled or key[0] == "span"
        elif event.type is AgUi.TOOL_CALL_RESULT:
            assert ("call", values["tool_call_id"]) in seen - open_now
        elif event.type in TERMINALS:
            assert not open_now


# Any legal run

texts = st.text("ab \n", max_size=6).map(lambda text: f"{text}m{text}")
kinds = st.sampled_from(["text", "thinking"])


@st.composite
def pieces(draw: st.DrawFn, text: str) -> list[str]:
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)))
    bounds = [0, *cuts, len(text)]
    return [text[start:end] for start, end in pairwise(bounds)]


asides = st.lists(
    st.sampled_from([kind for kind in CUSTOM_TYPES if kind is not EventType.ERROR_OCCURRED]), max_size=1
).map(lambda found: [(kind, dict[str, Any]()) for kind in found])


@st.composite
def spoken(draw: st.DrawFn, text: str, kind: str) -> list[Said]:
    """The pieces of a message, with other things between them."""
    return [said for piece in draw(pieces(text)) for said in (streamed(piece, kind), *draw(asides))]


@st.composite
def whole_turns(draw: st.DrawFn) -> tuple[list[Said], list[tuple[str, str]]]:
    """A message that comes at once or in pieces; or thinking and text in pieces before either comes whole."""
    kind, text = draw(kinds), draw(texts)
    form = draw(st.sampled_from(["at once", "in pieces", "trimmed", "cut short", "thinking first"]))
    if form == "at once":
        return [received(text, kind)], [(kind, text)]
    if form in ("in pieces", "trimmed"):
        whole = text if form == "in pieces" else text.strip()
        return [*draw(spoken(text, kind)), received(whole, kind)], [(kind, text)]
    if form == "cut short":  # and said anew, as a client does that tries again by itself
        again = draw(texts)
        return (
            [*draw(spoken(f"x{text}", kind)), FAULT, *draw(spoken(again, kind)), received(again, kind)],
            [(kind, f"x{text}"), (kind, again)],
        )
    thought = draw(texts)
    said = [*draw(spoken(thought, "thinking")), *draw(spoken(text, "text"))]
    return [*said, received(thought, "thinking"), received(text)], [("thinking", thought), ("text", text)]


@st.composite
def attempts(draw: st.DrawFn, *, is_last: bool) -> tuple[list[Said], list[tuple[str, str]]]:
    """From its start to before what follows: the end of the run, or the next attempt."""
    said: list[Said] = [STARTED]
    messages: list[tuple[str, str]] = []
    for number in range(draw(st.integers(0, 3))):
        if draw(st.booleans()):
            more, expected = draw(whole_turns())
            said += more
            messages += expected
        else:
            ending = draw(st.sampled_from([call_completed({"seen": 1}), call_failed("denied", "No.")]))
            call_id = f"item_{number}"
            said += [
                call_started(call_id, path="."),
                *draw(asides),
                (ending[0], {**ending[1], "tool_call_id": call_id}),
            ]
    if draw(st.booleans()):  # stopped in the middle
        kind, text = draw(kinds), draw(texts)
        said += draw(spoken(text, kind))
        messages.append((kind, text))
    if draw(st.booleans()):
        said += [call_started("item_9"), call_failed("cancelled", None, "item_9")]
    return (said if is_last else [*said, *draw(st.sampled_from([[FAULT], []])), QUEUED]), messages


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[Said], list[tuple[str, str]]]:
    """Everything that the log of a run can hold, and the messages in it."""
    said: list[Said] = [QUEUED, (EventType.MESSAGE_SENT, {"role": "user", "content": "hello"}), *draw(asides)]
    messages: list[tuple[str, str]] = []
    total = draw(st.integers(0, 3))
    for number in range(1, total + 1):
        more, expected = draw(attempts(is_last=number == total))
        said += more
        messages += expected
    endings = [
        (EventType.RUN_CANCELLED, {"reason": "asked"}),
        (EventType.RUN_FAILED, {"error_code": "provider_error", "error_message": "It broke."}),
        (EventType.RUN_TIMEOUT, {"deadline_s": 5.0}),
    ]
    return [*said, draw(st.sampled_from([*endings, COMPLETED] if total else endings))], messages


@given(runs())
def test_every_legal_run_obeys_the_order_of_the_protocol_and_keeps_each_message_whole(
    run: tuple[list[Said], list[tuple[str, str]]],
) -> None:
    said, messages = run

    told = told_of(said)

    check_order(told)
    assert messages == messages_of(told)
    for event in told:
        assert type(event) is type(ANY_EVENT.validate_json(encode(event)))


@given(runs(), st.data())
def test_no_beginning_of_a_run_breaks_the_order(run: tuple[list[Said], list[Any]], data: st.DataObject) -> None:
    said = run[0][: data.draw(st.integers(0, len(run[0]) - 1))]

    told = told_of(said)

    if told:
        check_order(told, has_ended=False)


@given(runs())
def test_the_same_run_is_told_the_same_each_time(run: tuple[list[Said], list[Any]]) -> None:
    assert told_of(run[0]) == told_of(run[0])


@pytest.mark.parametrize("name", names())
def test_what_a_real_agent_said_is_told_once(name: str) -> None:
    for attempt in replay(name):
        said = [STARTED, *((event.type, event.data) for event in attempt.events), COMPLETED]

        told = told_of(said)

        check_order(told)
        for kind in ("text", "thinking"):
            in_pieces, at_once = (
                squeezed(data["content"] for was, data in said if was is event_type and data["kind"] == kind)
                for event_type in (EventType.MESSAGE_STREAMED, EventType.MESSAGE_RECEIVED)
            )
            assert squeezed(text for was, text in messages_of(told) if was == kind) in (in_pieces, at_once)


def squeezed(parts: Iterable[str]) -> str:
    return "".join("".join(parts).split())


# Beginning and end


def test_a_run_begins_with_the_ids_of_the_client_and_the_version_of_the_protocol() -> None:
    (started,) = told_of([QUEUED, STARTED])

    assert isinstance(started, RunStartedEvent)
    assert ("thread", "run", PROTOCOL_VERSION) == (started.thread_id, started.run_id, started.protocol_version)
    assert started.timestamp == 1_767_323_045_678


def test_a_run_that_is_cancelled_in_the_queue_has_a_beginning_and_an_end() -> None:
    started, finished = told_of([QUEUED, (EventType.RUN_CANCELLED, {"reason": "no need"})])

    assert started.type is AgUi.RUN_STARTED
    assert isinstance(finished, RunFinishedEvent)
    assert finished.outcome is not None
    assert finished.outcome.type == "cancelled"
    assert finished.metadata == {"greenroom": {"reason": "no need"}}


def test_a_completed_run_has_its_result_and_its_usage_with_the_cache_counted_as_input() -> None:
    usage = {"input_tokens": 1, "output_tokens": 2, "cache_read_tokens": 30, "cache_write_tokens": 400}
    data = {"output": {"content": "4"}, "token_usage": usage, "model": "model-1"}

    finished = told_of([STARTED, (EventType.RUN_COMPLETED, data)])[-1]

    assert isinstance(finished, RunFinishedEvent)
    assert finished.result == data
    assert finished.usage is not None
    assert finished.usage[0].model_dump() == {
        "provider": "scripted",
        "model": "model-1",
        "input_tokens": 431,
        "output_tokens": 2,
        "total_tokens": 433,
        "cached_input_tokens": 30,
        "cache_write_input_tokens": 400,
    }


def test_what_several_attempts_have_used_together_bears_no_name() -> None:
    data = {"output": {"content": ""}, "token_usage": {"input_tokens": 1}, "model": "model-1"}

    finished = told_of([QUEUED, STARTED, QUEUED, STARTED, (EventType.RUN_COMPLETED, data)])[-1]

    assert isinstance(finished, RunFinishedEvent)
    assert finished.usage is not None
    assert (finished.usage[0].provider, finished.usage[0].model) == (None, None)


@pytest.mark.parametrize("usage", [None, {}, {"input_tokens": 0}, {"input_tokens": -1}, {"input_tokens": 2**60}])
def test_usage_that_the_protocol_cannot_take_is_left_out(usage: dict[str, int] | None) -> None:
    finished = told_of([STARTED, (EventType.RUN_COMPLETED, {"token_usage": usage})])[-1]

    assert isinstance(finished, RunFinishedEvent)
    assert finished.usage is None


@pytest.mark.parametrize(
    ("ending", "message", "code"),
    [
        ((EventType.RUN_FAILED, {"error_code": "queue_full", "error_message": "Full."}), "Full.", "queue_full"),
        (
            (EventType.RUN_TIMEOUT, {"deadline_s": 1.0}),
            "The run was stopped at its deadline. Give it a larger deadline_s.",
            "deadline_exceeded",
        ),
    ],
)
def test_a_run_that_failed_says_why(ending: Said, message: str, code: str) -> None:
    error = told_of([STARTED, ending])[-1]

    assert isinstance(error, RunErrorEvent)
    assert (message, code) == (error.message, error.code)
    assert error.metadata == {"greenroom": ending[1]}


def test_nothing_is_told_after_the_end() -> None:
    assert types_of(told_of([STARTED, COMPLETED, streamed("late"), COMPLETED])) == [AgUi.RUN_STARTED, AgUi.RUN_FINISHED]


def test_a_message_that_an_attempt_left_open_is_closed_before_its_failure_is_told() -> None:
    told = told_of([QUEUED, STARTED, call_started(), streamed("Hel"), call_failed("cancelled"), FAULT, QUEUED, STARTED])

    assert types_of(told)[4:] == [
        AgUi.TEXT_MESSAGE_START,
        AgUi.TEXT_MESSAGE_CONTENT,
        AgUi.TEXT_MESSAGE_END,
        AgUi.TOOL_CALL_RESULT,
        AgUi.CUSTOM,
        AgUi.CUSTOM,
        AgUi.CUSTOM,
    ]
    again = [(event.name, event.value) for event in told[-2:] if isinstance(event, CustomEvent)]
    assert again == [
        ("greenroom.run_queued", {**QUEUED[1], "attempt": 2, "provider": "scripted"}),
        ("greenroom.run_started", {**STARTED[1], "attempt": 2, "provider": "scripted"}),
    ]


# Messages


def test_a_message_that_is_received_when_it_was_streamed_is_only_ended() -> None:
    assert types_of(told_of([STARTED, streamed("Hel"), streamed("lo"), received("Hello")]))[1:] == [
        AgUi.TEXT_MESSAGE_START,
        AgUi.TEXT_MESSAGE_CONTENT,
        AgUi.TEXT_MESSAGE_CONTENT,
        AgUi.TEXT_MESSAGE_END,
    ]


def test_thinking_is_a_span_with_one_message() -> None:
    assert types_of(told_of([STARTED, received("Hm.", "thinking")]))[1:] == [
        AgUi.REASONING_START,
        AgUi.REASONING_MESSAGE_START,
        AgUi.REASONING_MESSAGE_CONTENT,
        AgUi.REASONING_MESSAGE_END,
        AgUi.REASONING_END,
    ]


def test_blocks_that_are_streamed_together_and_received_one_by_one_are_told_once() -> None:
    said = [
        streamed("A", "thinking"),
        streamed("BA", "thinking"),
        received("A", "thinking"),
        received("BA", "thinking"),
    ]

    assert messages_of(told_of([STARTED, *said])) == [("thinking", "ABA")]


def test_text_around_a_thought_that_is_received_as_one_is_told_once() -> None:
    said = [
        streamed("One "),
        streamed("hm", "thinking"),
        streamed("two"),
        received("hm", "thinking"),
        received("One two"),
    ]

    assert messages_of(told_of([STARTED, *said])) == [("text", "One "), ("thinking", "hm"), ("text", "two")]


def test_what_was_received_beyond_what_was_streamed_is_added_to_the_message() -> None:
    assert messages_of(told_of([STARTED, streamed("Hel"), received("Hello")])) == [("text", "Hello")]


def test_an_answer_that_replaces_what_was_streamed_is_told_whole() -> None:
    assert messages_of(told_of([STARTED, streamed("Hel"), received("Good day")])) == [
        ("text", "Hel"),
        ("text", "Good day"),
    ]


def test_an_answer_that_an_error_note_interrupted_is_not_told_again() -> None:
    said = [streamed("One "), FAULT, streamed("two"), received("One two")]

    assert messages_of(told_of([STARTED, *said])) == [("text", "One "), ("text", "two")]


def test_an_answer_is_told_whole_after_an_error_even_if_the_one_given_up_held_its_words() -> None:
    said = [streamed("no, ok, no"), FAULT, received("ok")]

    assert messages_of(told_of([STARTED, *said])) == [("text", "no, ok, no"), ("text", "ok")]


def test_what_a_failed_attempt_streamed_is_not_taken_for_what_the_next_one_says() -> None:
    told = told_of([QUEUED, STARTED, streamed("Yes."), FAULT, QUEUED, STARTED, received("Yes."), COMPLETED])

    assert messages_of(told) == [("text", "Yes."), ("text", "Yes.")]


def test_what_a_command_prints_on_stderr_is_no_part_of_its_message() -> None:
    told = told_of([STARTED, streamed("out", stream="stdout"), streamed("err", stream="stderr"), received("out")])

    assert messages_of(told) == [("text", "out")]
    custom = told[3]
    assert isinstance(custom, CustomEvent)
    assert ("greenroom.message_streamed", "err") == (custom.name, custom.value["content"])


@pytest.mark.parametrize("said", [streamed(""), received(""), streamed("?", "gesture")])
def test_nothing_opens_a_message_that_has_no_text_of_its_own(said: Said) -> None:
    assert messages_of(told_of([STARTED, said])) == []


# Tool calls


def test_a_tool_call_is_told_with_its_whole_input_and_its_result() -> None:
    told = told_of([STARTED, call_started(path="æ"), call_completed({"lines": 2})])[1:]

    assert types_of(told) == [AgUi.TOOL_CALL_START, AgUi.TOOL_CALL_ARGS, AgUi.TOOL_CALL_END, AgUi.TOOL_CALL_RESULT]
    start, arguments, _, result = told
    assert isinstance(start, ToolCallStartEvent)
    assert start.tool_call_name == "look"
    assert isinstance(arguments, ToolCallArgsEvent)
    assert json.loads(arguments.delta) == {"path": "æ"}
    assert isinstance(result, ToolCallResultEvent)
    assert (start.tool_call_id, '{"lines": 2}', None) == (result.tool_call_id, result.content, result.metadata)


@pytest.mark.parametrize(
    ("failed", "content", "how"),
    [
        (call_failed("denied", "Not allowed."), "Not allowed.", {"outcome": "denied"}),
        (call_failed("in_doubt"), "No result: in_doubt.", {"outcome": "in_doubt"}),
        (call_failed("error", "Bad.", error={"code": "x"}), "Bad.", {"outcome": "error", "error": {"code": "x"}}),
    ],
)
def test_a_tool_call_that_failed_has_a_result_that_says_how(failed: Said, content: str, how: dict[str, Any]) -> None:
    result = told_of([STARTED, call_started(), failed])[-1]

    assert isinstance(result, ToolCallResultEvent)
    assert (content, {"greenroom": how}) == (result.content, result.metadata)


def test_calls_to_which_an_agent_gave_the_same_id_in_two_attempts_are_two() -> None:
    call = [call_started(), call_completed("x")]

    told = told_of([QUEUED, STARTED, *call, QUEUED, STARTED, *call, COMPLETED])

    check_order(told)
    assert len({event.tool_call_id for event in told if isinstance(event, ToolCallStartEvent)}) == 2


def test_an_approval_names_the_tool_call_as_the_call_was_told() -> None:
    asked = (EventType.TOOL_APPROVAL_REQUESTED, {"approval_id": "apr_1", "tool_call_id": "call_1"})

    _, start, *_, custom = told_of([STARTED, call_started(), asked])

    assert isinstance(start, ToolCallStartEvent)
    assert isinstance(custom, CustomEvent)
    assert custom.value == {"approval_id": "apr_1", "tool_call_id": start.tool_call_id}


def test_the_result_of_a_call_that_was_not_seen_to_start_follows_its_start() -> None:
    told = told_of([STARTED, call_completed("x"), COMPLETED])

    check_order(told)
    assert types_of(told)[1] is AgUi.TOOL_CALL_START


# The others


@pytest.mark.parametrize("event_type", CUSTOM_TYPES)
def test_what_the_protocol_has_no_event_for_is_a_custom_event_with_its_data(event_type: EventType) -> None:
    custom = told_of([STARTED, (event_type, {"a": [1, None]})])[-1]

    assert isinstance(custom, CustomEvent)
    assert (f"greenroom.{event_type.value}", {"a": [1, None]}) == (custom.name, custom.value)


@pytest.mark.parametrize("event_type", EventType)
def test_no_event_without_data_breaks_the_mapping(event_type: EventType) -> None:
    told = told_of([STARTED, (event_type, {})])

    check_order(told, has_ended=told[-1].type in TERMINALS)


def test_an_event_is_encoded_as_json_on_one_line_under_the_names_of_the_protocol() -> None:
    event = told_of([STARTED, received("a\nb")])[2]

    text = encode(event)

    assert "\n" not in text
    assert json.loads(text) == {
        "type": "TEXT_MESSAGE_CONTENT",
        "messageId": "evt_2",
        "delta": "a\nb",
        "timestamp": 1_767_323_045_678,
    }


# Input


def asked(*messages: dict[str, Any], **more: Any) -> RunAgentInput:
    listed = [{"id": str(number), **message} for number, message in enumerate(messages)]
    return RunAgentInput.model_validate({"threadId": "t", "runId": "r", "messages": listed, **more})


USER = {"role": "user", "content": "Hello."}
ANSWER = {"role": "assistant", "content": "Yes?"}
CALL_RESULT = {"role": "tool", "content": "4", "toolCallId": "c"}
PICTURE = {"type": "image", "source": {"type": "url", "value": "file:x.png"}}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([USER], ["Hello."]),
        ([USER, ANSWER, user("Two?"), user("Three?")], ["Two?", "Three?"]),
        ([USER, ANSWER, CALL_RESULT, user("And?")], ["And?"]),
        ([USER, {"role": "reasoning", "content": "Hm."}, user("Again.")], ["Again."]),
        ([user([{"type": "text", "text": "One"}, {"type": "text", "text": "two"}])], ["One\ntwo"]),
    ],
)
def test_the_input_is_what_the_user_has_said_since_the_agent_spoke(
    messages: list[dict[str, Any]], expected: list[str]
) -> None:
    assert run_input(asked(*messages)) == {"messages": [{"role": "user", "content": text} for text in expected]}


def test_new_instructions_go_along_as_those_of_the_system() -> None:
    given_input = asked({"role": "system", "content": "Be brief."}, {"role": "developer", "content": "Be kind."}, USER)

    assert run_input(given_input) == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hello."},
        ]
    }


@pytest.mark.parametrize("messages", [[], [USER, ANSWER], [{"role": "system", "content": "Be brief."}]])
def test_an_input_in_which_the_user_says_nothing_new_is_refused(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(ValidationError, match="no user message") as caught:
        run_input(asked(*messages))

    assert caught.value.details == {"field": "messages"}


def test_a_part_that_is_not_text_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match="'image'") as caught:
        run_input(asked(user([PICTURE]), ANSWER, user([{"type": "text", "text": "This?"}, PICTURE])))

    assert caught.value.details == {"field": "messages[2].content[1]"}


def test_answers_to_interrupts_are_refused() -> None:
    with pytest.raises(ValidationError) as caught:
        run_input(asked(USER, resume=[{"interruptId": "i", "status": "resolved"}]))

    assert caught.value.details == {"field": "resume"}
