"""What a store is opened with."""

from dataclasses import dataclass

MEBIBYTE = 1024 * 1024
DEFAULT_SPILL_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """Bounds and times of one store. Sizes in bytes, times in seconds."""

    min_free_bytes: int = 256 * MEBIBYTE
    """New work (sessions, runs) is refused while the disk has less room than this; what runs may go on."""
    reserve_bytes: int = 32 * MEBIBYTE
    """With less room than this nothing is appended: the rest is for what keeps the files whole."""
    max_memory_bytes: int = 2048 * MEBIBYTE
    """New work is refused while the store's process holds more memory than this."""
    spill_bytes: int = DEFAULT_SPILL_BYTES
    """Event data larger than this goes to the artifact store by itself."""
    max_artifact_bytes: int = 256 * MEBIBYTE
    """Largest artifact that is kept."""
    prune_streamed_after_s: float | None = None
    """Age at which streamed pieces of a complete message may go; None: never."""
    query_timeout_s: float = 30.0
    """How long one query of a user may take."""
    idempotency_keys_s: float = 7 * 24 * 3600.0
    """How long a repeated idempotency key finds what the first call made."""
