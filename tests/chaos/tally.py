"""Counts of what happened to the store under each fault, and what must never happen."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

MAX_PROBLEMS = 5
"""Of one round that are shown."""


@dataclass(slots=True)
class Tally:
    """Outcomes of rounds, by fault and what it hit."""

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter[tuple[str, str, str]])
    failures: list[str] = field(default_factory=list[str])
    acknowledged: int = 0
    """Events over all rounds that were acknowledged and looked for afterwards."""

    def add(self, fault: str, target: str, outcome: str) -> None:
        self.counts[fault, target, outcome] += 1

    def settle(self, fault: str, target: str, outcome: str, problems: Sequence[str]) -> None:
        """One round: its outcome, or the promises that were broken in it."""
        if not problems:
            self.add(fault, target, outcome)
            return
        self.counts[fault, target, "BROKEN PROMISE"] += 1
        self.failures += [f"{fault} ({target}): {problem}" for problem in problems[:MAX_PROBLEMS]]

    def print(self, console: Console) -> None:
        table = Table("fault", "of", "outcome", "rounds")
        for (fault, target, outcome), count in sorted(self.counts.items()):
            table.add_row(fault, target, outcome, str(count))
        console.print(table)
        console.print(f"{sum(self.counts.values())} rounds, {self.acknowledged} acknowledged events looked for")
        for failure in self.failures:
            console.print(f"BROKEN: {failure}", markup=False)
