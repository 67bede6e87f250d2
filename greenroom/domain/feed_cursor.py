"""A place in the feed of all that is committed: for each shard of the store a batch, and how much of the next one."""

import re
from collections.abc import Sequence
from typing import NamedTuple, Self

from .errors import InvalidCursor, ResyncRequired
from .sharding import MAX_SHARDS

_BETWEEN_SHARDS = "-"
_TEXT = re.compile(rf"\d{{1,18}}\.\d{{1,18}}({_BETWEEN_SHARDS}\d{{1,18}}\.\d{{1,18}}){{0,{MAX_SHARDS - 1}}}", re.ASCII)


class ShardPlace(NamedTuple):
    """Everything up to the batch was read, and so many events of the one that was committed after it."""

    batch_id: int
    events: int = 0


class FeedCursor:
    """Opaque to whoever keeps it. Good for as long as the store has as many shards."""

    def __init__(self, places: Sequence[ShardPlace]) -> None:
        self.places = tuple(places)

    def at(self, shard: int, place: ShardPlace) -> Self:
        """The cursor with another place in one of the shards."""
        return type(self)((*self.places[:shard], place, *self.places[shard + 1 :]))

    def __str__(self) -> str:
        return _BETWEEN_SHARDS.join(f"{place.batch_id}.{place.events}" for place in self.places)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FeedCursor) and self.places == other.places

    def __hash__(self) -> int:
        return hash(self.places)

    @classmethod
    def parse(cls, text: str, shards: int) -> Self:
        """The inverse of `str`. InvalidCursor if it is none; ResyncRequired when the store had another number of shards
        then: its sessions have moved since."""
        if not _TEXT.fullmatch(text):
            raise InvalidCursor("This is no cursor of the feed; give one that it has sent.", details={"field": "after"})
        places = [ShardPlace(*map(int, place.split("."))) for place in text.split(_BETWEEN_SHARDS)]
        if len(places) != shards:
            raise ResyncRequired(
                "The store has been divided anew since; read the sessions, and follow the feed without a cursor.",
                details={"field": "after"},
            )
        return cls(places)
