"""audit.jsonl in the data_dir: who asked the HTTP service to change what, and what came of it."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FILE_NAME = "audit.jsonl"

_MAX_VALUE = 200


class AuditLog:
    """One line a request. Several processes may write: each line is one write to the end of the file. What was written
    survives the process; the last lines may be lost when the machine loses its power."""

    def __init__(self, data_dir: Path) -> None:
        self._descriptor = os.open(data_dir / FILE_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, **fields: Any) -> None:
        """Add a line; long values are cut."""
        record = {"at": datetime.now(UTC).isoformat(), **{name: _short(value) for name, value in fields.items()}}
        os.write(self._descriptor, json.dumps(record).encode() + b"\n")

    def close(self) -> None:
        os.close(self._descriptor)


def _short(value: Any) -> Any:
    return value[:_MAX_VALUE] if isinstance(value, str) else value
