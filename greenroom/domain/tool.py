"""Tools that a session offers to providers whose loop Greenroom runs."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol


class ToolOutcome(StrEnum):
    """How a tool call ended, when it did not complete."""

    ERROR = "error"
    CANCELLED = "cancelled"
    DENIED = "denied"
    IN_DOUBT = "in_doubt"
    """It had started and nobody saw it end: its effects may or may not have happened."""


class ToolApproval(StrEnum):
    """Whether a person must agree before the tool runs."""

    NEVER = "never"
    ALWAYS = "always"
    POLICY = "policy"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """What a model is told of a tool, and how Greenroom treats it."""

    name: str
    description: str
    input_schema: dict[str, Any]
    """JSON Schema of the arguments, an object."""
    timeout_s: float | None = None
    side_effects: bool = True
    approval: ToolApproval = ToolApproval.NEVER


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """What a call gave: `output` for the model, and `outcome` None when it completed."""

    output: Any
    """JSON-safe; text that says what went wrong when `outcome` is set."""
    outcome: ToolOutcome | None = None
    error: dict[str, Any] | None = None


class Toolbox(Protocol):
    """The tools of one session.

    `permit` says whether a call may be made: None, or the answer for the model instead; with `asks` a person has to
    agree, because the agent itself wants to know. `invoke` asks that itself, and then runs the tool; who runs tools in
    other ways asks `permit` first. Both may wait for a person.

    `invoke` never raises for what a tool does: bad arguments, an exception, running past its time and an unknown name
    all come back as a ToolResult for the model. Only cancellation passes through.
    """

    def specs(self) -> tuple[ToolSpec, ...]: ...

    async def permit(
        self, name: str, arguments: dict[str, Any], call_id: str, *, asks: bool = False
    ) -> ToolResult | None: ...

    async def invoke(self, name: str, arguments: dict[str, Any], call_id: str) -> ToolResult: ...


class NoTools:
    """The toolbox of a session that has none."""

    def specs(self) -> tuple[ToolSpec, ...]:
        return ()

    async def permit(
        self, name: str, arguments: dict[str, Any], call_id: str, *, asks: bool = False
    ) -> ToolResult | None:
        return None

    async def invoke(self, name: str, arguments: dict[str, Any], call_id: str) -> ToolResult:
        text = f"There is no tool {name!r} in this session."
        return ToolResult(output=text, outcome=ToolOutcome.ERROR, error={"code": "tool_not_found", "message": text})
