"""The event log as a session's process sees it: batches what arrives, sends it on a lane, sends again what got lost."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from ..domain.errors import GreenroomError, StorageConnectionFailed, StorageFull, WriterFenced
from ..domain.event import Event, NewEvent
from ..domain.event_log import CommitListener, Committed, EventQuery, Ownership, SessionRecords
from ..domain.run import Run
from .append_frames import AppendAnswer, AppendEntry, AppendStatus, decode_answers, encode_frame
from .event_codec import (
    BatchEncoder,
    EncodedBatch,
    OpenBatch,
    Slab,
    SpilledData,
    decode_slab,
    is_large,
    large_events,
    unpack_data,
    with_spilled_data,
)
from .logs import get_logger
from .store_options import DEFAULT_SPILL_BYTES

_log = get_logger(__name__)

MAX_FRAMES_IN_FLIGHT = 4
"""Frames sent and not yet answered. What arrives meanwhile rides in the next: more would only make batches smaller."""

MAX_PENDING_BYTES = 8 * 1024 * 1024
"""Bytes accepted and not yet committed before `room` makes a writer wait."""

_RECONNECT_MIN_S = 0.02
_RECONNECT_MAX_S = 1.0
_FULL_RETRY_S = 0.5


class Lane(Protocol):
    """A way to the store. Replies and breakage come back through the callbacks it was opened with."""

    def send(self, frame: bytes) -> None: ...

    def close(self) -> None: ...


class StoreAccess(Protocol):
    """What the client needs of the store, from whatever process."""

    async def open_lane(self, *, on_reply: Callable[[bytes], None], on_broken: Callable[[], None]) -> Lane: ...

    async def take_over(self, session_id: str, owner: str, *, must_exist: bool) -> Ownership: ...

    async def take_over_new(self, session_ids: Sequence[str], owner: str) -> list[Ownership | None]: ...

    async def read(self, session_id: str, query: EventQuery, *, wait_s: float = 0) -> list[Slab]: ...

    async def is_short_of_room(self) -> bool: ...

    async def put_artifact(self, session_id: str, content: bytes) -> str: ...

    async def artifact(self, session_id: str, reference: str) -> bytes: ...

    async def load(self, session_id: str) -> SessionRecords: ...

    async def find_run(self, run_id: str) -> Run | None: ...

    async def find_run_by_key(self, session_id: str, idempotency_key: str) -> str | None: ...


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A committed batch, decoded only for those who look at it."""

    session_id: str
    slab: Slab

    @property
    def first_seq(self) -> int:
        return self.slab.seqs[0]

    @property
    def last_seq(self) -> int:
        return self.slab.seqs[-1]

    @property
    def size(self) -> int:
        return len(self.slab.payload)

    def events(self) -> list[Event]:
        return decode_slab(self.session_id, self.slab)


@dataclass(slots=True)
class _Stream:
    """What one epoch of one session has to say."""

    session_id: str
    epoch: int
    on_commit: CommitListener
    batch_number: int = 0
    pending: OpenBatch = field(default_factory=OpenBatch)
    """What is to be sent next, as it is stored."""
    complete: OpenBatch | None = None
    """The same with all its data, for those who listen; None where that lies in it anyway."""
    waiters: list[tuple[int, "asyncio.Future[Committed]"]] = field(
        default_factory=list[tuple[int, "asyncio.Future[Committed]"]]
    )
    behind: "deque[tuple[EncodedBatch, asyncio.Future[Committed] | None]]" = field(
        default_factory=deque[tuple[EncodedBatch, "asyncio.Future[Committed] | None"]]
    )
    """Batches that wait until large data before them has gone to the artifact store."""
    lost: GreenroomError | None = None


@dataclass(frozen=True, slots=True)
class _Sent:
    """A batch under way, and who waits for it, by the offset of its first event."""

    stream: _Stream
    batch: EncodedBatch
    """With all its data."""
    waiters: "list[tuple[int, asyncio.Future[Committed]]]"


