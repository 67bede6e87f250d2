"""A file of what an agent's client said and heard, line by line: for tests, and for kind `replay`."""

import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from io import TextIOWrapper
from itertools import count
from pathlib import Path
from typing import Any, cast

from ....domain.errors import ProviderInvalidRequest
from ...logs import get_logger
from .options import AgentSurroundings

_log = get_logger(__name__)

_ANEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_count = count()
"""Beside the time, which may stand still or go back, in the names of files: they are played in the order of these."""

_OF_PROCESSES = frozenset({"err", "exit"})

RECORDING_SUFFIX = ".jsonl"


class Recording:
    """Written as it happens, so that it is there whatever becomes of the client.

    Each line is `{"dir": "argv" | "in" | "out" | "err" | "exit", "line": ...}`, in and out as seen from here to the
    client and back. Values of variables that are named like secrets are left out, and the paths of home and working
    directory are written as $HOME and $CWD.
    """

    def __init__(self, file: TextIOWrapper, where: AgentSurroundings) -> None:
        self._file = file
        self._where = where

    @classmethod
    def create(cls, folder: str, where: AgentSurroundings) -> "Recording":
        """A new file in the folder, which is made. ProviderInvalidRequest if that cannot be."""
        name = f"{time.time_ns()}-{next(_count):06d}-{secrets.token_hex(4)}{RECORDING_SUFFIX}"
        try:
            Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
            file = os.fdopen(os.open(Path(folder) / name, _ANEW, 0o600), "w", encoding="utf-8")
        except OSError as exc:
            raise ProviderInvalidRequest(
                f"Nothing can be recorded in {folder!r}: {exc.strerror}.", details={"field": "record"}
            ) from exc
        return cls(file, where)

    def write(self, direction: str, line: Any) -> None:
        """Add one line; nothing happens after `close`."""
        if self._file.closed:
            return
        said = self._where.redacted_value({"dir": direction, "line": line})
        text = json.dumps(said, ensure_ascii=False)
        for name, path in (("$HOME", self._where.home), ("$CWD", self._where.cwd)):
            if path != "/":
                text = text.replace(path, name)
        try:
            self._file.write(text + "\n")
            self._file.flush()
        except OSError:
            _log.exception("recording_broken_off", path=self._file.name)
            with suppress(OSError):
                self._file.close()

    def close(self) -> None:
        """The client has gone."""
        self._file.close()


def read_recording(path: Path) -> Iterator[tuple[str, Any]]:
    """The lines in order: direction, and what was said, without what a client printed that is no message.

    ProviderInvalidRequest for a file that is no recording.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for text in file:
                recorded = json.loads(text)
                direction, line = recorded["dir"], recorded.get("line")
                if isinstance(line, dict) or direction in _OF_PROCESSES:
                    yield direction, cast("Any", line)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ProviderInvalidRequest(
            f"{path} is no recording of an agent's client ({exc}).", details={"field": "recording"}
        ) from exc
