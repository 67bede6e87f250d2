"""The gate port: limits that lie outside a session, asked before a run starts."""

from typing import Protocol

from .amount import Amount
from .budget import BudgetDecision
from .slots import Slot


class RunGate(Protocol):
    """Slots and budgets of the whole runtime."""

    async def enter(self, slot: Slot) -> BudgetDecision:
        """Wait until the run may start; it then has the slot until `leave`. EXCEEDED: it may not, and waits no more."""
        ...

    def move(self, run_id: str, provider: str) -> None:
        """The run is at another provider now."""
        ...

    def leave(self, run_id: str, used: Amount) -> None:
        """The run has ended and used so much, or it waits no more. Nothing happens to one that is not known."""
        ...
