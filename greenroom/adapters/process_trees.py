"""Process trees as the system shows them: measured, and ended when whoever started them is gone."""

import contextlib
import os
from functools import cache
from pathlib import Path

import psutil

from .logs import get_logger

_log = get_logger(__name__)

_START_TIME = 19
"""Place of the start time in /proc/PID/stat, counted behind the name of the program."""

OWNER_VARIABLE = "GREENROOM_OWNER"
"""In the environment of whatever a provider starts: pid and start time of the process that it belongs to."""


@cache
def owner_mark() -> str:
    """The mark of this process; no later one has the same, also not one with the same pid."""
    return _mark_of(os.getpid())


def _mark_of(pid: int) -> str:
    """In clock ticks since the machine started: unlike a time of day nothing ever sets them."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[_START_TIME]
    return f"{pid}:{ticks}"


def measured_tree(pid: int) -> dict[str, int]:
    """The tree under a process: its pid, the count of processes, and their resident memory together in bytes."""
    count, memory_bytes = 0, 0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                memory_bytes += process.memory_info().rss
                count += 1
    return {"pid": pid, "count": count, "memory_bytes": memory_bytes}


def processes_around(pid: int) -> frozenset[int]:
    """Pids of a supervised command and of all that it has started, also of what has left it for its supervisor."""
    try:
        supervisor = psutil.Process(pid).parent()
        return frozenset(process.pid for process in supervisor.children(recursive=True)) if supervisor else frozenset()
    except psutil.Error:
        return frozenset()


def end_orphans() -> list[int]:
    """Kill whatever bears the mark of a process that is gone; returns the pids.

    The supervisors see to that when one process dies, or two. This is for when all of them were killed at once, as by
    the kernel when memory runs out. Only what this user may look into is looked at.
    """
    ended: list[int] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            mark = process.environ().get(OWNER_VARIABLE)
            if mark is not None and not _is_there(mark):
                process.kill()
                ended.append(process.pid)
    if ended:
        _log.warning("orphans_killed", pids=ended)
    return ended


def _is_there(mark: str) -> bool:
    try:
        return _mark_of(int(mark.partition(":")[0])) == mark
    except (ValueError, FileNotFoundError, ProcessLookupError):
        return False
