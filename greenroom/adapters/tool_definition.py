"""Python callables as tools: how a model is told of them and how its arguments are checked."""

import functools
import importlib
import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, cast, get_type_hints, overload

from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, create_model
from pydantic.json_schema import GenerateJsonSchema

from ..domain.errors import ValidationError
from ..domain.tool import ToolApproval, ToolSpec

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A callable with what a model is told of it. It can still be called like the callable itself."""

    spec: ToolSpec
    function: Callable[..., Any]
    arguments: type[BaseModel] = field(repr=False)
    """One field per parameter, under numbered names: pydantic keeps some names to itself."""
    hints: Mapping[str, Any] = field(repr=False)
    """The annotations, evaluated: a pickled function loses the names that its annotations are written with."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def bound(self, arguments: Mapping[str, Any]) -> inspect.BoundArguments:
        """The arguments as the callable takes them, converted to its annotations. Raises pydantic's ValidationError."""
        checked = self.arguments.model_validate(dict(arguments))
        signature = inspect.signature(self.function)
        names = list(signature.parameters)
        given = {names[_position(name)]: getattr(checked, name) for name in checked.model_fields_set}
        bound = inspect.BoundArguments(signature, cast("Any", given))
        bound.apply_defaults()
        return bound


ToolLike = Tool | Callable[..., Any] | str
"""What is accepted as a tool: a callable, `tool(callable, ...)`, or the path `package.module:function`."""


@overload
def tool(
    fn: Callable[..., Any],
    *,
    name: str | None = None,
    timeout_s: float | None = None,
    side_effects: bool = True,
    approval: ToolApproval | str = ToolApproval.NEVER,
) -> Tool: ...


@overload
def tool(
    fn: None = None,
    *,
    name: str | None = None,
    timeout_s: float | None = None,
    side_effects: bool = True,
    approval: ToolApproval | str = ToolApproval.NEVER,
) -> Callable[[Callable[..., Any]], Tool]: ...


def tool(
    fn: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    timeout_s: float | None = None,
    side_effects: bool = True,
    approval: ToolApproval | str = ToolApproval.NEVER,
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """A callable as a tool, with more said than its signature and docstring say. Also a decorator, bare or called.

    Raises ValidationError that names the tool and the parameter, for a parameter without annotation, `*args`,
    `**kwargs`, and an annotation that has no JSON schema.
    """

    def wrap(function: Callable[..., Any]) -> Tool:
        spec = ToolSpec(
            name=_name_of(function) if name is None else name,
            description=inspect.getdoc(function) or "",
            input_schema={},
            timeout_s=timeout_s,
            side_effects=side_effects,
            approval=cast("ToolApproval", approval),
        )
        return build_tool(function, _checked(spec), evaluated_hints(function, spec.name))

    return wrap if fn is None else wrap(fn)


def as_tool(given: ToolLike) -> Tool:
    """The tool that is meant. ValidationError if it is none, or if nothing is found at the path."""
    if isinstance(given, Tool):
        return given
    if isinstance(given, str):
        return as_tool(found_at(given))
    if not callable(given):
        raise refusal(f"{given!r} is no tool; give a callable or 'package.module:function'")
    return tool(given)


def describe_tool(given: ToolLike) -> ToolSpec:
    """What a model is told of it. Refuses as `tool` does."""
    return as_tool(given).spec


def build_tool(function: Callable[..., Any], spec: ToolSpec, hints: Mapping[str, Any]) -> Tool:
    """The tool with the schema of its arguments filled in. Refuses what `tool` refuses in a signature."""
    arguments = _arguments_model(function, spec.name, hints)
    try:
        schema = arguments.model_json_schema(by_alias=True, schema_generator=_PlainSchema)
    except PydanticUserError as exc:
        raise refusal(f"tool {spec.name!r} has a parameter without JSON schema ({exc})", tool=spec.name) from exc
    schema.pop("title", None)
    schema.setdefault("properties", {})
    return Tool(spec=replace(spec, input_schema=schema), function=function, arguments=arguments, hints=hints)


def _checked(spec: ToolSpec) -> ToolSpec:
    if not _NAME.fullmatch(spec.name):
        raise refusal(
            f"a tool cannot be named {spec.name!r}; use letters, digits, _ and -, at most 64: tool(..., name=)"
        )
    if spec.timeout_s is not None and not 0 < spec.timeout_s < math.inf:
        raise refusal(f"timeout_s of tool {spec.name!r} must be more than 0, or None", tool=spec.name)
    if spec.approval not in tuple(ToolApproval):
        raise refusal(f"approval of tool {spec.name!r} must be one of {', '.join(ToolApproval)}", tool=spec.name)
    return replace(spec, approval=ToolApproval(spec.approval))


class _PlainSchema(GenerateJsonSchema):
    """Without the titles that pydantic derives from names: they tell a model nothing and cost tokens."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _arguments_model(function: Callable[..., Any], name: str, hints: Mapping[str, Any]) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for position, parameter in enumerate(inspect.signature(function).parameters.values()):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise _parameter_refusal(name, parameter, "a model cannot be told of it; name each parameter")
        if parameter.name not in hints:
            raise _parameter_refusal(name, parameter, "it has no annotation; say what type it takes")
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[f"argument_{position}"] = (hints[parameter.name], Field(default, alias=parameter.name))
    try:
        return create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
    except (PydanticUserError, NameError, TypeError) as exc:
        raise refusal(f"tool {name!r} has a parameter without JSON schema ({exc})", tool=name) from exc


def _position(field_name: str) -> int:
    return int(field_name.removeprefix("argument_"))


def evaluated_hints(function: Callable[..., Any], name: str) -> dict[str, Any]:
    """The annotations of the parameters as types, whatever form the function is written in."""
    source: Any = function
    while isinstance(source, functools.partial):
        source = cast("functools.partial[Any]", source).func
    if not inspect.isroutine(source):
        source = type(source).__call__
    try:
        hints = get_type_hints(source, include_extras=True)
    except (NameError, TypeError, AttributeError) as exc:
        raise refusal(f"tool {name!r} has an annotation that cannot be read ({exc})", tool=name) from exc
    hints.pop("return", None)
    return hints


def _name_of(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def found_at(path: str) -> Any:
    """What stands at `package.module:name`. ValidationError if there is nothing, or the module cannot be imported."""
    module_name, _, qualified_name = path.partition(":")
    if not module_name or not qualified_name:
        raise refusal(f"{path!r} is no path of a tool; write 'package.module:function'")
    try:
        return attrgetter(qualified_name)(importlib.import_module(module_name))
    except (ImportError, AttributeError, ValueError) as exc:
        raise refusal(f"there is no tool at {path!r} ({exc}); check 'package.module:function'") from exc


def _parameter_refusal(name: str, parameter: inspect.Parameter, reason: str) -> ValidationError:
    return ValidationError(
        f"Tool {name!r}, parameter {str(parameter).partition(':')[0]!r}: {reason}.",
        details={"field": "tools", "tool": name, "parameter": parameter.name},
    )


def refusal(reason: str, *, tool: str | None = None) -> ValidationError:
    """The ValidationError for a tool that is not acceptable."""
    return ValidationError(f"tools: {reason}.", details={"field": "tools", **({"tool": tool} if tool else {})})
