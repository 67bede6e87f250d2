"""One attempt at a run through the Messages API: turns of model and tools. Loads the anthropic SDK (72 MB, 1-2 s)."""

import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, cast

import anthropic
import httpx2
from anthropic import AsyncAnthropic
from anthropic.types import RawContentBlockDelta, RawMessageStreamEvent

from ....domain.errors import ProviderUnavailable
from ....domain.event import EventType
from ....domain.policy import Metric, binding, tightest
from ....domain.provider import ProviderEvent, ProviderLevels, ProviderOutcome, ProviderRequest
from ....domain.rate_budget import RateLevels
from ....domain.run_input import Role
from ....domain.token_usage import TokenUsage
from ....domain.tool import ToolOutcome, ToolResult
from ...prices import price_usd
from ..tool_calls import tool_call_ended, tool_call_started
from .errors import FOREIGN_ERRORS, refused, translated
from .history import history_messages
from .options import DEFAULT_MODEL, AnthropicOptions, thinking_argument
from .rate_headers import levels_of

_CONNECT_TIMEOUT_S = 10.0


def new_client(base_url: str | None, api_key: str) -> AsyncAnthropic:
    """A client that never retries by itself: the runtime owns retries, and the SDK's would be silent."""
    return AsyncAnthropic(base_url=base_url, api_key=api_key, max_retries=0)


@dataclass(slots=True)
class ToolUse:
    """One tool_use block that has arrived whole."""

    id: str
    name: str
    arguments: dict[str, Any]
    complaint: str | None = None
    """Why it cannot be called: its arguments were no JSON object."""


@dataclass(slots=True)
class AssistantMessage:
    """One answer of the model while it arrives: what there is to report of it, and what must be sent back."""

    spent: TokenUsage
    """Tokens of the attempt before this message."""
    blocks: dict[int, dict[str, Any]] = field(default_factory=dict[int, dict[str, Any]])
    tool_uses: list[ToolUse] = field(default_factory=list[ToolUse])
    usage: TokenUsage = field(default_factory=TokenUsage)
    model: str | None = None
    stop_reason: str | None = None
    refusal: tuple[str | None, str | None] = (None, None)
    complete: bool = False
    _inputs: dict[int, str] = field(default_factory=dict[int, str])

    @property
    def text(self) -> str:
        return "".join(block.get("text", "") for block in self.blocks.values() if block["type"] == "text")

    @property
    def wants_another_turn(self) -> bool:
        return self.stop_reason == "pause_turn" or (self.stop_reason == "tool_use" and bool(self.tool_uses))

    def take(self, event: RawMessageStreamEvent) -> Iterator[ProviderEvent]:
        """Add what a raw event brings. A kind of event that this version does not know adds nothing."""
        if event.type == "message_start":
            self.model = event.message.model
            yield self._counted(event.message.usage)
        elif event.type == "content_block_start":
            self.blocks[event.index] = event.content_block.to_dict()
        elif event.type == "content_block_delta":
            yield from self._extended(event.index, event.delta)
        elif event.type == "content_block_stop":
            self._close(event.index)
        elif event.type == "message_delta":
            self.stop_reason = event.delta.stop_reason
            if event.delta.stop_details is not None:
                self.refusal = (event.delta.stop_details.category, event.delta.stop_details.explanation)
            yield self._counted(event.usage)
        elif event.type == "message_stop":
            self.complete = True

    def received(self) -> Iterator[ProviderEvent]:
        """The whole message, once it has arrived: each thinking block, the text if there is any, and the calls that it
        leads to."""
        for block in self.blocks.values():
            if block["type"] == "thinking" and block.get("thinking"):
                yield _message_received(block["thinking"], "thinking")
        if self.text:
            yield _message_received(self.text, "text")
        for call in self.tool_uses:
            yield tool_call_started(call.id, call.name, call.arguments)

    def to_parameter(self) -> dict[str, Any] | None:
        """The message as it goes back to the model: thinking signed as it came, no empty text (refused)."""
        content = [block for block in self.blocks.values() if block["type"] != "text" or block.get("text")]
        return {"role": "assistant", "content": content} if content else None

    def _extended(self, index: int, delta: RawContentBlockDelta) -> Iterator[ProviderEvent]:
        block = self.blocks[index]
        if delta.type == "text_delta":
            block["text"] = block.get("text", "") + delta.text
            if delta.text:
                yield _message_streamed(delta.text, "text")
        elif delta.type == "thinking_delta":
            block["thinking"] = block.get("thinking", "") + delta.thinking
            if delta.thinking:
                yield _message_streamed(delta.thinking, "thinking")
        elif delta.type == "signature_delta":
            block["signature"] = delta.signature
        elif delta.type == "input_json_delta":
            self._inputs[index] = self._inputs.get(index, "") + delta.partial_json
        elif delta.type == "citations_delta":
            block["citations"] = [*(block.get("citations") or []), delta.citation.to_dict()]

    def _close(self, index: int) -> None:
        """The end of a block: only here is the input of a tool complete."""
        block = self.blocks[index]
        complaint = None
        if self._inputs.get(index):
            block["input"], complaint = _parsed_input(self._inputs[index])
        if block["type"] == "tool_use":
            call = ToolUse(str(block["id"]), str(block["name"]), block["input"], complaint)
            self.tool_uses.append(call)

    def _counted(self, usage: "anthropic.types.Usage | anthropic.types.MessageDeltaUsage") -> ProviderEvent:
        """Counts of a message are cumulative: a later one replaces, and one that is left out stands."""
        given = {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cache_read_tokens": usage.cache_read_input_tokens,
            "cache_write_tokens": usage.cache_creation_input_tokens,
        }
        self.usage = replace(self.usage, **{name: count for name, count in given.items() if count is not None})
        return ProviderEvent(EventType.TOKEN_USAGE_UPDATED, (self.spent + self.usage).to_dict())


