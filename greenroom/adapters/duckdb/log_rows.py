"""A stored batch: its row as it lies in the log, and as readers get it."""

from typing import NamedTuple

import msgpack

from ..event_codec import EncodedBatch
from ..event_selection import StoredBatch


class RowHeader(NamedTuple):
    """What a stored batch says of itself, in front of its events."""

    batch_id: int
    """Its number in the store: 1, 2, 3 ... over all sessions, in the order of commits."""
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


def pack_row(header: RowHeader, payload: bytes) -> bytes:
    """The bytes that are stored, and that the hash chain covers."""
    return msgpack.packb(header) + payload


def header_of(
    batch_id: int, epoch: int, batch_number: int, first_seq: int, recorded_at_us: int, batch: EncodedBatch
) -> RowHeader:
    """The header of a batch at the place that the head of its log gave it."""
    return RowHeader(
        batch_id, epoch, batch_number, first_seq, batch.event_count, recorded_at_us, batch.types, batch.records
    )


def unpack_row(row: bytes) -> tuple[RowHeader, bytes]:
    """The inverse of `pack_row`."""
    unpacker = msgpack.Unpacker(use_list=False, strict_map_key=False)
    unpacker.feed(row)
    header = RowHeader(*next(iter(unpacker)))
    return header, row[unpacker.tell() :]


def stored_batch(row: bytes) -> StoredBatch:
    """The row as readers get it."""
    header, payload = unpack_row(row)
    return StoredBatch(header.first_seq, header.last_seq, header.recorded_at_us, header.types, payload)