@dataclass(frozen=True, slots=True)
class _Frame:
    data: bytes
    sent: list[_Sent]
    size: int


class EventLogClient:
    """Implements the EventLog port over a store that may die and come back at any time.

    Every frame stays here until it is answered; after a break it is sent again as it was, and the numbers in it let the
    store tell what it has already. One client serves all sessions of its process.
    """

    def __init__(self, store: StoreAccess, *, spill_bytes: int = DEFAULT_SPILL_BYTES) -> None:
        """Data of events larger than `spill_bytes` goes to the artifact store; it comes back with the events."""
        self._store = store
        self._spill_bytes = spill_bytes
        self._spilling: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._encoder = BatchEncoder()
        self._streams: dict[tuple[str, int], _Stream] = {}
        self._dirty: dict[tuple[str, int], _Stream] = {}
        self._in_flight: dict[int, _Frame] = {}
        self._early: dict[int, list[AppendAnswer]] = {}
        """Answers to frames that were sent after one that is not answered yet."""
        self._number = 0
        self._pending_bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self._lane: Lane | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._flush_scheduled = False
        self._is_short_of_room = False
        self._refused: asyncio.Future[None] = self._loop.create_future()
        """Done when the store had no room for what was sent."""

    async def acquire(
        self, session_id: str, owner: str, on_commit: CommitListener, *, must_exist: bool = False
    ) -> Ownership:
        ownership = await self._store.take_over(session_id, owner, must_exist=must_exist)
        self._streams[session_id, ownership.epoch] = _Stream(session_id, ownership.epoch, on_commit)
        return ownership

    async def acquire_new(self, listeners: Mapping[str, CommitListener], owner: str) -> list[Ownership | None]:
        found = await self._store.take_over_new(list(listeners), owner)
        for (session_id, on_commit), ownership in zip(listeners.items(), found, strict=True):
            if ownership is not None:
                self._streams[session_id, ownership.epoch] = _Stream(session_id, ownership.epoch, on_commit)
        return found

    def release(self, session_id: str, epoch: int) -> None:
        stream = self._streams.pop((session_id, epoch), None)
        if stream is not None:
            stream.lost = WriterFenced(details={"session_id": session_id, "epoch": epoch})
            if stream.pending.count or stream.behind:
                self._lose(stream, stream.lost)

    def append(self, session_id: str, epoch: int, events: Sequence[NewEvent]) -> "asyncio.Future[Committed]":
        committed: asyncio.Future[Committed] = self._loop.create_future()
        stream = self._streams.get((session_id, epoch))
        if stream is None or stream.lost is not None:
            lost = stream.lost if stream else None
            committed.set_exception(lost or WriterFenced(details={"session_id": session_id, "epoch": epoch}))
            return committed
        self._take(stream, events, committed)
        return committed

    def record(self, session_id: str, epoch: int, events: Sequence[NewEvent]) -> None:
        stream = self._streams.get((session_id, epoch))
        if stream is not None and stream.lost is None:
            self._take(stream, events, None)

    @property
    def has_room(self) -> bool:
        return self._room.is_set()

    async def room(self) -> None:
        await self._room.wait()

    async def require_room(self) -> None:
        if self._is_short_of_room:
            self._is_short_of_room = await self._store.is_short_of_room()
        if self._is_short_of_room:
            raise StorageFull

    async def acknowledged(self, session_id: str, committed: "asyncio.Future[Committed]") -> None:
        if self._refused.done():
            self._refused = self._loop.create_future()
        await asyncio.wait((committed, self._refused), return_when=asyncio.FIRST_COMPLETED)
        if not committed.done():
            raise StorageFull(
                "There is no room to keep this, so it is not acknowledged; it is kept when there is. Free disk space,"
                " and try again with the same idempotency key."
            )
        committed.result()

    async def read(self, session_id: str, query: EventQuery, *, wait_s: float = 0) -> list[Event]:
        slabs = await self._store.read(session_id, query, wait_s=wait_s)
        events = [event for slab in slabs for event in decode_slab(session_id, slab)]
        for index, event in enumerate(events):
            if isinstance(event.data, SpilledData):
                packed = await self._store.artifact(session_id, event.data.reference)
                events[index] = replace(event, data=unpack_data(packed))
        return events

    async def load(self, session_id: str) -> SessionRecords:
        return await self._store.load(session_id)

    async def find_run(self, run_id: str) -> Run | None:
        return await self._store.find_run(run_id)

    async def find_run_by_key(self, session_id: str, idempotency_key: str) -> str | None:
        return await self._store.find_run_by_key(session_id, idempotency_key)

    async def aclose(self) -> None:
        """Give up what is under way."""
        for task in self._spilling:
            task.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._connecting
        if self._lane is not None:
            self._lane.close()

    def _take(self, stream: _Stream, events: Sequence[NewEvent], committed: "asyncio.Future[Committed] | None") -> None:
        packed = self._encoder.packed(events)
        size = sum([len(one) for _, one in packed])
        self._pending_bytes += size
        if self._pending_bytes > MAX_PENDING_BYTES:
            self._room.clear()
        if not stream.behind and (size <= self._spill_bytes or not is_large(packed, self._spill_bytes)):
            offset = stream.pending.count
            stream.pending.add(packed)
            if stream.complete is not None:
                stream.complete.add(packed)
            self._enqueued(stream, offset, committed)
            return
        batch = OpenBatch()
        batch.add(packed)
        stream.behind.append((batch.encoded(), committed))
        if len(stream.behind) == 1:
            task = self._loop.create_task(self._spill(stream), name="greenroom-spill")
            self._spilling.add(task)
            task.add_done_callback(self._spilling.discard)

    async def _spill(self, stream: _Stream) -> None:
        """Large data first, then the batches that refer to it, in their order."""
        while stream.behind and stream.lost is None:
            batch, committed = stream.behind[0]
            stored = await self._spilled(stream.session_id, batch)
            if stream.lost is None:
                stream.behind.popleft()
                offset = stream.pending.count
                stream.complete = stream.complete or stream.pending.copy()
                stream.complete.extend(batch)
                stream.pending.extend(stored)
                self._enqueued(stream, offset, committed)

    async def _spilled(self, session_id: str, batch: EncodedBatch) -> EncodedBatch:
        references: dict[int, str] = {}
        for index, packed in large_events(batch, self._spill_bytes).items():
            while index not in references:
                try:
                    references[index] = await self._store.put_artifact(session_id, packed)
                except GreenroomError:  # no room, or no store: what runs is held, as appends are
                    _log.exception("artifact_not_kept", session_id=session_id)
                    await asyncio.sleep(_FULL_RETRY_S)
        return with_spilled_data(batch, references) if references else batch

    def _enqueued(self, stream: _Stream, offset: int, committed: "asyncio.Future[Committed] | None") -> None:
        """What is pending from this event on waits to be sent."""
        if committed is not None:
            stream.waiters.append((offset, committed))
        self._dirty[stream.session_id, stream.epoch] = stream
        if not self._flush_scheduled:
            # At the end of this turn of the loop: what else happens in it rides in the same frame.
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self._lane is None:
            self._reconnect()
            return
        if not self._dirty or len(self._in_flight) >= MAX_FRAMES_IN_FLIGHT:
            return
        self._number += 1
        streams, self._dirty = self._dirty, {}
        entries: list[AppendEntry] = []
        sent: list[_Sent] = []
        for stream in streams.values():
            batch = stream.pending.encoded()
            stream.batch_number += 1
            entries.append(AppendEntry(stream.session_id, stream.epoch, stream.batch_number, batch))
            complete = batch if stream.complete is None else stream.complete.encoded()
            sent.append(_Sent(stream, complete, stream.waiters))
            stream.pending, stream.complete, stream.waiters = OpenBatch(), None, []
        frame = _Frame(encode_frame(self._number, entries), sent, sum(len(item.batch.payload) for item in sent))
        self._in_flight[self._number] = frame
        self._lane.send(frame.data)

    def _replied(self, reply: bytes) -> None:
        number, answers, self._is_short_of_room = decode_answers(reply)
        if number not in self._in_flight:  # answered before the lane broke, and again after
            return
        if any(answer.status is AppendStatus.STORAGE_FULL for answer in answers):
            self._hold()
            return
        if any(answer.status is AppendStatus.OUT_OF_ORDER for answer in answers):
            self._broken()  # an earlier frame got lost on the way: all go again, in order
            return
        self._early[number] = answers
        while self._in_flight and (oldest := next(iter(self._in_flight))) in self._early:
            frame = self._in_flight.pop(oldest)
            self._give_back(frame.size)
            for item, answer in zip(frame.sent, self._early.pop(oldest), strict=True):
                self._answered(item, answer)
        self._flush()

    def _answered(self, item: _Sent, answer: AppendAnswer) -> None:
        stream = item.stream
        if answer.status is AppendStatus.FENCED:
            error = WriterFenced(
                details={"session_id": stream.session_id, "epoch": stream.epoch, "newer_epoch": answer.first}
            )
            _fail(item.waiters, error)
            self._lose(stream, error)
            return
        first_seq, recorded_at_us = answer.first, answer.second
        seqs = range(first_seq, first_seq + item.batch.event_count)
        stream.on_commit(PackedBatch(stream.session_id, Slab(seqs, recorded_at_us, item.batch.payload)))
        for offset, committed in item.waiters:
            if not committed.done():
                committed.set_result(Committed(first_seq + offset, recorded_at_us))

    def _lose(self, stream: _Stream, error: GreenroomError) -> None:
        stream.lost = error
        self._dirty.pop((stream.session_id, stream.epoch), None)
        behind = sum(len(batch.payload) for batch, _ in stream.behind)
        self._give_back((stream.complete or stream.pending).size + behind)
        _fail(stream.waiters, error)
        _fail([(0, committed) for _, committed in stream.behind if committed is not None], error)
        stream.pending, stream.complete, stream.waiters = OpenBatch(), None, []
        stream.behind.clear()

    def _give_back(self, size: int) -> None:
        self._pending_bytes -= size
        if self._pending_bytes <= MAX_PENDING_BYTES:
            self._room.set()

    def _hold(self) -> None:
        """There is no room: everything that is under way stays here, and goes again after a while."""
        if not self._refused.done():
            self._refused.set_result(None)
        self._broken(after_s=_FULL_RETRY_S)

    def _broken(self, *, after_s: float = 0) -> None:
        if self._lane is not None:
            self._lane.close()
            self._lane = None
        self._reconnect(after_s=after_s)

    def _reconnect(self, *, after_s: float = 0) -> None:
        if self._connecting is None or self._connecting.done():
            self._connecting = self._loop.create_task(self._connect(after_s), name="greenroom-log-connect")

    async def _connect(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        delay_s = _RECONNECT_MIN_S
        while True:
            try:
                lane = await self._store.open_lane(on_reply=self._replied, on_broken=self._broken)
                break
            except StorageConnectionFailed:
                await asyncio.sleep(delay_s)
            except GreenroomError:
                _log.exception("event_store_unreachable")
                await asyncio.sleep(_RECONNECT_MAX_S)
            delay_s = min(delay_s * 2, _RECONNECT_MAX_S)
        self._lane = lane
        for _, frame in sorted(self._in_flight.items()):
            lane.send(frame.data)
        self._flush()


def _fail(waiters: "list[tuple[int, asyncio.Future[Committed]]]", error: GreenroomError) -> None:
    for _, committed in waiters:
        if not committed.done():
            committed.set_exception(error)
