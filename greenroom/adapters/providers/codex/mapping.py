"""The notifications of Codex's app-server as events, and what both dialects of Codex have in common."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from ....domain.errors import Cancelled, GreenroomError, ProviderUnavailable
from ....domain.event import EventType
from ....domain.provider import ProviderEvent, ProviderOutcome
from ....domain.token_usage import TokenUsage
from ....domain.tool import ToolOutcome, ToolResult
from ..agents.wire_mapping import error_occurred, message_received, message_streamed, usage_updated
from ..tool_calls import tool_call_ended, tool_call_started
from .errors import error_of_turn, ran_out_of_tokens

_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "command_execution": ("command", "cwd"),
    "file_change": ("changes",),
    "web_search": ("query", "action"),
    "image_view": ("path",),
    "collab_tool_call": ("prompt", "receiver_thread_ids"),
    "collab_agent_tool_call": ("prompt", "receiver_thread_ids"),
}
"""Kind of an item -> the keys that are arguments of the call; the kind is the name of the tool."""

_NAMED_TOOLS = frozenset({"mcp_tool_call", "dynamic_tool_call"})
"""Kinds of items that carry the name and the arguments of a tool."""

_UNSEEN = "Codex gave this call up before it was made, and does not say why."

_SANDBOXED = "command_execution"
"""Of a command that fails at its sandbox there is no item; of all others there is."""

_ANSWERS = frozenset({EventType.MESSAGE_STREAMED, EventType.MESSAGE_RECEIVED, EventType.TOOL_CALL_STARTED})
"""What an answer of the model begins with."""

_CAPITAL = re.compile(r"(?<!^)([A-Z])")

_Message = Mapping[str, Any]


class CodexToolCalls:
    """Items that are tool calls, in the spelling of `codex exec`: each begins once and ends once."""

    def __init__(self) -> None:
        self._begun: dict[str, tuple[str, dict[str, Any]]] = {}
        """Name and arguments by id, as the start was told with."""
        self._ended: set[str] = set()
        self._denied: set[str] = set()
        self._shown: set[str] = set()
        """Calls that there was an item of."""

    def deny(self, item_id: str) -> None:
        """This call was not allowed: unless it completes nevertheless, it is told as denied."""
        self._denied.add(item_id)

    def begin(self, item_id: str, name: str, arguments: dict[str, Any]) -> Iterator[ProviderEvent]:
        """The call is about to be made. What is told of it later goes by this name and these arguments."""
        if item_id not in self._begun:
            self._begun[item_id] = (name, arguments)
            yield tool_call_started(item_id, name, arguments)

    def finish(self, item_id: str, result: ToolResult) -> Iterator[ProviderEvent]:
        """The call that was begun has ended, or is not made at all: it counts where no item tells how it ended."""
        if item_id in self._begun and item_id not in self._ended:
            self._ended.add(item_id)
            yield tool_call_ended(item_id, *self._begun[item_id], result)

    def finish_unseen(self) -> Iterator[ProviderEvent]:
        """The turn is over. What was begun and never seen as an item, Codex has given up before it came to that."""
        for item_id in self._begun:
            if item_id not in self._shown:
                yield from self.finish(item_id, ToolResult(output=_UNSEEN, outcome=ToolOutcome.ERROR))

    def adopt(self, item_id: str) -> None:
        """There will be no item of this call, whatever becomes of it."""
        self._shown.add(item_id)

    def is_open(self, item_id: str) -> bool:
        """Whether the call has begun and not ended."""
        return item_id in self._begun and item_id not in self._ended

    def begun(self, item_id: str) -> tuple[str, dict[str, Any]]:
        """Name and arguments of a call that was begun."""
        return self._begun[item_id]

    def start(self, item: _Message) -> Iterator[ProviderEvent]:
        call = call_of_item(item)
        if call is not None:
            self._shown.add(item["id"])
            yield from self.begin(item["id"], *call)

    def end(self, item: _Message) -> Iterator[ProviderEvent]:
        """Also of a call whose start was not told: file changes are reported only when they are done."""
        call = call_of_item(item)
        if call is not None and item["id"] not in self._ended:
            yield from self.begin(item["id"], *call)
            self._ended.add(item["id"])
            yield tool_call_ended(item["id"], *self._begun[item["id"]], self._result(item))

    def _result(self, item: _Message) -> ToolResult:
        output = _output(item)
        status = item.get("status")
        if status == "declined" or (status == "failed" and item["id"] in self._denied):
            return ToolResult(output=output, outcome=ToolOutcome.DENIED)
        if status != "failed":
            return ToolResult(output=output)
        return ToolResult(output=output, outcome=ToolOutcome.ERROR, error=_exit_error(item))


class CodexUsage:
    """Tokens of one attempt, out of totals that Codex counts over all turns of a thread.

    Where the thread stood before is in the handle of the attempt before; the app-server also says it again when it
    resumes a thread. Only where nobody knows it, the first call of the attempt is taken for all that `last` says.
    """

    def __init__(self, continued: Mapping[str, str] | None) -> None:
        known = (continued or {}).get("thread_usage")
        self._before = None if known is None else TokenUsage.from_dict(json.loads(known))
        self._thread = self._before or TokenUsage()
        self.spent = TokenUsage()

    def handle(self, thread_id: str) -> dict[str, str]:
        """What continues the conversation: the thread and, where that is known, what it has used."""
        if self._before is None:
            return {"thread_id": thread_id}
        return {"thread_id": thread_id, "thread_usage": json.dumps(self._thread.to_dict())}

    def began_with(self, total: TokenUsage) -> None:
        self._before = self._thread = total

    def count(self, total: TokenUsage, last: TokenUsage) -> Iterator[ProviderEvent]:
        """Codex tells the same total again when a call gave none, also under the name of the next turn."""
        if self._before is None:
            self._before = _combined(total, last, lambda whole, part: max(whole - part, 0))
        self._thread = _combined(self._thread, total, max)
        spent = _combined(self._thread, self._before, lambda whole, part: max(whole - part, 0))
        if spent != self.spent:
            self.spent = spent
            yield usage_updated(spent)


class CodexMapping:
    """Implements WireMapping for one turn of one thread of `codex app-server`.

    | notification | events |
    |---|---|
    | item/agentMessage/delta, item/reasoning/summaryTextDelta, item/reasoning/textDelta | message_streamed |
    | item/completed agentMessage, reasoning | message_received |
    | item/started of a call (command, file change, MCP tool, search, ...) | tool_call_started |
    | item/completed of a call | tool_call_completed, tool_call_failed |
    | thread/tokenUsage/updated | token_usage_updated |
    | error with willRetry | error_occurred |
    | turn/completed | the outcome |

    All else gives nothing: other threads and other turns (a resumed thread tells the usage of its last turn again),
    the items of the prompt, changes of status, warnings. A turn of Codex is the whole attempt; where a turn of the
    model ends it does not say, so there is no turn_completed. What Codex asks, and what its hooks say, are no
    notifications: who hears that tells of it with `begin_call`, `refuse_call`, `deny`, `end_call`.
    """

    def __init__(
        self,
        thread_id: str,
        *,
        model: str | None = None,
        continued: Mapping[str, str] | None = None,
        instructions: str | None = None,
    ) -> None:
        """`model` is the one that thread/start or thread/resume answered with; `continued` the handle of before;
        `instructions` stands for what the thread has been told by now, and is kept in the handle."""
        self._thread_id = thread_id
        self._model = model
        self._instructions = instructions
        self._usage = CodexUsage(continued)
        self._turn_id: str | None = None
        self._turn: _Message | None = None
        self._error: GreenroomError | None = None
        self._is_kept = False
        """Whether Codex has the conversation in a file for sure: the model has begun to answer, or the turn is over."""
        self._text = ""
        self._calls = CodexToolCalls()
        self._by_method: dict[str, Callable[[_Message], Iterator[ProviderEvent]]] = {
            "item/agentMessage/delta": lambda params: _delta(params, "text"),
            "item/reasoning/summaryPartAdded": _next_part,
            "item/reasoning/summaryTextDelta": lambda params: _delta(params, "thinking"),
            "item/reasoning/textDelta": lambda params: _delta(params, "thinking"),
            "item/started": lambda params: self._calls.start(in_exec_spelling(params["item"])),
            "item/completed": self._item_completed,
            "thread/tokenUsage/updated": self._count,
            "error": self._failed,
            "model/rerouted": self._rerouted,
            "turn/completed": self._ended,
        }

    @property
    def handle(self) -> dict[str, str] | None:
        if not self._is_kept:
            return None
        handle = self._usage.handle(self._thread_id)
        return handle if self._instructions is None else {**handle, "instructions": self._instructions}

    @property
    def is_over(self) -> bool:
        return self._turn is not None

    def adopt_call(self, item_id: str) -> None:
        """This call is one of a subagent: there will be no item of it, and it need not end with the turn."""
        self._calls.adopt(item_id)

    def begin_call(self, item_id: str, name: str, arguments: dict[str, Any]) -> list[ProviderEvent]:
        """Codex asks whether a call may be made, mostly before it tells of it."""
        self._is_kept = True
        return list(self._calls.begin(item_id, name, arguments))

    def begun_call(self, item_id: str) -> tuple[str, dict[str, Any]]:
        """Name and arguments that the call was begun with."""
        return self._calls.begun(item_id)

    def refuse_call(self, item_id: str, result: ToolResult) -> list[ProviderEvent]:
        """The answer was no, and Codex tells nothing of such a call."""
        return list(self._calls.finish(item_id, result))

    def end_call(self, item_id: str, output: object, *, of_subagent: bool = False) -> list[ProviderEvent]:
        """The call was made. Counts where Codex tells nothing else of its end."""
        is_open = self._calls.is_open(item_id) and not of_subagent
        is_failed = is_open and self._calls.begun(item_id)[0] == _SANDBOXED
        result = ToolResult(output=output, outcome=ToolOutcome.ERROR if is_failed else None)
        return list(self._calls.finish(item_id, result))

    def is_open(self, item_id: str) -> bool:
        """Whether the call has begun and not ended."""
        return self._calls.is_open(item_id)

    def take(self, message: _Message) -> list[ProviderEvent]:
        params: _Message = message.get("params") or {}
        method = str(message.get("method"))
        if params.get("threadId") != self._thread_id:
            return []
        if self._turn_id is None:
            self._before_the_turn(method, params)
            return []
        turn: _Message = params.get("turn") or {"id": params.get("turnId")}
        take = self._by_method.get(method)
        if take is None or turn["id"] != self._turn_id:
            return []
        events = list(take(params))
        self._is_kept = self._is_kept or self.is_over or any(event.type in _ANSWERS for event in events)
        return events

    def deny(self, item_id: str) -> None:
        """The approval that was asked for this item was declined."""
        self._calls.deny(item_id)

    def outcome(self) -> ProviderOutcome:
        status = None if self._turn is None else self._turn.get("status")
        if status == "interrupted":
            raise Cancelled("Codex ended its turn because it was interrupted, or a call was denied for good.")
        if not self._has_completed:
            raise self._error or ProviderUnavailable("Codex did not end its turn. Try again later.")
        reason = "end_turn" if status == "completed" else "max_tokens"
        return ProviderOutcome(content=self._text, stop_reason=reason, token_usage=self._usage.spent, model=self._model)

    @property
    def _has_completed(self) -> bool:
        """Also with an answer that became too long, which Codex ends as if the turn had failed."""
        turn = self._turn or {}
        ran_out = turn.get("status") == "failed" and self._error is not None and ran_out_of_tokens(self._error.message)
        return ran_out or turn.get("status") == "completed"

    def _before_the_turn(self, method: str, params: _Message) -> None:
        if method == "turn/started":
            self._turn_id = params["turn"]["id"]
        elif method == "thread/tokenUsage/updated":
            self._usage.began_with(_app_usage(params["tokenUsage"]["total"]))

    def _item_completed(self, params: _Message) -> Iterator[ProviderEvent]:
        item = params["item"]
        if item["type"] == "agentMessage":
            if item.get("text"):
                self._text = item["text"]
                yield message_received(item["text"])
        elif item["type"] == "reasoning":
            if text := "\n\n".join([*(item.get("summary") or ()), *(item.get("content") or ())]):
                yield message_received(text, "thinking")
        else:
            yield from self._calls.end(in_exec_spelling(item))

    def _count(self, params: _Message) -> Iterator[ProviderEvent]:
        usage = params["tokenUsage"]
        return self._usage.count(_app_usage(usage["total"]), _app_usage(usage["last"]))

    def _failed(self, params: _Message) -> Iterator[ProviderEvent]:
        error = error_of_turn(params["error"])
        if params.get("willRetry"):
            yield error_occurred(error.code, error.message, retry_after_s=error.details.get("retry_after_s"))
        else:
            self._error = error

    def _rerouted(self, params: _Message) -> Iterator[ProviderEvent]:
        self._model = params.get("toModel") or self._model
        yield from ()

    def _ended(self, params: _Message) -> Iterator[ProviderEvent]:
        turn: _Message = params["turn"]
        self._turn = turn
        if turn.get("status") == "failed":
            error = turn.get("error")
            self._error = error_of_turn(error) if error else self._error or error_of_turn({})
        if self._has_completed:
            yield from self._calls.finish_unseen()


def codex_usage(total: int, output: int, cache_read: int, cache_write: int) -> TokenUsage:
    """Codex counts as input also what came from a cache or went to one."""
    return TokenUsage(
        input_tokens=max(total - cache_read - cache_write, 0),
        output_tokens=output,
        cache_read_tokens=cache_read,
        cache_write_tokens=cache_write,
    )


def _app_usage(given: _Message) -> TokenUsage:
    keys = ("inputTokens", "outputTokens", "cachedInputTokens", "cacheWriteInputTokens")
    return codex_usage(*(given.get(key) or 0 for key in keys))


def _combined(one: TokenUsage, other: TokenUsage, combine: Callable[[int, int], int]) -> TokenUsage:
    return TokenUsage(
        input_tokens=combine(one.input_tokens, other.input_tokens),
        output_tokens=combine(one.output_tokens, other.output_tokens),
        cache_read_tokens=combine(one.cache_read_tokens, other.cache_read_tokens),
        cache_write_tokens=combine(one.cache_write_tokens, other.cache_write_tokens),
    )


def _delta(params: _Message, kind: str) -> Iterator[ProviderEvent]:
    if text := params.get("delta"):
        yield message_streamed(text, kind)


def _next_part(params: _Message) -> Iterator[ProviderEvent]:
    if params.get("summaryIndex"):
        yield message_streamed("\n\n", "thinking")


def in_exec_spelling(item: _Message) -> dict[str, Any]:
    """The item with its type and keys in snake case, as `codex exec` writes them; values stay as they are."""
    return {_snake(key): _snake(value) if key == "type" else value for key, value in item.items()}


def _snake(name: str) -> str:
    return _CAPITAL.sub(r"_\1", name).lower()


def call_of_item(item: _Message) -> tuple[str, dict[str, Any]] | None:
    """Name and arguments of the tool, of an item in the spelling of `codex exec`; None for one that is no call."""
    kind = str(item.get("type"))
    if kind in _NAMED_TOOLS:
        name = f"mcp__{item.get('server')}__{item['tool']}" if kind == "mcp_tool_call" else str(item["tool"])
        given = item.get("arguments")
        if isinstance(given, dict):
            return name, cast("dict[str, Any]", given)
        return name, {} if given is None else {"arguments": given}
    if kind not in _ARGUMENTS:
        return None
    return _snake(item.get("tool") or kind), {key: item[key] for key in _ARGUMENTS[kind] if item.get(key) is not None}


def _output(item: _Message) -> object:
    """What the call gave, or the reason for which it failed: text where it is nothing but text, else as it came."""
    if item.get("error"):
        return item["error"].get("message")
    result: _Message = item.get("result") or {}
    content: list[_Message] | None = result.get("content") or item.get("content_items")
    if content and all("text" in part for part in content):
        return "\n".join(str(part["text"]) for part in content)
    return content or item.get("aggregated_output")


def _exit_error(item: _Message) -> dict[str, Any] | None:
    """The output of a command does not say how it ended."""
    status = item.get("exit_code")
    if status is None:
        return None
    text = f"The command ended with exit status {status}."
    return {"code": "tool_execution_failed", "message": text, "exit_code": status}
