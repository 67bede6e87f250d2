"""What a store has committed, over all sessions, in the order of commits: what the feeds of tenants read.

The numbers of batches are the places in it. The newest batches are read from memory, older ones from the log files and
from sealed parts. What came from elsewhere, as parts, is not in it: nothing of it happened here.
"""

import asyncio
import heapq
import itertools
from bisect import bisect_right
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from ...domain.errors import InvalidCursor, QueueFull
from ...domain.event import EventType
from ...domain.session import TENANT, Session
from ..event_codec import Slab, split_events
from ..event_selection import StoredBatch
from .log_sources import LogSources
from .manifest import Manifest
from .part_file import PartFile

PAGE_BATCHES = 1_024
PAGE_BYTES = 4 * 1024 * 1024
"""A page ends when it has that many batches or bytes."""

TAIL_BATCHES = 20_000
TAIL_BYTES = 32 * 1024 * 1024
"""Of the newest batches, which are kept in memory; the store's memory of recent batches shares most of them."""

MAX_KNOWN_TENANTS = 200_000
MAX_FOLLOWERS = 2_000
"""Readers of one tenant that may wait at once; one more is refused with queue_full."""

_TYPE, _DATA = 1, 6  # positions in the packed event, as in NewEvent
_TENANT_MARK = TENANT.encode()


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


class FeedEnd(NamedTuple):
    """Which store this is, and the number of the newest batch."""

    identity: str
    batch_id: int


class _Placed(NamedTuple):
    batch_id: int
    session_id: str
    batch: StoredBatch


class CommitFeed:
    """Belongs to one open store, and to its loop. Only what was told is in it.

    It reads files in a thread of its own: whoever catches up holds up nobody else.
    """

    def __init__(
        self,
        told: int,
        *,
        sources: Callable[[], LogSources],
        manifest: Callable[[], Manifest],
        find_sessions: Callable[[list[str]], Awaitable[list[Session]]],
    ) -> None:
        """`told` is the number of the newest batch; the others are how it looks into the files."""
        self._told = told
        self._sources = sources
        self._manifest = manifest
        self._find_sessions = find_sessions
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="greenroom-feed")
        self._tail: deque[_Placed] = deque()
        self._tail_bytes = 0
        self._tenants: OrderedDict[str, str | None] = OrderedDict()
        self._bells: dict[str, asyncio.Future[None]] = {}
        self._followers: Counter[str] = Counter()

    def close(self) -> None:
        self._reader.shutdown()

    @property
    def end(self) -> FeedEnd:
        """Where it ends now."""
        return FeedEnd(self._manifest().identity, self._told)

    def add(self, batch_id: int, session_id: str, batch: StoredBatch) -> None:
        """A batch was committed and recorded, after all those before it. Whoever waits for it is woken."""
        if batch_id != self._told + 1:  # between them is what came from elsewhere, or nothing
            self._tail.clear()
            self._tail_bytes = 0
        self._told = batch_id
        self._tail.append(_Placed(batch_id, session_id, batch))
        self._tail_bytes += len(batch.payload)
        while self._tail_bytes > TAIL_BYTES or len(self._tail) > TAIL_BATCHES:
            self._tail_bytes -= len(self._tail.popleft().batch.payload)
        if batch.first_seq == 1:
            self._keep(session_id, _tenant_in(batch.payload))
        if self._bells:
            self._ring(session_id)

    def _ring(self, session_id: str) -> None:
        """Wake those who wait for the session's tenant; all, where it is not known."""
        known = session_id in self._tenants
        tenant = self._tenants.get(session_id)
        for name in [tenant] if known else list(self._bells):
            bell = self._bells.pop(name, None) if name is not None else None
            if bell is not None:
                bell.set_result(None)

    def forget(self, session_id: str) -> None:
        """The session was deleted."""
        self._tail = deque(placed for placed in self._tail if placed.session_id != session_id)
        self._tail_bytes = sum(len(placed.batch.payload) for placed in self._tail)
        self._tenants.pop(session_id, None)

    async def read(self, after: int, *, tenant: str, types: int, wait_s: float) -> FeedPage:
        """Batches past `after` of the tenant with events of these types (a mask), whole. Where it ends with nothing
        found it waits up to `wait_s` for something. InvalidCursor if nothing was ever committed there, QueueFull."""
        if after > self._told:
            raise InvalidCursor(
                f"The feed ends at {self._told}, and the cursor is {after}.", details={"field": "after"}
            )
        page = await self._page(after, tenant, types)
        if page.batches or page.read_to > after or wait_s <= 0:
            return page
        await self._wait(tenant, page.read_to, wait_s)
        return await self._page(after, tenant, types)

    async def _page(self, after: int, tenant: str, types: int) -> FeedPage:
        told = self._told  # what is committed while the files are read comes with the next page
        if self._tail and self._tail[0].batch_id <= after + 1:
            start = bisect_right(self._tail, after, key=lambda placed: placed.batch_id)
            looked_at = list(itertools.islice(self._tail, start, start + PAGE_BATCHES))
            read_to = looked_at[-1].batch_id if looked_at else told
        elif after == told:
            looked_at, read_to = [], told
        else:
            reading = asyncio.get_running_loop().run_in_executor
            looked_at, read_to = await reading(
                self._reader, _from_files, self._sources(), self._manifest(), after, told
            )
        tenants = await self._tenants_of(looked_at)
        found: list[FeedBatch] = []
        size = 0
        for batch_id, session_id, batch in looked_at:
            if batch.types & types and tenants.get(session_id) == tenant:
                slab = Slab(batch.seqs, batch.recorded_at_us, batch.payload)
                found.append(FeedBatch(batch_id, session_id, batch.first_seq, slab))
                size += len(batch.payload)
                if size >= PAGE_BYTES:
                    read_to = batch_id
                    break
        return FeedPage(found, read_to)

    async def _tenants_of(self, placed: Sequence[_Placed]) -> Mapping[str, str | None]:
        """Whose the sessions of a page are. A session's first event says so; of older ones the record does."""
        found: dict[str, str | None] = {}
        for _, session_id, batch in placed:
            if session_id and batch.first_seq == 1 and 1 in batch.seqs:
                found[session_id] = _tenant_in(batch.payload)
            elif session_id in self._tenants:
                self._tenants.move_to_end(session_id)
                found[session_id] = self._tenants[session_id]
        unknown = {session_id for _, session_id, _ in placed if session_id} - found.keys()
        if unknown:
            for session in await self._find_sessions(sorted(unknown)):
                self._keep(session.id, session.tenant)
                found[session.id] = session.tenant
        return found

    def _keep(self, session_id: str, tenant: str | None) -> None:
        self._tenants[session_id] = tenant
        self._tenants.move_to_end(session_id)
        if len(self._tenants) > MAX_KNOWN_TENANTS:
            self._tenants.popitem(last=False)

    async def _wait(self, tenant: str, seen: int, timeout_s: float) -> None:
        if self._followers[tenant] >= MAX_FOLLOWERS:
            raise QueueFull(
                f"{self._followers[tenant]} readers of this feed wait already; try again.",
                details={"waiting": self._followers[tenant]},
            )
        if self._told > seen:
            return
        bell = self._bells.get(tenant)
        if bell is None:
            bell = self._bells[tenant] = asyncio.get_running_loop().create_future()
        self._followers[tenant] += 1
        try:
            await asyncio.wait([bell], timeout=timeout_s)
        finally:
            self._followers[tenant] -= 1
            if not self._followers[tenant]:
                del self._followers[tenant]
                if self._bells.get(tenant) is bell:
                    del self._bells[tenant]


