"""Finding and killing the processes behind a runtime's actors."""

import os
import signal
from typing import Any

import psutil

from greenroom import Runtime
from tests.waiting import wait_until


def actor_rows(runtime: Runtime, kind: str, session_id: str | None = None) -> list[dict[str, Any]]:
    """Live actors of that kind, or only the one that serves the session."""
    return [
        row
        for row in runtime.stats().actors
        if row["kind"] == kind
        and row["state"] == "ALIVE"
        and (session_id is None or session_id in row["session_ids"])
        and psutil.pid_exists(row["pid"])
    ]


def pid_of(runtime: Runtime, kind: str, session_id: str | None = None) -> int:
    """The process of that actor, once there is one."""
    rows = wait_until(lambda: actor_rows(runtime, kind, session_id), what=f"a live {kind}")
    return int(rows[0]["pid"])


def kill_9(runtime: Runtime, kind: str, session_id: str | None = None) -> int:
    """Kill that actor's process; returns the pid that it had."""
    pid = pid_of(runtime, kind, session_id)
    os.kill(pid, signal.SIGKILL)
    return pid
