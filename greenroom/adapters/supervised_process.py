"""A provider's command, run so that nothing of it survives its end, its cancellation or the death of the actor."""

import asyncio
import errno
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from io import FileIO
from pathlib import Path

from . import process_supervisor
from .process_supervisor import DEFAULT_GRACE_S, MAX_GRACE_S, CommandRequest
from .process_trees import OWNER_VARIABLE, owner_mark

_logger = logging.getLogger(__name__)

_PASSED_VARIABLES = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TERM",
    "TMPDIR",
    "TZ",
    "USER",
    "LOGNAME",
    "SHELL",
)

_STREAM_LIMIT_BYTES = 65_536
"""A stream that nobody reads holds at most twice this in the actor; then the command waits at its pipe."""

_SUPERVISOR_ANSWERS_S = 1.0
"""How long beyond the grace a stop may take before the supervisor is replaced by its guard."""

_LONGEST_END_S = 4.8

_ends_under_way: set[asyncio.Task[None]] = set()
"""The event loop itself holds tasks only weakly."""


def scrubbed_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """What a command gets: the variables that say where and in which language it runs, `extra` laid over them, and the
    mark of this process, by which `end_orphans` knows its own.

    Keys, tokens, and Ray's own variables stay with the actor.
    """
    passed = {name: os.environ[name] for name in _PASSED_VARIABLES if name in os.environ}
    return passed | dict(extra) | {OWNER_VARIABLE: owner_mark()}


class CommandNotStarted(OSError):
    """The command could not be started; `part` says what was at fault: "cwd" or "command".

    With errno EIO the supervisor was killed before it could tell: the command may have begun, and is gone.
    """

    def __init__(self, part: str, number: int) -> None:
        super().__init__(number, os.strerror(number))
        self.part = part


class SupervisedProcess:
    """One command in a session and process group of its own, under a supervisor (see `process_supervisor`).

    Whichever way it ends, by itself, by `terminate` or with the actor, everything that it started ends too: background
    children, daemons and all. Its output waits in bounded buffers: who does not read makes the command wait. Belongs to
    the event loop that started it, of any kind and in any thread: nothing here relies on SIGCHLD.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._supervision = _Supervision(self._loop)
        self._outputs: list[asyncio.BaseTransport] = []
        self._end: asyncio.Task[None] | None = None
        self.stdin: asyncio.StreamWriter | None = None
        self.stdout = asyncio.StreamReader(limit=_STREAM_LIMIT_BYTES)
        self.stderr = asyncio.StreamReader(limit=_STREAM_LIMIT_BYTES)
        self.pid = 0
        """Of the command itself; also the id of its process group."""

    @classmethod
    async def start(
        cls, command: Sequence[str] | str, *, cwd: str | None = None, env: Mapping[str, str], with_stdin: bool = False
    ) -> "SupervisedProcess":
        """Start the command; text is run by /bin/sh. `env` is all that it gets; its stdin is empty, or `stdin`.

        `cwd` None is the actor's own. Raises CommandNotStarted. Call `aclose` in the end, whatever happened.
        """
        arguments = ("/bin/sh", "-c", command) if isinstance(command, str) else command
        request = CommandRequest(
            arguments=[os.fsencode(argument) for argument in arguments],
            cwd=None if cwd is None else os.fsencode(cwd),
            environment={os.fsencode(name): os.fsencode(value) for name, value in env.items()},
            actor_pid=os.getpid(),
        )
        process = cls()
        try:
            await process._launch(request, with_stdin=with_stdin)
            process.pid = await process._supervision.start_of_command()
        except BaseException:
            await process.aclose()
            raise
        return process

    async def wait(self) -> int:
        """The command's exit status, negative for a signal, once it and everything that it started is gone.

        -9 also when the supervisor was killed, since the command is killed then.
        """
        return await asyncio.shield(self._supervision.ended)

    def send_signal(self, number: int) -> None:
        """Signal the command's process group. Nothing happens when the command has ended."""
        self._supervision.order(f"signal {int(number)}")

    async def terminate(self, grace_s: float = DEFAULT_GRACE_S) -> None:
        """SIGTERM to the whole tree, SIGKILL after the grace (at most 3 s); returns in less than 5 s.

        Goes on when the caller is cancelled. The first call decides the grace.
        """
        if self._end is None:
            self._end = self._loop.create_task(self._terminate(min(grace_s, MAX_GRACE_S)))
            _ends_under_way.add(self._end)
            self._end.add_done_callback(_ends_under_way.discard)
        await asyncio.shield(self._end)

    async def aclose(self) -> None:
        """Terminate what still runs and let go of the streams. May be called again."""
        try:
            if not self._supervision.is_over:
                await self.terminate()
        finally:
            for output in self._outputs:
                output.close()
            if self.stdin is not None:
                self.stdin.close()

    async def _launch(self, request: CommandRequest, *, with_stdin: bool) -> None:
        with ExitStack() as supervisor_ends:
            if with_stdin:
                request.stdin = await self._open_input(supervisor_ends)
            stdout = await self._open_output(self.stdout, supervisor_ends)
            stderr = await self._open_output(self.stderr, supervisor_ends)
            reports, _ = await self._open_pipe(self._supervision, supervisor_ends)
            orders = self._supervision.open_orders()
            supervisor_ends.callback(os.close, orders)
            self._supervision.guard = _spawn_guard(request, orders, reports, stdout, stderr)

    async def _open_input(self, supervisor_ends: ExitStack) -> int:
        readable, writable = os.pipe()
        supervisor_ends.callback(os.close, readable)
        pipe, protocol = await self._loop.connect_write_pipe(
            asyncio.streams.FlowControlMixin, os.fdopen(writable, "wb", buffering=0)
        )
        self.stdin = asyncio.StreamWriter(pipe, protocol, None, self._loop)
        return readable

    async def _open_output(self, reader: asyncio.StreamReader, supervisor_ends: ExitStack) -> int:
        writable, pipe = await self._open_pipe(asyncio.StreamReaderProtocol(reader), supervisor_ends)
        self._outputs.append(pipe)
        return writable

    async def _open_pipe(
        self, protocol: asyncio.Protocol, supervisor_ends: ExitStack
    ) -> tuple[int, asyncio.BaseTransport]:
        """Have the protocol read from a new pipe; the end to write to, which closes with the stack, and the other."""
        readable, writable = os.pipe()
        supervisor_ends.callback(os.close, writable)
        pipe, _ = await self._loop.connect_read_pipe(lambda: protocol, os.fdopen(readable, "rb", buffering=0))
        return writable, pipe

    async def _terminate(self, grace_s: float) -> None:
        self._supervision.order(f"stop {grace_s}")
        if await self._supervision.is_over_within(grace_s + _SUPERVISOR_ANSWERS_S):
            return
        self._supervision.replace_supervisor()
        if not await self._supervision.is_over_within(_LONGEST_END_S - grace_s - _SUPERVISOR_ANSWERS_S):
            _logger.warning("The process tree of command %d is not gone yet; its supervisor goes on.", self.pid)


