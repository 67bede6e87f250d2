"""What is made of a row: which one it is, and what is said to the agent."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from .errors import GreenroomError, ToolNotFound, ValidationError
from .run_input import parse_input

MAX_KEY_BYTES = 1_024
MAX_TURNS = 1_000
"""Turns of one row."""

DEFAULT_KEY = "id"
DEFAULT_PROMPT = "prompt"
_MESSAGES, _TURNS, _TOOLS = "messages", "turns", "tools"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLayout:
    """Which columns say what. The defaults are used where a row has them."""

    key: str | None = None
    """The column that names a row, for ever: `id` where there is one, else a row is named by what it holds."""
    prompt: str | None = None
    """The column with the input: text, a list of messages, or `{"prompt"}` or `{"messages"}`; `prompt`, or else
    `messages`."""
    turns: str = _TURNS
    """The column with a list of inputs, which follow each other in one session."""
    tools: str = _TOOLS
    """The column with the names of those of the job's tools that the row may use; all, where a row has none."""


class RowInput(NamedTuple):
    """A row that can be carried out."""

    key: str
    inputs: tuple[Any, ...]
    tools: tuple[str, ...] | None
    """None: all that there are."""


class RowReader:
    """Reads rows of one layout."""

    def __init__(
        self,
        layout: RowLayout,
        *,
        render: Callable[[Mapping[str, Any]], str] | None,
        tool_names: Sequence[str],
        max_input_bytes: int,
    ) -> None:
        """`render` makes the input of a row with a template; it raises ValidationError."""
        self._layout = layout
        self._render = render
        self._tool_names = tuple(tool_names)
        self._max_input_bytes = max_input_bytes

    def read(self, values: Mapping[str, Any]) -> RowInput:
        """What the row asks for. ValidationError that names the column, ToolNotFound."""
        inputs = self._inputs(values)
        for place, one in enumerate(inputs):
            try:
                parse_input(one, max_bytes=self._max_input_bytes)
            except ValidationError as exc:
                where = f"Turn {place + 1}: " if len(inputs) > 1 else ""
                raise ValidationError(f"{where}{exc.message}", details=exc.details) from None
        return RowInput(self.key(values), inputs, self._tools(values))

    def key(self, values: Mapping[str, Any]) -> str:
        """Which row it is. ValidationError where the key column has nothing that names one."""
        column = self._layout.key or DEFAULT_KEY
        if values.get(column) is None and self._layout.key is None:
            held = {name: value for name, value in values.items() if value is not None}
            content = json.dumps(held, sort_keys=True, separators=(",", ":"), default=str)
            return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        value = values.get(column)
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise _refusal(column, f"must be text or a whole number that names the row, not {_shown(value)}")
        key = str(value)
        if "\0" in key or key.encode("utf-8", "replace").decode() != key:
            raise _refusal(column, "has characters that cannot be stored")
        if len(key.encode("utf-8", "surrogatepass")) > MAX_KEY_BYTES:
            raise _refusal(column, f"is longer than {MAX_KEY_BYTES} bytes")
        return key

    def _inputs(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        if self._render is not None:
            return (self._render(values),)
        turns = values.get(self._layout.turns)
        if turns is not None and self._layout.prompt is None:
            return self._turns(turns)
        column = self._layout.prompt
        if column is None:
            column = _MESSAGES if values.get(DEFAULT_PROMPT) is None and _MESSAGES in values else DEFAULT_PROMPT
        if column not in values:
            raise _refusal(column, "is missing; name the column with the input, or give a template")
        return (_as_input(values[column], column),)

    def _turns(self, turns: object) -> tuple[Any, ...]:
        column = self._layout.turns
        if not isinstance(turns, list | tuple) or not turns:
            raise _refusal(column, "must be a list with at least one input")
        listed = cast("Sequence[Any]", turns)
        if len(listed) > MAX_TURNS:
            raise _refusal(column, f"has {len(listed)} turns; at most {MAX_TURNS} are taken")
        return tuple(_as_input(one, f"{column}[{place}]") for place, one in enumerate(listed))

    def _tools(self, values: Mapping[str, Any]) -> tuple[str, ...] | None:
        wanted = values.get(self._layout.tools)
        if wanted is None or not self._tool_names:
            return None
        if not isinstance(wanted, list | tuple):
            raise _refusal(self._layout.tools, "must be a list of names of the job's tools")
        names = tuple(str(name) for name in cast("Sequence[Any]", wanted))
        for name in names:
            if name not in self._tool_names:
                raise ToolNotFound(
                    f"Column {self._layout.tools!r} names the tool {name!r}, which the job does not have; it has:"
                    f" {', '.join(self._tool_names)}.",
                    details={"field": self._layout.tools},
                )
        return names


def _as_input(value: object, column: str) -> Any:
    """An input as a run takes it: a list is one of messages."""
    if isinstance(value, list | tuple):
        return {"messages": list(cast("Sequence[Any]", value))}
    if isinstance(value, str | Mapping):
        return cast("Any", value)
    raise _refusal(column, f"must be text, a list of messages, or a mapping, not {_shown(value)}")


def unreadable(reason: str) -> GreenroomError:
    """The error of what stands where a row should be."""
    return ValidationError(f"The row {reason}.", details={"field": "row"})


def _shown(value: object) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:80]!r}"


def _refusal(column: str, text: str) -> ValidationError:
    return ValidationError(f"Column {column!r} {text}.", details={"field": column})
