"""A process of its own for long work on the files of a store.

One order as JSON on the first line of stdin, one answer as JSON on stdout. When stdin ends, whoever gave the order is
gone, and the process ends too: what is half made has a name that does not count.
"""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...domain.errors import GreenroomError, StorageError
from ..logs import log_to_stderr
from .backup import BackupOrder, back_up
from .query_refresh import RefreshOrder, refresh_mirror
from .sealing import SealOrder, seal
from .session_transfer import AdoptOrder, ExportOrder, ImportOrder, adopt_sessions, export_session, import_session

_NICE = 19  # appends come first


def _seal(order: dict[str, Any]) -> dict[str, Any] | None:
    sealed = seal(SealOrder(**order))
    return sealed._asdict() if sealed else None


TASKS: Mapping[str, Callable[[dict[str, Any]], Any]] = {
    "seal": _seal,
    "export": lambda order: export_session(ExportOrder(**order)),
    "import": lambda order: import_session(ImportOrder(**order)),
    "adopt": lambda order: adopt_sessions(AdoptOrder(**order)),
    "mirror": lambda order: refresh_mirror(RefreshOrder(**order)),
    "backup": lambda order: back_up(BackupOrder(**order)),
}


def main() -> None:
    log_to_stderr()
    _yield_to_appends()
    os.umask(0o077)
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    answer: dict[str, Any]
    try:
        answer = {"answer": TASKS[request["task"]](request["order"])}
    except GreenroomError as exc:
        answer = {"error": exc.to_record()}
    except Exception as exc:  # noqa: BLE001  handed on: the asker gets it
        answer = {"error": StorageError(f"{request['task']} failed: {type(exc).__name__}: {exc}").to_record()}
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)  # not past the thread that waits for stdin


def _yield_to_appends() -> None:
    os.nice(_NICE)
    with contextlib.suppress(OSError):  # Linux shares out time among sessions first where autogroups are on
        Path("/proc/self/autogroup").write_text(str(_NICE))


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
