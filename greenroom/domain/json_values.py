"""JSON-safe values: all that may stand in an event, and so in whatever a caller attaches to a run or a session."""

from collections.abc import Callable
from math import isfinite
from typing import Any

MAX_DEPTH = 200
"""How deep values may be nested; msgpack and json stop at about 500 and 1000."""

_LEAST, _MOST = -(1 << 63), (1 << 64) - 1  # what 64 bits hold, with or without a sign


def check_json_safe(value: Any, depth: int = MAX_DEPTH) -> None:
    """Raise ValueError, with the reason, for what standard JSON or a stored event cannot hold."""
    _CHECKS.get(value.__class__, _check_other)(value, depth)


def _check_nothing(value: Any, depth: int) -> None:
    pass


def _check_text(value: str, depth: int) -> None:
    if not value.isascii():
        value.encode()  # a lone surrogate raises UnicodeEncodeError, which is a ValueError


def _check_integer(value: int, depth: int) -> None:
    if not _LEAST <= value <= _MOST:
        raise ValueError("a whole number does not fit into 64 bits")


def _check_float(value: float, depth: int) -> None:
    if not isfinite(value):
        raise ValueError(f"{value} is no number in JSON")


def _check_mapping(value: dict[Any, Any], depth: int) -> None:
    if depth <= 0:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    for key, item in value.items():
        if not isinstance(key, str):
            raise ValueError(f"a key is {type(key).__name__}, not text")  # noqa: TRY004  one error for all reasons
        if not key.isascii():
            _check_text(key, 0)
        if item.__class__ is not str or not item.isascii():  # most are such text
            _CHECKS.get(item.__class__, _check_other)(item, depth - 1)


def _check_list(value: list[Any] | tuple[Any, ...], depth: int) -> None:
    if depth <= 0:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    for item in value:
        _CHECKS.get(item.__class__, _check_other)(item, depth - 1)


_SUBCLASSED: tuple[type[Any], ...] = (str, int, float, dict, list, tuple)

_CHECKS: dict[type[Any], Callable[[Any, int], None]] = {
    str: _check_text,
    int: _check_integer,
    float: _check_float,
    bool: _check_nothing,
    type(None): _check_nothing,
    dict: _check_mapping,
    list: _check_list,
    tuple: _check_list,
}
"""By exact type, since this is called for every event: about 1 µs for a usual one."""


def _check_other(value: Any, depth: int) -> None:
    """Subclasses, such as members of a StrEnum; all else is refused."""
    for kind in _SUBCLASSED:
        if isinstance(value, kind):
            _CHECKS[kind](value, depth)
            return
    raise ValueError(f"{type(value).__name__} is no JSON type")
