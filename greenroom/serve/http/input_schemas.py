"""What the OpenAPI file says of inputs and options of runs, which the session checks, not the framework."""

from typing import Any, cast

from pydantic import TypeAdapter

from ...domain.run_input import Role
from ...domain.run_options import RunOptions

REFERENCE = "#/components/schemas/{model}"

_TEXT = {"type": "string", "pattern": r"\S"}
_MESSAGE = {
    "type": "object",
    "properties": {"role": {"enum": [role.value for role in Role], "default": Role.USER.value}, "content": _TEXT},
    "required": ["content"],
    "additionalProperties": False,
}

RUN_INPUT: dict[str, Any] = {
    "description": "Text, or messages.",
    "anyOf": [
        _TEXT,
        {"type": "object", "properties": {"prompt": _TEXT}, "required": ["prompt"], "additionalProperties": False},
        {
            "type": "object",
            "properties": {"messages": {"type": "array", "items": _MESSAGE, "minItems": 1}},
            "required": ["messages"],
            "additionalProperties": False,
        },
    ],
}

_STANDS_FOR = "x-component"
RUN_OPTIONS: dict[str, Any] = {"type": "object", _STANDS_FOR: "RunOptions"}
"""Pydantic takes no reference to what it has not made: this stands for it until the file is whole."""


def with_references(schema: Any) -> Any:
    """The same, with references in place of what stands for them."""
    if isinstance(schema, dict):
        given = cast("dict[str, Any]", schema)
        if _STANDS_FOR in given:
            return {"$ref": REFERENCE.format(model=given[_STANDS_FOR])}
        return {name: with_references(value) for name, value in given.items()}
    if isinstance(schema, list):
        return [with_references(value) for value in cast("list[Any]", schema)]
    return schema


def option_schemas() -> dict[str, Any]:
    """The components that RUN_OPTIONS refers to, by name."""
    whole = TypeAdapter(RunOptions).json_schema(ref_template=REFERENCE)
    components: dict[str, Any] = whole.pop("$defs")
    whole["properties"]["policy"] = {"type": ["object", "null"], "description": "One more of the policies."}
    whole["additionalProperties"] = False
    return {**components, "RunOptions": whole}
