"""What steering a run gives."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SteerReceipt:
    """A message was handed to a run that is under way."""

    run_id: str
    delivered: bool
    """Whether the agent has it now; if not, it is queued for its next turn."""
    seq: int
    """Of the session_steered event."""
