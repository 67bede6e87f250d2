"""The Messages API provider: the real SDK against the loopback server."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from greenroom.adapters.prices import price_usd
from greenroom.adapters.providers.anthropic.provider import AnthropicProvider
from greenroom.adapters.tools import CallableToolbox, ToolLike
from greenroom.domain.errors import (
    CapabilityNotSupported,
    GreenroomError,
    InvalidOperation,
    ProviderAuthenticationFailed,
    ProviderContentRefused,
    ProviderInvalidRequest,
    ProviderOverloaded,
    ProviderQuotaExceeded,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnavailable,
    ValidationError,
)
from greenroom.domain.event import EventType
from greenroom.domain.policy import parse_policy
from greenroom.domain.provider import Provider, ProviderEvent, ProviderLevels, ProviderOutcome, ProviderRequest
from greenroom.domain.rate_budget import RateLevel, RateLevels
from greenroom.domain.run_input import Message, Role
from greenroom.domain.token_usage import TokenUsage
from greenroom.testing import Answer, MessagesServer, answers

KEY = "sk-ant-test-key-1234"
MODEL = "claude-sonnet-5-5"

Step = ProviderEvent | ProviderLevels | ProviderOutcome


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[MessagesServer]:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    with MessagesServer() as running:
        yield running


@pytest.fixture
async def provider() -> AsyncIterator[AnthropicProvider]:
    made = AnthropicProvider("claude")
    yield made
    await made.aclose()


def request(server: MessagesServer, *tools: ToolLike, max_turns: int | None = None, **options: Any) -> ProviderRequest:
    return ProviderRequest(
        session_id="ses_1",
        run_id="run_1",
        attempt=1,
        run_number=1,
        messages=(Message(Role.SYSTEM, "Be kind."), Message(Role.USER, "Hi")),
        system_prompt="Be brief.",
        model=None,
        max_turns=max_turns,
        options={"base_url": server.url, "model": MODEL, "timeout_s": 5.0, **options},
        tools=CallableToolbox(tools),
    )


async def steps_of(provider: AnthropicProvider, made: ProviderRequest) -> list[Step]:
    async with aclosing(provider.execute(made)) as steps:
        return [step async for step in steps]


async def outcome_of(provider: AnthropicProvider, made: ProviderRequest) -> ProviderOutcome:
    last = (await steps_of(provider, made))[-1]
    assert isinstance(last, ProviderOutcome)
    return last


async def failure_of(provider: AnthropicProvider, made: ProviderRequest) -> GreenroomError:
    with pytest.raises(GreenroomError) as caught:
        await steps_of(provider, made)
    return caught.value


def events(steps: list[Step], *types: EventType) -> list[dict[str, Any]]:
    return [step.data for step in steps if isinstance(step, ProviderEvent) and step.type in types]


def weather(city: str) -> dict[str, str]:
    """The weather of a city."""
    return {"city": city, "sky": "rain"}


def broken(city: str) -> str:
    raise RuntimeError(f"no {city}")


async def test_text_is_streamed_once_and_then_given_whole(provider: AnthropicProvider, server: MessagesServer) -> None:
    server.answers.append(answers.text("Hello from the model.", chunks=3))

    steps = await steps_of(provider, request(server))

    assert [step.type.value if isinstance(step, ProviderEvent) else "outcome" for step in steps] == [
        "token_usage_updated",
        "message_streamed",
        "message_streamed",
        "message_streamed",
        "token_usage_updated",
        "message_received",
        "turn_completed",
        "outcome",
    ]
    assert "".join(data["content"] for data in events(steps, EventType.MESSAGE_STREAMED)) == "Hello from the model."
    assert events(steps, EventType.MESSAGE_RECEIVED) == [
        {"role": "assistant", "content": "Hello from the model.", "kind": "text"}
    ]
    assert events(steps, EventType.TURN_COMPLETED) == [{"turn": 1, "stop_reason": "end_turn"}]
    outcome = steps[-1]
    assert isinstance(outcome, ProviderOutcome)
    assert (outcome.content, outcome.stop_reason, outcome.model, outcome.turn_count) == (
        "Hello from the model.",
        "end_turn",
        MODEL,
        1,
    )


async def test_the_request_carries_system_model_and_options(
    provider: AnthropicProvider, server: MessagesServer
) -> None:
    made = request(server, max_tokens=2000, thinking={"budget_tokens": 1024}, temperature=0)

    await steps_of(provider, made)

    body = server.requests[0].body
    assert body == {
        "model": MODEL,
        "max_tokens": 2000,
        "system": "Be brief.\n\nBe kind.",
        "messages": [{"role": "user", "content": "Hi"}],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "temperature": 0,
        "stream": True,
    }


async def test_thinking_is_told_apart_from_text(provider: AnthropicProvider, server: MessagesServer) -> None:
    server.answers.append(answers.thinking("Let me think.") + answers.text("Done."))

    steps = await steps_of(provider, request(server, thinking=True))

    streamed = events(steps, EventType.MESSAGE_STREAMED)
    assert "".join(data["content"] for data in streamed if data["kind"] == "thinking") == "Let me think."
    assert events(steps, EventType.MESSAGE_RECEIVED) == [
        {"role": "assistant", "content": "Let me think.", "kind": "thinking"},
        {"role": "assistant", "content": "Done.", "kind": "text"},
    ]
    assert server.requests[0].body["thinking"] == {"type": "adaptive"}


async def test_a_tool_is_called_and_its_result_goes_back_with_the_signed_thinking(
    provider: AnthropicProvider, server: MessagesServer
) -> None:
    server.answers.append(
        answers.thinking("Hm.", signature="c2ln")
        + answers.text("I look.")
        + answers.tool_use("weather", {"city": "Oslo"})
    )
    server.answers.append(answers.text("It rains."))

    steps = await steps_of(provider, request(server, weather))

    call = {"tool_call_id": "toolu_msg_0001_2", "tool_name": "weather", "tool_input": {"city": "Oslo"}}
    assert events(steps, EventType.TOOL_CALL_STARTED) == [call]
    assert events(steps, EventType.TOOL_CALL_COMPLETED) == [{**call, "tool_output": {"city": "Oslo", "sky": "rain"}}]
    assert events(steps, EventType.TURN_COMPLETED) == [
        {"turn": 1, "stop_reason": "tool_use"},
        {"turn": 2, "stop_reason": "end_turn"},
    ]
    assert server.requests[0].body["tools"][0]["input_schema"]["required"] == ["city"]
    assert server.requests[1].body["messages"][1:] == [
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "toolu_msg_0001_2", "name": "weather", "input": {"city": "Oslo"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_msg_0001_2",
                    "content": '{"city": "Oslo", "sky": "rain"}',
                }
            ],
        },
    ]
    outcome = steps[-1]
    assert isinstance(outcome, ProviderOutcome)
    assert (outcome.content, outcome.turn_count) == ("It rains.", 2)


async def test_all_tools_of_one_message_are_answered_in_one_message(
    provider: AnthropicProvider, server: MessagesServer
) -> None:
    server.answers.append(answers.tool_use("weather", {"city": "Oslo"}) + answers.tool_use("broken", {"city": "Rome"}))

    steps = await steps_of(provider, request(server, weather, broken))

    results = server.requests[1].body["messages"][2]["content"]
    assert [result["tool_use_id"] for result in results] == ["toolu_msg_0001_0", "toolu_msg_0001_1"]
    assert [result.get("is_error", False) for result in results] == [False, True]
    assert results[1]["content"] == "RuntimeError: no Rome"
    assert len(events(steps, EventType.TOOL_CALL_STARTED)) == 2
    assert [data["outcome"] for data in events(steps, EventType.TOOL_CALL_FAILED)] == ["error"]


async def test_an_unknown_tool_is_told_to_the_model(provider: AnthropicProvider, server: MessagesServer) -> None:
    server.answers.append(answers.tool_use("nothing", {}))

    outcome = await outcome_of(provider, request(server))

    assert outcome.turn_count == 2
    assert server.requests[1].body["messages"][2]["content"][0]["is_error"] is True


async def test_at_max_turns_the_run_ends_well_and_no_tool_is_run_in_vain(
    provider: AnthropicProvider, server: MessagesServer
) -> None:
    called: list[str] = []

    def note(text: str) -> None:
        called.append(text)

    server.default = answers.tool_use("note", {"text": "x"})

    steps = await steps_of(provider, request(server, note, max_turns=2))

    outcome = steps[-1]
    assert isinstance(outcome, ProviderOutcome)
    assert (outcome.stop_reason, outcome.turn_count) == ("max_turns", 2)
    assert called == ["x"]
    assert [data["outcome"] for data in events(steps, EventType.TOOL_CALL_FAILED)] == ["cancelled"]


async def test_an_answer_cut_off_at_max_tokens_ends_the_run_and_its_tool_calls(
    provider: AnthropicProvider, server: MessagesServer
) -> None:
    cut_off = Answer(
        blocks=({"type": "tool_use", "name": "weather", "input": {"city": "Oslo"}},), stop_reason="max_tokens"
    )
    server.answers.append(cut_off)

    steps = await steps_of(provider, request(server, weather))

    assert isinstance(steps[-1], ProviderOutcome)
    assert steps[-1].stop_reason == "max_tokens"
    assert len(events(steps, EventType.TOOL_CALL_STARTED)) == len(events(steps, EventType.TOOL_CALL_FAILED)) == 1


async def test_a_paused_turn_goes_on(provider: AnthropicProvider, server: MessagesServer) -> None:
    server.answers.append(answers.text("So far", stop_reason="pause_turn"))
    server.answers.append(answers.text("so good."))

    outcome = await outcome_of(provider, request(server))

    assert (outcome.content, outcome.turn_count) == ("so good.", 2)
    assert server.requests[1].body["messages"][1:] == [
        {"role": "assistant", "content": [{"type": "text", "text": "So far"}]}
    ]


async def test_a_refusal_fails_the_attempt(provider: AnthropicProvider, server: MessagesServer) -> None:
    server.answers.append(answers.refusal("Not this.", category="bio"))

    error = await failure_of(provider, request(server))

    assert isinstance(error, ProviderContentRefused)
    assert "Not this." in error.message
    assert error.details == {"category": "bio"}


async def test_usage_counts_the_attempt_so_far_with_the_cache_apart(
    provider: AnthropicProvider, server: MessagesServer
) -> None:
    first = TokenUsage(input_tokens=100, output_tokens=20, cache_read_tokens=7, cache_write_tokens=3)
    second = TokenUsage(input_tokens=50, output_tokens=10, cache_read_tokens=90)
    server.answers.append(answers.tool_use("weather", {"city": "Oslo"}, usage=first))
    server.answers.append(answers.text("ok", usage=second))

    steps = await steps_of(provider, request(server, weather))

    updates = events(steps, EventType.TOKEN_USAGE_UPDATED)
    assert [update["output_tokens"] for update in updates] == [1, 20, 21, 30]
    assert updates[-1] == (first + second).to_dict()
    outcome = steps[-1]
    assert isinstance(outcome, ProviderOutcome)
    assert outcome.token_usage == first + second
    prices = [price_usd(MODEL, first), price_usd(MODEL, second)]
    assert outcome.cost_usd == pytest.approx(sum(price for price in prices if price is not None))
    assert outcome.cost_usd


async def test_what_the_headers_say_of_the_rate_limits_is_told_before_anything_else(
    provider: AnthropicProvider, server: MessagesServer
) -> None:
    headers = {
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "49",
        "anthropic-ratelimit-input-tokens-remaining": "12000",
        "anthropic-ratelimit-output-tokens-limit": "nonsense",
    }
    server.answers.append(replace(answers.text("Hi."), headers=headers))

    steps = await steps_of(provider, request(server))

    assert steps[0] == ProviderLevels(
        RateLevels(requests=RateLevel(per_minute=50, remaining=49), input_tokens=RateLevel(remaining=12_000))
    )
    assert 1 == sum(isinstance(step, ProviderLevels) for step in steps)


async def test_a_policy_on_tokens_bounds_each_answer(provider: AnthropicProvider, server: MessagesServer) -> None:
    strict = parse_policy({"limits": {"max_total_tokens": 500}}, field="policy")
    warning = parse_policy({"limits": {"max_total_tokens": 5}, "on_violation": "warn"}, field="policy")

    await steps_of(provider, replace(request(server), policies=(strict, warning)))

    assert 500 == server.requests[0].body["max_tokens"]


async def test_a_model_without_price_has_no_cost(provider: AnthropicProvider, server: MessagesServer) -> None:
    assert (await outcome_of(provider, request(server, model="claude-fake"))).cost_usd is None


def test_tokens_of_the_cache_are_not_priced_twice() -> None:
    plain = price_usd(MODEL, TokenUsage(input_tokens=1000))
    cached = price_usd(MODEL, TokenUsage(input_tokens=1000, cache_read_tokens=1000))

    assert plain is not None
    assert cached is not None
    assert plain < cached < 2 * plain


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, ProviderInvalidRequest),
        (401, ProviderAuthenticationFailed),
        (402, ProviderQuotaExceeded),
        (403, ProviderAuthenticationFailed),
        (404, ProviderInvalidRequest),
        (413, ProviderInvalidRequest),
        (429, ProviderRateLimited),
        (500, ProviderUnavailable),
        (504, ProviderTimeout),
        (529, ProviderOverloaded),
    ],
)
async def test_an_http_error_is_typed_and_not_retried_by_the_sdk(
    provider: AnthropicProvider, server: MessagesServer, status: int, expected: type[GreenroomError]
) -> None:
    server.answers.append(answers.error(status, retry_after=1.5 if status == 429 else None))

    error = await failure_of(provider, request(server))

    assert type(error) is expected
    assert error.details == ({"retry_after_s": 1.5} if status == 429 else {})
    assert error.provider_error is not None
    assert (error.provider_error["status_code"], error.provider_error["request_id"]) == (status, "req_0001")
    assert error.__cause__ is not None
    assert len(server.requests) == 1
    assert KEY not in json.dumps(error.to_record())


async def test_a_spend_limit_is_a_quota_and_no_rate_limit(provider: AnthropicProvider, server: MessagesServer) -> None:
    server.answers.append(answers.error(429, error_code="contract_spend_limit_reached"))

    assert isinstance(await failure_of(provider, request(server)), ProviderQuotaExceeded)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("overloaded_error", ProviderOverloaded),
        ("rate_limit_error", ProviderRateLimited),
        ("api_error", ProviderUnavailable),
    ],
)
async def test_an_error_in_the_middle_of_a_stream_is_judged_by_its_type(
    provider: AnthropicProvider, server: MessagesServer, kind: str, expected: type[GreenroomError]
) -> None:
    server.answers.append(answers.midstream_error(kind))

    error = await failure_of(provider, request(server))

    assert type(error) is expected
    assert error.provider_error is not None
    assert (error.provider_error["status_code"], error.provider_error["type"]) == (200, kind)


async def test_a_connection_dropped_in_the_middle_is_unavailable(
    provider: AnthropicProvider, server: MessagesServer
) -> None:
    server.answers.append(answers.cut())

    assert type(await failure_of(provider, request(server))) is ProviderUnavailable


class WithoutItsEnd(Answer):
    """A stream that ends in good order, but before the message does: what a proxy makes of a lost connection."""

    def events(self, message_id: str, model: str) -> Iterator[dict[str, Any]]:
        return (event for event in super().events(message_id, model) if event["type"] != "message_stop")


async def test_a_stream_that_ends_before_its_message_is_unavailable(
    provider: AnthropicProvider, server: MessagesServer
) -> None:
    server.answers.append(WithoutItsEnd(blocks=({"type": "text", "text": "Hello"},)))

    error = await failure_of(provider, request(server))

    assert type(error) is ProviderUnavailable
    assert "in the middle" in error.message


async def test_a_server_that_is_not_there_is_unavailable(provider: AnthropicProvider, server: MessagesServer) -> None:
    made = request(server)
    server.stop()

    error = await failure_of(provider, made)

    assert type(error) is ProviderUnavailable
    assert "127.0.0.1" in error.message


async def test_silence_past_timeout_s_is_a_timeout(provider: AnthropicProvider, server: MessagesServer) -> None:
    server.answers.append(answers.stall())

    assert type(await failure_of(provider, request(server, timeout_s=0.2))) is ProviderTimeout
    assert await asyncio.to_thread(server.requests[0].wait_disconnected)


async def begun(provider: AnthropicProvider, made: ProviderRequest) -> "asyncio.Task[None]":
    """A task that consumes the attempt, once the first text of it has come."""
    streaming = asyncio.Event()

    async def consume() -> None:
        async with aclosing(provider.execute(made)) as steps:
            async for step in steps:
                if isinstance(step, ProviderEvent) and step.type is EventType.MESSAGE_STREAMED:
                    streaming.set()

    task = asyncio.create_task(consume())
    await streaming.wait()
    return task


async def test_cancelling_in_the_middle_closes_the_connection(
    provider: AnthropicProvider, server: MessagesServer
) -> None:
    server.answers.append(answers.stall())
    task = await begun(provider, request(server))

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(server.requests[0].wait_disconnected)
    assert server.requests[0].disconnected


async def test_closing_the_attempt_early_closes_the_connection(
    provider: AnthropicProvider, server: MessagesServer
) -> None:
    server.answers.append(answers.stall())

    async with aclosing(provider.execute(request(server))) as steps:
        async for step in steps:
            if isinstance(step, ProviderEvent) and step.type is EventType.MESSAGE_STREAMED:
                break

    assert await asyncio.to_thread(server.requests[0].wait_disconnected)


async def test_attempts_run_side_by_side_and_survive_the_cancellation_of_another(
    provider: AnthropicProvider, server: MessagesServer
) -> None:
    server.answers.append(answers.stall())
    stalled = await begun(provider, request(server))
    server.answers.append(answers.text("a b c d", chunks=4, chunk_delay_s=0.01))
    other = asyncio.create_task(outcome_of(provider, request(server)))

    stalled.cancel()

    assert (await other).content == "a b c d"
    with pytest.raises(asyncio.CancelledError):
        await stalled


async def test_bad_json_from_the_model_is_told_to_it_and_calls_nothing(
    provider: AnthropicProvider, server: MessagesServer
) -> None:
    class BadInput(Answer):
        def events(self, message_id: str, model: str) -> Iterator[dict[str, Any]]:
            for event in super().events(message_id, model):
                yield event
                if event.get("delta", {}).get("type") == "input_json_delta" and event["delta"]["partial_json"]:
                    yield {**event, "delta": {**event["delta"], "partial_json": "{{"}}

    block = {"type": "tool_use", "name": "weather", "input": {"city": "Oslo"}}
    server.answers.append(BadInput(blocks=(block,), stop_reason="tool_use"))

    steps = await steps_of(provider, request(server, weather))

    failed = events(steps, EventType.TOOL_CALL_FAILED)
    assert [data["error"]["code"] for data in failed] == ["invalid_input"]
    assert server.requests[1].body["messages"][2]["content"][0]["is_error"] is True


async def test_the_class_is_a_provider() -> None:
    made: Provider = AnthropicProvider("claude")

    assert {capability.name for capability in made.capabilities()} >= {"streaming", "tool_use"}
    await made.aclose()


async def test_an_attempt_with_another_key_has_its_own_client(
    provider: AnthropicProvider, server: MessagesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTHER_KEY", "another-key")

    await steps_of(provider, request(server))
    await steps_of(provider, request(server, api_key_env="OTHER_KEY"))

    assert len(server.requests) == 2
    assert server.requests[1].headers["authorization"] == "***"


async def test_a_missing_key_names_the_variable_and_sends_nothing(
    provider: AnthropicProvider, server: MessagesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")

    error = await failure_of(provider, request(server))

    assert type(error) is ProviderAuthenticationFailed
    assert "Set ANTHROPIC_API_KEY" in error.message
    assert server.requests == []


async def test_a_key_may_stand_in_a_file(
    provider: AnthropicProvider, server: MessagesServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    (tmp_path / "key").write_text(f"{KEY}\n")

    await steps_of(provider, request(server, api_key_file=str(tmp_path / "key")))
    error = await failure_of(provider, request(server, api_key_file=str(tmp_path / "none")))

    assert len(server.requests) == 1
    assert type(error) is ProviderAuthenticationFailed
    assert str(tmp_path / "none") in error.message


async def test_a_key_that_is_none_is_refused_without_being_shown(
    provider: AnthropicProvider, server: MessagesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant first\nsecond")

    error = await failure_of(provider, request(server))

    assert type(error) is ProviderAuthenticationFailed
    assert "second" not in json.dumps(error.to_record())


async def test_the_key_shows_nowhere(provider: AnthropicProvider, server: MessagesServer) -> None:
    server.answers.append(answers.error(401, message=f"invalid key {KEY}"))

    error = await failure_of(provider, request(server))
    steps = await steps_of(provider, request(server))

    for shown in (repr(error), str(error), json.dumps(error.to_record()), repr(provider), repr(steps)):
        assert KEY not in shown
    assert KEY not in repr(server.requests)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"api_key_env": KEY}, "p.api_key_env"),
        ({"api_key": KEY}, "p.api_key"),
        ({"base_url": "localhost:1"}, "p.base_url"),
        ({"max_tokens": 0}, "p.max_tokens"),
        ({"timeout_s": 0}, "p.timeout_s"),
        ({"thinking": {"budget": 1}}, "p.thinking.budget"),
        ({"thinking": {"budget_tokens": 10}}, "p.thinking.budget_tokens"),
        ({"thinking": {"budget_tokens": 5000}, "max_tokens": 5000}, "p.thinking.budget_tokens"),
    ],
)
def test_wrong_options_are_refused_by_field(options: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        AnthropicProvider.check_options(options, field="p")

    assert caught.value.details["field"] == field
    assert KEY not in str(caught.value)


async def test_what_the_api_cannot_do_is_refused(provider: AnthropicProvider) -> None:
    with pytest.raises(CapabilityNotSupported):
        await provider.interrupt("run_1")


def test_the_sdk_is_not_loaded_with_the_module() -> None:
    code = (
        "import sys; from greenroom.adapters.providers.anthropic.provider import AnthropicProvider as P;"
        "P.check_options({}, field='p'); sys.exit('anthropic' in sys.modules or 'genai_prices' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def test_the_server_answers_without_streaming_too(server: MessagesServer) -> None:
    from anthropic import AsyncAnthropic

    server.answers.append(answers.text("Hello") + answers.tool_use("weather", {"city": "Oslo"}))
    async with AsyncAnthropic(base_url=server.url, api_key=KEY, max_retries=0) as client:
        message = await client.messages.create(model=MODEL, max_tokens=10, messages=[{"role": "user", "content": "Hi"}])

    assert [block.type for block in message.content] == ["text", "tool_use"]
    assert message.stop_reason == "tool_use"


async def test_a_message_for_a_run_under_way_is_said_with_the_next_turn(
    provider: AnthropicProvider, server: MessagesServer
) -> None:
    server.answers += [answers.tool_use("note", {}), answers.text("Left, then.")]

    def note() -> str:
        asyncio.run_coroutine_threadsafe(steer(), loop).result(5)
        return "noted"

    async def steer() -> None:
        assert not await provider.steer("run_1", "turn left")

    loop = asyncio.get_running_loop()
    outcome = await outcome_of(provider, request(server, note))

    assert ("Left, then.", 2) == (outcome.content, outcome.turn_count)
    last = server.requests[1].body["messages"][-1]
    assert ["tool_result", "text"] == [block["type"] for block in last["content"]]
    assert "turn left" == last["content"][1]["text"]


async def test_a_message_for_a_run_that_would_be_done_gives_it_another_turn(
    provider: AnthropicProvider, server: MessagesServer
) -> None:
    server.answers += [answers.text("Done."), answers.text("Left, then.")]
    steps: list[Any] = []
    async with aclosing(provider.execute(request(server))) as stream:
        async for step in stream:
            if isinstance(step, ProviderEvent) and step.type is EventType.MESSAGE_RECEIVED and not steps:
                await provider.steer("run_1", "turn left")
            steps += [step] if not isinstance(step, ProviderEvent) or step.type is EventType.MESSAGE_RECEIVED else []

    assert "Left, then." == steps[-1].content
    assert ["user", "assistant", "user"] == [one["role"] for one in server.requests[1].body["messages"]]


async def test_a_run_that_has_not_begun_or_has_ended_is_not_steered(provider: AnthropicProvider) -> None:
    with pytest.raises(InvalidOperation):
        await provider.steer("run_none", "hurry")
