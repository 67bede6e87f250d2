"""runtime.json in the data_dir: where the runtime lives that owns it, for processes that come later."""

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from .runtime_watch import answers

FILE_NAME = "runtime.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeRecord:
    """What the starter wrote down."""

    ray_address: str
    namespace: str
    version: str
    auth_mode: str | None
    """Ray's RAY_AUTH_MODE: a joiner must have the same. The token itself stays in the user's home."""
    pid: int
    """The process that started Ray, or whose Ray connection the runtime was started over."""

    @property
    def is_alive(self) -> bool:
        """Whether the cluster still answers at its address."""
        return answers(self.ray_address)


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
