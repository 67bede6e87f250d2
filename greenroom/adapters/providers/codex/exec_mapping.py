"""The lines of `codex exec --json` as events: one process for one prompt, whole messages only."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ....domain.errors import ProviderUnavailable
from ....domain.provider import ProviderEvent, ProviderOutcome
from ..agents.wire_mapping import error_occurred, message_received
from .errors import error_of_exit, error_of_text, ran_out_of_tokens
from .mapping import CodexToolCalls, CodexUsage, codex_usage

_RETRYING = "Reconnecting..."
"""So begins the text of an `error` after which Codex tries again; any other is the end."""

_KINDS = {"agent_message": "text", "reasoning": "thinking"}

_Line = Mapping[str, Any]


class CodexExecMapping:
    """Implements WireMapping.

    | line | events |
    |---|---|
    | item.completed agent_message, reasoning | message_received |
    | item.started of a call (command, MCP tool, search, ...) | tool_call_started |
    | item.completed of a call | tool_call_completed, tool_call_failed |
    | error "Reconnecting..." | error_occurred |
    | turn.completed | token_usage_updated, the outcome |
    | turn.failed | the outcome |

    All other lines give nothing: to-do lists, items of type error (which are warnings). Nothing is streamed, no line
    names the model. A turn that is interrupted ends without a line: only the end of the process, told with `ended`,
    shows it.
    """

    def __init__(self, *, continued: Mapping[str, str] | None = None, instructions: str | None = None) -> None:
        """`continued` is the handle of the attempt that this one resumes: the usage that Codex tells includes it;
        `instructions` stands for what the thread has been told, and is kept in the handle."""
        self._thread_id: str | None = None
        self._instructions = instructions
        self._usage = CodexUsage(continued)
        self._began = False
        self._completed = False
        self._exit: tuple[int, str] | None = None
        self._error: str | None = None
        self._is_over = False
        self._is_kept = False
        """Whether Codex has the conversation in a file for sure: the model has begun to answer, or the turn is over."""
        self._text = ""
        self._calls = CodexToolCalls()
        self._by_type: dict[str, Callable[[_Line], Iterator[ProviderEvent]]] = {
            "thread.started": self._thread_started,
            "turn.started": self._turn_started,
            "item.started": lambda line: self._calls.start(line["item"]),
            "item.completed": self._item_completed,
            "error": self._failed,
            "turn.completed": self._turn_completed,
            "turn.failed": self._turn_failed,
        }

    @property
    def handle(self) -> dict[str, str] | None:
        if self._thread_id is None or not self._is_kept:
            return None
        handle = self._usage.handle(self._thread_id)
        return handle if self._instructions is None else {**handle, "instructions": self._instructions}

    @property
    def is_over(self) -> bool:
        return self._is_over

    def take(self, message: _Line) -> list[ProviderEvent]:
        take = self._by_type.get(str(message.get("type")))
        return list(take(message)) if take else []

    def ended(self, exit_status: int, stderr_text: str) -> None:
        """The process is gone. What it says counts only if no line said how the turn ended."""
        self._exit = (exit_status, stderr_text)

    def outcome(self) -> ProviderOutcome:
        if self._completed or ran_out_of_tokens(self._error):
            reason = "end_turn" if self._completed else "max_tokens"
            return ProviderOutcome(content=self._text, stop_reason=reason, token_usage=self._usage.spent)
        if self._error is not None:
            raise error_of_text(self._error)
        if self._exit is not None:
            raise error_of_exit(*self._exit, began=self._began)
        raise ProviderUnavailable("Codex ended without ending its turn. Try again later.")

    def _thread_started(self, line: _Line) -> Iterator[ProviderEvent]:
        self._thread_id = line["thread_id"]
        yield from ()

    def _turn_started(self, line: _Line) -> Iterator[ProviderEvent]:
        self._began = True
        yield from ()

    def _item_completed(self, line: _Line) -> Iterator[ProviderEvent]:
        self._is_kept = True
        item = line["item"]
        kind = _KINDS.get(item.get("type"))
        if kind is None:
            yield from self._calls.end(item)
        elif text := item.get("text"):
            if kind == "text":
                self._text = text
            yield message_received(text, kind)

    def _failed(self, line: _Line) -> Iterator[ProviderEvent]:
        message = str(line.get("message"))
        if message.startswith(_RETRYING):
            error = error_of_text(message)
            yield error_occurred(error.code, message, retry_after_s=error.details.get("retry_after_s"))
        else:
            self._error = message

    def _turn_completed(self, line: _Line) -> Iterator[ProviderEvent]:
        self._is_over = self._completed = self._is_kept = True
        given: _Line = line.get("usage") or {}
        keys = ("input_tokens", "output_tokens", "cached_input_tokens", "cache_write_input_tokens")
        total = codex_usage(*(given.get(key) or 0 for key in keys))
        yield from self._usage.count(total, total)

    def _turn_failed(self, line: _Line) -> Iterator[ProviderEvent]:
        self._is_over = self._is_kept = True
        error: _Line = line.get("error") or {}
        self._error = str(error.get("message") or self._error)
        yield from ()
