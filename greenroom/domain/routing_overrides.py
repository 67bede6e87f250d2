"""What a run wants otherwise than its router is declared."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from .errors import ValidationError


class Strategy(StrEnum):
    """What decides between providers that could all take the run."""

    PREFER = "prefer"
    """The order in which they stand."""
    WEIGHTED = "weighted"
    """Shares by weight, less where there were failures."""
    LEAST_LOADED = "least_loaded"
    """The fewest runs under way for its weight."""
    CHEAPEST = "cheapest"
    """The lowest price; those without a known price last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingOverrides:
    """What a run wants otherwise than its router is declared. None: as declared."""

    prefer: tuple[str, ...] = ()
    """These first, in this order, whatever the strategy says."""
    exclude: tuple[str, ...] = ()
    """Never these."""
    strategy: Strategy | None = None
    weights: Mapping[str, float] | None = None
    max_attempts: int | None = None
    sticky: bool = True
    """Whether the run stays with the provider that served its session last."""

    def __post_init__(self) -> None:
        if self.max_attempts is not None and self.max_attempts < 1:
            raise ValidationError(
                "options.routing.max_attempts must be at least 1.", details={"field": "options.routing.max_attempts"}
            )
        for name, weight in (self.weights or {}).items():
            if not 0 <= weight < float("inf"):
                raise ValidationError(
                    f"options.routing.weights.{name} must be 0 or more.",
                    details={"field": f"options.routing.weights.{name}"},
                )


NO_OVERRIDES = RoutingOverrides()
