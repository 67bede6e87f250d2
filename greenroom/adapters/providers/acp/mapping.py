"""What an agent says over the Agent Client Protocol, as events: one session/prompt, with those queued behind it."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from ....domain.errors import Cancelled, ProviderContentRefused, ProviderUnavailable
from ....domain.provider import ProviderEvent, ProviderOutcome
from ....domain.token_usage import TokenUsage
from ....domain.tool import ToolOutcome, ToolResult
from ..agents.wire_mapping import error_occurred, message_received, message_streamed, usage_updated
from ..tool_calls import tool_call_ended, tool_call_started
from .errors import (
    REQUEST_CANCELLED,
    RESOURCE_NOT_FOUND,
    codex_error,
    error_class,
    error_of_answer,
    error_of_thread,
    status_in,
)

_KIND_OF_CHUNK = {"agent_message_chunk": "text", "agent_thought_chunk": "thinking"}

_ANSWERS = frozenset({*_KIND_OF_CHUNK, "tool_call", "tool_call_update"})
"""Kinds of updates that an answer of the model begins with."""

_NOTES_OF_CLIENT: Mapping[str, re.Pattern[str]] = {
    "@agentclientprotocol/claude-agent-acp": re.compile(r"\*\*Warning:\*\* "),
    "@agentclientprotocol/codex-acp": re.compile(
        r"(Config warning|Warning): |\*Context compacted |Model rerouted from "
    ),
    "codex-acp": re.compile(r"Model metadata for `.*` not found\. |Heads up: Long \w+ and multiple compactions "),
}
"""Name in agentInfo -> how the notes begin that the client itself sends, each as one chunk, in the agent's name. Only
for these agents: with another one the same words are the model's."""

_NOT_RUN: Mapping[str, ToolOutcome] = {
    "user-rejected": ToolOutcome.DENIED,
    "permission-rule": ToolOutcome.DENIED,
    "interrupted": ToolOutcome.CANCELLED,
    "cancelled": ToolOutcome.CANCELLED,
}
"""nonExecutionKind of newer claude-agent-acp: why a failed call did not run."""

_Said = Mapping[str, Any]


@dataclass
class _Call:
    """One tool call, merged from everything that was said of it."""

    name: str | None = None
    title: str = ""
    kind: str = "other"
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    request: list[_Said] = field(default_factory=list[_Said])
    """Content that describes what is to be done."""
    content: list[_Said] = field(default_factory=list[_Said])
    """Content that has come out."""
    raw_output: object = None
    terminal: str = ""
    parent: str | None = None
    is_started: bool = False
    is_ended: bool = False

    def learn(self, said: _Said, *, asked: bool = False) -> None:
        """Merge a message; `asked` where it is a permission request, whose input may be cut down."""
        raw_input = said.get("rawInput")
        if raw_input and not (asked and self.has_input):
            self.arguments = _mapping(raw_input) or {"input": raw_input}
        self.title = said.get("title") or self.title
        self.kind = said.get("kind") or self.kind
        if not self.is_started:
            self.name = self._name_in(said) or self.name
        self.parent = _claude_code(said).get("parentToolUseId") or self.parent
        parts = cast("list[_Said]", said.get("content") or [])
        if asked or (raw_input is not None and said.get("status") in (None, "pending")):
            self.request = parts or self.request
        else:
            self.content = parts or self.content
        self.raw_output = said.get("rawOutput", self.raw_output)
        self.terminal += str(_meta(said, "terminal_output_delta").get("data") or "")

    def _name_in(self, said: _Said) -> str | None:
        """The tool's own name. A title that came before the input cannot be made of it: it is the name (OpenCode)."""
        announced = said.get("status") == "pending" and not self.has_input and "rawInput" in said
        return _claude_code(said).get("toolName") or said.get("name") or (said.get("title") if announced else None)

    @property
    def has_input(self) -> bool:
        """Whether more than the folder is known of the input (OpenCode announces a call with the folder alone)."""
        return bool(self.arguments.keys() - {"cwd"})

    @property
    def tool_name(self) -> str:
        """The tool's name where it is told, else what kind of thing it does."""
        return self.name or (self.kind if self.kind != "other" else self.title) or self.kind

    @property
    def tool_input(self) -> dict[str, Any]:
        """The input where it is told, else what a person would be shown of it (Gemini)."""
        if self.arguments:
            return self.arguments
        shown: dict[str, Any] = {"title": self.title, "content": self.request}
        return {key: value for key, value in shown.items() if value}

    def output(self, *, failed: bool) -> object:
        """What came out: as it came, or text that says what went wrong."""
        text_or_parts = self.terminal or _plain(self.content)
        if failed and not isinstance(self.raw_output, str):
            return text_or_parts or self.raw_output
        return text_or_parts if self.raw_output is None else self.raw_output


