"""Greenroom's own log: structured events over the standard library's logging, silent until somebody listens.

Nothing is ever written to stdout. A program that wants to see it configures the logger "greenroom" as any other; actors
write to their stderr, which Ray keeps in the files of its session.
"""

import logging
import sys
from functools import cache
from typing import Any

_ROOT = logging.getLogger("greenroom")
_ROOT.addHandler(logging.NullHandler())


class Logger:
    """A structured logger: `log.warning("event_name", field=value)`. Loads structlog (35 ms) when something is said."""

    def __init__(self, name: str) -> None:
        self._name = name

    def info(self, event: str, **fields: Any) -> None:
        _bound(self._name).info(event, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        _bound(self._name).warning(event, **fields)

    def error(self, event: str, **fields: Any) -> None:
        _bound(self._name).error(event, **fields)

    def exception(self, event: str, **fields: Any) -> None:
        """`error`, with the trace of the exception that is being handled."""
        _bound(self._name).exception(event, **fields)


@cache
def _bound(name: str) -> Any:
    import structlog  # noqa: PLC0415

    processors: tuple[Any, ...] = (
        structlog.stdlib.filter_by_level,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        structlog.processors.LogfmtRenderer(key_order=("timestamp", "level", "event")),
    )
    return structlog.wrap_logger(
        logging.getLogger(name), processors=processors, wrapper_class=structlog.stdlib.BoundLogger
    )


def get_logger(name: str) -> Logger:
    """The logger of a module."""
    return Logger(name)


def log_to_stderr(level: int = logging.INFO) -> None:
    """What an actor does when it starts, and the command line with --debug."""
    if not any(isinstance(handler, logging.StreamHandler) for handler in _ROOT.handlers):
        _ROOT.addHandler(logging.StreamHandler(sys.stderr))
    _ROOT.setLevel(level)
