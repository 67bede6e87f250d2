"""What came of a batch."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from .batch_progress import Counts


@dataclass(slots=True, kw_only=True)
class BatchSummary:
    """Made of the rows that came out, and of nothing else."""

    job: str
    output: str | None = None
    total: int | None = None
    """How many rows there are; None: nobody has counted them."""
    counts: Counts = field(default_factory=Counts)
    """Of the rows that came out; `cost_usd` of those whose cost is known."""
    seconds: float = 0.0
    stopped: str | None = None
    """Why the job ended before all its rows had."""
    rows: list[dict[str, Any]] | None = None
    """The rows with their results, where there is no output."""

    @property
    def statuses(self) -> Counter[str]:
        """Rows by how they ended."""
        return self.counts.statuses

    @property
    def errors(self) -> Counter[str]:
        """Rows that did not complete, by their error's code."""
        return self.counts.errors

    @property
    def ended(self) -> int:
        return self.counts.ended

    @property
    def failed(self) -> int:
        """Rows that ended and did not complete."""
        return self.counts.failed

    @property
    def found(self) -> int:
        """Rows that an earlier run of the job had done."""
        return self.counts.found

    @property
    def is_complete(self) -> bool:
        """Whether every row has ended."""
        return self.stopped is None and (self.total is None or self.ended == self.total)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-safe values, without the rows."""
        counted = self.counts.to_dict()
        del counted["running"]  # nothing is, any more
        plain = ("job", "output", "total", "seconds", "stopped", "ended", "failed")
        return {**{name: getattr(self, name) for name in plain}, **counted, "complete": self.is_complete}