class AcpMapping:
    """Implements WireMapping: `take` is for the params of session/update, the other methods for what else happens.

    | seen | events |
    |---|---|
    | agent_message_chunk, agent_thought_chunk | message_streamed |
    | a tool call, a message of another kind or id, the answer | message_received, the chunks joined |
    | tool_call, tool_call_update, session/request_permission | tool_call_started, as soon as its input is told |
    | tool_call_update completed, failed | tool_call_completed, tool_call_failed |
    | session_info_update with codex.error and willRetry | error_occurred |
    | session_info_update with codex.threadStatus systemError | the outcome is an error; its text is no message |
    | usage_update | its cost goes into the outcome |
    | answer of session/prompt | token_usage_updated, calls that were denied fail, and the outcome |

    All other updates give nothing: echoes of the prompt, plans, modes, commands, warnings of the client. `used` of
    usage_update is how full the context is, and no count of what was spent. History that session/load replays comes
    before there is a prompt, and is not for this mapping. A `pending` call has not begun to run: it is told when
    something more of it is known than its name.
    """

    def __init__(
        self,
        session_id: str | None = None,
        *,
        agent: str | None = None,
        session_cost_usd: float | None = 0.0,
        system_prompt: str | None = None,
    ) -> None:
        """`agent` is its name in agentInfo; `session_cost_usd` what the session had cost before, None if nobody knows,
        as of one that was loaded: Claude counts what it had cost in earlier processes, if it knows.
        `system_prompt` names the one that the session began with; it goes into the handle."""
        self.session_cost_usd = session_cost_usd
        """Cost of the session so far: what the mapping of its next prompt is to be given."""
        self._session_id = session_id
        self._is_kept = False
        """Whether the agent has something to go on with: the model has begun to answer, or the turn is over."""
        self._begun_with = {} if system_prompt is None else {"system_prompt": system_prompt}
        self._notes = _NOTES_OF_CLIENT.get(agent or "")
        self._cost_before_usd = session_cost_usd
        self._knows_cost = False
        self._usage = TokenUsage()
        self._open = ""
        self._open_as: tuple[str, str | None] = ("text", None)
        """Kind and id of the message whose chunks are in `_open`."""
        self._text = ""
        self._calls: dict[str, _Call] = {}
        self._denied: set[str] = set()
        self._was_asked_to_cancel = False
        self._codex_error: _Said = {}
        self._thread_error: str | None = None
        """Text of the systemError that codex-acp is in."""
        self._waiting_prompts = 0
        """Those that are to be sent when this one is answered."""
        self._result: _Said | None = None
        self._error: _Said | None = None
        self._by_kind: dict[str, Callable[[_Said], Iterator[ProviderEvent]]] = {
            "agent_message_chunk": self._chunk,
            "agent_thought_chunk": self._chunk,
            "tool_call": self._tool_call,
            "tool_call_update": self._tool_call,
            "session_info_update": self._session_info,
        }

    @property
    def handle(self) -> dict[str, str] | None:
        if self._session_id is None or not self._is_kept:
            return None
        return {"session_id": self._session_id, **self._begun_with}

    @property
    def is_over(self) -> bool:
        return self._result is not None or self._error is not None

    def take(self, message: _Said) -> list[ProviderEvent]:
        self._session_id = self._session_id or message.get("sessionId")
        update = _mapping(message.get("update"))
        if message.get("sessionId") != self._session_id:
            return []
        kind = str(update.get("sessionUpdate"))
        if kind == "usage_update":  # one more may come after the answer
            self._count_cost(_mapping(update.get("cost")))
        take = self._by_kind.get(kind)
        self._is_kept = self._is_kept or kind in _ANSWERS
        return list(take(update)) if take and not self.is_over else []

    def permission_requested(self, params: _Said) -> list[ProviderEvent]:
        """The agent asks whether a call may run. It need not have told of the call before, nor tell of it later."""
        said = _mapping(params.get("toolCall"))
        self._is_kept = True
        return [*self._close_message(), *self._start(said, asked=True)]

    def call(self, tool_call_id: str) -> tuple[str, dict[str, Any]]:
        """Name and input of a call that has been told of: what somebody is asked to permit."""
        call = self._calls[tool_call_id]
        return call.tool_name, call.tool_input

    def deny(self, tool_call_id: str) -> None:
        """This call was not allowed: it fails as denied, when the agent says that it failed or else with the answer."""
        self._denied.add(tool_call_id)

    def prompt_waits(self) -> None:
        """One more prompt is sent when this one is answered: the attempt is not over before the answer to that."""
        self._waiting_prompts += 1

    def asked_to_cancel(self) -> None:
        """session/cancel was sent, and nothing else will be."""
        self._was_asked_to_cancel = True
        self._waiting_prompts = 0

    def answered(self, result: _Said) -> list[ProviderEvent]:
        """session/prompt was answered. If it is not over with that, the next prompt is to be sent."""
        self._is_kept = True
        events = [*self._close_message(), *self._close_denied()]
        usage = _usage(result)
        if usage.total_tokens:
            self._usage += usage
            events.append(usage_updated(self._usage))
        if self._waiting_prompts and self._thread_error is None:
            self._waiting_prompts -= 1
        else:
            self._result = result
        return events

    def failed(self, error: _Said) -> list[ProviderEvent]:
        """session/prompt was answered with an error. Text that was still open is the error's, or was given up."""
        self._error = error
        self._is_kept = self._is_kept or error.get("code") != RESOURCE_NOT_FOUND
        return list(self._close_denied())

    def outcome(self) -> ProviderOutcome:
        if self._error is not None:
            if self._was_asked_to_cancel or self._error.get("code") == REQUEST_CANCELLED:
                raise self._cancelled()
            raise error_of_answer(self._error)
        if self._result is None:
            raise ProviderUnavailable("The agent ended without an answer to the prompt. Try again later.")
        reason = str(self._result.get("stopReason") or "unknown")
        if reason == "cancelled":
            raise self._cancelled()
        if self._thread_error is not None:
            raise error_of_thread(self._thread_error, self._codex_error.get("codexErrorInfo"))
        if reason == "refusal":
            raise ProviderContentRefused("The agent refused to go on. Change the request, or use another model.")
        return ProviderOutcome(
            content=self._text,
            stop_reason="max_turns" if reason == "max_turn_requests" else reason,
            token_usage=self._usage,
            model=_model(self._result),
            cost_usd=self._cost_usd(),
        )

    def _cancelled(self) -> Cancelled:
        if self._was_asked_to_cancel:
            return Cancelled("The agent ended its turn because it was asked to.")
        if self._denied:
            return Cancelled("The agent ended its whole turn because a tool call was denied.")
        return Cancelled("The agent ended its turn as cancelled, and nobody here had asked for that.")

    def _chunk(self, update: _Said) -> Iterator[ProviderEvent]:
        text = str(_mapping(update.get("content")).get("text") or "")
        message_id = update.get("messageId")
        if not text or _claude_code(update).get("parentToolUseId"):
            return
        if message_id is None and self._thread_error is not None:
            self._thread_error += text
            return
        if message_id is None and self._notes and self._notes.match(text):
            return
        kind = _KIND_OF_CHUNK[update["sessionUpdate"]]
        self._codex_error = {}  # it got over that one
        if (kind, message_id) != self._open_as:
            yield from self._close_message()
        self._open_as = (kind, message_id)
        self._open += text
        yield message_streamed(text, kind)

    def _close_message(self) -> Iterator[ProviderEvent]:
        content, kind = self._open, self._open_as[0]
        self._open = ""
        if kind == "thinking":
            content = content.strip()  # Codex begins its sections with empty lines, and keeps none of them
        if content.strip():
            if kind == "text":
                self._text = content
            yield message_received(content, kind)

    def _tool_call(self, update: _Said) -> Iterator[ProviderEvent]:
        self._codex_error = {}
        yield from self._close_message()
        yield from self._start(update)
        call_id, status = update.get("toolCallId"), update.get("status")
        if call_id in self._calls and status in ("completed", "failed"):
            call = self._calls[call_id]
            failed = status == "failed"
            outcome = self._outcome_of(call_id, update) if failed else None
            yield from self._end(call_id, ToolResult(output=call.output(failed=failed), outcome=outcome))

    def _start(self, said: _Said, *, asked: bool = False) -> Iterator[ProviderEvent]:
        call_id = said.get("toolCallId")
        if not isinstance(call_id, str):
            return
        is_known = call_id in self._calls
        call = self._calls.setdefault(call_id, _Call())
        call.learn(said, asked=asked)
        is_announced_only = said.get("status") == "pending" and not (is_known or asked or call.has_input)
        if not call.is_started and not is_announced_only:
            call.is_started = True
            call.name = call.tool_name
            yield _of(call, tool_call_started(call_id, call.tool_name, call.tool_input))

    def _end(self, call_id: str, result: ToolResult) -> Iterator[ProviderEvent]:
        call = self._calls[call_id]
        if call.is_started and not call.is_ended:
            call.is_ended = True
            yield _of(call, tool_call_ended(call_id, call.tool_name, call.tool_input, result))

    def _outcome_of(self, call_id: str, update: _Said) -> ToolOutcome:
        if call_id in self._denied:
            return ToolOutcome.DENIED
        because = ToolOutcome.CANCELLED if self._was_asked_to_cancel else ToolOutcome.ERROR
        return _NOT_RUN.get(str(_claude_code(update).get("nonExecutionKind")), because)

    def _close_denied(self) -> Iterator[ProviderEvent]:
        """Close the calls that were denied and of which the agent said no more (Gemini, codex-acp of zed)."""
        for call_id in [one for one in self._calls if one in self._denied]:
            yield from self._end(call_id, ToolResult(output=None, outcome=ToolOutcome.DENIED))

    def _session_info(self, update: _Said) -> Iterator[ProviderEvent]:
        codex = _meta(update, "codex")
        self._codex_error = _mapping(codex.get("error")) or self._codex_error
        status = _mapping(codex.get("threadStatus")).get("type")
        if status == "systemError":
            self._open = ""
            self._thread_error = ""
        elif status == "active":
            self._thread_error = None
        if _mapping(codex.get("error")).get("willRetry"):
            self._open = ""  # the request is made anew, and what it had given is not kept
            yield _retrying(self._codex_error)

    def _count_cost(self, cost: _Said) -> None:
        """The amount grows over the life of the session."""
        if cost.get("currency") == "USD":
            self._knows_cost = True
            self.session_cost_usd = float(cost.get("amount") or 0.0)

    def _cost_usd(self) -> float | None:
        if not self._knows_cost or self._cost_before_usd is None or self.session_cost_usd is None:
            return None
        before_usd = self._cost_before_usd if self._cost_before_usd <= self.session_cost_usd else 0.0
        return self.session_cost_usd - before_usd


