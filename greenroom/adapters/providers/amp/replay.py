"""Recordings of Amp: stdin, stdout, stderr and exit of its CLI, most of them of a stand-in under the amp_sdk."""

from collections.abc import Sequence

from ..agents.replayed_attempt import Attempt, Line
from .mapping import AmpMapping


def replay(lines: Sequence[Line]) -> list[Attempt]:
    """One attempt: Amp ends with one result for all that it was asked on its stdin."""
    mapping = AmpMapping()
    attempt = Attempt(mapping)
    stderr: list[str] = []
    for direction, line in lines:
        if direction == "out":
            attempt.events += mapping.take(line)
        elif direction == "err":
            stderr.append(line)
        elif direction == "exit":
            mapping.ended(line, "\n".join(stderr))
    return [attempt]
