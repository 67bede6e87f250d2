"""Events as msgpack: what is stored, and what travels between processes.

A batch is the plain concatenation of its events, so that batches are joined and cut without decoding. The seq and the
time of the commit are not in it: the store adds them from outside, and never has to look inside.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgpack

from ..domain.errors import InvalidFormat, ValidationError
from ..domain.event import (
    RECORD_TYPES,
    SCHEMA_VERSION,
    TYPE_BITS,
    Event,
    EventType,
    NewEvent,
    from_microseconds,
)
from ..domain.json_values import check_json_safe

_TYPES: dict[str, EventType] = {event_type.value: event_type for event_type in EventType}
_FIELDS = len(NewEvent._fields)


class EncodedBatch(NamedTuple):
    """A batch on its way to the store."""

    event_count: int
    types: int
    """Union of the bits of its events' types."""
    records: tuple[int, ...]
    """Of each event that changes a record its index in the batch, and its start and end in bytes, one after another."""
    payload: bytes


class Slab(NamedTuple):
    """Stored events on their way to a reader: the seqs, in order, and exactly as many packed events."""

    seqs: Sequence[int]
    recorded_at_us: int
    payload: bytes


def batched(values: Sequence[int], size: int) -> Iterator[tuple[int, ...]]:
    """The values in tuples of that size (itertools.batched, which Python 3.11 has not)."""
    return zip(*[iter(values)] * size, strict=True)


class OpenBatch:
    """A batch that events are added to."""

    __slots__ = ("_parts", "_records", "_types", "count", "size")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._records: list[int] = []
        self._types = 0
        self.count = 0
        """Events."""
        self.size = 0
        """Bytes."""

    def add(self, events: Iterable[tuple[EventType, bytes]]) -> None:
        """Add packed events of these types."""
        for event_type, packed in events:
            end = self.size + len(packed)
            self._types |= TYPE_BITS[event_type]
            if event_type in RECORD_TYPES:
                self._records += (self.count, self.size, end)
            self._parts.append(packed)
            self.count += 1
            self.size = end

    def extend(self, batch: EncodedBatch) -> None:
        """Add all events of another one."""
        for index, start, end in batched(batch.records, 3):
            self._records += (index + self.count, start + self.size, end + self.size)
        self._types |= batch.types
        self._parts.append(batch.payload)
        self.count += batch.event_count
        self.size += len(batch.payload)

    def copy(self) -> "OpenBatch":
        """One that goes on by itself."""
        other = OpenBatch()
        if self.count:
            other.extend(self.encoded())
        return other

    def encoded(self) -> EncodedBatch:
        """What is in it by now."""
        return EncodedBatch(self.count, self._types, tuple(self._records), b"".join(self._parts))


class BatchEncoder:
    """Packs events. Not for use by two threads at once."""

    def __init__(self) -> None:
        self._packer = msgpack.Packer()

    def encode(self, events: Iterable[NewEvent]) -> EncodedBatch:
        """The batch; ValidationError if an event holds something that JSON does not know."""
        batch = OpenBatch()
        batch.add(self.packed(events))
        return batch.encoded()

    def packed(self, events: Iterable[NewEvent]) -> list[tuple[EventType, bytes]]:
        """Type and bytes of each event; ValidationError if one holds something that JSON does not know."""
        return [(event.type, self._pack(event)) for event in events]

    def _pack(self, event: NewEvent) -> bytes:
        try:
            if event.type not in RECORD_TYPES:  # those the session makes itself, of parts that it has checked
                check_json_safe(event.data)  # msgpack takes bytes and NaN, and keys that it cannot read back
                if event.metadata:
                    check_json_safe(event.metadata)
            return self._packer.pack(event)
        except (TypeError, ValueError, OverflowError) as exc:
            self._packer.reset()
            raise ValidationError(
                f"The data of {event.type} cannot be stored ({exc}); use JSON-safe values.",
                details={"field": "data", "event_type": event.type.value},
            ) from exc


def is_large(events: Iterable[tuple[EventType, bytes]], limit: int) -> bool:
    """Whether one of the packed events is larger than that and changes no record."""
    return any(len(packed) > limit and event_type not in RECORD_TYPES for event_type, packed in events)


class SpilledData(NamedTuple):
    """Stands for the data of an event that lies in the artifact store."""

    reference: str


_SPILLED = 1  # the code of the msgpack extension
_REFERENCE_MARK = b"\x01sha256:"
_DATA = NewEvent._fields.index("data")


