"""How a session server stands with the Directory."""

from enum import StrEnum


class Standing(StrEnum):
    """The answer to a renewal."""

    KNOWN = "known"
    UNKNOWN = "unknown"
    """The Directory has never heard of it, or has been started anew: it should join."""
    LAPSED = "lapsed"
    """It was silent for too long, and its sessions were given to others."""
