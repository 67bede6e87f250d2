"""A place in the feed of all that is committed: for each shard of the store a batch, and how much of the next one."""

import re
from collections.abc import Sequence
from typing import NamedTuple, Self

from .errors import InvalidCursor, ResyncRequired
from .sharding import MAX_SHARDS

_BETWEEN_SHARDS = "-"
_PLACE = r"[0-9a-f]{8}\.\d{1,18}\.\d{1,18}"
_TEXT = re.compile(rf"{_PLACE}({_BETWEEN_SHARDS}{_PLACE}){{0,{MAX_SHARDS - 1}}}", re.ASCII)


class ShardPlace(NamedTuple):
    """Everything up to the batch was read, and so many events of the one that was committed after it."""

    identity: str
    """Of the store: the numbers of batches mean nothing in another one, be it a copy."""
    batch_id: int
    events: int = 0


class FeedCursor:
    """Opaque to whoever keeps it. Good for as long as the stores are those that it was made for."""

    def __init__(self, places: Sequence[ShardPlace]) -> None:
        self.places = tuple(places)

    def at(self, shard: int, batch_id: int, events: int = 0) -> Self:
        """The cursor with another place in one of the shards."""
        place = ShardPlace(self.places[shard].identity, batch_id, events)
        return type(self)((*self.places[:shard], place, *self.places[shard + 1 :]))

    def __str__(self) -> str:
        return _BETWEEN_SHARDS.join(f"{place.identity}.{place.batch_id}.{place.events}" for place in self.places)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FeedCursor) and self.places == other.places

    def __hash__(self) -> int:
        return hash(self.places)

    def check(self, ends: Sequence[ShardPlace]) -> None:
        """Compare it with where the stores end now. ResyncRequired when it was made for others, or for another number
        of them; InvalidCursor when it is past their end."""
        if [place.identity for place in self.places] != [end.identity for end in ends]:
            raise ResyncRequired(
                "The store was restored or divided anew since; read the sessions, and follow the feed from now on.",
                details={"field": "after"},
            )
        if any(place.batch_id > end.batch_id for place, end in zip(self.places, ends, strict=True)):
            raise InvalidCursor("The cursor is past the end of the feed.", details={"field": "after"})

    @classmethod
    def parse(cls, text: str) -> Self:
        """The inverse of `str`. InvalidCursor if it is none."""
        if not _TEXT.fullmatch(text):
            raise InvalidCursor("This is no cursor of the feed; give one that it has sent.", details={"field": "after"})
        return cls([_place(*place.split(".")) for place in text.split(_BETWEEN_SHARDS)])


def _place(identity: str, batch_id: str, events: str) -> ShardPlace:
    return ShardPlace(identity, int(batch_id), int(events))
