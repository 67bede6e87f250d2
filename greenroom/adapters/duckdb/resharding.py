"""Moving sessions between shards when their number changes: `python -m greenroom.adapters.duckdb.resharding`.

Runs while no runtime lives on the data_dir. A session is adopted by its new shard whole, and deleted from its old one
after; killed in between, the next run finds it in both, and only deletes.
"""

import asyncio
import json
import sys
from collections import defaultdict
from pathlib import Path

from ...domain.errors import GreenroomError, StorageError
from ...domain.sharding import MAX_SHARDS, shard_of
from ..data_dir import record_shards, recorded_shards, store_folder
from ..logs import get_logger, log_to_stderr
from .event_store import DuckDBEventStore

_log = get_logger(__name__)


async def reshard(data_dir: Path, shards: int) -> int:
    """Put every session where its id says; returns how many were moved. None is ever in no shard."""
    record_shards(data_dir, recorded_shards(data_dir), moving=True)
    folders = [store_folder(data_dir, shard) for shard in range(MAX_SHARDS)]
    present = [shard for shard, folder in enumerate(folders) if shard < shards or folder.exists()]
    stores = [DuckDBEventStore(folder, on_fatal=_end) for folder in folders[: max(present) + 1]]
    moved = 0
    try:
        for store in stores:
            await store.open()
        for source in stores:
            moved += await _move_from(source, stores, shards)
    finally:
        for store in stores:
            if store.is_open:
                await store.close()
    record_shards(data_dir, shards)
    return moved


async def _move_from(source: DuckDBEventStore, stores: list[DuckDBEventStore], shards: int) -> int:
    leaving: dict[int, list[str]] = defaultdict(list)
    for session_id in await source.session_ids():
        target = shard_of(session_id, shards)
        if stores[target] is not source:
            leaving[target].append(session_id)
    for target, session_ids in leaving.items():
        _log.info("sessions_move", to=str(stores[target].path), count=len(session_ids))
        missing = [session_id for session_id in session_ids if not await stores[target].has_session(session_id)]
        if missing:
            await stores[target].adopt(await source.hand_over(missing))
        for session_id in session_ids:
            await source.delete_session(session_id)
    if leaving:
        await source.compact()
    return sum(len(session_ids) for session_ids in leaving.values())


def _end(exc: Exception) -> None:
    raise SystemExit(f"a write failed: {exc}")


def main() -> None:
    """Arguments: the data_dir and the number of shards; one line of JSON on stdout."""
    log_to_stderr()
    try:
        answer = {"moved": asyncio.run(reshard(Path(sys.argv[1]), int(sys.argv[2])))}
    except GreenroomError as exc:
        answer = {"error": exc.to_record()}
    except OSError as exc:
        answer = {"error": StorageError(str(exc)).to_record()}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
