"""The event store by itself: appends of every shape, reads in logs of every size, and both beside long work."""

import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from greenroom.adapters.clock import now_us
from greenroom.adapters.duckdb.log_file import LogFile
from greenroom.adapters.duckdb.log_rows import header_of, stamped_row
from greenroom.adapters.event_codec import BatchEncoder
from greenroom.adapters.event_log_client import EventLogClient, Lane
from greenroom.adapters.socket_lane import SocketLane
from greenroom.domain.event import NewEvent
from greenroom.domain.event_log import Ownership

from .appends import sample_batch
from .measuring import Figure

BATCH_SIZES = (1, 16, 64, 256, 1000)
WRITER_COUNTS = (1, 8, 32)
SHAPE_S = 2.0
"""How long each shape of appends is measured."""

READS = 3_000
SMALL, LARGE, FULL = 10_000, 1_000_000, 10_000_000
FILL_BATCH = 500

_INTERFERENCE_S = 4.0
_TURNS = 3
_FSYNCS = 300


class StoreServer:
    """The store's process, and a way to append to it as session servers do."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._turn = asyncio.Lock()

    async def call(self, do: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        async with self._turn:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            return json.loads(await self._process.stdout.readline())["answer"]

    def client(self) -> EventLogClient:
        return EventLogClient(self)  # pyright: ignore[reportArgumentType]  appends and grants are all that is used

    async def open_lane(self, *, on_reply: Callable[[bytes], None], on_broken: Callable[[], None]) -> Lane:
        return await SocketLane.connect(self._folder / "append.sock", on_reply=on_reply, on_broken=on_broken)

    async def take_over(self, session_id: str, owner: str, *, must_exist: bool) -> Ownership:
        return Ownership(**await self.call("grant", session_id=session_id))


@asynccontextmanager
async def store_server(folder: Path, *flags: str) -> AsyncGenerator[StoreServer]:
    await asyncio.to_thread(folder.mkdir, exist_ok=True)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.store_process", str(folder), *flags),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 24,
    )
    assert process.stdout is not None
    await process.stdout.readline()
    server = StoreServer(process, folder)
    try:
        yield server
    finally:
        await server.call("close")
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


@dataclass(frozen=True, slots=True)
class Appends:
    """What appends of one shape took."""

    seconds: list[float]
    events_per_s: float

    def quantile_ms(self, part: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(len(ordered) * part))] * 1_000


async def append_for(server: StoreServer, duration_s: float, *, writers: int, batch: int, name: str) -> Appends:
    """Each writer appends a batch, waits for the answer, and so on, through a client and a socket of its own."""
    events = [sample_batch()[index % 256] for index in range(batch)]
    clients = [server.client() for _ in range(writers)]
    taken: list[float] = []

    async def write(number: int, client: EventLogClient, until: float) -> None:
        session_id = f"ses_{name}_{number}"
        owned = await client.acquire(session_id, "bench", lambda _: None)
        while time.perf_counter() < until:
            start = time.perf_counter()
            await client.append(session_id, owned.epoch, events)
            taken.append(time.perf_counter() - start)

    begun = time.perf_counter()
    await asyncio.gather(*(write(number, client, begun + duration_s) for number, client in enumerate(clients)))
    elapsed = time.perf_counter() - begun
    for client in clients:
        await client.aclose()
    return Appends(taken, len(taken) * batch / elapsed)


def raw_appender_events_per_s(folder: Path, batch: int, rows: int) -> float:
    """DuckDB's appender on a table of the same columns: so many rows of this batch per flush, for some flushes."""
    events: list[NewEvent] = [sample_batch()[index % 256] for index in range(batch)]
    path = folder / f"raw-{batch}-{rows}.duckdb"
    log = LogFile.create(path, 1)
    encoded = BatchEncoder().encode(events)
    flushes, number = 60, 0
    start = time.perf_counter()
    for _ in range(flushes):
        for _ in range(rows):
            number += 1
            header = header_of(1, number, number * batch, now_us(), encoded)
            log.append_batch(1, header, stamped_row(number, header, encoded.payload), b"", b"")
        log.flush(grants=False, batches=True)
    elapsed = time.perf_counter() - start
    log.close()
    return flushes * rows * batch / elapsed


def raw_fsync_ms(folder: Path) -> float:
    """The median of an append of 4 kB to a file and an fsync."""
    taken: list[float] = []
    with (folder / "fsync").open("ab", buffering=0) as file:
        for _ in range(_FSYNCS):
            start = time.perf_counter()
            file.write(b"x" * 4096)
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - start)
    return statistics.median(taken) * 1_000


async def _shapes(folder: Path) -> Table:
    """Appends of every shape, beside DuckDB's appender with a row per writer and flush, and beside an fsync."""
    table = Table("batch", "writers", "p50 ms", "p99 ms", "events/s", "raw appender", "part of it", title="appends")
    async with store_server(folder) as server:
        for batch in BATCH_SIZES:
            for writers in WRITER_COUNTS:
                found = await append_for(server, SHAPE_S, writers=writers, batch=batch, name=f"{batch}_{writers}")
                raw = raw_appender_events_per_s(folder, batch, writers)
                table.add_row(
                    *(str(batch), str(writers), f"{found.quantile_ms(0.5):.2f}", f"{found.quantile_ms(0.99):.2f}"),
                    *(f"{found.events_per_s:,.0f}", f"{raw:,.0f}", f"{found.events_per_s / raw:.2f}"),
                )
    table.caption = f"an fsync of 4 kB takes {raw_fsync_ms(folder):.2f} ms"
    return table


