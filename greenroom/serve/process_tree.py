"""The processes below one process: counted while it can be told whose they are, and gone when we say so."""

from collections.abc import Iterable

import psutil

GRACE_S = 10.0
_KILL_S = 5.0


class ProcessTree:
    """What a process has started, and what that started. A process that loses its parent is not forgotten."""

    def __init__(self, root: psutil.Process | None = None) -> None:
        self._root = root or psutil.Process()
        self._known: set[psutil.Process] = set()

    def look(self) -> None:
        """Add the processes that there are now."""
        try:
            self._known.update(self._root.children(recursive=True))
        except psutil.NoSuchProcess:
            return

    def await_end(self, *, grace_s: float = GRACE_S) -> None:
        """Return when none of them is left: those that do not end by themselves in that time are killed."""
        self.look()
        _, left = psutil.wait_procs(self._known, timeout=grace_s)
        _kill(left)
        psutil.wait_procs(left, timeout=_KILL_S)


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
