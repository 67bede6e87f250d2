"""Options from plain mappings: checked by pydantic, refused in Greenroom's own words."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from functools import lru_cache
from typing import Any, TypeVar, cast, get_args, get_type_hints

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError as PydanticError

from ..domain.errors import ValidationError

OptionsT = TypeVar("OptionsT")


@lru_cache(maxsize=64)
def _adapter(options_type: type[Any]) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(options_type, config=ConfigDict(extra="forbid", arbitrary_types_allowed=True))
    except PydanticUserError:  # a pydantic model brings its own config
        return TypeAdapter(options_type)


def parse_options(options_type: type[OptionsT], given: Mapping[str, Any] | OptionsT | None, *, field: str) -> OptionsT:
    """The options as `options_type` (a frozen dataclass or a pydantic model that forbids extra keys).

    Raises ValidationError that names the field, and the nearest right name for a key that does not exist.
    """
    if isinstance(given, options_type):
        return given
    if given is not None and not isinstance(given, Mapping):
        raise ValidationError(f"{field} must be a mapping, not {type(given).__name__}.", details={"field": field})
    values = dict(cast("Mapping[str, Any]", given or {}))
    _refuse_at_sight(options_type, values, field)
    try:
        return _adapter(options_type).validate_python(values)
    except PydanticError as exc:
        raise _refusal(exc, field) from None


def option_names(options_type: type[Any]) -> tuple[str, ...]:
    """The keys that `parse_options` takes for this type."""
    fields = getattr(options_type, "model_fields", None) or getattr(options_type, "__dataclass_fields__", {})
    return tuple(fields)


def _refuse_at_sight(options_type: type[Any], values: Mapping[str, Any], field: str) -> None:
    known = option_names(options_type)
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(sorted(known))}."
            raise ValidationError(
                f"{field}.{key} is not known; {hint}", details={"field": f"{field}.{key}", "nearest": near[:1]}
            )
        if isinstance(value, bool | str) and _is_number(options_type, key):  # pydantic takes True for 1, and "1" too
            raise ValidationError(f"{field}.{key} must be a number.", details={"field": f"{field}.{key}"})
        nested = _nested_type(options_type, key)
        if nested is not None:  # pydantic forbids extra keys at the top only
            for where, inner in _mappings(value, f"{field}.{key}"):
                _refuse_at_sight(nested, inner, where)


@lru_cache(maxsize=256)
def _is_number(options_type: type[Any], name: str) -> bool:
    hint = get_type_hints(options_type).get(name)
    parts = {*(get_args(hint) or (hint,))} - {type(None)}
    return bool(parts) and parts <= {int, float}


@lru_cache(maxsize=256)
def _nested_type(options_type: type[Any], name: str) -> type[Any] | None:
    """The dataclass that the field is made of, alone or in a sequence."""
    hint = get_type_hints(options_type).get(name)
    return next((part for part in (hint, *get_args(hint)) if isinstance(part, type) and is_dataclass(part)), None)


def _mappings(value: Any, field: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    items: list[tuple[str, Any]] = [(field, value)]
    if isinstance(value, list | tuple):
        items = [(f"{field}.{index}", item) for index, item in enumerate(cast("list[Any]", value))]
    for where, item in items:
        if isinstance(item, Mapping):
            yield where, cast("Mapping[str, Any]", item)


def _refusal(exc: PydanticError, field: str) -> ValidationError:
    first = exc.errors(include_url=False, include_input=False)[0]
    where = ".".join([field, *(str(part) for part in first["loc"])])
    return ValidationError(f"{where}: {first['msg']}.", details={"field": where})
