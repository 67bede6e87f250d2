"""The event store in a process of its own, told what to do by lines of JSON: python -m benchmarks.store_process DIR"""

import asyncio
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from greenroom.adapters.duckdb import group_commit
from greenroom.adapters.duckdb.event_store import DuckDBEventStore
from greenroom.adapters.room_watch import resident_bytes
from greenroom.adapters.socket_lane import SocketLaneServer
from greenroom.domain.event_log import EventQuery

READ_LIMIT = 100


class StoreProcess:
    """Commands are methods; each answer is one line."""

    def __init__(self, folder: Path) -> None:
        self._store = DuckDBEventStore(folder / "store", on_fatal=lambda exc: os._exit(1))
        self._socket = SocketLaneServer(folder / "append.sock", self._store.submit)

    async def start(self) -> None:
        await self._store.open()
        await self._socket.start()

    async def grant(self, session_id: str) -> dict[str, Any]:
        owned = await self._store.grant(session_id, "bench")
        return {"epoch": owned.epoch, "last_seq": owned.last_seq}

    async def read(self, ends: dict[str, int], count: int) -> list[float]:
        """Seconds that each of so many reads of 100 events after a random cursor took."""
        taken: list[float] = []
        names = list(ends)
        for _ in range(count):
            session_id = random.choice(names)
            after = random.randint(0, max(0, ends[session_id] - READ_LIMIT))
            start = time.perf_counter()
            await self._store.read(session_id, EventQuery(after=after, limit=READ_LIMIT))
            taken.append(time.perf_counter() - start)
        return taken

    async def export(self, session_id: str, path: str) -> int:
        return await self._store.export_session(session_id, Path(path))

    async def compact(self) -> None:
        await self._store.compact()

    async def delete(self, session_id: str) -> None:
        await self._store.delete_session(session_id)

    async def bytes(self) -> int:
        return (await self._store.counts())["bytes"]

    async def memory(self) -> int:
        return resident_bytes()

    async def close(self) -> None:
        await self._socket.close()
        await self._store.close()


async def main() -> None:
    if "--never-seal" in sys.argv:
        group_commit.LOG_BYTES = group_commit.LOG_BATCHES = 1 << 40
    process = StoreProcess(Path(sys.argv[1]))
    await process.start()
    print(json.dumps({"ready": True}), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        answer = await getattr(process, command.pop("do"))(**command)
        print(json.dumps({"answer": answer}), flush=True)


asyncio.run(main())
