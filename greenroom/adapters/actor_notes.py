"""What a named actor must know again when it is started anew: a small JSON file beside the event store."""

import json
from pathlib import Path
from typing import Any

from .duckdb.duckdb_files import write_whole

FILE_NAME = "actor-notes.json"


class ActorNotes:
    """One note for each actor, by its id, which it keeps over restarts; those of actors that are gone are dropped."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME

    def write(self, actor_id: str, note: dict[str, Any]) -> None:
        """Keep the note in place of all others; durable when it returns."""
        write_whole(self._path, json.dumps({actor_id: note}).encode())

    def read(self, actor_id: str) -> dict[str, Any] | None:
        """The actor's note; None if it has left none."""
        try:
            return json.loads(self._path.read_text()).get(actor_id)
        except (FileNotFoundError, ValueError):
            return None