def _of(call: _Call, event: ProviderEvent) -> ProviderEvent:
    """The event, marked with the call that started the subagent whose call this is."""
    return event if call.parent is None else replace(event, metadata={"parent_tool_call_id": call.parent})


def _retrying(error: _Said) -> ProviderEvent:
    message = ": ".join(str(error[key]) for key in ("message", "additionalDetails") if error.get(key))
    name, status = codex_error(error.get("codexErrorInfo"))
    return error_occurred(error_class(message, status=status or status_in(message), name=name).code, message)


def _usage(result: _Said) -> TokenUsage:
    """What the turn has used: `usage`, or with Gemini the quota's count, which does not tell cached tokens apart."""
    given = _mapping(result.get("usage"))
    if not given:
        count = _mapping(_meta(result, "quota").get("token_count"))
        return TokenUsage(input_tokens=count.get("input_tokens") or 0, output_tokens=count.get("output_tokens") or 0)
    usage = TokenUsage(
        input_tokens=given.get("inputTokens") or 0,
        output_tokens=given.get("outputTokens") or 0,
        cache_read_tokens=given.get("cachedReadTokens") or 0,
        cache_write_tokens=given.get("cachedWriteTokens") or 0,
    )
    # Some agents count thoughts as output and some beside it: the total tells which.
    thoughts = given.get("thoughtTokens") or 0
    apart = (given.get("totalTokens") or 0) >= usage.total_tokens + thoughts
    return usage + TokenUsage(output_tokens=thoughts) if apart else usage


def _model(result: _Said) -> str | None:
    used = cast("list[_Said]", _meta(result, "quota").get("model_usage") or [])
    return used[0].get("model") if used else None


def _plain(content: list[_Said]) -> object:
    """Text where it is nothing but text, else the parts as they came, without those that only name a terminal."""
    parts = [part for part in content if part.get("type") != "terminal"]
    texts = [_mapping(part.get("content")) for part in parts]
    if parts and all(text.get("type") == "text" for text in texts):
        return "\n".join(str(text.get("text", "")) for text in texts)
    return parts or None


def _meta(said: _Said, key: str) -> dict[str, Any]:
    return _mapping(_mapping(said.get("_meta")).get(key))


def _claude_code(said: _Said) -> dict[str, Any]:
    return _meta(said, "claudeCode")


def _mapping(value: object) -> dict[str, Any]:
    """The value where it is an object, else an empty one."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
