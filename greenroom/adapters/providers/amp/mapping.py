"""The lines of `amp --execute --stream-json` and `--stream-json-thinking` as events."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, cast

from ....domain.errors import Cancelled, ProviderUnavailable
from ....domain.event import EventType
from ....domain.provider import ProviderEvent, ProviderOutcome
from ....domain.token_usage import TokenUsage
from ....domain.tool import ToolOutcome, ToolResult
from ..agents.wire_mapping import anthropic_usage, message_received, usage_updated
from ..tool_calls import tool_call_ended, tool_call_started
from .errors import error_of_exit, error_of_result, is_gone

_REJECTED = "rejected by permission rules"
"""What the result of a call says that a permission rule forbade; `permission_denials` comes too late and has no ids."""

_Line = Mapping[str, Any]


class ToolCall(NamedTuple):
    """A call that a line tells of."""

    call_id: str
    name: str
    arguments: dict[str, Any]


class AmpMapping:
    """Implements WireMapping.

    | line | events |
    |---|---|
    | assistant text, thinking | message_received |
    | assistant tool_use | tool_call_started |
    | assistant usage | token_usage_updated |
    | assistant stop_reason | turn_completed |
    | user tool_result | tool_call_completed, tool_call_failed |
    | result | the outcome; token_usage_updated if no message had a usage |

    All other lines give nothing: init, the echo of the prompt, redacted thinking. Amp sends whole messages only, each
    once and with the counts of its own, and says nothing of its retries, so there is neither message_streamed nor
    error_occurred. Of a subagent the tool calls are told, marked with the call that started it, and its tokens count.

    One attempt is one process: with --stream-json-input it may be given several prompts, and ends with one result.
    """

    def __init__(self) -> None:
        self._thread_id: str | None = None
        self._is_kept = False
        """Whether there is a thread to go on with: the model has begun to answer, or the turn is over."""
        self._model: str | None = None
        self._spent = TokenUsage()
        self._text = ""
        self._turns = 0
        self._stop_reason: str | None = None
        self._calls: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {}
        self._open_calls: set[str] = set()
        self._denied: set[str] = set()
        self._is_stopped = False
        self._result: _Line | None = None
        self._exit: tuple[int, str] | None = None
        self._by_type: dict[str, Callable[[_Line], Iterator[ProviderEvent]]] = {
            "assistant": self._assistant,
            "user": self._user,
            "result": self._ended,
        }

    @property
    def handle(self) -> dict[str, str] | None:
        return {"thread_id": self._thread_id} if self._thread_id is not None and self._is_kept else None

    @property
    def thread_id(self) -> str | None:
        """The conversation, as soon as it has a name; `handle` tells of it when there is something in it."""
        return self._thread_id

    @property
    def is_over(self) -> bool:
        return self._result is not None

    def take(self, message: _Line) -> list[ProviderEvent]:
        self._thread_id = message.get("session_id") or self._thread_id
        take = self._by_type.get(str(message.get("type")))
        return list(take(message)) if take else []

    def deny(self, tool_call_id: str) -> None:
        """A rule rejects the call: when it fails, it was denied."""
        self._denied.add(tool_call_id)

    def asked_to_stop(self) -> None:
        """The process was told to end."""
        self._is_stopped = True

    def waits_after(self, line: _Line) -> bool:
        """Whether Amp may wait to be told more after this line: it has said something and calls no tool, or may have
        given up its turn because a call was rejected."""
        if line.get("parent_tool_use_id") is not None:
            return False
        if line.get("type") == "user":
            return any(self._tool_result(block).outcome is ToolOutcome.DENIED for block in _blocks(line, "tool_result"))
        return line.get("type") == "assistant" and not tool_calls(line)

    def ended(self, exit_status: int, stderr_text: str) -> None:
        """The process is gone. What it says counts only if there was no result: an error result exits with 1 too."""
        self._exit = (exit_status, stderr_text)

    def outcome(self) -> ProviderOutcome:
        result = self._result
        if self._is_stopped and (result is None or result.get("is_error")):
            raise Cancelled("Amp ended its turn because it was told to stop.")
        if result is None:
            if self._exit is None:
                raise ProviderUnavailable("Amp ended without a result. Try again later.")
            raise error_of_exit(*self._exit)
        ran_out = result.get("subtype") == "error_max_turns"
        if result.get("is_error") and not ran_out:
            raise error_of_result(result)
        return ProviderOutcome(
            content=str(result.get("result") or self._text),
            stop_reason="max_turns" if ran_out else self._stop_reason or "unknown",
            token_usage=self._spent,
            model=self._model,
            turn_count=self._turns or 1,  # num_turns counts the whole thread when it is continued
        )

    def _assistant(self, line: _Line) -> Iterator[ProviderEvent]:
        self._is_kept = True
        message, parent = line["message"], line.get("parent_tool_use_id")
        for block in message["content"]:
            if block["type"] == "tool_use":
                yield from self._call_started(block, parent)
            elif parent is None and block["type"] in ("text", "thinking") and block.get(block["type"]):
                if block["type"] == "text":
                    self._text = block["text"]
                yield message_received(block[block["type"]], block["type"])
        if usage := message.get("usage"):
            yield self._count(usage)
        if parent is None:
            yield from self._turn_ended(message)

    def _call_started(self, block: _Line, parent: str | None) -> Iterator[ProviderEvent]:
        if block["id"] not in self._calls:
            metadata = {"parent_tool_call_id": parent} if parent else {}
            self._calls[block["id"]] = (block["name"], block["input"], metadata)
            self._open_calls.add(block["id"])
            yield replace(tool_call_started(block["id"], block["name"], block["input"]), metadata=metadata)

    def _count(self, usage: _Line) -> ProviderEvent:
        self._spent += anthropic_usage(usage)
        return usage_updated(self._spent)

    def _turn_ended(self, message: _Line) -> Iterator[ProviderEvent]:
        self._model = message.get("model") or self._model
        self._stop_reason = message.get("stop_reason")
        if self._stop_reason:
            self._turns += 1
            yield ProviderEvent(EventType.TURN_COMPLETED, {"turn": self._turns, "stop_reason": self._stop_reason})

    def _user(self, line: _Line) -> Iterator[ProviderEvent]:
        for block in _blocks(line, "tool_result"):
            call_id = block.get("tool_use_id")
            if call_id in self._open_calls:
                self._open_calls.remove(call_id)
                name, arguments, metadata = self._calls[call_id]
                yield replace(tool_call_ended(call_id, name, arguments, self._tool_result(block)), metadata=metadata)

    def _ended(self, line: _Line) -> Iterator[ProviderEvent]:
        self._result = line
        self._is_kept = self._is_kept or not is_gone(line)
        usage = line.get("usage")
        if usage and self._spent == TokenUsage():
            yield self._count(usage)

    def _tool_result(self, block: _Line) -> ToolResult:
        output = block.get("content")
        if not block.get("is_error"):
            return ToolResult(output=output)
        denied = block.get("tool_use_id") in self._denied or _REJECTED in str(output)
        return ToolResult(output=output, outcome=ToolOutcome.DENIED if denied else ToolOutcome.ERROR)


def tool_calls(line: _Line) -> list[ToolCall]:
    """The calls that a line tells of."""
    blocks = _blocks(line, "tool_use") if line.get("type") == "assistant" else []
    return [ToolCall(str(block.get("id")), str(block.get("name")), block.get("input") or {}) for block in blocks]


def _blocks(line: _Line, kind: str) -> "list[_Line]":
    """The parts of that kind of the message in a line."""
    message: object = line.get("message")
    content = cast("_Line", message).get("content") if isinstance(message, dict) else None
    blocks = cast("list[_Line]", content) if isinstance(content, list) else []
    return [block for block in blocks if block.get("type") == kind]
