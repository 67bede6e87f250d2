"""audit.jsonl in the data_dir: who asked the HTTP service to change what, and what came of it."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock

from .logs import get_logger

_log = get_logger(__name__)

FILE_NAME = "audit.jsonl"

MAX_BYTES = 64 * 1024 * 1024
"""A file that has become larger is put aside as `audit-<time>.jsonl`, which is the operator's to keep or to delete."""

_LOOK_EVERY = 256
_MAX_VALUE = 200


class AuditLog:
    """One line a request. Several processes may write: each line is one write to the end of the file. What was written
    survives the process; the last lines may be lost when the machine loses its power. A disk that takes no line holds
    up nothing: the log of the process says so."""

    def __init__(self, data_dir: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self._path = data_dir / FILE_NAME
        self._max_bytes = max_bytes
        self._lock = filelock.FileLock(data_dir / f"{FILE_NAME}.lock", timeout=0)
        self._descriptor = self._opened()
        self._lines = 0

    def _opened(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, **fields: Any) -> None:
        """Add a line; long values are cut."""
        record = {"at": datetime.now(UTC).isoformat(), **{name: _short(value) for name, value in fields.items()}}
        try:
            if self._lines % _LOOK_EVERY == 0:
                self._look()
            self._lines += 1
            os.write(self._descriptor, json.dumps(record).encode() + b"\n")
        except OSError:
            _log.exception("audit_line_not_kept", path=str(self._path))

    def _look(self) -> None:
        """Put the file aside when it is too large, and follow where another process has done so."""
        try:
            with self._lock:
                if self._path.exists() and self._path.stat().st_size > self._max_bytes:
                    self._path.rename(self._path.with_name(f"audit-{datetime.now(UTC):%Y%m%dT%H%M%S%f}.jsonl"))
        except filelock.Timeout:
            return  # another process looks
        opened = os.fstat(self._descriptor)
        if not self._path.exists() or self._path.stat().st_ino != opened.st_ino:
            os.close(self._descriptor)
            self._descriptor = self._opened()

    def close(self) -> None:
        os.close(self._descriptor)


def _short(value: Any) -> Any:
    return value[:_MAX_VALUE] if isinstance(value, str) else value