class _Supervision(asyncio.Protocol):
    """The actor's side of the supervisor: orders go out, reports come in, and their end says that all has ended."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.ended: asyncio.Future[int] = loop.create_future()
        self.guard: subprocess.Popen[bytes] | None = None
        self._started: asyncio.Future[int | CommandNotStarted] = loop.create_future()
        self._is_connected = False
        self._orders: FileIO | None = None
        self._unread = b""
        self._exit_status = -signal.SIGKILL.value

    @property
    def is_over(self) -> bool:
        """Whether nothing of the command is there any more, or ever was."""
        return self.ended.done() or not self._is_connected

    async def is_over_within(self, seconds: float) -> bool:
        if not self.is_over:
            await asyncio.wait((self.ended,), timeout=seconds)
        return self.is_over

    async def start_of_command(self) -> int:
        """The pid of the command, once it runs."""
        outcome = await self._started
        if isinstance(outcome, CommandNotStarted):
            raise outcome
        return outcome

    def open_orders(self) -> int:
        """The end of the pipe from which the supervisor takes orders. When the other is closed it ends the tree."""
        readable, writable = os.pipe()
        os.set_blocking(writable, False)
        self._orders = FileIO(writable, "wb")
        return readable

    def order(self, order: str) -> None:
        """Write it down for the supervisor; never waits. One that takes no orders for long is replaced anyway."""
        if self._orders is not None and not self._orders.closed:
            with suppress(BrokenPipeError):
                self._orders.write(f"{order}\n".encode())

    def replace_supervisor(self) -> None:
        """Have the guard kill a supervisor that does not answer (a stopped one, say) and end the tree itself."""
        if self.guard is not None:
            self.guard.send_signal(signal.SIGCONT)
            self.guard.send_signal(signal.SIGTERM)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._is_connected = True

    def data_received(self, data: bytes) -> None:
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            report, _, rest = line.decode().partition(" ")
            if report == "exited":
                self._exit_status = int(rest)
            elif report == "failed":
                part, _, number = rest.partition(" ")
                self._set_started(CommandNotStarted(part, int(number)))
            else:
                self._set_started(int(rest))

    def connection_lost(self, exc: Exception | None) -> None:
        if self.guard is not None:
            self.guard.wait()  # at once: the guard held the other end, and let go of it by exiting
        if self._orders is not None:
            self._orders.close()
        self._set_started(CommandNotStarted("command", errno.EIO))
        if not self.ended.done():
            self.ended.set_result(self._exit_status)

    def _set_started(self, outcome: int | CommandNotStarted) -> None:
        if not self._started.done():
            self._started.set_result(outcome)


def _spawn_guard(
    request: CommandRequest, orders: int, reports: int, stdout: int, stderr: int
) -> "subprocess.Popen[bytes]":
    """Run `process_supervisor`. Takes about 1 ms, the time of a vfork and an exec.

    `subprocess` and not asyncio's: it needs no child watcher, whose ways depend on the kind and thread of the loop. The
    request goes through a file in memory and not the command line, which all users of the machine may read; the
    supervisor itself gets no environment, because the command could read that.
    """
    program = [sys.executable, "-I", "-S", str(Path(process_supervisor.__file__)), str(orders), str(reports)]
    environment = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    with os.fdopen(os.memfd_create("greenroom-command"), "w+b") as stdin:
        stdin.write(request.dump())
        stdin.seek(0)
        return subprocess.Popen(  # noqa: S603 - the program is our own
            program,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=(orders, reports, *(() if request.stdin is None else (request.stdin,))),
            env=environment,
            start_new_session=True,
        )
