"""Tool calls of the earlier attempts of a run: what a later attempt need not, and must not, do again."""

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from typing import Any

from .approval import call_key
from .event import EventType
from .tool import ToolOutcome, ToolResult

PAST_CALL_TYPES = frozenset({EventType.TOOL_CALL_STARTED, EventType.TOOL_CALL_COMPLETED, EventType.TOOL_CALL_FAILED})


class PastCalls:
    """Answers of earlier attempts, in order, by tool and arguments. Each is given once.

    A call that completed gives its output again. One whose end nobody saw gives `in_doubt`: the agent is told, and may
    call again if it thinks that right; a tool without side effects simply runs. What failed, was cancelled or denied
    runs, or is asked for, anew.
    """

    def __init__(
        self,
        ends: Iterable[tuple[int, EventType, Mapping[str, Any]]] = (),
        *,
        in_doubt: Iterable[tuple[int, Mapping[str, Any]]] = (),
    ) -> None:
        """Attempt, type and data of the ends of calls, in order; and of the calls that started and nobody saw end."""
        attempts: dict[str, dict[int, deque[ToolResult]]] = defaultdict(lambda: defaultdict(deque))
        for attempt, event_type, data in ends:
            if event_type is EventType.TOOL_CALL_COMPLETED:
                attempts[_key(data)][attempt].append(ToolResult(output=data.get("tool_output")))
            elif data.get("outcome") == ToolOutcome.IN_DOUBT:
                attempts[_key(data)][attempt].append(_in_doubt(data))
        for attempt, data in in_doubt:
            attempts[_key(data)][attempt].append(_in_doubt(data))
        # An attempt repeats the answers of the one before it, and may add to them: the longest list has them all.
        self._answers = {key: max(found.values(), key=len) for key, found in attempts.items()}

    def take(self, tool_name: str, arguments: object, *, side_effects: bool) -> ToolResult | None:
        """The answer to a call that an earlier attempt made; None if it has to be made."""
        answers = self._answers.get(call_key(tool_name, arguments))
        if not answers:
            return None
        answer = answers.popleft()
        return None if answer.outcome is ToolOutcome.IN_DOUBT and not side_effects else answer


NO_PAST_CALLS = PastCalls()


def _key(data: Mapping[str, Any]) -> str:
    return call_key(str(data.get("tool_name")), data.get("tool_input"))


def _in_doubt(data: Mapping[str, Any]) -> ToolResult:
    text = (
        f"A process died while {data.get('tool_name')} was running this very call: it may or may not have had its"
        " effects. Find out before you call it again."
    )
    return ToolResult(
        output=text, outcome=ToolOutcome.IN_DOUBT, error={"code": "tool_execution_failed", "message": text}
    )
