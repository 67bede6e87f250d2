"""The circuit breaker of one provider account: when it lets attempts through, as a table of states and what happens."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from .errors import ValidationError

LEAST_SAMPLES = 10
"""So many attempts must have ended within the window before their error rate means anything."""

ERROR_RATE = 0.5
"""From this share of failures within the window on the account counts as broken."""


class CircuitState(StrEnum):
    """Whether attempts go through."""

    CLOSED = "closed"
    """They do."""
    OPEN = "open"
    """They do not, until the cooldown is over."""
    HALF_OPEN = "half_open"
    """So many as are configured do, to find out."""


class CircuitEvent(StrEnum):
    """What happens to a breaker."""

    BROKE = "broke"
    """The failures are too many, one after the other or by their share."""
    COOLED = "cooled"
    """The cooldown is over."""
    PROBE_SUCCEEDED = "probe_succeeded"
    PROBE_FAILED = "probe_failed"


CIRCUIT_TRANSITIONS: Mapping[CircuitState, Mapping[CircuitEvent, CircuitState]] = {
    CircuitState.CLOSED: {CircuitEvent.BROKE: CircuitState.OPEN},
    CircuitState.OPEN: {CircuitEvent.COOLED: CircuitState.HALF_OPEN},
    CircuitState.HALF_OPEN: {
        CircuitEvent.PROBE_SUCCEEDED: CircuitState.CLOSED,
        CircuitEvent.PROBE_FAILED: CircuitState.OPEN,
    },
}
"""(state, event) -> state. What is not in the table changes nothing: what began before it opened may end at any
time later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerOptions:
    """When an account counts as broken, and how it is tried again."""

    failure_threshold: int = 5
    """Failures one after the other."""
    window_s: float = 60.0
    """The time over which the share of failures is looked at."""
    cooldown_s: float = 30.0
    half_open_probes: int = 1
    """Attempts that are let through at once to find out; all must succeed."""

    def __post_init__(self) -> None:
        for name in ("failure_threshold", "half_open_probes"):
            if getattr(self, name) < 1:
                raise ValidationError(f"breaker.{name} must be at least 1.", details={"field": f"breaker.{name}"})
        for name in ("window_s", "cooldown_s"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ValidationError(
                    f"breaker.{name} must be a positive number of seconds.", details={"field": f"breaker.{name}"}
                )


class Admission(NamedTuple):
    """The leave to make one attempt; whoever has it says how the attempt ended."""

    cycle: int
    """How often the breaker had opened when it was given."""
    is_probe: bool


class Circuit:
    """Knows no clock: everything that depends on time is told it, in seconds that never go back."""

    def __init__(self, options: BreakerOptions) -> None:
        self.options = options
        self.state = CircuitState.CLOSED
        self.opened_at_s = 0.0
        self.retry_at_s = 0.0
        """When an open breaker may be tried."""
        self.barred_until_s = 0.0
        """Before this not even whoever has nowhere else to go may try: the provider has said so."""
        self._consecutive = 0
        self._ended: deque[tuple[float, bool]] = deque()
        """When attempts ended within the window, and whether well."""
        self._cycle = 0
        self._probes_under_way = 0
        self._probes_succeeded = 0

    @property
    def cycle(self) -> int:
        """How often it has opened."""
        return self._cycle

    @property
    def failures(self) -> int:
        """One after the other, up to now."""
        return self._consecutive

    def reopen(self, now_s: float, wait_s: float) -> None:
        """Somebody remembers that it is open, for so long."""
        if self.state is CircuitState.CLOSED:
            self._open(CircuitEvent.BROKE, now_s, None)
            self.retry_at_s = now_s + wait_s

    def wait_s(self, now_s: float, *, early: bool = False) -> float | None:
        """How long until `admit` may give leave; 0: now. None: when a probe has ended."""
        if self.state is CircuitState.OPEN:
            return max(0.0, (self.barred_until_s if early else self.retry_at_s) - now_s)
        if self.state is CircuitState.HALF_OPEN and not self._has_probes_left:
            return None
        return 0.0

    def admit(self, now_s: float, *, early: bool = False) -> Admission | None:
        """Leave to begin one more attempt, if there is any; `succeeded`, `failed` or `given_up` must follow.

        `early`: there is nowhere else to go, so that an open breaker is tried before it has cooled down, but not before
        the time that the provider gave.
        """
        if self.state is CircuitState.OPEN and self.wait_s(now_s, early=early) == 0.0:
            self._happened(CircuitEvent.COOLED)
            self._probes_under_way = self._probes_succeeded = 0
        if self.state is CircuitState.OPEN:
            return None
        if self.state is CircuitState.HALF_OPEN:
            if not self._has_probes_left:
                return None
            self._probes_under_way += 1
        return Admission(self._cycle, self.state is CircuitState.HALF_OPEN)

    def succeeded(self, admission: Admission, now_s: float) -> None:
        """The attempt has ended well."""
        if admission.cycle != self._cycle:
            return  # it began before the breaker opened: that it ended well is no news
        self._count(now_s, failed=False)
        self._consecutive = 0
        if admission.is_probe and self.state is CircuitState.HALF_OPEN:
            self._probes_under_way -= 1
            self._probes_succeeded += 1
            if self._probes_succeeded >= self.options.half_open_probes:
                self._happened(CircuitEvent.PROBE_SUCCEEDED)
                self._ended.clear()

    def failed(self, admission: Admission, now_s: float, *, retry_after_s: float | None = None) -> None:
        """The attempt has ended in a way that is the provider's fault."""
        if admission.cycle != self._cycle:
            if self.state is CircuitState.OPEN:  # one that was under way may know better when to come back
                self.barred_until_s = max(self.barred_until_s, now_s + (retry_after_s or 0.0))
                self.retry_at_s = max(self.retry_at_s, self.barred_until_s)
            return
        self._count(now_s, failed=True)
        self._consecutive += 1
        if admission.is_probe:
            self._open(CircuitEvent.PROBE_FAILED, now_s, retry_after_s)
        elif self._is_broken():
            self._open(CircuitEvent.BROKE, now_s, retry_after_s)

    def given_up(self, admission: Admission) -> None:
        """The attempt says nothing about the provider: cancelled, refused as invalid, or lost with its process."""
        if admission.is_probe and admission.cycle == self._cycle and self.state is CircuitState.HALF_OPEN:
            self._probes_under_way -= 1

    @property
    def _has_probes_left(self) -> bool:
        return self._probes_under_way + self._probes_succeeded < self.options.half_open_probes

    def _is_broken(self) -> bool:
        if self._consecutive >= self.options.failure_threshold:
            return True
        failures = sum(failed for _, failed in self._ended)
        return len(self._ended) >= LEAST_SAMPLES and failures >= ERROR_RATE * len(self._ended)

    def _count(self, now_s: float, *, failed: bool) -> None:
        self._ended.append((now_s, failed))
        while self._ended and self._ended[0][0] <= now_s - self.options.window_s:
            self._ended.popleft()

    def _open(self, event: CircuitEvent, now_s: float, retry_after_s: float | None) -> None:
        self._happened(event)
        self._cycle += 1
        self._ended.clear()
        self.opened_at_s = now_s
        self.barred_until_s = now_s + (retry_after_s or 0.0)
        self.retry_at_s = max(now_s + self.options.cooldown_s, self.barred_until_s)

    def _happened(self, event: CircuitEvent) -> None:
        self.state = CIRCUIT_TRANSITIONS[self.state].get(event, self.state)