class Attempt:
    """The conversation of one attempt, what it has used so far, and the loop over its turns."""

    def __init__(
        self, client: AsyncAnthropic, request: ProviderRequest, options: AnthropicOptions, secret: str
    ) -> None:
        self._client = client
        self._request = request
        self._options = options
        self._secret = secret
        self._model = request.model or options.model or DEFAULT_MODEL
        self._messages: list[dict[str, Any]] = history_messages(request.history) + [
            {"role": message.role.value, "content": message.content}
            for message in request.messages
            if message.role is not Role.SYSTEM
        ]
        self._usage = TokenUsage()
        self._cost_usd: float | None = 0.0
        self._steered: list[str] = []

    def steer(self, message: str) -> None:
        """Say this to the model with the next turn, of which there will be one unless the turns are used up."""
        self._steered.append(message)

    async def run(self) -> AsyncGenerator[ProviderEvent | ProviderLevels | ProviderOutcome, None]:
        """All turns, then the outcome. Closing it closes the HTTP stream."""
        max_turns = self._request.max_turns or self._options.max_turns
        turn = 0
        while True:
            turn += 1
            message = AssistantMessage(self._usage)
            async with aclosing(self._receive(message)) as events:
                async for event in events:
                    yield event
            self._account(message)
            goes_on = message.wants_another_turn and turn < max_turns
            async with aclosing(self._call_tools(message, really=goes_on)) as events:
                async for event in events:
                    yield event
            yield ProviderEvent(EventType.TURN_COMPLETED, {"turn": turn, "stop_reason": message.stop_reason})
            if not goes_on and not (self._steered and turn < max_turns):
                break
            self._take_steered()
        yield ProviderOutcome(
            content=message.text,
            stop_reason="max_turns" if message.wants_another_turn else message.stop_reason or "unknown",
            token_usage=self._usage,
            model=message.model or self._model,
            cost_usd=self._cost_usd,
            turn_count=turn,
        )

    def _take_steered(self) -> None:
        said = [{"type": "text", "text": text} for text in self._steered]
        self._steered.clear()
        if not said:
            return
        last = self._messages[-1]
        if last["role"] == "user" and isinstance(last["content"], list):
            last["content"] += said  # behind the results of tools
        else:
            self._messages.append({"role": "user", "content": said})

    async def _receive(self, message: AssistantMessage) -> AsyncGenerator[ProviderEvent | ProviderLevels, None]:
        async with aclosing(self._raw_events()) as raw_events:
            async for raw_event in raw_events:
                if isinstance(raw_event, RateLevels):
                    yield ProviderLevels(raw_event)
                    continue
                for event in message.take(raw_event):
                    yield event
        if not message.complete:
            raise ProviderUnavailable("The Messages API ended its stream in the middle of a message. Try again later.")
        if message.stop_reason == "refusal":
            raise refused(*message.refusal)
        for event in message.received():
            yield event

    async def _raw_events(self) -> AsyncGenerator[RawMessageStreamEvent | RateLevels, None]:
        """What the headers say, then the events as the API sends them; create(stream=True) alone does not add the SDK's
        own, which repeat text."""
        try:
            stream = await self._client.messages.create(
                **self._arguments(),
                stream=True,
                timeout=httpx2.Timeout(
                    self._options.timeout_s, connect=min(self._options.timeout_s, _CONNECT_TIMEOUT_S)
                ),
            )
            async with stream:
                if (levels := levels_of(stream.response.headers)) is not None:
                    yield levels
                async for event in stream:
                    yield event
        except FOREIGN_ERRORS as exc:
            raise translated(exc, secret=self._secret) from exc

    async def _call_tools(self, message: AssistantMessage, *, really: bool) -> AsyncGenerator[ProviderEvent, None]:
        """Run the tools that the message asks for, one after the other, and take both into the conversation.

        Where there is no further turn (the turns are used up, or the answer was cut off at max_tokens) nothing is run
        whose result no model would see; the calls end as cancelled.
        """
        results: list[dict[str, Any]] = []
        for call in message.tool_uses:
            result = await self._called(call) if really else _not_run(message)
            yield tool_call_ended(call.id, call.name, call.arguments, result)
            results.append(_tool_result(call, result))
        if (parameter := message.to_parameter()) is not None:
            self._messages.append(parameter)
        if results:
            self._messages.append({"role": "user", "content": results})

    async def _called(self, call: ToolUse) -> ToolResult:
        if call.complaint is not None:
            error = {"code": "invalid_input", "message": call.complaint}
            return ToolResult(output=call.complaint, outcome=ToolOutcome.ERROR, error=error)
        return await self._request.tools.invoke(call.name, call.arguments, call.id)

    def _max_tokens(self) -> int:
        """Of one answer: as the options say, and no more than a policy leaves of its tokens, as far as the API takes
        that beside the budget for thinking."""
        most = tightest(binding(self._request.policies), Metric.TOTAL_TOKENS)
        if most is None:
            return self._options.max_tokens
        thinking = self._options.thinking
        least = thinking.get("budget_tokens", 0) + 1 if isinstance(thinking, dict) else 1
        return min(self._options.max_tokens, max(int(most) - self._usage.total_tokens, least))

    def _account(self, message: AssistantMessage) -> None:
        self._usage = self._usage + message.usage
        price = price_usd(message.model or self._model, message.usage)
        self._cost_usd = None if price is None or self._cost_usd is None else self._cost_usd + price

    def _arguments(self) -> dict[str, Any]:
        options, request = self._options, self._request
        system = [message.content for message in request.messages if message.role is Role.SYSTEM]
        arguments: dict[str, Any] = {
            "model": self._model,
            "max_tokens": self._max_tokens(),
            "messages": self._messages,
            "system": "\n\n".join([request.system_prompt, *system] if request.system_prompt else system),
            "thinking": thinking_argument(options.thinking),
            "tools": [
                {"name": spec.name, "description": spec.description, "input_schema": spec.input_schema}
                for spec in request.tools.specs()
            ],
            # No parameter of create() any more; models that refuse it say so.
            "extra_body": None if options.temperature is None else {"temperature": options.temperature},
        }
        return {name: value for name, value in arguments.items() if value}


