"""A provider that plays a script: public testing API, and the double for every real provider."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from ...domain.capability import Capability, CapabilityType
from ...domain.errors import ERRORS_BY_CODE, CapabilityNotSupported, ProviderError, RunNotFound, ValidationError
from ...domain.event import EventType
from ...domain.provider import ProviderEvent, ProviderOutcome, ProviderRequest
from ...domain.run_input import Role
from ...domain.token_usage import TokenUsage
from ...domain.tool import ToolResult
from ..option_parsing import parse_options
from .tool_calls import tool_call_ended, tool_call_started

DEFAULT_MODEL = "scripted-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedToolCall:
    """One tool call of the script. Without `output` a tool of that name that the session has is really called."""

    name: str
    input: dict[str, Any] = field(default_factory=dict[str, Any])
    output: Any = None
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedUsage:
    input_tokens: int = 10
    output_tokens: int = 5
    cost_usd: float | None = None
    """What the run says that it cost; None: nothing is known of that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedStep:
    """What one run does."""

    reply: str = "ok"
    chunks: int = 1
    """In how many message_streamed events the reply comes; 0 for none."""
    chunk_delay_s: float = 0.0
    latency_s: float = 0.0
    """Seconds before anything happens."""
    tool_calls: tuple[ScriptedToolCall, ...] = ()
    usage: ScriptedUsage = field(default_factory=ScriptedUsage)
    fail_with: str | None = None
    """Code of the error that the run ends with."""
    fail_times: int | None = None
    """How many runs of the session fail before they succeed; None: all."""
    retry_after_s: float | None = None
    fail_after_chunks: int | None = None
    """How many chunks come before the failure; None: it fails at once."""
    hang: bool = False
    """Never ends by itself."""
    echo: bool = False
    """Replies with the last user message."""

    def __post_init__(self) -> None:
        if self.fail_with is not None and self.fail_with not in ERRORS_BY_CODE:
            raise ValidationError(
                f"fail_with is {self.fail_with!r}, which is no error code; see greenroom.ERRORS_BY_CODE.",
                details={"field": "fail_with"},
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedOptions(ScriptedStep):
    script: tuple[dict[str, Any], ...] = ()
    """One entry per run of the session, each any of the other options; the last one goes on for all later runs."""


class ScriptedProvider:
    """Plays its options. Costs nothing, needs nothing, and does the same every time."""

    RUNS_IN_PROCESS = True
    DEFAULT_MODEL = DEFAULT_MODEL

    def __init__(self, name: str) -> None:
        self.name = name
        self._failures: Counter[str] = Counter()
        self._steered: dict[str, list[str]] = {}
        self._parsed: tuple[Mapping[str, Any], ScriptedOptions] | None = None

    @staticmethod
    def check_options(options: Mapping[str, Any], *, field: str) -> ScriptedOptions:
        """The parsed options; ValidationError names the field that is wrong."""
        parsed = parse_options(ScriptedOptions, options, field=field)
        for index, entry in enumerate(parsed.script):
            parse_options(ScriptedStep, entry, field=f"{field}.script[{index}]")
        return parsed

    def capabilities(self) -> tuple[Capability, ...]:
        return (
            Capability(name="streaming", type=CapabilityType.SAMPLING),
            Capability(name="tool_use", type=CapabilityType.TOOL),
            Capability(name="system_prompts", type=CapabilityType.PROMPT),
        )

    async def execute(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent | ProviderOutcome]:
        self._steered[request.run_id] = []
        try:
            async with aclosing(self._play(request)) as events:
                async for event in events:
                    yield event
        finally:
            del self._steered[request.run_id]

    async def _play(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent | ProviderOutcome]:
        step = self._step(request)
        if step.latency_s:
            await asyncio.sleep(step.latency_s)
        failure = self._failure(request, step)
        if failure is not None and step.fail_after_chunks is None:
            raise failure
        for index, call in enumerate(step.tool_calls):
            call_id = f"call_{request.attempt}_{index + 1}"
            yield tool_call_started(call_id, call.name, call.input)
            yield tool_call_ended(call_id, call.name, call.input, await _called(request, call, call_id))
        reply = self._last_message(request) if step.echo else step.reply
        async for event in _stream(reply, step, stop_after=step.fail_after_chunks if failure else None):
            yield event
        if failure is not None:
            raise failure
        if step.hang:
            await asyncio.Event().wait()
        usage = TokenUsage(input_tokens=step.usage.input_tokens, output_tokens=step.usage.output_tokens)
        yield ProviderEvent(EventType.MESSAGE_RECEIVED, {"role": "assistant", "content": reply, "kind": "text"})
        yield ProviderEvent(EventType.TOKEN_USAGE_UPDATED, usage.to_dict())
        yield ProviderOutcome(
            content=reply,
            stop_reason="end_turn",
            token_usage=usage,
            cost_usd=step.usage.cost_usd,
            model=request.model or DEFAULT_MODEL,
        )

    async def interrupt(self, run_id: str) -> None:
        raise CapabilityNotSupported("A scripted run cannot be interrupted politely; cancel it.")

    async def steer(self, run_id: str, message: str) -> bool:
        """The run has it at once: with `echo` it is what it replies, unless it was replying already."""
        steered = self._steered.get(run_id)
        if steered is None:
            raise RunNotFound(f"No run {run_id} is under way here.", details={"run_id": run_id})
        steered.append(message)
        return True

    def processes(self, run_id: str) -> list[dict[str, int]]:
        return []

    async def aclose(self) -> None:
        return None

    def _step(self, request: ProviderRequest) -> ScriptedStep:
        # One session mostly sends the same options mapping again: parsing it once saves 20 µs a run.
        if self._parsed is None or self._parsed[0] is not request.options:
            self._parsed = (request.options, self.check_options(request.options, field="options"))
        options = self._parsed[1]
        if not options.script:
            return options
        entry = options.script[min(request.run_number, len(options.script)) - 1]
        return parse_options(ScriptedStep, entry, field="options.script")

    def _last_message(self, request: ProviderRequest) -> str:
        if self._steered[request.run_id]:
            return self._steered[request.run_id][-1]
        return next((message.content for message in reversed(request.messages) if message.role is Role.USER), "")

    def _failure(self, request: ProviderRequest, step: ScriptedStep) -> Exception | None:
        if step.fail_with is None:
            return None
        if step.fail_times is not None:
            if self._failures[request.session_id] >= step.fail_times:
                return None
            self._failures[request.session_id] += 1
        details = {} if step.retry_after_s is None else {"retry_after_s": step.retry_after_s}
        return ERRORS_BY_CODE.get(step.fail_with, ProviderError)("The script says so.", details=details)


async def _called(request: ProviderRequest, call: ScriptedToolCall, call_id: str) -> ToolResult:
    if call.delay_s:
        await asyncio.sleep(call.delay_s)
    if call.output is None and any(spec.name == call.name for spec in request.tools.specs()):
        return await request.tools.invoke(call.name, call.input, call_id)
    refusal = await request.tools.permit(call.name, call.input, call_id)
    return refusal if refusal is not None else ToolResult(output=call.output)


async def _stream(text: str, step: ScriptedStep, *, stop_after: int | None) -> AsyncGenerator[ProviderEvent]:
    for index, chunk in enumerate(_split(text, step.chunks)):
        if stop_after is not None and index >= stop_after:
            return
        if step.chunk_delay_s:
            await asyncio.sleep(step.chunk_delay_s)
        yield ProviderEvent(EventType.MESSAGE_STREAMED, {"content": chunk, "kind": "text"})


def _split(text: str, parts: int) -> list[str]:
    """The text in that many pieces of nearly equal length; pieces may be empty when the text is short."""
    size, rest = divmod(len(text), parts) if parts else (0, 0)
    pieces: list[str] = []
    start = 0
    for index in range(parts):
        end = start + size + (1 if index < rest else 0)
        pieces.append(text[start:end])
        start = end
    return pieces
