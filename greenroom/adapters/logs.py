"""Greenroom's own log: structured events over the standard library's logging, silent until somebody listens.

Nothing is ever written to stdout. A program that wants to see it configures the logger "greenroom" as any other; actors
write to their stderr, which Ray keeps in the files of its session.
"""

import logging
import sys
from typing import Any

import structlog

_ROOT = logging.getLogger("greenroom")
_ROOT.addHandler(logging.NullHandler())

_PROCESSORS: tuple[Any, ...] = (
    structlog.stdlib.filter_by_level,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
    structlog.processors.LogfmtRenderer(key_order=("timestamp", "level", "event")),
)


def get_logger(name: str) -> Any:
    """A structured logger: `log.warning("event_name", field=value)`."""
    return structlog.wrap_logger(
        logging.getLogger(name), processors=_PROCESSORS, wrapper_class=structlog.stdlib.BoundLogger
    )


def log_to_stderr(level: int = logging.INFO) -> None:
    """What an actor does when it starts, and the command line with --debug."""
    if not any(isinstance(handler, logging.StreamHandler) for handler in _ROOT.handlers):
        _ROOT.addHandler(logging.StreamHandler(sys.stderr))
    _ROOT.setLevel(level)
