"""Which names stand for secrets, so that what is kept or shown can leave their values out."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL|AUTHORIZATION|COOKIE", re.IGNORECASE)
_POINTS_ELSEWHERE = re.compile(r"(_env|_file|tokens|TOKENS|_PER_MINUTE)$")
"""Names of what only says where a secret is, or counts tokens."""

MASK = "***"


def is_secret_name(name: str) -> bool:
    """Whether a variable, header or option of this name holds a secret as a rule."""
    return bool(_SECRET.search(name)) and not _POINTS_ELSEWHERE.search(name)


def masked(value: Any) -> Any:
    """The same with `***` for every text that has such a name, however deep."""
    if isinstance(value, Mapping):
        return {
            key: MASK if isinstance(item, str) and is_secret_name(str(key)) else masked(item)
            for key, item in cast("Mapping[Any, Any]", value).items()
        }
    if isinstance(value, list | tuple):
        return [masked(item) for item in cast("list[Any]", value)]
    return value


def secret_names_in(value: Any, path: str) -> list[str]:
    """Where such texts are, as paths with dots."""
    return [f"{path}{where}" for where, _ in _secrets_in(value)]


def secret_values(value: Any) -> list[str]:
    """The texts that have such a name."""
    return [secret for _, secret in _secrets_in(value)]


def _secrets_in(value: Any) -> Iterator[tuple[str, str]]:
    """Where they are, and what they are."""
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
    elif isinstance(value, list | tuple):
        items = enumerate(cast("list[Any]", value))
    for key, item in items:
        if isinstance(item, str) and is_secret_name(str(key)):
            yield f".{key}", item
        else:
            yield from ((f".{key}{where}", secret) for where, secret in _secrets_in(item))
