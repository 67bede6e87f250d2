"""How long the runs of a session take: what a caller is told that found its queue full."""

from collections.abc import Iterable

_REMEMBERED_RUNS = 20


class RunPace:
    """The newest runs' times, from start to end, in seconds. Knows no clock."""

    def __init__(self) -> None:
        self._running_s: list[float] = []

    def ended(self, running_s: float) -> None:
        """A run has ended that took so long."""
        self._running_s.append(running_s)
        del self._running_s[:-_REMEMBERED_RUNS]

    def next_end_s(self, under_way_s: Iterable[float]) -> float | None:
        """When the next of the runs that have been under way for so long is likely to end: by the mean of those that
        ended before. None if nothing is known."""
        if not self._running_s:
            return None
        mean_s = sum(self._running_s) / len(self._running_s)
        return min((max(0.0, mean_s - so_far_s) for so_far_s in under_way_s), default=None)