def _from_files(sources: LogSources, manifest: Manifest, after: int, told: int) -> tuple[list[_Placed], int]:
    """What the files have past `after`, in the order of commits, and up to where that is all."""
    logged = [
        _Placed(batch.batch_id, session_id or "", batch.readable())
        for session_id, batch in sources.batches_from(after + 1, PAGE_BATCHES)
    ]
    runs = [logged, *(_from_part(part, manifest, after) for part in sources.parts if part.batch_numbers[1] > after)]
    # A file that gave a whole page may have more past its last one, which others must not be read beyond.
    read_to = min([told, *(run[-1].batch_id for run in runs if len(run) >= PAGE_BATCHES)])
    merged = heapq.merge(*runs, key=lambda placed: placed.batch_id)
    found = [placed for placed in merged if placed.batch_id <= read_to and not _is_foreign(placed, manifest)]
    return found, read_to


def _from_part(part: PartFile, manifest: Manifest, after: int) -> list[_Placed]:
    batches = part.batches_from(after + 1, PAGE_BATCHES)
    names = {grant.session_key: grant.session_id for grant in part.grants_of({key for key, _ in batches})}
    deleted = frozenset(manifest.deleted)
    return [_Placed(batch.batch_id, "" if key in deleted else names[key], batch.readable()) for key, batch in batches]


def _is_foreign(placed: _Placed, manifest: Manifest) -> bool:
    return any(first <= placed.batch_id <= last for first, last in manifest.foreign)


def _tenant_in(payload: bytes) -> str | None:
    """As the session's first event says it."""
    if _TENANT_MARK not in payload:  # most say nothing of the kind: the others take ten times as long
        return None
    _, _, fields = next(split_events(payload))
    return fields[_DATA]["metadata"].get(TENANT) if fields[_TYPE] == EventType.SESSION_CREATED else None
