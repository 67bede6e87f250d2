"""Names in a data_dir: a folder and a socket for each shard of the event store, and how many there are."""

import json
from pathlib import Path
from typing import Any

from ..domain.errors import InvalidOperation, StorageWriteFailed
from .socket_lane import SOCKET_NAME

MEMORY_DATA_DIR = ":memory:"
"""The data_dir of a runtime that keeps nothing."""

_SHARDS_NAME = "shards.json"


def store_folder(data_dir: Path, shard: int) -> Path:
    """Where the files of this shard are."""
    return data_dir / ("store" if shard == 0 else f"store-{shard}")


def socket_name(shard: int) -> str:
    """The socket of this shard, in the data_dir."""
    return SOCKET_NAME if shard == 0 else f"{shard}-{SOCKET_NAME}"


def recorded_shards(data_dir: Path) -> int:
    """How many shards the data_dir has; 1 when it does not say."""
    return int(_record(data_dir).get("shards", 1))


def is_moving(data_dir: Path) -> bool:
    """Whether sessions were being moved to another number of shards, and not all of them may have arrived."""
    return bool(_record(data_dir).get("moving", False))


def record_shards(data_dir: Path, shards: int, *, moving: bool = False) -> None:
    """Say how many there are, and whether sessions are being moved."""
    scratch = data_dir / f"{_SHARDS_NAME}.new"
    scratch.write_text(json.dumps({"shards": shards, "moving": moving}))
    scratch.replace(data_dir / _SHARDS_NAME)


def _record(data_dir: Path) -> dict[str, Any]:
    try:
        return json.loads((data_dir / _SHARDS_NAME).read_text())
    except FileNotFoundError:
        return {}


def prepare_backup(target: Path, shards: int) -> None:
    """Make the folder that each shard puts its copy into. InvalidOperation if it exists."""
    try:
        target.mkdir(mode=0o700, parents=True)
    except FileExistsError as exc:
        raise InvalidOperation(
            f"{target} exists; back up to a folder that does not.", details={"path": str(target)}
        ) from exc
    except OSError as exc:
        raise StorageWriteFailed(f"{target} cannot be made: {exc.strerror}.", details={"path": str(target)}) from exc
    record_shards(target, shards)
