"""A stored batch: its row as it lies in the log, and as readers get it.

What is stored is the number of the batch in this store, eight bytes, then the row: a packed header and the packed
events. The hash chain covers the row alone, so that a session keeps its chain when it moves to another store.
"""

from typing import NamedTuple

import msgpack

from ..event_codec import EncodedBatch

STAMP_BYTES = 8


class RowHeader(NamedTuple):
    """What a stored batch says of itself, in front of its events."""

    epoch: int
    batch_number: int
    first_seq: int
    event_count: int
    recorded_at_us: int
    types: int
    records: tuple[int, ...]

    @property
    def last_seq(self) -> int:
        return self.first_seq + self.event_count - 1


def header_of(epoch: int, batch_number: int, first_seq: int, recorded_at_us: int, batch: EncodedBatch) -> RowHeader:
    """The header of a batch at the place that the head of its log gave it."""
    return RowHeader(epoch, batch_number, first_seq, batch.event_count, recorded_at_us, batch.types, batch.records)


def pack_row(header: RowHeader, payload: bytes) -> bytes:
    """The bytes that the hash chain covers."""
    return msgpack.packb(header) + payload


def stamped_row(batch_id: int, header: RowHeader, payload: bytes) -> bytes:
    """The bytes that are stored."""
    return batch_id.to_bytes(STAMP_BYTES, "big") + msgpack.packb(header) + payload


def batch_id_of(stored: bytes) -> int:
    """The number of a stored batch: 1, 2, 3 ... over all sessions of a store, in the order of commits."""
    return int.from_bytes(stored[:STAMP_BYTES], "big")


def row_of(stored: bytes) -> memoryview:
    """The row of a stored batch; no copy."""
    return memoryview(stored)[STAMP_BYTES:]


def unpack_row(row: bytes | memoryview) -> tuple[RowHeader, bytes]:
    """Header and packed events. ValueError, TypeError or StopIteration if it was changed."""
    unpacker = msgpack.Unpacker(use_list=False, strict_map_key=False)
    unpacker.feed(row)
    header = RowHeader(*next(iter(unpacker)))
    return header, bytes(row[unpacker.tell() :])
