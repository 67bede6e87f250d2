"""How many stores a data_dir has, and making that the number that is wanted."""

import json
import subprocess
import sys
from pathlib import Path

from ..adapters.data_dir import is_moving, record_shards, recorded_shards, store_folder
from ..adapters.settings import EventStoreSettings
from ..domain.errors import StorageError, error_from_record

_RESHARDING = "greenroom.adapters.duckdb.resharding"


def prepared_shards(data_dir: Path, settings: EventStoreSettings) -> int:
    """The number of shards, after sessions were moved if it is another than before. No runtime may live there."""
    before = recorded_shards(data_dir)
    wanted = settings.shards or before
    if wanted == before and not is_moving(data_dir):
        return wanted
    if not any(store_folder(data_dir, shard).exists() for shard in range(before)):
        record_shards(data_dir, wanted)
        return wanted
    moved = subprocess.run(  # noqa: S603  of its own: DuckDB is not loaded into whoever starts a runtime
        [sys.executable, "-m", _RESHARDING, str(data_dir), str(wanted)], stdout=subprocess.PIPE, check=False
    )
    if moved.returncode != 0:
        raise StorageError(
            f"Moving the sessions of {data_dir} to {wanted} shards ended with status {moved.returncode}; start again"
            " with the same number to go on.",
            details={"data_dir": str(data_dir)},
        )
    answer = json.loads(moved.stdout)
    if "error" in answer:
        raise error_from_record(answer["error"])
    return wanted
