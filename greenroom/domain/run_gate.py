"""The gate port: limits that lie outside a session, asked before a run starts."""

from collections.abc import Callable
from typing import Protocol


class RunGate(Protocol):
    """Answers at once: a session decides without waiting."""

    def admit(
        self, run_id: str, *, provider: str, tenant: str | None, priority: int, retry: Callable[[], None]
    ) -> bool:
        """Whether the run may start now; it then holds a slot until `release`. If not, it stands in line, and `retry`
        is called when it should be asked for again."""
        ...

    def release(self, run_id: str) -> None:
        """The run has ended, or waits no more."""
        ...


class OpenGate:
    """The gate of a runtime without limits."""

    def admit(
        self, run_id: str, *, provider: str, tenant: str | None, priority: int, retry: Callable[[], None]
    ) -> bool:
        return True

    def release(self, run_id: str) -> None:
        return None
