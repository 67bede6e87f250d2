"""The threads of the amp program: conversations that can be continued."""

import json
import re
import uuid
from pathlib import Path
from typing import Any, Self

_ID = re.compile(r"T-[\w-]+")


class AmpThread:
    """One conversation, in a file under $HOME. `about` is what the command line says of it."""

    def __init__(self, thread_id: str, about: dict[str, Any], messages: list[dict[str, Any]]) -> None:
        self.id = thread_id
        self.about = about
        self.messages = messages

    @classmethod
    def new(cls, about: dict[str, Any]) -> Self:
        return cls(f"T-{uuid.uuid4()}", about, [])

    @classmethod
    def found(cls, thread_id: str) -> Self | None:
        """The thread with this id; None if there is none."""
        path = _path(thread_id)
        return cls._read(path) if _ID.fullmatch(thread_id) and path.exists() else None

    @classmethod
    def latest(cls) -> Self | None:
        """The thread that was added to last."""
        paths = sorted(_folder().glob("T-*.json"), key=lambda path: path.stat().st_mtime_ns)
        return cls._read(paths[-1]) if paths else None

    @property
    def turns(self) -> int:
        """How often the model has answered."""
        return sum(message["role"] == "assistant" for message in self.messages)

    def add(self, *messages: dict[str, Any]) -> None:
        """Add to the conversation, for good: who is killed at any time leaves all of them or none."""
        self.messages.extend(messages)
        _folder().mkdir(parents=True, exist_ok=True)
        written = _path(self.id).with_suffix(".new")
        written.write_text(json.dumps({"id": self.id, "about": self.about, "messages": self.messages}))
        written.replace(_path(self.id))

    @classmethod
    def _read(cls, path: Path) -> Self:
        record = json.loads(path.read_text())
        return cls(record["id"], record["about"], record["messages"])


def _folder() -> Path:
    return Path.home() / ".local" / "share" / "amp" / "threads"


def _path(thread_id: str) -> Path:
    return _folder() / f"{thread_id}.json"
