"""Arrow, which comes with the extra `batch`. Its types are not whole, and loading it takes half a second."""

import importlib
from typing import Any

from ...domain.errors import InvalidOperation


def arrow() -> Any:
    """The module. InvalidOperation where it is not installed."""
    return extra_module("pyarrow")


def extra_module(name: str) -> Any:
    """A module of the extra `batch`. InvalidOperation where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        raise InvalidOperation(
            f"Batches need {name.partition('.')[0]}, which is not installed; run: pip install 'greenroom[batch]'."
        ) from exc
