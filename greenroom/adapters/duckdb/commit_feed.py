"""What a store has committed, over all sessions, in the order of commits: what the feeds of tenants read.

The numbers of batches are the places in it. The newest batches are read from memory, older ones from the log files,
and those that were sealed from the parts: a part lies by session, so that a page of it takes a walk through all of it.
"""

import asyncio
import heapq
import itertools
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

from ...domain.errors import InvalidCursor, QueueFull
from ...domain.event import EventType
from ...domain.session import TENANT, Session
from ..event_codec import Slab, split_events
from ..event_selection import StoredBatch
from .chunks import SealedBatch
from .log_sources import LogSources

PAGE_BATCHES = 256
PAGE_BYTES = 4 * 1024 * 1024
"""A page ends when it has that many batches or bytes."""

TAIL_BATCHES = 20_000
TAIL_BYTES = 32 * 1024 * 1024
"""Of the newest batches, which are kept in memory; the store's memory of recent batches shares most of them."""

MAX_KNOWN_TENANTS = 200_000
MAX_FOLLOWERS = 10_000
"""Readers that may wait at once; one more is refused with queue_full."""

_TYPE, _DATA = 1, 6  # positions in the packed event, as in NewEvent

ResultT = TypeVar("ResultT")


class FeedBatch(NamedTuple):
    """A committed batch: its place, and its events."""

    batch_id: int
    session_id: str
    first_seq: int
    """Of the batch as it was committed; pruned ones lack some events."""
    slab: Slab


class FeedPage(NamedTuple):
    """Batches of one tenant, in the order of commits, and the place up to which there are no others."""

    batches: list[FeedBatch]
    read_to: int


class _Placed(NamedTuple):
    batch_id: int
    session_id: str
    batch: StoredBatch


