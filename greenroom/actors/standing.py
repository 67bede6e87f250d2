"""What session servers and the Directory tell each other of how they stand."""

from enum import StrEnum
from typing import NamedTuple


class IdleSession(NamedTuple):
    """A session that has nothing to do."""

    idle_s: float
    session_id: str


class HeldSession(NamedTuple):
    """A session that a server has."""

    epoch: int
    provider: str
    tenant: str | None
    alone: bool
    is_row: bool = False
    """Whether it is a row of a batch."""


class Standing(StrEnum):
    """The answer to a renewal."""

    KNOWN = "known"
    UNKNOWN = "unknown"
    """The Directory has never heard of it, or has been started anew: it should join."""
    LAPSED = "lapsed"
    """It was silent for too long, and its sessions were given to others."""
