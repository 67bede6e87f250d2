"""Picking the events of a query out of stored batches, by cursor and by filter."""

from collections.abc import Iterable
from typing import NamedTuple

from ..domain.event import mask_of
from ..domain.event_log import EventQuery
from .event_codec import Slab, event_bounds, split_events


class StoredBatch(NamedTuple):
    """One committed batch as the store keeps it."""

    first_seq: int
    last_seq: int
    recorded_at_us: int
    types: int
    payload: bytes


EVERY_TYPE = (1 << 62) - 1

_TYPE, _TIMESTAMP, _RUN_ID = 1, 2, 3  # positions in the packed event, as in NewEvent


class EventSelection:
    """The answer to one query, filled batch by batch in the order of seq until it is full."""

    def __init__(self, query: EventQuery) -> None:
        self._query = query
        self._mask = mask_of(query.types) if query.types is not None else EVERY_TYPE
        self._left = query.limit
        self.slabs: list[Slab] = []

    @property
    def is_full(self) -> bool:
        return self._left <= 0

    def add(self, batches: Iterable[StoredBatch]) -> None:
        """Take from these batches, which follow those of earlier calls."""
        for batch in batches:
            if self.is_full:
                return
            if batch.last_seq <= self._query.after or not batch.types & self._mask:
                continue
            if self._query.before is not None and batch.first_seq >= self._query.before:
                return
            slab = self._filtered(batch) if self._query.is_filtered else self._window(batch)
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
        for offset, (start, end, fields) in enumerate(split_events(batch.payload)):
            seq = batch.first_seq + offset
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
