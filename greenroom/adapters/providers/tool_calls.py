"""The events of a tool call, in the one form that all providers use."""

from typing import Any

from ...domain.event import EventType
from ...domain.provider import ProviderEvent
from ...domain.tool import ToolOutcome, ToolResult


def tool_call_started(call_id: str, name: str, arguments: dict[str, Any]) -> ProviderEvent:
    """A call has begun; exactly one `tool_call_ended` follows."""
    return ProviderEvent(
        EventType.TOOL_CALL_STARTED, {"tool_call_id": call_id, "tool_name": name, "tool_input": arguments}
    )


def tool_call_ended(call_id: str, name: str, arguments: dict[str, Any], result: ToolResult) -> ProviderEvent:
    """A call has ended: tool_call_completed, or tool_call_failed with its outcome."""
    data: dict[str, Any] = {
        "tool_call_id": call_id,
        "tool_name": name,
        "tool_input": arguments,
        "tool_output": result.output,
    }
    if result.outcome is None:
        return ProviderEvent(EventType.TOOL_CALL_COMPLETED, data)
    data["outcome"] = result.outcome.value
    if result.error is not None:
        data["error"] = result.error
    return ProviderEvent(EventType.TOOL_CALL_FAILED, data)


def tool_call_abandoned(started: dict[str, Any], outcome: ToolOutcome) -> dict[str, Any]:
    """The data of the tool_call_failed that closes a call whose end nobody reported, from that of its start."""
    return {**started, "tool_output": None, "outcome": outcome.value}
