"""Appends through the store's actor beside DuckDB's own appender on the same table, rows and group size."""

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import ray

from greenroom import EventType, Runtime
from greenroom.adapters.clock import id_factory, now_us
from greenroom.adapters.event_codec import BatchEncoder, EncodedBatch
from greenroom.domain.event import NewEvent

from .measuring import Figure, seconds

WRITERS, BATCH = 8, 256
SLICES, BATCHES_PER_SLICE = 8, 25
"""Store and appender write in turns, so many batches from each writer at a time: a disk that slows down slows both.
(The build machine's gave the appender alone 2.2 million events/s, and 0.8 million after 100 MB.)"""
IN_FLIGHT = 4


def sample_batch() -> list[NewEvent]:
    """Token deltas as a run makes them."""
    ids = id_factory()
    run_id = ids.run_id()
    data = {"content": "a dozen tokens or so of text", "kind": "text"}
    return [
        NewEvent(ids.event_id(), EventType.MESSAGE_STREAMED, now_us(), run_id, 1, "scripted", data, {})
        for _ in range(BATCH)
    ]


class _Encoded:
    """An encoder that has done its work already."""

    largest = 0  # nothing in it is large enough for the artifact store

    def __init__(self, events: list[NewEvent]) -> None:
        self._batch = BatchEncoder().encode(events)

    def encode(self, events: list[NewEvent]) -> EncodedBatch:
        return self._batch


class Writer:
    """One writing process: a log client as a session server has it."""

    def __init__(self, store: Any) -> None:
        from greenroom.actors.store_access import RayStoreAccess
        from greenroom.adapters.event_log_client import EventLogClient

        self._log = EventLogClient(RayStoreAccess(store))
        self._batch = sample_batch()
        self._session_id = id_factory().session_id()
        self._epoch = 0

    async def prepare(self, encoded: bool) -> None:
        """Take a session; with `encoded`, encoding is left out of what is measured."""
        if encoded:
            self._log._encoder = _Encoded(self._batch)  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
        ownership = await self._log.acquire(self._session_id, "bench", lambda batch: None)
        self._epoch = ownership.epoch
        await self._log.append(self._session_id, self._epoch, self._batch)

    async def write(self, batches: int) -> set[int]:
        """Encode and append, a few batches under way at a time, each acknowledged.

        The appends are kept a turn of the loop apart, so that the client joins none of them: a row is one batch.
        """
        left = iter(range(batches))
        commits: set[int] = set()

        async def append_in_turn() -> None:
            for _ in left:
                committed = await self._log.append(self._session_id, self._epoch, self._batch)
                commits.add(committed.recorded_at_us)

        tasks: list[asyncio.Task[None]] = []
        for _ in range(IN_FLIGHT):
            tasks.append(asyncio.create_task(append_in_turn()))
            await asyncio.sleep(0.001)
        await asyncio.gather(*tasks)
        return commits


def through_the_store(runtime: Runtime, *, encoded: bool) -> Figure:
    """Events per second from eight processes, beside one process that does nothing but append and flush.

    `encoded`: both are given packed batches; else both begin with event records.
    """
    store = ray.get_actor("event-store", namespace=runtime.record().namespace)
    writers: list[Any] = [ray.remote(Writer).options(num_cpus=0).remote(store) for _ in range(WRITERS)]
    ray.get([writer.prepare.remote(encoded) for writer in writers])
    batches, commits, taken_s, raw_s = WRITERS * BATCHES_PER_SLICE, 0, 0.0, 0.0
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as folder:
        raw = _RawAppender(Path(folder) / "raw.duckdb", encoded=encoded)
        for _ in range(SLICES):
            start = time.perf_counter()
            seen: list[set[int]] = ray.get([writer.write.remote(BATCHES_PER_SLICE) for writer in writers])
            taken_s += time.perf_counter() - start
            groups = len(set[int]().union(*seen))
            raw_s += seconds(lambda groups=groups: raw.append(batches, groups=groups))
            commits += groups
        raw.close()
    for writer in writers:
        ray.kill(writer)
    return Figure(
        name=f"appends of {BATCH} from {WRITERS} writers, {'packed before' if encoded else 'from records'}",
        value=SLICES * batches * BATCH / taken_s,
        unit="events/s",
        limit_name="raw appender, same table and group",
        limit=SLICES * batches * BATCH / raw_s,
        bound=">= 0.6",
        note=f"{SLICES * batches / commits:.0f} batches a commit on average",
    )


class _RawAppender:
    """DuckDB's appender on a table of its own: a row a batch, and a flush for as many at a time as the store had."""

    def __init__(self, path: Path, *, encoded: bool) -> None:
        from greenroom.adapters.duckdb.log_file import LogFile

        self._log = LogFile.create(path, 1)
        self._events = sample_batch()
        self._encoder = _Encoded(self._events) if encoded else BatchEncoder()
        self._number = 0

    def append(self, batches: int, *, groups: int) -> None:
        from greenroom.adapters.duckdb.log_rows import header_of, stamped_row

        for place in range(1, batches + 1):
            batch = self._encoder.encode(self._events)
            self._number += 1
            header = header_of(1, self._number, self._number * BATCH, now_us(), batch)
            self._log.append_batch(1, header, stamped_row(self._number, header, batch.payload), b"", b"")
            if place * groups // batches > (place - 1) * groups // batches:
                self._log.flush(grants=False, batches=True)

    def close(self) -> None:
        self._log.close()
