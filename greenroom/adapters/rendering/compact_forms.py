"""The compact form of each event type: a few letters, and the one thing that matters most."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ...domain.event import EventType
from .event_text import one_line, short_model

_MESSAGE_CHARACTERS = 120
_OUTPUT_CHARACTERS = 2_000
_STOP_REASONS = {"tool_use": "tool", "end_turn": "end"}

Data = Mapping[str, Any]


class Form(NamedTuple):
    """How one type of event is shown."""

    text: Callable[[Data], str]
    style: str


def _with(token: str, name: str, *, separator: str = ":") -> Callable[[Data], str]:
    """The token, and the value of that name behind it if there is one."""

    def text(data: Data) -> str:
        value = data.get(name)
        return token if value in (None, "") else f"{token}{separator}{one_line(value, _MESSAGE_CHARACTERS)}"

    return text


def _always(token: str) -> Callable[[Data], str]:
    def text(_: Data) -> str:
        return token

    return text


def _session_created(data: Data) -> str:
    return f"s+ {one_line(data.get('agent_id', ''), _MESSAGE_CHARACTERS)} {data.get('provider') or ''}".rstrip()


def _run_started(data: Data) -> str:
    model = data.get("model")
    return f"r+ {short_model(str(model))}" if model else "r+"


def _run_completed(data: Data) -> str:
    reason = data.get("stop_reason")
    return f"r-:{_STOP_REASONS.get(reason, str(reason).lower())}" if reason else "r-"


def _failure(data: Data) -> str:
    message = one_line(data.get("error_message") or "unknown error", _MESSAGE_CHARACTERS)
    code = data.get("error_code")
    return f"! {code}: {message}" if code else f"! {message}"


def _session_failed(data: Data) -> str:
    return f"s{_failure(data)}"


def _tool(sign: str) -> Callable[[Data], str]:
    def text(data: Data) -> str:
        token = f"t{sign}{one_line(data.get('tool_name') or 'unknown', _MESSAGE_CHARACTERS)}"
        if sign == "!":
            token += f":{data.get('outcome') or 'error'}"
        output = data.get("error") or data.get("tool_output")
        return token if sign == "+" or output in (None, "") else f"{token} tr:{one_line(output, _OUTPUT_CHARACTERS)}"

    return text


def _usage(data: Data) -> str:
    return f"tk:{data.get('input_tokens') or 0}/{data.get('output_tokens') or 0}"


def _diff(data: Data) -> str:
    return f"w~{data.get('files_changed') or 0}f+{data.get('insertions') or 0}-{data.get('deletions') or 0}"


def _violation(data: Data) -> str:
    return _with("! policy", "policy", separator=" ")(data) + _with("", "kind")(data)


def _failover(data: Data) -> str:
    return _with(f"p:{data.get('from')}->{data.get('to')}", "error_code", separator=" ")(data)


FORMS: Mapping[EventType, Form] = {
    EventType.SESSION_CREATED: Form(_session_created, "bold"),
    EventType.SESSION_STARTED: Form(_always("s>"), "bold"),
    EventType.SESSION_PAUSED: Form(_always("s="), "bold"),
    EventType.SESSION_RESUMED: Form(_always("s>"), "bold"),
    EventType.SESSION_COMPLETED: Form(_always("s-"), "bold"),
    EventType.SESSION_FAILED: Form(_session_failed, "red"),
    EventType.SESSION_CANCELLED: Form(_always("s! cancelled"), "red"),
    EventType.RUN_QUEUED: Form(_with("q+", "reason"), "blue"),
    EventType.RUN_STARTED: Form(_run_started, "blue"),
    EventType.RUN_COMPLETED: Form(_run_completed, "blue"),
    EventType.RUN_FAILED: Form(_failure, "red"),
    EventType.RUN_CANCELLED: Form(_with("! cancelled", "reason", separator=": "), "red"),
    EventType.RUN_TIMEOUT: Form(_always("! timeout"), "red"),
    EventType.MESSAGE_SENT: Form(_with("<<", "content", separator=" "), "cyan"),
    EventType.MESSAGE_STREAMED: Form(_with(">>", "content", separator=" "), "magenta"),
    EventType.MESSAGE_RECEIVED: Form(_with("msg", "content", separator=" "), "dim"),
    EventType.TOOL_CALL_STARTED: Form(_tool("+"), "green"),
    EventType.TOOL_CALL_COMPLETED: Form(_tool("-"), "green"),
    EventType.TOOL_CALL_FAILED: Form(_tool("!"), "red"),
    EventType.TOOL_APPROVAL_REQUESTED: Form(_with("a?", "tool_name", separator=""), "yellow"),
    EventType.TOOL_APPROVAL_GRANTED: Form(_with("a+", "by"), "green"),
    EventType.TOOL_APPROVAL_DENIED: Form(_with("a-", "reason"), "red"),
    EventType.TOKEN_USAGE_UPDATED: Form(_usage, "dim"),
    EventType.TURN_COMPLETED: Form(_with("turn", "turn"), "dim"),
    EventType.ERROR_OCCURRED: Form(_failure, "red"),
    EventType.ERROR_RECOVERED: Form(_with("recovered", "error_code"), "green"),
    EventType.WORKSPACE_SNAPSHOT_TAKEN: Form(_with("w+", "label", separator=""), "dim"),
    EventType.WORKSPACE_DIFF_COMPUTED: Form(_diff, "dim"),
    EventType.WORKSPACE_ROLLED_BACK: Form(_always("w<"), "yellow"),
    EventType.POLICY_VIOLATION: Form(_violation, "red"),
    EventType.PROVIDER_SELECTED: Form(_with("p", "provider"), "dim"),
    EventType.PROVIDER_FAILED_OVER: Form(_failover, "yellow"),
    EventType.SESSION_STEERED: Form(_with("steer", "delivered"), "yellow"),
}