class CommitFeed:
    """Belongs to one open store, and to its loop. Only what was told is in it."""

    def __init__(
        self,
        told: int,
        *,
        sources: Callable[[], LogSources],
        deleted: Callable[[], Sequence[int]],
        find_sessions: Callable[[list[str]], Awaitable[list[Session]]],
        in_reader: Callable[..., Awaitable[list[_Placed]]],
    ) -> None:
        """`told` is the number of the newest batch; the others are how it looks into the files."""
        self.told = told
        self._sources = sources
        self._deleted = deleted
        self._find_sessions = find_sessions
        self._in_reader = in_reader
        self._tail: deque[_Placed] = deque()
        self._tail_bytes = 0
        self._tenants: OrderedDict[str, str | None] = OrderedDict()
        self._bell: asyncio.Future[None] | None = None
        self._followers = 0

    def add(self, batch_id: int, session_id: str, batch: StoredBatch) -> None:
        """A batch was committed and recorded, after all those before it."""
        if batch_id != self.told + 1:  # between them are sessions that came from elsewhere, as parts
            self._tail.clear()
            self._tail_bytes = 0
        self.told = batch_id
        self._tail.append(_Placed(batch_id, session_id, batch))
        self._tail_bytes += len(batch.payload)
        while self._tail_bytes > TAIL_BYTES or len(self._tail) > TAIL_BATCHES:
            self._tail_bytes -= len(self._tail.popleft().batch.payload)

    def ring(self) -> None:
        """Wake whoever waits."""
        if self._bell is not None:
            self._bell.set_result(None)
            self._bell = None

    def forget(self, session_id: str) -> None:
        """The session was deleted."""
        kept = [placed for placed in self._tail if placed.session_id != session_id]
        self._tail = deque(kept)
        self._tail_bytes = sum(len(placed.batch.payload) for placed in kept)

    async def read(self, after: int, *, tenant: str, types: int, wait_s: float) -> FeedPage:
        """Batches past `after` of the tenant with events of these types (a mask), whole; waits up to `wait_s` for the
        first one. InvalidCursor if nothing was ever committed there, QueueFull."""
        if after > self.told:
            raise InvalidCursor(f"The feed ends at {self.told}, and the cursor is {after}.", details={"field": "after"})
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        while True:
            page = await self._page(after, tenant, types)
            left_s = deadline - loop.time()
            if page.batches or left_s <= 0:
                return page
            after = page.read_to
            if after >= self.told:
                await self._wait(left_s)

    async def _page(self, after: int, tenant: str, types: int) -> FeedPage:
        if self._tail and self._tail[0].batch_id <= after + 1:
            start = bisect_right(self._tail, after, key=lambda placed: placed.batch_id)
            looked_at = list(itertools.islice(self._tail, start, start + PAGE_BATCHES))
        elif after == self.told:
            looked_at = []
        else:
            looked_at = await self._in_reader(self._from_files, self._sources(), after, self.told)
        await self._learn(looked_at)
        read_to = looked_at[-1].batch_id if looked_at else self.told
        found: list[FeedBatch] = []
        size = 0
        for batch_id, session_id, batch in looked_at:
            if batch.types & types and self._tenants.get(session_id) == tenant:
                slab = Slab(batch.seqs, batch.recorded_at_us, batch.payload)
                found.append(FeedBatch(batch_id, session_id, batch.first_seq, slab))
                size += len(batch.payload)
                if size >= PAGE_BYTES:
                    read_to = batch_id
                    break
        return FeedPage(found, read_to)

    def _from_files(self, sources: LogSources, after: int, told: int) -> list[_Placed]:
        sealed = heapq.nsmallest(PAGE_BATCHES, self._from_parts(sources, after), key=lambda placed: placed.batch_id)
        logged = [
            _Placed(batch.batch_id, session_id or "", batch.readable())
            for session_id, batch in sources.batches_from(after + 1, PAGE_BATCHES)
        ]
        found = list(heapq.merge(sealed, logged, key=lambda placed: placed.batch_id))[:PAGE_BATCHES]
        return [placed for placed in found if placed.batch_id <= told]

    def _from_parts(self, sources: LogSources, after: int) -> Iterable[_Placed]:
        deleted = frozenset(self._deleted())
        for part in sources.parts:
            if part.batch_numbers[1] <= after:
                continue
            names = {grant.session_key: grant.session_id for grant in part.grants()}
            for session_key, batch in part.all_batches():
                if batch.batch_id > after and not batch.is_lost and session_key not in deleted:
                    yield _placed(names[session_key], batch)

    async def _learn(self, placed: Sequence[_Placed]) -> None:
        """Whose the sessions are. A session's first event says so; of older ones the record does."""
        unknown: set[str] = set()
        for _, session_id, batch in placed:
            if session_id and session_id not in self._tenants:
                if batch.first_seq == 1 and 1 in batch.seqs:
                    self._keep(session_id, _tenant_in(batch.payload))
                else:
                    unknown.add(session_id)
        unknown.difference_update(self._tenants)
        if unknown:
            for session in await self._find_sessions(sorted(unknown)):
                self._keep(session.id, session.tenant)

    def _keep(self, session_id: str, tenant: str | None) -> None:
        self._tenants[session_id] = tenant
        if len(self._tenants) > MAX_KNOWN_TENANTS:
            self._tenants.popitem(last=False)

    async def _wait(self, timeout_s: float) -> None:
        if self._followers >= MAX_FOLLOWERS:
            raise QueueFull(f"{self._followers} feeds wait already; try again.", details={"waiting": self._followers})
        if self._bell is None:
            self._bell = asyncio.get_running_loop().create_future()
        self._followers += 1
        try:
            await asyncio.wait([self._bell], timeout=timeout_s)
        finally:
            self._followers -= 1


def _placed(session_id: str, batch: SealedBatch) -> _Placed:
    return _Placed(batch.batch_id, session_id, batch.readable())


def _tenant_in(payload: bytes) -> str | None:
    """As the session's first event says it."""
    _, _, fields = next(split_events(payload))
    return fields[_DATA]["metadata"].get(TENANT) if fields[_TYPE] == EventType.SESSION_CREATED else None