def _message_streamed(content: str, kind: str) -> ProviderEvent:
    return ProviderEvent(EventType.MESSAGE_STREAMED, {"content": content, "kind": kind})


def _message_received(content: str, kind: str) -> ProviderEvent:
    return ProviderEvent(EventType.MESSAGE_RECEIVED, {"role": "assistant", "content": content, "kind": kind})


def _parsed_input(text: str) -> tuple[dict[str, Any], str | None]:
    try:
        parsed: object = json.loads(text)
    except ValueError as exc:
        return {}, f"The arguments are not valid JSON ({exc}). Call the tool again."
    if not isinstance(parsed, dict):
        return {}, "The arguments are not a JSON object. Call the tool again."
    return cast("dict[str, Any]", parsed), None


def _not_run(message: AssistantMessage) -> ToolResult:
    reason = "max_turns is reached" if message.wants_another_turn else f"the answer ended with {message.stop_reason}"
    text = f"Not run: {reason}."
    return ToolResult(output=text, outcome=ToolOutcome.CANCELLED, error={"code": "cancelled", "message": text})


def _tool_result(call: ToolUse, result: ToolResult) -> dict[str, Any]:
    output = result.output
    return {
        "type": "tool_result",
        "tool_use_id": call.id,
        "content": output if isinstance(output, str) else json.dumps(output, ensure_ascii=False),
        **({} if result.outcome is None else {"is_error": True}),
    }
