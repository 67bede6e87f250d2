"""The runtime behind a command: the one that lives on the data_dir, else one of the command's own."""

import os
import signal
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .cli_options import Invocation
from .process_tree import GRACE_S, ProcessTree

if TYPE_CHECKING:  # these cost what `--help` must not
    from ..actors.runtime import Runtime
    from ..adapters.settings import Settings

_AGAIN_S = 0.05
_FAILED_START_GRACE_S = 1.0
"""Nobody has told the processes of a start that was broken off to end."""
_CONTROL_STORE = "gcs_server"
_LOOK_S = 0.1
_GONE_GRACE_S = 3.0
"""How long the end may take when the control store has died in it: Ray's own shutdown kills it too, and then needs a
moment."""

_ray_hangs = threading.Event()


def settings_of(invocation: Invocation) -> "Settings":
    """The settings that the command runs with. ValidationError for a bad one."""
    from ..adapters.settings import load_settings  # noqa: PLC0415  loads pydantic

    return load_settings(None, invocation.overrides())


def data_dir_of(settings: "Settings") -> Path:
    """The data_dir as the runtime names it."""
    return Path(settings.data_dir).expanduser().resolve()


def runtime_lives(settings: "Settings") -> bool:
    """Whether there is a runtime on the data_dir to join."""
    from ..actors.runtime_file import read_record  # noqa: PLC0415

    record = None if settings.is_memory else read_record(data_dir_of(settings))
    return record is not None and record.is_alive


@contextmanager
def opened_runtime(invocation: Invocation) -> Generator["Runtime"]:
    """Join the runtime of the data_dir, or start one for as long as the block lasts.

    A runtime that this process started has ended when the block is left, and all its processes are gone; one that was
    joined is only left. One started on a Ray cluster that was there before stays, as `greenroom up` would leave it.
    SIGTERM ends the command as Ctrl-C does.
    """

    # Else a thread of Ray Data that is still at it when Ray has ended starts another one.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    from ..actors import ray_cluster  # noqa: PLC0415
    from ..actors.starting import start  # noqa: PLC0415
    from ..adapters.logs import log_to_stderr  # noqa: PLC0415

    if invocation.debug:
        log_to_stderr()
        ray_cluster.show_chatter()
    processes = ProcessTree()
    runtime: Runtime | None = None
    interrupt_on_signals()
    try:
        runtime = start(settings_of(invocation))
        interrupt_on_signals()  # again: Ray has set a handler for SIGTERM that prints a stack and just ends
        processes.look()
        yield runtime
    finally:
        interrupt_on_signals()  # again: whoever watched a run has taken the handlers off
        processes.look()
        if _ended(runtime, processes):
            processes.await_end(grace_s=GRACE_S if runtime is not None else _FAILED_START_GRACE_S)
        else:
            processes.await_end(grace_s=0)
            _ray_hangs.set()
        signal.setitimer(signal.ITIMER_REAL, 0)


def _ended(runtime: "Runtime | None", processes: ProcessTree) -> bool:
    """End the runtime that this process started, and Ray. False if that never comes to an end, because Ray's control
    store was killed before: SIGTERM to a whole process group, as `timeout` and service managers send it, does so, and
    Ray then waits a minute for it in most of its calls, and in its hook at the end of Python."""
    import ray  # noqa: PLC0415  is loaded by now

    def end() -> None:
        if runtime is not None and runtime.owns_ray:
            runtime.shutdown()
        ray.shutdown()

    ending = threading.Thread(target=end, daemon=True)
    ending.start()
    gone_since: float | None = None
    while ending.is_alive():
        ending.join(_LOOK_S)
        if gone_since is None and processes.has_lost(_CONTROL_STORE):
            gone_since = time.monotonic()
        if gone_since is not None and time.monotonic() - gone_since > _GONE_GRACE_S:
            return not ending.is_alive()
    return True


def leave(status: int) -> int:
    """The exit code, for a process that can end by itself; one in which Ray hangs is ended here."""
    if _ray_hangs.is_set():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def interrupt_on_signals() -> None:
    """Ctrl-C and SIGTERM raise KeyboardInterrupt here, and nothing in a child between its fork and its exec.

    One that Python drops, because the signal came in a finalizer or a hook of fork, is raised again a moment later.
    """
    this_process = os.getpid()

    def interrupt(_number: int, _frame: object) -> None:
        if os.getpid() == this_process:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt

    def dropped(unraisable: "sys.UnraisableHookArgs") -> None:
        if unraisable.exc_type is KeyboardInterrupt:
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
        else:
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = dropped
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, interrupt)


def note(text: str) -> None:
    """Tell somebody who waits at a terminal what goes on; nobody else."""
    if sys.stderr.isatty():
        sys.stderr.write(f"{text}\n")
