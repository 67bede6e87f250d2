"""What all runs of a scope may use together, as it is configured."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ValidationError
from .policy import OnViolation


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetOptions:
    """What all runs of a scope may use together. None: any amount."""

    max_cost_usd: float | None = None
    max_total_tokens: int | None = None
    on_violation: OnViolation = OnViolation.CANCEL
    """What becomes of a run for which nothing is left."""

    def __post_init__(self) -> None:
        for name in ("max_cost_usd", "max_total_tokens"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValidationError(f"budget.{name} must be more than 0.", details={"field": f"budget.{name}"})

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "BudgetOptions":
        """The inverse of `dataclasses.asdict`."""
        return cls(
            max_cost_usd=record["max_cost_usd"],
            max_total_tokens=record["max_total_tokens"],
            on_violation=OnViolation(record["on_violation"]),
        )

    @property
    def is_set(self) -> bool:
        return self.max_cost_usd is not None or self.max_total_tokens is not None
