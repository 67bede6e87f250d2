"""Home directories of sessions: what an agent's client keeps there outlives the client, the server and the node."""

import shutil
import tempfile
from pathlib import Path

from .data_dir import MEMORY_DATA_DIR


def homes_folder(data_dir: str, namespace: str) -> Path:
    """Where the homes of a runtime's sessions are; for one that keeps nothing, among the machine's temporary files."""
    if data_dir == MEMORY_DATA_DIR:
        return Path(tempfile.gettempdir()) / namespace
    return Path(data_dir) / "homes"


def home_of(homes: Path | str, session_id: str) -> Path:
    """The session's own home. It is made when something is first kept there."""
    return Path(home_path(homes, session_id))


def home_path(homes: Path | str, session_id: str) -> str:
    """The same as text: for every session of a batch a Path would be made for nothing."""
    return f"{homes}/{session_id.replace(':', '%3A')}"  # clients put it into PATH-like variables


def made_home(home: str) -> Path:
    """The directory, there now, and for this user alone. OSError if it cannot be made."""
    path = Path(home)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def remove_home(homes: Path | str, session_id: str) -> None:
    """Delete everything that was kept for the session."""
    shutil.rmtree(home_of(homes, session_id), ignore_errors=True)


def remove_homes(homes: Path | str) -> None:
    """Delete those of all sessions."""
    shutil.rmtree(homes, ignore_errors=True)
