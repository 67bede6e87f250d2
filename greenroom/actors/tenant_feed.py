"""One feed over all sessions of a tenant, across the shards of the store, with a cursor."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from ..adapters.event_codec import SpilledData, decode_slab, unpack_data
from ..adapters.event_selection import EVERY_TYPE
from ..domain.errors import NotFound, SessionMoved
from ..domain.event import Event, EventType, mask_of
from ..domain.feed_cursor import FeedCursor, ShardPlace
from .store_shards import StoreShards

if TYPE_CHECKING:
    from ..adapters.duckdb.commit_feed import FeedBatch, FeedPage

_POLL_S = 5.0
"""A poll that nobody waits for any more goes on in the store for so long at most."""

_RETRY_S = 0.2


class FeedItem(NamedTuple):
    """An event, and where to go on after it; without an event, how far has been read meanwhile."""

    cursor: FeedCursor
    event: Event | None


class TenantFeed:
    """Events of a shard come in the order of commits, and so those of each session in the order of seq; between shards
    there is no order. What was read ahead is one page a shard."""

    def __init__(self, stores: StoreShards, tenant: str, types: frozenset[EventType] | None) -> None:
        self._stores = stores
        self._tenant = tenant
        self._types = types
        self._mask = EVERY_TYPE if types is None else mask_of(types)

    async def now(self) -> FeedCursor:
        """Where it ends now."""
        return FeedCursor([ShardPlace(*end) for end in await self._stores.ask_all("end_of_feed")])

    async def checked(self, cursor: str) -> FeedCursor:
        """A cursor that it has given before. InvalidCursor, ResyncRequired."""
        parsed = FeedCursor.parse(cursor)
        parsed.check((await self.now()).places)
        return parsed

    async def follow(self, cursor: FeedCursor) -> AsyncGenerator[FeedItem]:
        """Everything past the cursor, each event once; then what comes. InvalidCursor, QueueFull.

        A store that restarts is waited for."""
        reading: dict[int, asyncio.Task[FeedPage]] = {}
        try:
            while True:
                for shard, place in enumerate(cursor.places):
                    if shard not in reading:
                        reading[shard] = asyncio.create_task(self._page(shard, place))
                done, _ = await asyncio.wait(reading.values(), return_when=asyncio.FIRST_COMPLETED)
                for shard in [shard for shard, task in reading.items() if task in done]:
                    page = reading.pop(shard).result()
                    for batch in page.batches:
                        async for item in self._items(cursor, shard, batch):
                            yield item
                        cursor = cursor.at(shard, batch.batch_id)
                    if page.read_to > cursor.places[shard].batch_id:
                        cursor = cursor.at(shard, page.read_to)
                yield FeedItem(cursor, None)
        finally:
            for task in reading.values():
                task.cancel()

    async def _page(self, shard: int, place: ShardPlace) -> "FeedPage":
        while True:
            with suppress(SessionMoved):  # the store starts anew
                return await self._stores.ask_shard(
                    shard, "read_feed", place.batch_id, self._tenant, self._mask, _POLL_S
                )
            await asyncio.sleep(_RETRY_S)

    async def _items(self, cursor: FeedCursor, shard: int, batch: "FeedBatch") -> AsyncGenerator[FeedItem]:
        place = cursor.places[shard]
        taken = place.events if batch.batch_id == place.batch_id + 1 else 0
        for event in decode_slab(batch.session_id, batch.slab):
            count = event.seq - batch.first_seq + 1
            if count <= taken or (self._types is not None and event.type not in self._types):
                continue
            whole = await self._whole(event)
            if whole is not None:
                yield FeedItem(cursor.at(shard, batch.batch_id - 1, count), whole)

    async def _whole(self, event: Event) -> Event | None:
        """The event with its data; None if its session was deleted meanwhile."""
        if not isinstance(event.data, SpilledData):
            return event
        try:
            content = await self._stores.ask(event.session_id, "artifact", event.data.reference)
        except NotFound:
            return None
        return replace(event, data=unpack_data(content))
