"""Options that are passed on to an SDK under its own names: checked against what the SDK says of them."""

import difflib
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any, get_type_hints

from pydantic import PydanticUserError, TypeAdapter, ValidationError as PydanticError

from ....domain.errors import ValidationError
from ...option_parsing import option_names


def check_extra(options_type: type[Any], extra: Mapping[str, Any], *, own: Collection[str], field: str) -> None:
    """ValidationError for a name that the SDK's type does not have, or that Greenroom sets itself (`own`), and for a
    value that does not fit the type's annotation, where pydantic can tell."""
    known = [name for name in option_names(options_type) if name not in own]
    for name, value in extra.items():
        where = f"{field}.{name}"
        if name in own:
            raise ValidationError(
                f"{where} is set by Greenroom; use the option of the run or the provider for it.",
                details={"field": where},
            )
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(sorted(known))}."
            raise ValidationError(f"{where} is not known to the SDK; {hint}", details={"field": where})
        adapter = _adapter(options_type, name)
        if adapter is not None:
            _check_value(adapter, value, where)


def _check_value(adapter: TypeAdapter[Any], value: object, where: str) -> None:
    try:
        adapter.validate_python(value)
    except PydanticError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        raise ValidationError(f"{where}: {first['msg']}.", details={"field": where}) from None


@lru_cache(maxsize=256)
def _adapter(options_type: type[Any], name: str) -> TypeAdapter[Any] | None:
    try:
        return TypeAdapter(get_type_hints(options_type)[name])
    except (PydanticUserError, NameError, TypeError):  # a callback, or a type that only its checker knows
        return None
