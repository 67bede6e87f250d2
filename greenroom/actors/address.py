"""Where a runtime lives: all that another process needs to find its actors."""

from dataclasses import dataclass

EVENT_STORE = "event-store"
DIRECTORY = "directory"
LIMITER = "limiter"
WEBHOOKS = "webhooks"
SESSION_SERVER_PREFIX = "session-server:"
BREAKER_PREFIX = "breaker:"
ROUTER_PREFIX = "router:"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeAddress:
    """One runtime: its Ray cluster, its namespace there, and its data_dir."""

    ray_address: str
    namespace: str
    data_dir: str
    shards: int
    """How many actors share the event store."""


def event_store_name(shard: int) -> str:
    """Name of the actor that has this shard of the event store."""
    return EVENT_STORE if shard == 0 else f"{EVENT_STORE}-{shard}"
