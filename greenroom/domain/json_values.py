"""JSON-safe values: all that may stand in an event, and so in whatever a caller attaches to a run or a session."""

from math import isfinite
from typing import Any

MAX_DEPTH = 200
"""How deep values may be nested; msgpack and json stop at about 500 and 1000."""

_LEAST, _MOST = -(1 << 63), (1 << 64) - 1  # what 64 bits hold, with or without a sign


def check_json_safe(value: Any, depth: int = MAX_DEPTH) -> None:
    """Raise ValueError, with the reason, for what standard JSON or a stored event cannot hold.

    Called for every event; about 1 µs for a usual one, because exact types come first.
    """
    kind = type(value)
    if kind is str:
        if not value.isascii():
            value.encode()  # a lone surrogate raises UnicodeEncodeError, which is a ValueError
    elif kind is dict:
        if depth <= 0:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"a key is {type(key).__name__}, not text")
            if not key.isascii():
                key.encode()
            check_json_safe(item, depth - 1)
    elif kind is int:
        if not _LEAST <= value <= _MOST:
            raise ValueError("a whole number does not fit into 64 bits")
    elif value is None or kind is bool:
        return
    elif kind is float:
        if not isfinite(value):
            raise ValueError(f"{value} is no number in JSON")
    else:
        _check_other(value, depth)


def _check_other(value: Any, depth: int) -> None:
    if isinstance(value, list | tuple):
        if depth <= 0:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")
        for item in value:  # pyright: ignore[reportUnknownVariableType]
            check_json_safe(item, depth - 1)
        return
    for plain in (str, int, float):  # subclasses, such as members of a StrEnum
        if isinstance(value, plain):
            check_json_safe(plain(value), depth)
            return
    if isinstance(value, dict):
        check_json_safe({**value}, depth)
        return
    raise ValueError(f"{type(value).__name__} is no JSON type")
