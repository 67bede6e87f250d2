"""How far a batch has come: counted where rows are sent, added up in one place."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

WINDOW_S = 30.0
"""The rate is that of the rows that ended within this time."""


class Stop(StrEnum):
    """How a job is to end before its rows do."""

    NO = "no"
    DRAIN = "drain"
    """What is under way may end; nothing else begins."""
    CANCEL = "cancel"
    """What is under way is cancelled too."""


@dataclass(slots=True, kw_only=True)
class Counts:
    """Of rows that one sender, or all of them, have dealt with."""

    statuses: Counter[str] = field(default_factory=Counter[str])
    """Ended rows, by how."""
    errors: Counter[str] = field(default_factory=Counter[str])
    """Rows that did not complete, by their error's code."""
    providers: Counter[str] = field(default_factory=Counter[str])
    """Ended rows, by the provider that had them."""
    found: int = 0
    """Of the ended rows, those that had ended before, and were not done again."""
    found_failed: int = 0
    """Of those, the ones that had not completed."""
    running: int = 0
    tokens: Counter[str] = field(default_factory=Counter[str])
    """`input_tokens`, `output_tokens`, `total_tokens`."""
    cost_usd: float = 0.0

    @property
    def ended(self) -> int:
        return sum(self.statuses.values())

    @property
    def failed(self) -> int:
        """Rows that ended and did not complete."""
        return self.ended - self.statuses["completed"]

    def add(self, columns: Mapping[str, Any], *, found: bool = False) -> None:
        """A row has ended with these columns."""
        self.statuses[columns["status"]] += 1
        if columns["error_code"] is not None:
            self.errors[columns["error_code"]] += 1
        if columns["provider"] is not None:
            self.providers[columns["provider"]] += 1
        self.found += found
        self.found_failed += found and columns["error_code"] is not None
        self.tokens.update({name: columns[name] for name in ("input_tokens", "output_tokens", "total_tokens")})
        self.cost_usd += columns["cost_usd"] or 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON-safe values."""
        return {
            "statuses": dict(self.statuses),
            "errors": dict(self.errors),
            "providers": dict(self.providers),
            "found": self.found,
            "running": self.running,
            "tokens": dict(self.tokens),
            "cost_usd": self.cost_usd,
        }

    def merge(self, other: "Counts") -> None:
        """Add what another one has counted."""
        self.statuses.update(other.statuses)
        self.errors.update(other.errors)
        self.providers.update(other.providers)
        self.found += other.found
        self.found_failed += other.found_failed
        self.running += other.running
        self.tokens.update(other.tokens)
        self.cost_usd += other.cost_usd


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a job has come."""

    job: str
    total: int | None
    """How many rows there are; None: nobody has counted them."""
    counts: Counts
    rate: float
    """Rows that end in a second, as of late; those that had ended before do not count."""
    elapsed_s: float
    stop: Stop
    stop_reason: str | None

    @property
    def waiting(self) -> int | None:
        """Rows that have not begun."""
        return None if self.total is None else max(0, self.total - self.counts.ended - self.counts.running)

    @property
    def left_s(self) -> float | None:
        """How long the rest takes at this rate; None: nobody knows."""
        if self.total is None or not self.rate:
            return None
        return max(0, self.total - self.counts.ended) / self.rate

    def to_dict(self) -> dict[str, Any]:
        """As JSON-safe values."""
        return {
            "total": self.total,
            "waiting": self.waiting,
            "counts": self.counts.to_dict(),
            "rate": self.rate,
            "elapsed_s": self.elapsed_s,
            "left_s": self.left_s,
            "stop": self.stop.value,
            "stop_reason": self.stop_reason,
        }


class Tally:
    """Adds up what senders report. Knows no clock: seconds are given."""

    def __init__(self, job: str, *, total: int | None, max_failures: int | None, now_s: float) -> None:
        self.job = job
        self.total = total
        self.stop = Stop.NO
        self.stop_reason: str | None = None
        self._max_failures = max_failures
        self._began_s = now_s
        self._counts: dict[str, Counts] = {}
        self._done: list[tuple[float, int]] = [(now_s, 0)]

    def report(self, sender: str, counts: Counts, now_s: float) -> None:
        """All that the sender has counted so far, in place of what it said before."""
        self._counts[sender] = counts
        total = self._total()
        self._done.append((now_s, total.ended - total.found))
        while len(self._done) > 1 and self._done[1][0] < now_s - WINDOW_S:
            del self._done[0]
        fresh_failures = total.failed - total.found_failed
        if self._max_failures is not None and fresh_failures > self._max_failures:
            self.ask_to_stop(Stop.DRAIN, f"{fresh_failures} rows have failed, and max_failures is {self._max_failures}")

    def ask_to_stop(self, stop: Stop, reason: str) -> None:
        """End sooner than the rows do. What was asked for is never taken back."""
        if self.stop is Stop.CANCEL or stop is Stop.NO or stop is self.stop:
            return
        self.stop_reason = self.stop_reason or reason
        self.stop = stop

    def progress(self, now_s: float) -> Progress:
        """As of now."""
        (from_s, before), (_, done) = self._done[0], self._done[-1]
        return Progress(
            job=self.job,
            total=self.total,
            counts=self._total(),
            rate=(done - before) / max(now_s - from_s, 1e-6) if done > before else 0.0,
            elapsed_s=now_s - self._began_s,
            stop=self.stop,
            stop_reason=self.stop_reason,
        )

    def _total(self) -> Counts:
        total = Counts()
        for counts in self._counts.values():
            total.merge(counts)
        return total
