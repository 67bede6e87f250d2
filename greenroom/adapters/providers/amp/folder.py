"""A folder in the home for the files of one run, which may hold secrets: none is left, whatever becomes of us."""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "greenroom-amp-"


class RunFolder:
    """For this user alone. Locked as long as its run is there: the lock is gone with the process that had it, so what
    is not locked was left behind, and the next run in the home removes it."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def make(cls, home: str) -> "RunFolder":
        """A new one. OSError if there can be none."""
        home_lock = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(home_lock, fcntl.LOCK_EX)  # else somebody could take a folder for left behind that is just made
            _sweep(Path(home))
            path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=home))
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(lock, fcntl.LOCK_EX)
        finally:
            os.close(home_lock)
        return cls(path, lock)

    def remove(self) -> None:
        """Delete it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _sweep(home: Path) -> None:
    for path in home.glob(f"{_PREFIX}*"):
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:  # somebody else has just removed it
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            pass  # its run is there
        finally:
            os.close(lock)