def large_events(batch: EncodedBatch, limit: int) -> dict[int, bytes]:
    """The packed data of the events that are larger than that and change no record, by their place in the batch."""
    recorded = set(batch.records[::3])
    return {
        index: msgpack.packb(fields[_DATA])
        for index, (start, end, fields) in enumerate(split_events(batch.payload))
        if end - start > limit and index not in recorded
    }


def with_spilled_data(batch: EncodedBatch, references: Mapping[int, str]) -> EncodedBatch:
    """The batch with references in the place of the data of these events."""
    parts: list[bytes] = []
    records: list[int] = []
    recorded = set(batch.records[::3])
    offset = 0
    for index, (start, end, fields) in enumerate(split_events(batch.payload)):
        packed = batch.payload[start:end]
        if index in references:
            fields[_DATA] = msgpack.ExtType(_SPILLED, references[index].encode())
            packed = msgpack.packb(fields)
        if index in recorded:
            records += (index, offset, offset + len(packed))
        parts.append(packed)
        offset += len(packed)
    return EncodedBatch(batch.event_count, batch.types, tuple(records), b"".join(parts))


def with_resolved_data(payload: bytes, content: Callable[[str], bytes]) -> bytes:
    """Packed events with their own data again, where references stand for it; the same bytes when there are none."""
    if _REFERENCE_MARK not in payload:
        return payload
    unpacker = msgpack.Unpacker(strict_map_key=False, max_buffer_size=0, ext_hook=_extension)
    unpacker.feed(payload)
    parts: list[bytes] = []
    for fields in unpacker:
        if isinstance(fields[_DATA], SpilledData):
            fields[_DATA] = unpack_data(content(fields[_DATA].reference))
        parts.append(msgpack.packb(fields))
    return b"".join(parts)


def unpack_data(packed: bytes) -> dict[str, Any]:
    """Data as `large_events` packed it."""
    return msgpack.unpackb(packed, strict_map_key=False)


def _extension(code: int, data: bytes) -> Any:
    return SpilledData(data.decode()) if code == _SPILLED else msgpack.ExtType(code, data)


def record_events(
    session_id: str, seqs: Sequence[int], recorded_at_us: int, records: Sequence[int], payload: bytes
) -> Iterator[Event]:
    """The events of a batch that change a record; the others are not looked at. `seqs` are those of all of them."""
    view = memoryview(payload)
    for index, start, end in batched(records, 3):
        fields = msgpack.unpackb(view[start:end], strict_map_key=False)
        yield _event(session_id, seqs[index], from_microseconds(recorded_at_us), fields)


def decode_slab(session_id: str, slab: Slab) -> list[Event]:
    """The events; SpilledData in the place of data that lies elsewhere. InvalidFormat if a newer version wrote them, or
    if they are no events."""
    unpacker = msgpack.Unpacker(strict_map_key=False, max_buffer_size=0, ext_hook=_extension)
    unpacker.feed(slab.payload)
    recorded_at = from_microseconds(slab.recorded_at_us)
    return [_event(session_id, seq, recorded_at, fields) for seq, fields in zip(slab.seqs, unpacker, strict=True)]


def _event(session_id: str, seq: int, recorded_at: Any, fields: list[Any]) -> Event:
    if fields[-1] > SCHEMA_VERSION or len(fields) != _FIELDS:
        raise InvalidFormat(
            f"Event {seq} of {session_id} has schema_version {fields[-1]}; this version of Greenroom reads up to"
            f" {SCHEMA_VERSION}. Use the version that wrote it, or a newer one.",
            details={"field": "schema_version", "schema_version": fields[-1]},
        )
    id_, type_, timestamp_us, run_id, attempt, provider, data, metadata, schema_version = fields
    return Event(
        seq=seq,
        id=id_,
        session_id=session_id,
        run_id=run_id,
        attempt=attempt,
        type=_TYPES[type_],
        timestamp=from_microseconds(timestamp_us),
        recorded_at=recorded_at,
        provider=provider,
        data=data,
        metadata=metadata,
        schema_version=schema_version,
    )


def split_events(payload: bytes) -> Iterator[tuple[int, int, list[Any]]]:
    """Start, end and raw fields of each packed event, for those who pick some of them."""
    unpacker = msgpack.Unpacker(strict_map_key=False, max_buffer_size=0)
    unpacker.feed(payload)
    start = 0
    for fields in unpacker:
        end = unpacker.tell()
        yield start, end, fields
        start = end


def event_bounds(payload: bytes, count: int) -> list[int]:
    """Where the first `count` events begin, and where the last of them ends; nothing is decoded."""
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    unpacker.feed(payload)
    bounds = [0]
    for _ in range(count):
        unpacker.skip()
        bounds.append(unpacker.tell())
    return bounds
