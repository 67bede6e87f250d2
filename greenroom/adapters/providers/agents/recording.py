"""A file of what an agent's client said and heard, line by line: for tests, and for kind `replay`."""

import json
import secrets
import time
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any, cast

from ....domain.errors import ProviderInvalidRequest
from .options import AgentSurroundings

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
        name = f"{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(4)}{RECORDING_SUFFIX}"
        try:
            Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
            file = (Path(folder) / name).open("x", encoding="utf-8")
        except OSError as exc:
            raise ProviderInvalidRequest(
                f"Nothing can be recorded in {folder!r}: {exc.strerror}.", details={"field": "record"}
            ) from exc
        return cls(file, where)

    def write(self, direction: str, line: Any) -> None:
        """Add one line; nothing happens after `close`."""
        if self._file.closed:
            return
        text = self._where.redacted(json.dumps({"dir": direction, "line": line}, ensure_ascii=False))
        text = text.replace(self._where.home, "$HOME").replace(self._where.cwd, "$CWD")
        self._file.write(text + "\n")
        self._file.flush()

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
