"""What came of a batch."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True, kw_only=True)
class BatchSummary:
    """Made of the rows that came out, and of nothing else."""

    job: str
    output: str | None = None
    total: int | None = None
    """How many rows there are; None: nobody has counted them."""
    statuses: Counter[str] = field(default_factory=Counter[str])
    """Rows by how they ended."""
    errors: Counter[str] = field(default_factory=Counter[str])
    """Rows that did not complete, by their error's code."""
    providers: Counter[str] = field(default_factory=Counter[str])
    found: int = 0
    """Rows that an earlier run of the job had done."""
    tokens: Counter[str] = field(default_factory=Counter[str])
    cost_usd: float = 0.0
    """Of those rows whose cost is known."""
    seconds: float = 0.0
    stopped: str | None = None
    """Why the job ended before all its rows had."""
    rows: list[dict[str, Any]] | None = None
    """The rows with their results, where there is no output."""

    @property
    def ended(self) -> int:
        return sum(self.statuses.values())

    @property
    def failed(self) -> int:
        """Rows that ended and did not complete."""
        return self.ended - self.statuses["completed"]

    @property
    def is_complete(self) -> bool:
        """Whether every row has ended."""
        return self.stopped is None and (self.total is None or self.ended == self.total)

    def see(self, columns: Mapping[str, Any]) -> None:
        """A row has come out with these columns of results."""
        self.statuses[columns["status"]] += 1
        if columns["error_code"] is not None:
            self.errors[columns["error_code"]] += 1
        if columns["provider"] is not None:
            self.providers[columns["provider"]] += 1
        for name in ("input_tokens", "output_tokens", "total_tokens"):
            self.tokens[name] += columns[name]
        self.cost_usd += columns["cost_usd"] or 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON-safe values, without the rows."""
        plain = ("job", "output", "total", "found", "cost_usd", "seconds", "stopped")
        return {
            **{name: getattr(self, name) for name in plain},
            **{name: dict(getattr(self, name)) for name in ("statuses", "errors", "providers", "tokens")},
            "ended": self.ended,
            "failed": self.failed,
            "complete": self.is_complete,
        }
