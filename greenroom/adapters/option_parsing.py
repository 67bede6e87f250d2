"""Options from plain mappings: checked by pydantic, refused in Greenroom's own words."""

import difflib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError as PydanticError

from ..domain.errors import ValidationError
from ..domain.json_values import MAX_DEPTH, check_json_safe

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
    _refuse_unknown_keys(options_type, values, field)
    try:
        return _adapter(options_type).validate_python(values)
    except PydanticError as exc:
        raise _refusal(exc, field) from None


def option_names(options_type: type[Any]) -> tuple[str, ...]:
    """The keys that `parse_options` takes for this type."""
    fields = getattr(options_type, "model_fields", None) or getattr(options_type, "__dataclass_fields__", {})
    return tuple(fields)


def _refuse_unknown_keys(options_type: type[Any], values: Mapping[str, Any], field: str) -> None:
    known = option_names(options_type)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(sorted(known))}."
            raise ValidationError(
                f"{field}.{key} is not known; {hint}", details={"field": f"{field}.{key}", "nearest": near[:1]}
            )


def _refusal(exc: PydanticError, field: str) -> ValidationError:
    first = exc.errors(include_url=False, include_input=False)[0]
    where = ".".join([field, *(str(part) for part in first["loc"])])
    return ValidationError(f"{where}: {first['msg']}.", details={"field": where})


def require_json_safe(value: object, *, field: str) -> None:
    """Raise ValidationError unless the value can be stored and written as standard JSON; see check_json_safe."""
    try:
        check_json_safe(value, MAX_DEPTH // 2)  # an event nests it deeper
    except ValueError as exc:
        raise ValidationError(
            f"{field} is not JSON-safe ({exc}); use text, numbers, booleans, lists and mappings with text keys.",
            details={"field": field},
        ) from None
