"""The sessions that wait for a server, in the order in which they came, and by what they need."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from ..domain.placement import Need, Pool


@dataclass(slots=True, eq=False)
class Waiting:
    """A session in line."""

    session_id: str
    need: Need
    placed: "asyncio.Future[None]"
    behind: int = 0
    """How many that need the same come as soon as this one has its place."""
    number: int = 0


class WaitingLine:
    """One line in one order. What is asked of it costs as much as there are different needs in it, and not as there
    are sessions: ten thousand may wait. Rows of batches stand behind all others."""

    def __init__(self) -> None:
        self._lines: dict[Need, dict[int, Waiting]] = {}
        self._behind: Counter[Need] = Counter()
        self._arrivals = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, waiting: Waiting) -> bool:
        return waiting.number in self._lines.get(waiting.need, ())

    def add(self, waiting: Waiting) -> None:
        """At the end."""
        self._arrivals += 1
        waiting.number = self._arrivals
        self._lines.setdefault(waiting.need, {})[waiting.number] = waiting
        self._behind[waiting.need] += waiting.behind
        self._count += 1

    def remove(self, waiting: Waiting) -> None:
        """It waits no more."""
        line = self._lines[waiting.need]
        del line[waiting.number]
        self._behind[waiting.need] -= waiting.behind
        self._count -= 1
        if not line:
            del self._lines[waiting.need], self._behind[waiting.need]

    def heads(self) -> Iterator[Waiting]:
        """The first of those that need the same, the longest in line first."""
        firsts = (next(iter(line.values())) for line in self._lines.values())
        return iter(sorted(firsts, key=lambda one: (one.need.pool is Pool.ROWS, one.number)))

    def counts(self) -> Counter[Need]:
        """How many wait, by what they need."""
        return Counter({need: len(line) for need, line in self._lines.items()})

    def demand(self) -> Counter[Need]:
        """The same with those that come behind them."""
        return Counter({need: len(line) + self._behind[need] for need, line in self._lines.items()})
