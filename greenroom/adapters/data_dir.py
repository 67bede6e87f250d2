"""Names in a data_dir: a folder and a socket for each shard of the event store, and how many there are."""

import json
from pathlib import Path

from ..domain.errors import InvalidOperation, StorageWriteFailed
from .socket_lane import SOCKET_NAME

_SHARDS_NAME = "shards.json"


def store_folder(data_dir: Path, shard: int) -> Path:
    """Where the files of this shard are."""
    return data_dir / ("store" if shard == 0 else f"store-{shard}")


def socket_name(shard: int) -> str:
    """The socket of this shard, in the data_dir."""
    return SOCKET_NAME if shard == 0 else f"{shard}-{SOCKET_NAME}"


def recorded_shards(data_dir: Path) -> int:
    """How many shards the data_dir has; 1 when it does not say."""
    try:
        return int(json.loads((data_dir / _SHARDS_NAME).read_text())["shards"])
    except FileNotFoundError:
        return 1


def record_shards(data_dir: Path, shards: int) -> None:
    """Say how many there are; before sessions are moved to fewer, and after they were moved to more."""
    scratch = data_dir / f"{_SHARDS_NAME}.new"
    scratch.write_text(json.dumps({"shards": shards}))
    scratch.replace(data_dir / _SHARDS_NAME)


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
