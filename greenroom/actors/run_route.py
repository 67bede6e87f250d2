"""What a run's way to its provider has been so far: where it may go, where it was, and what it holds there."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..domain.event import from_microseconds
from ..domain.routing_overrides import NO_OVERRIDES, RoutingOverrides

if TYPE_CHECKING:
    from ..domain.capability_negotiation import Negotiation
    from ..domain.rate_budget import RateLevels
    from ..domain.routing import Requirement, RouterOptions


@dataclass(slots=True, kw_only=True)
class RunRoute:
    """State of one run; only the session's loop touches it."""

    router: str | None = None
    options: "RouterOptions | None" = None
    """Of the router, as the run wants it."""
    overrides: RoutingOverrides = NO_OVERRIDES
    required: "tuple[Requirement, ...]" = ()
    optional: "tuple[Requirement, ...]" = ()
    able: tuple[str, ...] = ()
    """Those of the router's providers that can take the run as its options say."""
    negotiation: "Negotiation | None" = None
    """What came of what it requires and wishes for; None: nothing of the kind."""
    given_up: list[str] = field(default_factory=list[str])
    """Providers that this run has failed at for good."""
    is_undecided: bool = False
    """Whether it has left a provider, and the next one is not known yet."""
    stays: bool = False
    """Whether the next attempt is to be at the same provider."""
    failures_here: int = 0
    first_failed_s: float | None = None
    """When the first of those was, on the loop's clock."""
    failed: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Attempts that failed: attempt, provider, error_code."""
    failed_over: dict[str, Any] | None = None
    """What the next attempt has to tell of the failover that led to it."""
    candidates: tuple[str, ...] = ()
    waited_s: float = 0.0
    open_s: float = 0.0
    """How long it has waited for breakers that are open, over all its waits for this attempt."""
    permit_key: str | None = None
    """Of what it holds at its provider's account."""
    levels: "RateLevels | None" = None
    """What the provider has said of its limits in this attempt."""
    waits_for: dict[str, Any] | None = None
    """What status shows while it waits: provider, reason, since_us."""

    @property
    def is_degraded(self) -> bool:
        """Whether something that it wishes for is not there."""
        return self.negotiation is not None and bool(self.negotiation.warnings)

    def shown_wait(self) -> dict[str, Any] | None:
        """What it waits for, as status shows it."""
        if self.waits_for is None:
            return None
        since = from_microseconds(self.waits_for["since_us"]).isoformat()
        shown = {name: self.waits_for.get(name) for name in ("provider", "reason", "retry_in_s")}
        return {**shown, "since": since}

    @property
    def can_fail_over(self) -> bool:
        """Whether there is a provider that it has not failed at, and may still be tried."""
        if self.options is None or len(self.given_up) + 1 >= self.options.max_attempts:
            return False
        return len([name for name in self.able if name not in self.given_up]) > 1

    def to_dict(self, provider: str, attempt: int) -> dict[str, Any] | None:
        """As the result of the run shows it; None where there was nothing to decide and nothing went wrong."""
        if self.router is None and not self.failed and not self.is_degraded:
            return None
        return {
            "router": self.router,
            "provider": provider,
            "attempt": attempt,
            "candidates": list(self.candidates),
            "failed": self.failed,
            "negotiation": self.negotiation.to_dict() if self.negotiation else {"status": "full", "warnings": []},
        }
