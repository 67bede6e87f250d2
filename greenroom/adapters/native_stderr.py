"""What libraries write to the process's stderr behind Python's back, and how to keep some of it from people."""

import os
import re
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import TextIO

RAY_LOG_LINE = re.compile(rb"^\[\d{4}-\d\d-\d\d [\d:,]+ [A-Z] \d+ \d+\] \S+\.(cc|h):\d+: ")
"""A line of the log that Ray's C++ writes to stderr too, when it thinks that it is an error."""


@contextmanager
def native_lines_dropped(pattern: "re.Pattern[bytes]") -> Generator[None]:
    """Lines that match are dropped while the block lasts; Python's own stderr goes where it went before, at once."""
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    before = sys.stderr
    direct = _direct(before, kept)
    if direct is not None:
        sys.stderr = direct
    copying = threading.Thread(target=_copy, args=(reading, kept, pattern), daemon=True)
    copying.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stderr = before
        os.dup2(kept, 2)
        copying.join(timeout=1)  # processes that were started meanwhile may hold the pipe open
        if not copying.is_alive():
            os.close(kept)


def _direct(stderr: TextIO, kept: int) -> TextIO | None:
    """The same stream past the pipe; None where Python's stderr is no file, and so is not affected."""
    try:
        if stderr.fileno() != 2:  # noqa: PLR2004  stderr
            return None
    except (OSError, ValueError, AttributeError):
        return None
    return os.fdopen(os.dup(kept), "w", buffering=1, encoding=stderr.encoding, errors=stderr.errors)


def _copy(reading: int, target: int, pattern: "re.Pattern[bytes]") -> None:
    with os.fdopen(reading, "rb") as lines:
        for line in lines:
            if not pattern.match(line):
                os.write(target, line)
