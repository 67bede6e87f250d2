"""The lines of Claude Code's stream-json output as events. The same lines come through the claude-agent-sdk."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

from ....domain.errors import Cancelled, ProviderUnavailable
from ....domain.event import EventType
from ....domain.provider import ProviderEvent, ProviderOutcome
from ....domain.token_usage import TokenUsage
from ....domain.tool import ToolOutcome, ToolResult
from ..agents.wire_mapping import anthropic_usage, error_occurred, message_received, message_streamed, usage_updated
from ..tool_calls import tool_call_ended, tool_call_started
from .errors import error_class, error_of_result

SYNTHETIC_MODEL = "<synthetic>"
"""Messages with this model were written by the client itself: error texts, notes of an interruption."""

_SUBAGENT_TOOLS = frozenset({"Agent", "Task"})

_ABORTED = frozenset({"aborted_streaming", "aborted_tools"})

_DELTAS = {"text_delta": ("text", "text"), "thinking_delta": ("thinking", "thinking")}
"""Type of a delta -> the key of its text, and the kind of the message."""

_Line = Mapping[str, Any]


class ClaudeCodeMapping:
    """Implements WireMapping.

    | line | events |
    |---|---|
    | stream_event text_delta, thinking_delta | message_streamed |
    | stream_event message_start, message_delta | token_usage_updated; with a stop_reason, turn_completed |
    | assistant text, thinking | message_received |
    | assistant tool_use | tool_call_started |
    | user tool_result | tool_call_completed, tool_call_failed |
    | system api_retry | error_occurred |
    | system permission_denied | that call fails as denied |
    | result | the outcome, with that of a message that was sent too late for the turn |
    | command_lifecycle started | nothing: it says which of the messages that were sent is taken up |

    All other lines give nothing: init (which comes with every turn), status, session_state_changed, replayed and
    synthetic messages. Of a subagent only the tool calls are told, marked with the call that started it.
    """

    def __init__(self) -> None:
        self._session_id: str | None = None
        self._is_stored = False
        self._model: str | None = None
        self._spent = TokenUsage()
        self._of_message = TokenUsage()
        self._streamed: str | None = None
        """The message whose usage is in `_of_message`."""
        self._text = ""
        self._turns = 0
        self._calls: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {}
        self._known_calls: set[str] = set()
        self._denied: set[str] = set()
        self._error_name: str | None = None
        self._results: list[_Line] = []
        """More than one where a message came too late for the turn that was under way."""
        self._is_answered = False
        self._untaken: set[str] = set()
        """Ids of messages that were sent and that the client has not taken up yet."""
        self._by_type: dict[str, Callable[[_Line], Iterator[ProviderEvent]]] = {
            "stream_event": self._stream_event,
            "assistant": self._assistant,
            "user": self._user,
            "system": self._system,
            "result": self._ended,
            "command_lifecycle": self._taken_up,
        }

    @property
    def handle(self) -> dict[str, str] | None:
        """Once the model has begun to answer: before that the client has stored nothing to go on with."""
        return {"session_id": self._session_id} if self._session_id and self._is_stored else None

    @property
    def is_over(self) -> bool:
        return self._is_answered and not self._untaken

    @property
    def has_result(self) -> bool:
        """Whether the client has told how a turn ended."""
        return bool(self._results)

    def sent(self, message_id: str) -> None:
        """This message goes to the client: the attempt is not over before its answer."""
        self._untaken.add(message_id)

    def asked_to_stop(self) -> bool:
        """The client is to be interrupted: nobody waits any more for an answer to what it has not taken up. Whether
        there is such a thing: then it may answer that later."""
        has_untaken = bool(self._untaken)
        self._untaken.clear()
        return has_untaken

    def permission_requested(
        self, tool_call_id: str, name: str, arguments: dict[str, Any], *, in_subagent: bool = False
    ) -> list[ProviderEvent]:
        """The client asks whether a call may run. It has told of the call before, unless a subagent makes it: then the
        call belongs to the one that started that, where only one is under way."""
        if tool_call_id in self._known_calls:
            return []
        starters = [call_id for call_id, (tool, _, _) in self._calls.items() if tool in _SUBAGENT_TOOLS]
        parent = starters[0] if in_subagent and len(starters) == 1 else None
        return [self._call_started({"id": tool_call_id, "name": name, "input": arguments}, parent)]

    def take(self, message: _Line) -> list[ProviderEvent]:
        self._session_id = message.get("session_id") or self._session_id
        take = self._by_type.get(str(message.get("type")))
        return list(take(message)) if take else []

    def deny(self, tool_call_id: str) -> None:
        """This call was not allowed: its tool_result will be an error, and is told as denied."""
        self._denied.add(tool_call_id)

    def outcome(self) -> ProviderOutcome:
        if not self._results:
            raise ProviderUnavailable("Claude Code ended without a result. Try again later.")
        result = self._results[-1]
        reason = result.get("terminal_reason")
        if reason in _ABORTED:
            raise Cancelled("Claude Code ended its turn because it was interrupted, or a call was denied for good.")
        if result.get("is_error") and reason != "max_turns":
            raise error_of_result(result, name=self._error_name)
        usage, cost_usd = self._spent_in_all()
        return ProviderOutcome(
            content=str(result.get("result") or self._text),
            stop_reason="max_turns" if reason == "max_turns" else str(result.get("stop_reason") or "unknown"),
            token_usage=usage,
            model=self._model,
            cost_usd=cost_usd,
            turn_count=sum(int(one.get("num_turns") or 0) for one in self._results) or self._turns,
            structured=result.get("structured_output"),
        )

    def _stream_event(self, line: _Line) -> Iterator[ProviderEvent]:
        event = line["event"]
        if line.get("parent_tool_use_id"):
            return
        self._is_stored = True
        if event["type"] == "content_block_delta":
            key, kind = _DELTAS.get(event["delta"]["type"], ("", ""))
            if text := event["delta"].get(key):
                yield message_streamed(text, kind)
        elif event["type"] == "message_start":
            message = event["message"]
            self._model = message.get("model") or self._model
            yield self._begin_message(message.get("id"), message.get("usage") or {})
        elif event["type"] == "message_delta":
            yield self._count(event.get("usage") or {})
            if stop_reason := event["delta"].get("stop_reason"):
                self._turns += 1
                yield ProviderEvent(EventType.TURN_COMPLETED, {"turn": self._turns, "stop_reason": stop_reason})

    def _begin_message(self, message_id: str | None, usage: Mapping[str, Any]) -> ProviderEvent:
        self._spent += self._of_message
        self._of_message = TokenUsage()
        self._streamed = message_id
        return self._count(usage)

    def _count(self, usage: Mapping[str, Any]) -> ProviderEvent:
        """Counts of one message are cumulative: a later one replaces the earlier, and never with less."""
        given, known = anthropic_usage(usage), self._of_message
        self._of_message = TokenUsage(
            input_tokens=max(given.input_tokens, known.input_tokens),
            output_tokens=max(given.output_tokens, known.output_tokens),
            cache_read_tokens=max(given.cache_read_tokens, known.cache_read_tokens),
            cache_write_tokens=max(given.cache_write_tokens, known.cache_write_tokens),
        )
        return usage_updated(self._spent + self._of_message)

    def _assistant(self, line: _Line) -> Iterator[ProviderEvent]:
        message = line["message"]
        self._error_name = line.get("error") or self._error_name
        if message.get("model") == SYNTHETIC_MODEL or line.get("error"):
            return
        self._is_stored = True
        parent = line.get("parent_tool_use_id")
        if parent is None and message.get("id") != self._streamed:  # asked again without streaming
            yield self._begin_message(message.get("id"), message.get("usage") or {})
        for block in message["content"]:
            if block["type"] == "tool_use":
                if block["id"] not in self._known_calls:
                    yield self._call_started(block, parent)
            elif parent is None and block["type"] in ("text", "thinking") and block.get(block["type"]):
                if block["type"] == "text":
                    self._text = block["text"]
                yield message_received(block[block["type"]], block["type"])

    def _call_started(self, block: _Line, parent: str | None) -> ProviderEvent:
        metadata = {"parent_tool_call_id": parent} if parent else {}
        self._known_calls.add(block["id"])
        self._calls[block["id"]] = (block["name"], block["input"], metadata)
        return replace(tool_call_started(block["id"], block["name"], block["input"]), metadata=metadata)

    def _user(self, line: _Line) -> Iterator[ProviderEvent]:
        content = line["message"].get("content")
        blocks = cast("list[_Line]", content) if isinstance(content, list) else []
        for block in blocks:
            call = self._calls.pop(block.get("tool_use_id", ""), None) if block.get("type") == "tool_result" else None
            if call is not None:
                name, arguments, metadata = call
                result = self._tool_result(block)
                yield replace(tool_call_ended(block["tool_use_id"], name, arguments, result), metadata=metadata)

    def _tool_result(self, block: _Line) -> ToolResult:
        output = _plain(block.get("content"))
        if not block.get("is_error"):
            return ToolResult(output=output)
        denied = block["tool_use_id"] in self._denied
        return ToolResult(output=output, outcome=ToolOutcome.DENIED if denied else ToolOutcome.ERROR)

    def _system(self, line: _Line) -> Iterator[ProviderEvent]:
        if line.get("subtype") == "init":
            self._model = line.get("model") or self._model
        elif line.get("subtype") == "permission_denied":
            self.deny(line["tool_use_id"])
        elif line.get("subtype") == "api_retry":
            name = str(line.get("error") or "unknown")
            delay_s = (line.get("retry_delay_ms") or 0) / 1_000
            text = f"The API answered {line.get('error_status') or name}; Claude Code tries again in {delay_s:.1f} s."
            yield error_occurred(error_class(line.get("error_status"), name).code, text, retry_after_s=delay_s)

    def _ended(self, line: _Line) -> Iterator[ProviderEvent]:
        self._results.append(line)
        self._is_answered = True
        yield from ()

    def _taken_up(self, line: _Line) -> Iterator[ProviderEvent]:
        if line.get("state") == "started" and line.get("command_uuid") in self._untaken:
            self._untaken.discard(line["command_uuid"])
            self._is_answered = False
        yield from ()

    def _spent_in_all(self) -> tuple[TokenUsage, float | None]:
        usage, cost_usd = TokenUsage(), None
        for result in self._results:
            spent, cost = _spent_since_last_result(result)
            usage += spent
            cost_usd = cost if cost is None or cost_usd is None else cost_usd + cost
        return usage, cost_usd


def _spent_since_last_result(result: _Line) -> tuple[TokenUsage, float | None]:
    """Tokens and cost of this turn.

    `usage` of a result is empty after an interruption and counts a message that was given up; total_cost_usd and
    modelUsage grow over the life of the client.
    """
    models: Mapping[str, Mapping[str, Any]] = result.get("model_usage_since_last_result") or {}
    if not models:
        return anthropic_usage(result.get("usage") or {}), result.get("total_cost_usd")
    usage = TokenUsage()
    for spent in models.values():
        usage += TokenUsage(
            input_tokens=spent.get("inputTokens", 0),
            output_tokens=spent.get("outputTokens", 0),
            cache_read_tokens=spent.get("cacheReadInputTokens", 0),
            cache_write_tokens=spent.get("cacheCreationInputTokens", 0),
        )
    return usage, sum(spent.get("costUSD", 0.0) for spent in models.values())


def _plain(content: object) -> object:
    """What a tool gave: text where it is nothing but text, else as it came."""
    if isinstance(content, list):
        parts = cast("list[dict[str, Any]]", content)
        if all(part.get("type") == "text" for part in parts):
            return "\n".join(str(part.get("text", "")) for part in parts)
        return json.loads(json.dumps(parts, default=str))
    return content
