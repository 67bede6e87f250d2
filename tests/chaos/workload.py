"""A process that has a store open and works it hard until it is killed. `python -m tests.chaos.workload ORDER`."""

import asyncio
import contextlib
import itertools
import json
import os
import random
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from greenroom.adapters.direct_lane import DirectStore
from greenroom.adapters.duckdb import group_commit, maintenance
from greenroom.adapters.event_log_client import EventLogClient
from greenroom.adapters.logs import log_to_stderr
from greenroom.adapters.store_options import StoreOptions
from greenroom.domain.errors import GreenroomError, StorageFull, WriterFenced

from .ledger import LedgerWriter
from .made_events import Place, event_at

STREAMS_PER_LIFE = 1_000_000
FATAL, REFUSED = 3, 4
"""Exit codes: the store ended its process; the store did not open."""

_INJECTED = ("LD_PRELOAD", "CHAOS_ROOT", "CHAOS_TRACE", "CHAOS_KINDS", "CHAOS_KILL_AT", "CHAOS_KILL_PARENT",
             "CHAOS_FAIL_AT", "CHAOS_FAIL_COUNT", "CHAOS_FAIL_ERRNO", "CHAOS_KILL_AFTER_FAIL")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to do."""

    folder: str
    ledger: str
    life: int
    """Counts the lives of the folder from 1."""
    seed: int
    sessions: int = 6
    log_batches: int = 120
    log_bytes: int = 1024 * 1024
    min_free_bytes: int = 0
    reserve_bytes: int = 0
    prunes: bool = False
    pause_s: float = 0.05
    """The longest between two appends of a session."""
    chores: bool = True
    """Delete, compact, verify now and then."""
    batches: int = 1_000_000
    """After so many appends, wait until everything is sealed, and end by SIGKILL."""
    closes: bool = False
    """End by closing the store instead."""
    maintenance: dict[str, str] | None = None
    """Environment of the maintenance processes: faults for them."""

    def encoded(self) -> str:
        return json.dumps(asdict(self))


class _Life:
    def __init__(self, order: Order) -> None:
        self._order = order
        self._random = random.Random(order.seed)
        self._ledger = LedgerWriter(Path(order.ledger))
        self._streams = itertools.count(order.life * STREAMS_PER_LIFE + 1)
        self._left = order.batches
        self._leaving: set[str] = set()
        options = StoreOptions(
            min_free_bytes=order.min_free_bytes,
            reserve_bytes=order.reserve_bytes,
            prune_streamed_after_s=0 if order.prunes else None,
        )
        self._store = DirectStore(Path(order.folder), options, on_fatal=self._fatal)

    def _fatal(self, exc: Exception) -> None:
        self._ledger.note("fatal", repr(exc).replace("\n", " "))
        os._exit(FATAL)

    async def run(self) -> None:
        try:
            await self._store.open()
        except GreenroomError as exc:
            self._ledger.note("refused", exc.message.replace("\n", " "))
            os._exit(REFUSED)
        sys.stdout.write("open\n")
        sys.stdout.flush()
        self._client = EventLogClient(self._store)
        work = [self._own_and_write(f"ses_{index}") for index in range(self._order.sessions)]
        if self._order.chores:
            work.append(self._chores())
        await asyncio.gather(*work)
        await self._end()

    async def _end(self) -> None:
        await self._store._store.keeper.seal()  # pyright: ignore[reportPrivateUsage]
        if self._order.closes:
            await self._client.aclose()
            await self._store.close()
            os._exit(0)
        os.kill(os.getpid(), 9)

    async def _own_and_write(self, name: str) -> None:
        while self._left > 0:
            stream = next(self._streams)
            try:
                owned = await self._client.acquire(name, "chaos", lambda _: None)
            except GreenroomError as exc:
                self._note_full(exc)
                await asyncio.sleep(0.05)
                continue
            self._ledger.note("own", name, stream, owned.epoch, owned.last_seq)
            await self._write(name, stream, owned.epoch, opens=owned.last_seq == 0)

    async def _write(self, name: str, stream: int, epoch: int, *, opens: bool) -> None:
        under_way: set[asyncio.Future[Any]] = set()
        counter = 0
        with contextlib.suppress(WriterFenced):
            while self._left > 0:
                count = self._random.choice((1, 1, 2, 3, 5, 8))
                events = [event_at(Place(name, stream, counter + 1 + at), opens=opens) for at in range(count)]
                self._ledger.note("sub", name, stream, counter + count)
                future = self._client.append(name, epoch, events)
                future.add_done_callback(self._acknowledge(name, stream, counter + 1, count))
                counter += count
                under_way.add(future)
                self._left -= 1
                if len(under_way) >= self._random.choice((1, 2, 4)):
                    _, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.sleep(self._random.choice((0, 0.002, 0.01, self._order.pause_s)))
                if self._random.random() < 0.002 and self._order.chores:
                    await self._delete(name)
                    return
                if self._random.random() < 0.01:
                    return  # and own it anew, whatever is under way
            if under_way:
                await asyncio.wait(under_way)

    def _acknowledge(self, name: str, stream: int, first: int, count: int) -> Any:
        def told(future: "asyncio.Future[Any]") -> None:
            if not future.cancelled() and future.exception() is None:
                self._ledger.note("ack", name, stream, first, count, future.result().first_seq)

        return told

    async def _delete(self, name: str) -> None:
        self._ledger.note("deleting", name)
        self._leaving.add(name)
        with contextlib.suppress(GreenroomError, OSError):
            await self._store.delete_session(name)
            self._ledger.note("deleted", name)
            self._leaving.discard(name)

    async def _chores(self) -> None:
        while self._left > 0:
            await asyncio.sleep(self._random.uniform(0.05, 0.5))
            chore = self._random.random()
            try:
                if chore < 0.2:
                    await self._store.compact()
                elif chore < 0.4:
                    await self._store._store.keeper.freeze()  # pyright: ignore[reportPrivateUsage]
                else:
                    await self._verify(f"ses_{self._random.randrange(self._order.sessions)}")
            except (GreenroomError, OSError) as exc:
                self._note_full(exc)

    async def _verify(self, name: str) -> None:
        found = await self._store.verify_session(name)
        if not found.ok and name not in self._leaving:
            self._ledger.note("problem", f"{name} does not verify while it is open: {found.problems[0]}")

    def _note_full(self, exc: Exception) -> None:
        if isinstance(exc, StorageFull):
            self._ledger.note("full")


def main() -> None:
    order = Order(**json.loads(sys.argv[1]))
    log_to_stderr()
    group_commit.LOG_BATCHES = order.log_batches
    group_commit.LOG_BYTES = order.log_bytes
    if order.maintenance is not None:
        maintenance._PASSED_ON = (*maintenance._PASSED_ON, *_INJECTED)  # pyright: ignore[reportPrivateUsage]
        os.environ.update(order.maintenance)
    asyncio.run(_live(order))


async def _live(order: Order) -> None:
    await _Life(order).run()


if __name__ == "__main__":
    main()
