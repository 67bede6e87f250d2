"""The processes below one process: counted while it can be told whose they are, and gone when we say so."""

import contextlib
from collections.abc import Iterable

import psutil

GRACE_S = 10.0
_KILL_S = 5.0


class ProcessTree:
    """What a process has started, and what that started. A process that loses its parent is not forgotten."""

    def __init__(self, root: psutil.Process | None = None) -> None:
        self._root = root or psutil.Process()
        self._known: dict[psutil.Process, str] = {}
        """With the name of its program."""

    def look(self) -> None:
        """Add the processes that there are now."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in self._root.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._known[process] = process.name()

    def has_lost(self, name: str) -> bool:
        """Whether one of the known processes had this name and has ended."""
        return any(known == name and not _is_alive(process) for process, known in self._known.items())

    def await_end(self, *, grace_s: float = GRACE_S) -> None:
        """Return when none of them is left: those that do not end by themselves in that time are killed."""
        self.look()
        _, left = psutil.wait_procs(list(self._known), timeout=grace_s)
        _kill(left)
        psutil.wait_procs(left, timeout=_KILL_S)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