async def fill(server: StoreServer, events: int, *, name: str) -> dict[str, int]:
    """Sessions of a thousand events or more, written in turns, as many live sessions would; returns their ends."""
    sessions = max(10, min(1_000, events // 1_000))
    client = server.client()
    names = [f"ses_{name}_{number}" for number in range(sessions)]
    owned = {session_id: await client.acquire(session_id, "bench", lambda _: None) for session_id in names}
    ends = dict.fromkeys(names, 0)
    batch = [sample_batch()[index % 256] for index in range(min(FILL_BATCH, events // sessions))]
    written = 0
    while written < events:
        for session_id in names:
            await client.room()
            client.record(session_id, owned[session_id].epoch, batch)
            ends[session_id] += len(batch)
            written += len(batch)
            await asyncio.sleep(0)
        await client.append(names[-1], owned[names[-1]].epoch, batch[:1])
        ends[names[-1]] += 1
    await client.aclose()
    return ends


async def _reads(folder: Path, events: int) -> tuple[float, float, int]:
    """p50 and p99 in seconds of reading 100 events after a cursor in a log of that size, read from the files; and the
    memory of the store's process afterwards."""
    async with store_server(folder) as server:
        ends = await fill(server, events, name="read")
        await server.call("compact")
    async with store_server(folder) as server:  # opened anew: nothing of it is in memory
        await server.call("read", ends=ends, count=200)
        taken = sorted(await server.call("read", ends=ends, count=READS))
        return taken[len(taken) // 2], taken[int(len(taken) * 0.99)], await server.call("memory")


async def _beside_export(folder: Path) -> Figure:
    """Appends with and without an export that goes on meanwhile, in turns."""
    alone: list[Appends] = []
    beside: list[Appends] = []
    async with store_server(folder) as server:
        ends = await fill(server, 300_000, name="export")
        await server.call("compact")
        for turn in range(_TURNS):
            alone.append(await append_for(server, _INTERFERENCE_S, writers=8, batch=16, name=f"alone{turn}"))
            exporting = asyncio.create_task(_export_on_and_on(server, list(ends), folder))
            beside.append(await append_for(server, _INTERFERENCE_S, writers=8, batch=16, name=f"beside{turn}"))
            exporting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await exporting
    rates = [statistics.median([one.events_per_s for one in found]) for found in (beside, alone)]
    p99s = [statistics.median([one.quantile_ms(0.99) for one in found]) for found in (beside, alone)]
    return Figure(
        name="appends beside a running export",
        value=rates[0],
        unit="events/s",
        limit_name="without one",
        limit=rates[1],
        bound=">= 0.8",
        note=f"p99 {p99s[0]:.1f} ms beside, {p99s[1]:.1f} ms without",
    )


async def _export_on_and_on(server: StoreServer, names: list[str], folder: Path) -> None:
    """Exports through a connection of its own to the same process: one command at a time, as fast as they go."""
    for session_id in names * 100:
        await asyncio.shield(server.call("export", session_id=session_id, path=str(folder / "exported")))


async def _beside_sealing(folder: Path) -> list[Figure]:
    """What rotation, sealing and merging put on appends: with them, and with one log file that is never full."""
    added: dict[float, list[float]] = {0.999: [], 1.0: []}
    notes: list[str] = []
    for turn in range(_TURNS):
        async with store_server(folder / f"sealing{turn}") as server:
            sealing = await append_for(server, _INTERFERENCE_S, writers=8, batch=256, name="sealing")
        async with store_server(folder / f"never{turn}", "--never-seal") as server:
            never = await append_for(server, _INTERFERENCE_S, writers=8, batch=256, name="never")
        for part, found in added.items():
            found.append(sealing.quantile_ms(part) - never.quantile_ms(part))
        notes.append(f"{sealing.events_per_s:,.0f} against {never.events_per_s:,.0f} events/s")
    return [
        Figure(
            name=f"what sealing adds to the {what} of appends",
            value=statistics.median(added[part]),
            unit="ms",
            limit_name=f"{limit:.0f} ms",
            limit=limit,
            bound="<= 1",
            note="; ".join(notes),
        )
        for what, part, limit in (("p99.9", 0.999, 50.0), ("maximum", 1.0, 250.0))
    ]


async def measure(console: Console) -> list[Figure]:
    """All of it; the table of shapes goes to the console."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=Path.cwd()) as name:
        folder = Path(name)
        (folder / "sealing").mkdir()
        console.print(await _shapes(folder / "shapes"))
        figures += await _beside_sealing(folder / "sealing")
        figures.append(await _beside_export(folder / "export"))
        sizes = [(LARGE, "large")] + ([(FULL, "full")] if os.environ.get("BENCH_FULL") else [])
        small_p50, small_p99, _ = await _reads(folder / "small", SMALL)
        for events, place in sizes:
            p50, p99, memory = await _reads(folder / place, events)
            note = f"p50 {p50 * 1_000:.2f} ms, and {small_p50 * 1_000:.2f} ms at {SMALL:,}"
            figures += [
                Figure(
                    name=f"p99 of a cursor's read in a log of {events:,}",
                    value=p99 * 1_000,
                    unit="ms",
                    limit_name=f"in a log of {SMALL:,}",
                    limit=small_p99 * 1_000,
                    bound="<= 2",
                    note=note,
                ),
                Figure(
                    name=f"memory of the store's process at {events:,} events",
                    value=memory / 1e6,
                    unit="MB",
                    limit_name="1 GB",
                    limit=1_000.0,
                    bound="<= 1",
                ),
            ]
    return figures
