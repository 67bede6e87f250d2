"""The scripted provider: every option of the contract does what it says, every time."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from greenroom.adapters.option_parsing import option_names
from greenroom.adapters.providers.scripted import ScriptedOptions, ScriptedProvider
from greenroom.domain.errors import (
    ERRORS_BY_CODE,
    CapabilityNotSupported,
    GreenroomError,
    ProviderOverloaded,
    ProviderRateLimited,
    ValidationError,
)
from greenroom.domain.event import EventType
from greenroom.domain.provider import ProviderEvent, ProviderOutcome, ProviderRequest
from greenroom.domain.run_input import Message, Role
from greenroom.domain.tool import NoTools, Toolbox, ToolOutcome, ToolResult, ToolSpec

CONTRACT_OPTIONS = {
    *("reply", "chunks", "chunk_delay_s", "latency_s", "tool_calls", "usage", "fail_with", "fail_times"),
    *("retry_after_s", "fail_after_chunks", "hang", "echo", "script"),
}


class OneTool:
    """A toolbox with one tool, that says what it was called with."""

    def specs(self) -> tuple[ToolSpec, ...]:
        return (ToolSpec(name="add", description="", input_schema={}),)

    async def permit(
        self, name: str, arguments: dict[str, Any], call_id: str, *, asks: bool = False
    ) -> ToolResult | None:
        return None

    async def invoke(self, name: str, arguments: dict[str, Any], call_id: str) -> ToolResult:
        if "fail" in arguments:
            return ToolResult(output="no", outcome=ToolOutcome.ERROR, error={"code": "x"})
        return ToolResult(output={name: arguments})


def request_of(
    options: Mapping[str, Any],
    *,
    run_number: int = 1,
    session_id: str = "ses_1",
    attempt: int = 1,
    model: str | None = None,
    tools: Toolbox | None = None,
    messages: tuple[Message, ...] = (Message(Role.USER, "Hi."),),
) -> ProviderRequest:
    return ProviderRequest(
        session_id=session_id,
        run_id=f"run_{run_number}",
        attempt=attempt,
        run_number=run_number,
        messages=messages,
        system_prompt=None,
        model=model,
        max_turns=None,
        options=options,
        tools=tools or NoTools(),
    )


class Played:
    """All that one attempt gave."""

    def __init__(self) -> None:
        self.events: list[ProviderEvent] = []
        self.outcome: ProviderOutcome | None = None
        self.error: GreenroomError | None = None

    def of(self, event_type: EventType) -> list[dict[str, Any]]:
        return [event.data for event in self.events if event.type is event_type]

    @property
    def chunks(self) -> list[str]:
        return [data["content"] for data in self.of(EventType.MESSAGE_STREAMED)]

    @property
    def content(self) -> str | None:
        return self.outcome.content if self.outcome else None


async def play(options: Mapping[str, Any], provider: ScriptedProvider | None = None, **request: Any) -> Played:
    played = Played()
    try:
        async for item in (provider or ScriptedProvider("scripted")).execute(request_of(options, **request)):
            if isinstance(item, ProviderOutcome):
                played.outcome = item
            else:
                played.events.append(item)
    except GreenroomError as exc:
        played.error = exc
    return played


def test_the_options_are_those_of_the_contract() -> None:
    assert CONTRACT_OPTIONS == set(option_names(ScriptedOptions))


async def test_without_options_it_says_ok_in_one_chunk() -> None:
    played = await play({})

    assert [
        *(EventType.MESSAGE_STREAMED, EventType.MESSAGE_RECEIVED, EventType.TOKEN_USAGE_UPDATED),
    ] == [event.type for event in played.events]
    assert ("ok", ["ok"]) == (played.content, played.chunks)
    assert played.outcome is not None
    assert ("end_turn", "scripted-1", 1) == (
        played.outcome.stop_reason,
        played.outcome.model,
        played.outcome.turn_count,
    )
    assert [{"role": "assistant", "content": "ok", "kind": "text"}] == played.of(EventType.MESSAGE_RECEIVED)


async def test_the_model_of_the_run_is_the_model_of_the_outcome() -> None:
    played = await play({}, model="m-1")

    assert played.outcome is not None
    assert "m-1" == played.outcome.model


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [(0, []), (1, ["abcdefg"]), (3, ["abc", "de", "fg"]), (7, [*"abcdefg"]), (9, [*"abcdefg", "", ""])],
)
async def test_a_reply_comes_in_as_many_chunks_as_asked_for(chunks: int, expected: list[str]) -> None:
    played = await play({"reply": "abcdefg", "chunks": chunks})

    assert (expected, "abcdefg") == (played.chunks, played.content)


async def test_echo_replies_with_the_last_user_message() -> None:
    messages = (Message(Role.USER, "a"), Message(Role.USER, "b"), Message(Role.ASSISTANT, "c"))

    assert "b" == (await play({"echo": True, "reply": "x"}, messages=messages)).content
    assert "" == (await play({"echo": True}, messages=messages[2:])).content


async def test_usage_is_told_as_an_event_and_in_the_outcome() -> None:
    played = await play({"usage": {"input_tokens": 7, "output_tokens": 3}})

    (told,) = played.of(EventType.TOKEN_USAGE_UPDATED)
    assert played.outcome is not None
    assert told == played.outcome.token_usage.to_dict()
    assert (7, 3, 10) == (told["input_tokens"], told["output_tokens"], told["total_tokens"])


@pytest.mark.parametrize("option", ["latency_s", "chunk_delay_s"])
async def test_delays_take_their_time(option: str) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()

    played = await play({option: 0.03, "chunks": 2})

    assert "ok" == played.content
    assert loop.time() - began >= (0.06 if option == "chunk_delay_s" else 0.03) * 0.9


async def test_nothing_happens_before_the_latency_is_over() -> None:
    stream = ScriptedProvider("scripted").execute(request_of({"latency_s": 30}))

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(stream), 0.02)


async def test_a_tool_call_with_an_output_is_only_told() -> None:
    call = {"name": "add", "input": {"a": 1}, "output": {"sum": 3}}

    played = await play({"tool_calls": [call]}, tools=OneTool())

    expected = {"tool_call_id": "call_1_1", "tool_name": "add", "tool_input": {"a": 1}}
    assert [expected] == played.of(EventType.TOOL_CALL_STARTED)
    assert [{**expected, "tool_output": {"sum": 3}}] == played.of(EventType.TOOL_CALL_COMPLETED)
    assert EventType.MESSAGE_STREAMED == played.events[2].type


async def test_a_tool_call_without_an_output_really_calls_the_tool() -> None:
    calls = [{"name": "add", "input": {"a": 1}}, {"name": "add", "input": {"fail": 1}}, {"name": "other"}]

    played = await play({"tool_calls": calls}, tools=OneTool(), attempt=2)

    assert [{"add": {"a": 1}}, None] == [data["tool_output"] for data in played.of(EventType.TOOL_CALL_COMPLETED)]
    (failed,) = played.of(EventType.TOOL_CALL_FAILED)
    assert ("call_2_2", "no", "error", {"code": "x"}) == (
        failed["tool_call_id"],
        failed["tool_output"],
        failed["outcome"],
        failed["error"],
    )


async def test_a_tool_call_takes_its_delay() -> None:
    stream = ScriptedProvider("scripted").execute(
        request_of({"tool_calls": [{"name": "add", "output": 1, "delay_s": 30}]})
    )
    started = await anext(stream)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(stream), 0.02)

    assert isinstance(started, ProviderEvent)
    assert EventType.TOOL_CALL_STARTED == started.type


@pytest.mark.parametrize("code", sorted(ERRORS_BY_CODE))
async def test_it_fails_with_any_code_at_once(code: str) -> None:
    played = await play({"fail_with": code})

    assert ERRORS_BY_CODE[code] is type(played.error)
    assert ([], None) == (played.events, played.outcome)


async def test_a_failure_says_when_to_come_again() -> None:
    played = await play({"fail_with": "provider_rate_limited", "retry_after_s": 1.5})

    assert isinstance(played.error, ProviderRateLimited)
    assert {"retry_after_s": 1.5} == played.error.details


async def test_a_failure_after_chunks_lets_so_many_through() -> None:
    played = await play({"fail_with": "provider_overloaded", "fail_after_chunks": 2, "chunks": 4, "reply": "abcd"})

    assert isinstance(played.error, ProviderOverloaded)
    assert (["a", "b"], None) == (played.chunks, played.outcome)
    assert [] == played.of(EventType.MESSAGE_RECEIVED)


async def test_it_fails_so_many_times_in_each_session_and_then_succeeds() -> None:
    provider = ScriptedProvider("scripted")
    options = {"fail_with": "provider_error", "fail_times": 2}

    played = [
        await play(options, provider, session_id=session_id) for session_id in ("a", "a", "b", "a", "b", "b", "a")
    ]

    assert [True, True, True, False, True, False, False] == [one.error is not None for one in played]


async def test_it_fails_always_unless_told_how_often() -> None:
    provider = ScriptedProvider("scripted")

    played = [await play({"fail_with": "provider_error"}, provider) for _ in range(5)]

    assert [True] * 5 == [one.error is not None for one in played]


async def test_it_hangs_after_its_chunks_until_it_is_cancelled() -> None:
    stream = ScriptedProvider("scripted").execute(request_of({"hang": True}))
    first = await anext(stream)
    rest = asyncio.ensure_future(anext(stream))
    for _ in range(20):
        await asyncio.sleep(0)
    hung = not rest.done()

    rest.cancel()

    await asyncio.wait([rest])
    assert isinstance(first, ProviderEvent)
    assert (EventType.MESSAGE_STREAMED, True, True) == (first.type, hung, rest.cancelled())


async def test_a_script_has_one_entry_for_each_run_and_the_last_goes_on() -> None:
    provider = ScriptedProvider("scripted")
    options = {"script": [{"reply": "one"}, {"fail_with": "provider_error"}, {"echo": True}], "reply": "not this"}

    played = [await play(options, provider, run_number=number) for number in (1, 2, 3, 4, 1)]

    assert ["one", None, "Hi.", "Hi.", "one"] == [one.content for one in played]


async def test_options_that_change_between_runs_are_read_anew() -> None:
    provider = ScriptedProvider("scripted")

    assert ["a", "b"] == [(await play({"reply": reply}, provider)).content for reply in "ab"]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"replay": "x"}, "options.replay"),
        ({"chunks": "many"}, "options.chunks"),
        ({"tool_calls": [{"output": 1}]}, "options.tool_calls.0.name"),
        ({"tool_calls": [{"name": "x"}, {"name": "y", "outptu": 1}]}, "options.tool_calls.1.outptu"),
        ({"usage": {"input": 1}}, "options.usage.input"),
        ({"script": [{}, {"replay": "x"}]}, "options.script[1].replay"),
        ({"script": [{"script": [{"reply": "x"}]}]}, "options.script[0].script"),
        ({"script": "x"}, "options.script"),
    ],
)
def test_a_wrong_option_is_refused_by_the_name_of_its_field(options: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        ScriptedProvider.check_options(options, field="options")

    assert field == refused.value.details["field"]


def test_an_error_code_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValidationError, match="no_such_code"):
        ScriptedProvider.check_options({"fail_with": "no_such_code"}, field="options")


async def test_it_can_only_be_cancelled() -> None:
    provider = ScriptedProvider("scripted")

    with pytest.raises(CapabilityNotSupported):
        await provider.interrupt("run_1")
    await provider.aclose()
    assert {"streaming", "tool_use", "system_prompts"} == {one.name for one in provider.capabilities()}
