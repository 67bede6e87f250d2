"""The commands that the amp program runs."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import NoReturn


class Commands:
    """Runs commands one after the other, each in a process group of its own, which a signal to the program kills."""

    def __init__(self) -> None:
        self._command: subprocess.Popen[str] | None = None
        self._is_starting = False
        self._signal: int | None = None

    def obey_signals(self) -> None:
        """From now on SIGTERM and SIGINT end the program at once, and the command that it runs with it."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told_to_end)

    def run(
        self, command: Sequence[str], *, given: str = "", environment: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        """Exit status and output, stderr in it; OSError if it cannot be started."""
        self._is_starting = True
        try:
            self._command = subprocess.Popen(  # noqa: S603  # running what the model says is what it is for
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                env=None if environment is None else {**os.environ, **environment},
                process_group=0,
            )
        finally:
            self._is_starting = False
            if self._signal is not None:
                self._end(self._signal)
        output, _ = self._command.communicate(given)
        status, self._command = self._command.returncode, None
        return status, output

    def _told_to_end(self, number: int, frame: object) -> None:
        self._signal = number
        if not self._is_starting:  # what is being started has no name yet by which it could be killed
            self._end(number)

    def _end(self, number: int) -> NoReturn:
        if self._command is not None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it was faster
                os.killpg(self._command.pid, signal.SIGKILL)
                os.waitpid(self._command.pid, 0)
        os._exit(128 + number)
