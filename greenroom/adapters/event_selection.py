"""Picking the events of a query out of stored batches, by cursor and by filter."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..domain.errors import ResyncRequired
from ..domain.event import EventType, mask_of
from ..domain.event_log import EventQuery
from .event_codec import Slab, event_bounds, split_events

EVERY_TYPE = (1 << 62) - 1
PRUNED_TYPES = mask_of({EventType.MESSAGE_STREAMED})
"""What pruning takes away; a query for other types misses nothing."""


class StoredBatch(NamedTuple):
    """One committed batch as the store keeps it."""

    first_seq: int
    last_seq: int
    recorded_at_us: int
    types: int
    payload: bytes
    kept: tuple[int, ...] | None = None
    """The seqs that are left, when some of the batch were pruned or lost."""

    @property
    def is_lost(self) -> bool:
        """Whether events of any type may be missing here, not only those that pruning takes."""
        return self.kept == () and self.types == EVERY_TYPE

    @property
    def seqs(self) -> Sequence[int]:
        """The seqs of the events in the payload."""
        return self.kept if self.kept is not None else range(self.first_seq, self.last_seq + 1)


_TYPE, _TIMESTAMP, _RUN_ID = 1, 2, 3  # positions in the packed event, as in NewEvent


class EventSelection:
    """The answer to one query, filled batch by batch in the order of seq until it is full.

    Where events that the query asks for were pruned or lost it ends before them; a query that begins there is answered
    with ResyncRequired, which names the lowest seq there is. Nothing is left out in silence; but where all that was
    asked for inside a window is gone, the answer is empty, as there is nothing in it to go on with.
    """

    def __init__(self, query: EventQuery, *, up_to: int | None = None) -> None:
        """`up_to` is the last seq that anybody was told of: what is committed and not told yet is left out."""
        self._query = query
        self._up_to = up_to
        self._mask = mask_of(query.types) if query.types is not None else EVERY_TYPE
        self._left = query.limit
        self._next_seq = query.after + 1
        self._minds_gaps = bool(self._mask & PRUNED_TYPES)
        self._missing = False
        self.slabs: list[Slab] = []

    @property
    def mask(self) -> int:
        """The types that it looks for, as bits."""
        return self._mask

    @property
    def is_full(self) -> bool:
        return self._left <= 0

    def add(self, batches: Iterable[StoredBatch]) -> None:
        """Take from these batches, which follow those of earlier calls."""
        for batch in batches:
            if self.is_full:
                return
            if batch.last_seq <= self._query.after:
                continue
            if self._up_to is not None and batch.first_seq > self._up_to:
                return
            if self._query.before is not None and batch.first_seq >= self._query.before:
                self._missing = False  # all that is left of the window is gone, and nothing after it was asked for
                return
            if self._query.types is not None:  # batches without those types may have been left out before this one
                self._next_seq = max(self._next_seq, batch.first_seq)
            if (self._minds_gaps or batch.is_lost or self._missing) and not self._is_whole(batch):
                self._take_up_to_gap(batch)
                continue
            self._next_seq = batch.last_seq + 1
            if batch.types & self._mask:
                self._take(batch)

    def finish(self) -> list[Slab]:
        """What was found. ResyncRequired if it begins with events that are gone."""
        if self._missing and not self.slabs:
            self._resync(self._next_seq)
        return self.slabs

    def _is_whole(self, batch: StoredBatch) -> bool:
        return batch.kept is None and batch.first_seq <= self._next_seq and not self._missing

    def _take_up_to_gap(self, batch: StoredBatch) -> None:
        """Events before the gap, if they were not taken yet; else find where it ends."""
        seqs = [seq for seq in batch.seqs if seq >= self._next_seq]
        if self._missing or (batch.first_seq > self._next_seq):
            self._end_at_gap(seqs[0] if seqs else None, batch.last_seq)
            return
        whole = 0
        while whole < len(seqs) and seqs[whole] == self._next_seq + whole:
            whole += 1
        if whole:
            skipped = len(batch.seqs) - len(seqs)
            bounds = event_bounds(batch.payload, skipped + whole)
            payload = batch.payload[bounds[skipped] : bounds[-1]]
            part = StoredBatch(seqs[0], seqs[whole - 1], batch.recorded_at_us, batch.types, payload)
            self._take(part)
            self._next_seq = seqs[whole - 1] + 1
        if self._next_seq <= batch.last_seq:
            self._end_at_gap(seqs[whole] if whole < len(seqs) else None, batch.last_seq)

    def _end_at_gap(self, lowest_after: int | None, last_seq: int) -> None:
        self._missing = True
        if self.slabs:
            self._left = 0
        elif lowest_after is not None:
            self._resync(lowest_after)
        else:
            self._next_seq = last_seq + 1

    def _resync(self, lowest_seq: int) -> None:
        before = self._query.before
        if before is not None and lowest_seq >= before:
            self._missing, self._left = False, 0
            return
        raise ResyncRequired(
            f"Events after seq {self._query.after} were pruned; the lowest one there is has seq {lowest_seq}. Go on"
            f" with after={lowest_seq - 1}, or ask for types without message_streamed.",
            details={"field": "after", "lowest_seq": lowest_seq},
        )

    def _take(self, batch: StoredBatch) -> None:
        slab = self._filtered(batch) if self._query.is_filtered or batch.kept is not None else self._window(batch)
        if slab.seqs:
            self.slabs.append(slab)
            self._left -= len(slab.seqs)

    def _window(self, batch: StoredBatch) -> Slab:
        first = max(batch.first_seq, self._query.after + 1)
        last = min(batch.last_seq, first + self._left - 1)
        if self._query.before is not None:
            last = min(last, self._query.before - 1)
        if last < first:
            return Slab((), batch.recorded_at_us, b"")
        if first == batch.first_seq and last == batch.last_seq:
            return Slab(range(first, last + 1), batch.recorded_at_us, batch.payload)
        bounds = event_bounds(batch.payload, last - batch.first_seq + 1)
        return Slab(
            range(first, last + 1), batch.recorded_at_us, batch.payload[bounds[first - batch.first_seq] : bounds[-1]]
        )

    def _filtered(self, batch: StoredBatch) -> Slab:
        query = self._query
        types = query.types and {event_type.value for event_type in query.types}
        before = query.before if query.before is not None else batch.last_seq + 1
        seqs: list[int] = []
        parts: list[bytes] = []
        for seq, (start, end, fields) in zip(batch.seqs, split_events(batch.payload), strict=True):
            if seq <= query.after:
                continue
            if seq >= before or len(seqs) >= self._left:
                break
            if (
                (query.run_id is None or fields[_RUN_ID] == query.run_id)
                and (types is None or fields[_TYPE] in types)
                and (query.since_us is None or fields[_TIMESTAMP] > query.since_us)
            ):
                seqs.append(seq)
                parts.append(batch.payload[start:end])
        return Slab(seqs, batch.recorded_at_us, b"".join(parts))
