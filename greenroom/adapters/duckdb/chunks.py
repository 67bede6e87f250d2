"""Chunks of a sealed part: some batches of one session, compressed; each intact, or with events pruned from it."""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import msgpack

from ...domain.event import EventType, NewEvent
from ...domain.hash_chain import chain_next
from ..event_codec import split_events
from ..event_selection import EVERY_TYPE, PRUNED_TYPES, StoredBatch
from .log_rows import RowHeader, batch_id_of, pack_row, row_of, unpack_row

_TYPE = NewEvent._fields.index("type")

CHUNK_EVENTS = 64
CHUNK_BYTES = 32 * 1024
"""A chunk ends when it has that many events or bytes: a page of 100 events takes two or three."""

COMPRESSION = 1
"""Of zlib: the fastest. Events of one session side by side shrink to a fifth (ids are random)."""


class SealedBatch(NamedTuple):
    """A batch as it lies in a file."""

    batch_id: int
    row: bytes
    """The row; of a pruned batch, the row of what is left."""
    digest: bytes | None = None
    """Of a pruned batch: the digest after it, which can no longer be computed."""
    kept: tuple[int, ...] | None = None
    """Of a pruned batch: the seqs that are left."""

    @classmethod
    def of(cls, stored: bytes) -> "SealedBatch":
        """A batch of a log file."""
        return cls(batch_id_of(stored), bytes(row_of(stored)))

    @property
    def is_lost(self) -> bool:
        """Whether it stands for events that repair could not recover."""
        return self.header.epoch == 0

    @property
    def seqs(self) -> Sequence[int]:
        """The seqs of the events that are there."""
        header = self.header
        return self.kept if self.kept is not None else range(header.first_seq, header.last_seq + 1)

    @property
    def header(self) -> RowHeader:
        return unpack_row(self.row)[0]

    def readable(self) -> StoredBatch:
        """As readers get it."""
        header, payload = unpack_row(self.row)
        return StoredBatch(header.first_seq, header.last_seq, header.recorded_at_us, header.types, payload, self.kept)

    def next_digest(self, previous: bytes) -> bytes:
        """The digest after it."""
        return chain_next(previous, self.row) if self.digest is None else self.digest


def lost_batch(batch_id: int, first_seq: int, last_seq: int, digest: bytes) -> SealedBatch:
    """Stands for events that were acknowledged and cannot be recovered: their seqs stay taken."""
    header = RowHeader(0, 0, first_seq, last_seq - first_seq + 1, 0, EVERY_TYPE, ())
    return SealedBatch(batch_id, pack_row(header, b""), digest, ())


def pack_chunk(session_key: int, batches: Sequence[SealedBatch]) -> bytes:
    """A chunk that says whose it is, and ends with a checksum: the chain does not cover the rest of a pruned batch."""
    entries = [batch[:2] if batch.digest is None else tuple(batch) for batch in batches]
    return zlib.compress(msgpack.packb((session_key, entries)), COMPRESSION)  # its Adler-32 is checked when unpacked


def unpack_chunk(chunk: bytes) -> tuple[int, list[SealedBatch]]:
    """The inverse of `pack_chunk`; ValueError, TypeError or zlib.error if it was changed."""
    return batches_in(zlib.decompress(chunk))


def batches_in(content: bytes) -> tuple[int, list[SealedBatch]]:
    """Session key and batches of a chunk that was decompressed."""
    session_key, entries = msgpack.unpackb(content, use_list=False)
    return session_key, [SealedBatch(*entry) for entry in entries]


def pruned(batch: SealedBatch, previous: bytes, keep: Sequence[bool]) -> SealedBatch:
    """The batch without the events that are not to be kept, in the order of those that it has."""
    header, payload = unpack_row(batch.row)
    left: list[int] = []
    parts: list[bytes] = []
    records: list[int] = []
    offset = 0
    positions = set(header.records[1::3])
    for seq, keeping, (start, end, _) in zip(batch.seqs, keep, split_events(payload), strict=True):
        if not keeping:
            continue
        if start in positions:
            records += (len(left), offset, offset + end - start)
        left.append(seq)
        parts.append(payload[start:end])
        offset += end - start
    streamed_is_left = any(
        keeping and fields[_TYPE] == EventType.MESSAGE_STREAMED
        for keeping, (_, _, fields) in zip(keep, split_events(payload), strict=True)
    )
    types = header.types if streamed_is_left else header.types & ~PRUNED_TYPES
    reduced = header._replace(records=tuple(records), types=types)
    row = pack_row(reduced, b"".join(parts))
    return SealedBatch(batch.batch_id, row, batch.next_digest(previous), tuple(left))
