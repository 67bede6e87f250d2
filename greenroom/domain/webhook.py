"""Where events of a tenant are sent, and when a delivery that failed is tried again."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .event import EventType

GIVE_UP_AFTER_S = 86_400.0
"""An event that nobody has taken for so long is passed over, and the log says so; those after it have waited for it."""

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookTarget:
    """One address. Its name says where a delivery was, whatever else of it changes."""

    name: str
    url: str
    tenant: str
    types: tuple[EventType, ...] | None
    """Which events; None: all but pieces of messages, which come again whole."""
    secret_env: str

    @property
    def wanted(self) -> frozenset[EventType]:
        """The types of events that it gets."""
        return frozenset(EventType) - {EventType.MESSAGE_STREAMED} if self.types is None else frozenset(self.types)

    def to_record(self) -> dict[str, Any]:
        """As JSON-safe values."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "WebhookTarget":
        """The inverse of `to_record`."""
        types = record["types"]
        values: dict[str, Any] = {**record, "types": None if types is None else tuple(map(EventType, types))}
        return cls(**values)


def pause_s(failures: int, chance: float) -> float:
    """How long to wait after so many failures of one delivery: twice as long each time, up to five minutes; `chance`,
    from 0 to 1, takes up to half of it away, so that deliveries that failed together do not come together."""
    return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(failures - 1, 20)) * (1 - chance / 2)
