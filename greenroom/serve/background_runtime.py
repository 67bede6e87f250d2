"""A runtime in the background: the process that holds it, how that is started, found and ended.

The holder is a detached `greenroom hold`. It tells its parent through a pipe how the start went, writes itself down in
the data_dir, and holds the runtime until it gets SIGTERM or the runtime has ended by other means.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from ..domain.errors import GreenroomError, RuntimeGone, error_from_record
from .process_tree import ProcessTree

if TYPE_CHECKING:
    from ..actors.runtime import Runtime

HOLDER_FILE = "background.json"
LOG_FILE = "runtime.log"
_LOOK_S = 1.0
_END_S = 30.0
_SAME_START_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The process that holds a runtime."""

    pid: int
    started_at: float
    """When the process was created: a pid alone may belong to another one by now."""

    @classmethod
    def find(cls, data_dir: Path) -> "Holder | None":
        """The holder of the runtime on this data_dir, if it lives."""
        try:
            holder = cls(**json.loads((data_dir / HOLDER_FILE).read_text()))
            alive = abs(psutil.Process(holder.pid).create_time() - holder.started_at) < _SAME_START_S
        except (OSError, ValueError, TypeError, psutil.NoSuchProcess):
            return None
        return holder if alive else None

    @classmethod
    def write_this_process(cls, data_dir: Path) -> None:
        """Write this process down as the holder."""
        process = psutil.Process()
        path = data_dir / HOLDER_FILE
        scratch = path.with_suffix(f".{process.pid}")
        scratch.write_text(json.dumps(asdict(cls(pid=process.pid, started_at=process.create_time()))))
        scratch.replace(path)

    @staticmethod
    def strike_out(data_dir: Path) -> None:
        """No process holds a runtime on the data_dir any more."""
        (data_dir / HOLDER_FILE).unlink(missing_ok=True)

    def end(self) -> None:
        """End the runtime and return when the last of its processes is gone; one that hangs is killed."""
        try:
            process = psutil.Process(self.pid)
            below = ProcessTree(process)
            below.look()
            process.terminate()
            try:
                process.wait(_END_S)
            except psutil.TimeoutExpired:
                process.kill()
        except psutil.NoSuchProcess:
            return
        below.await_end()


def start_holder(data_dir: Path, arguments: Sequence[str]) -> None:
    """Start a process that holds a runtime on the data_dir; returns when the runtime is ready, or raises why not."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    reader, writer = os.pipe()
    log = os.open(data_dir / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process = subprocess.Popen(  # noqa: S603  our own program
            [sys.executable, "-m", "greenroom", "hold", "--ready-fd", str(writer), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(writer,),
            start_new_session=True,
        )
    finally:
        os.close(log)
        os.close(writer)
    try:
        with os.fdopen(reader) as pipe:
            answer = pipe.readline()
    except BaseException:
        process.terminate()
        raise
    _check(answer, data_dir)


def _check(answer: str, data_dir: Path) -> None:
    if not answer:
        raise RuntimeGone(f"The background process ended before the runtime was ready; see {data_dir / LOG_FILE}.")
    error: dict[str, Any] | None = json.loads(answer)["error"]
    if error is not None:
        raise error_from_record(error)


class ReadyPipe:
    """The holder's end of the pipe to the process that started it."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)  # else Ray's processes would keep it open
        self._descriptor = descriptor

    def tell(self, error: GreenroomError | None = None) -> None:
        """Say that the runtime is ready, or why it is not; nobody may be listening any more."""
        answer = json.dumps({"error": error.to_record() if error else None}, default=repr) + "\n"
        try:
            os.write(self._descriptor, answer.encode())
            os.close(self._descriptor)
        except BrokenPipeError:
            return


def hold(runtime: "Runtime") -> None:
    """Return when this process has been asked to end, or the runtime has ended."""
    from ..actors.runtime_file import read_record  # noqa: PLC0415  loads Ray's side

    data_dir = Path(runtime.data_dir)
    asked = threading.Event()

    def ask(_number: int, _frame: object) -> None:
        asked.set()

    signal.signal(signal.SIGTERM, ask)  # in place of Ray's own, which would drain the node first
    while not asked.wait(_LOOK_S):
        record = read_record(data_dir)
        if record is None or record.pid != os.getpid() or not record.is_alive:
            return
