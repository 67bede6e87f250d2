"""The sessions that wait for a server, in the order in which they came, and by the groups that may hold them up."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from ..domain.placement import SessionGroup

Groups = tuple[SessionGroup, ...]


@dataclass(slots=True, eq=False)
class Waiting:
    """A session in line."""

    session_id: str
    alone: bool
    groups: Groups
    placed: "asyncio.Future[None]"
    number: int = 0


class WaitingLine:
    """One line in one order. What is asked of it costs as much as there are combinations of groups in it, and not as
    there are sessions: ten thousand may wait."""

    def __init__(self) -> None:
        self._lines: dict[Groups, dict[int, Waiting]] = {}
        self._arrivals = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, waiting: Waiting) -> bool:
        return waiting.number in self._lines.get(waiting.groups, ())

    def add(self, waiting: Waiting) -> None:
        """At the end."""
        self._arrivals += 1
        waiting.number = self._arrivals
        self._lines.setdefault(waiting.groups, {})[waiting.number] = waiting
        self._count += 1

    def remove(self, waiting: Waiting) -> None:
        """It waits no more."""
        line = self._lines[waiting.groups]
        del line[waiting.number]
        self._count -= 1
        if not line:
            del self._lines[waiting.groups]

    def heads(self) -> Iterator[Waiting]:
        """The first of each combination of groups, the longest in line first."""
        return iter(sorted((next(iter(line.values())) for line in self._lines.values()), key=lambda one: one.number))

    def counts(self) -> Counter[Groups]:
        """How many wait, by their groups."""
        return Counter({groups: len(line) for groups, line in self._lines.items()})
