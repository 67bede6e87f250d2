"""runtime.json in the data_dir: where the runtime lives that owns it, for processes that come later."""

import contextlib
import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path


FILE_NAME = "runtime.json"
_CONNECT_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeRecord:
    """What the starter wrote down."""

    ray_address: str
    namespace: str
    version: str
    pid: int
    """The process that started Ray, or whose Ray connection the runtime was started over."""

    @property
    def is_alive(self) -> bool:
        """Whether the cluster still answers at its address."""
        host, _, port = self.ray_address.rpartition(":")
        try:
            with socket.create_connection((host, int(port)), timeout=_CONNECT_S):
                return True
        except (OSError, ValueError):
            return False


def read_record(data_dir: Path) -> RuntimeRecord | None:
    """The record of the last runtime; None if there is none that can be read."""
    try:
        return RuntimeRecord(**json.loads((data_dir / FILE_NAME).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write_record(data_dir: Path, record: RuntimeRecord) -> None:
    """Put the record in place at once: a reader sees the old one or the new one."""
    scratch = data_dir / f"{FILE_NAME}.{os.getpid()}"
    scratch.write_text(json.dumps(asdict(record)))
    scratch.replace(data_dir / FILE_NAME)


def remove_record(data_dir: Path) -> None:
    """The runtime has ended."""
    with contextlib.suppress(OSError):
        (data_dir / FILE_NAME).unlink()


