"""Appends through the store's actor beside DuckDB's own appender on the same table, rows and group size."""

import tempfile
from pathlib import Path
from typing import Any

import ray

from greenroom import EventType, Runtime
from greenroom.adapters.clock import id_factory, now_us
from greenroom.adapters.event_codec import BatchEncoder, EncodedBatch
from greenroom.domain.event import NewEvent

from .measuring import Figure, seconds

WRITERS, BATCH, BATCHES_PER_WRITER = 8, 256, 150


def sample_batch() -> list[NewEvent]:
    """Token deltas as a run makes them."""
    ids = id_factory()
    run_id = ids.run_id()
    data = {"content": "a dozen tokens or so of text", "kind": "text"}
    return [
        NewEvent(ids.event_id(), EventType.MESSAGE_STREAMED, now_us(), run_id, 1, "scripted", data, {})
        for _ in range(BATCH)
    ]


class Writer:
    """One writing process: a log client as a session server has it."""

    def __init__(self, store: Any) -> None:
        from greenroom.actors.store_access import RayStoreAccess
        from greenroom.adapters.event_log_client import EventLogClient

        self._log = EventLogClient(RayStoreAccess(store))
        self._batch = sample_batch()
        self._session_id = id_factory().session_id()
        self._epoch = 0

    async def prepare(self) -> None:
        ownership = await self._log.acquire(self._session_id, "bench", lambda batch: None)
        self._epoch = ownership.epoch
        await self._log.append(self._session_id, self._epoch, self._batch)

    async def write(self, batches: int) -> None:
        """Encode and append, each batch acknowledged before the next: no batches are joined on the way."""
        for _ in range(batches):
            await self._log.append(self._session_id, self._epoch, self._batch)


def through_the_store(runtime: Runtime) -> Figure:
    """Events per second from eight processes, beside one process that does nothing but append and flush."""
    store = ray.get_actor("event-store", namespace=runtime.record().namespace)
    writers: list[Any] = [ray.remote(Writer).options(num_cpus=0).remote(store) for _ in range(WRITERS)]
    ray.get([writer.prepare.remote() for writer in writers])
    raw = raw_appender_events_per_s()
    taken_s = seconds(lambda: ray.get([writer.write.remote(BATCHES_PER_WRITER) for writer in writers]))
    raw = (raw + raw_appender_events_per_s()) / 2
    for writer in writers:
        ray.kill(writer)
    return Figure(
        name=f"appends of {BATCH} from {WRITERS} writers",
        value=WRITERS * BATCHES_PER_WRITER * BATCH / taken_s,
        unit="events/s",
        limit_name="raw appender, same table and group",
        limit=raw,
        bound=">= 0.6",
    )


def raw_appender_events_per_s() -> float:
    """DuckDB's appender on a table of its own, fed with encoded batches: a row each, a flush per group of eight."""
    from greenroom.adapters.duckdb.event_database import EventDatabase

    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        database = EventDatabase(str(Path(folder) / "raw.duckdb"))
        head = database.new_head()
        batch: EncodedBatch = BatchEncoder().encode(sample_batch())
        groups = WRITERS * BATCHES_PER_WRITER // WRITERS

        def append_all() -> None:
            number = 0
            for _ in range(groups):
                for _ in range(WRITERS):
                    number += 1
                    database.append_batch(head, number, head.last_seq + 1, now_us(), batch)
                    head.advance(batch_number=number, count=batch.event_count, recorded_at_us=0)
                database.flush(grants=False, batches=True)

        taken_s = seconds(append_all)
        database.close()
    return groups * WRITERS * BATCH / taken_s
