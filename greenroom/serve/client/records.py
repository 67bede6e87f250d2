"""What the service answers, as the records of the domain."""

from collections.abc import Mapping
from dataclasses import fields
from json import JSONDecodeError, loads
from typing import Any, TypeVar, cast

from ...domain.errors import InvalidFormat

RecordT = TypeVar("RecordT")
ValueT = TypeVar("ValueT")

_NOT_TOLD = ("call_id",)
"""Fields of the runtime's own that the service leaves out of its records."""

_REMEDY = "See whether the address is the service's, and whether this client is older than the service."


def json_object(body: str | bytes) -> dict[str, Any]:
    """The object in a body. InvalidFormat if it is none."""
    try:
        found = loads(body)
    except (JSONDecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidFormat(f"The answer is no JSON. {_REMEDY}") from exc
    if not isinstance(found, dict):
        raise InvalidFormat(f"The answer is no JSON object. {_REMEDY}")
    return cast("dict[str, Any]", found)


def parsed(kind: type[RecordT], answer: object) -> RecordT:
    """A record of the domain. InvalidFormat if the answer is none.

    Fields that this version does not know are passed over: the service may be newer than its client.
    """
    make: Any = getattr(kind, "from_dict", None)
    try:
        record = _known_fields(kind, cast("Mapping[str, Any]", answer))
        return make(record) if make is not None else kind(**record)
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise InvalidFormat(f"The answer is no {kind.__name__} that this version reads: {exc}. {_REMEDY}") from exc


def item(answer: Mapping[str, Any], name: str, kind: type[ValueT]) -> ValueT:
    """A value of the answer. InvalidFormat if it is missing or of another kind."""
    found = answer.get(name)
    if not isinstance(found, kind):
        raise InvalidFormat(f"The answer has no {name} of the expected kind. {_REMEDY}")
    return found


def items(answer: Mapping[str, Any], name: str = "items") -> list[Any]:
    """A list in the answer. InvalidFormat if there is none."""
    return cast("list[Any]", item(answer, name, list))


def _known_fields(kind: type[Any], answer: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    not_told = {name: None for name in _NOT_TOLD if name in names}
    return {**not_told, **{name: value for name, value in answer.items() if name in names}}
