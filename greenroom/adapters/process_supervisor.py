"""The program that a provider's command runs under, so that no process of it outlives the run or the actor.

Two processes, because either may be killed at any moment. The guard is the actor's child; the supervisor is the guard's
child and the command's parent. Both are child subreapers: whatever a descendant does (setsid, nohup, daemonise), it is
re-parented to the nearest of them and found again. That gives:

- the command ends, the actor orders a stop or dies: the supervisor ends the whole tree, then itself;
- the supervisor is killed (`kill -9 $PPID` in the command): the guard ends the tree;
- the guard is killed (Ray kills the direct children of a worker that exits): the supervisor still sees the actor die.

The supervisor knows of the actor's death from the pipe of its orders and from a pidfd; the pipe alone would stay open
if a fork of the actor held it. Only the death of both processes at once leaves what the command itself had started.

This file is run as a script by `supervised_process`, with `-I -S` and the standard library alone: it imports nothing of
Greenroom, because a run would wait for that. Linux only (prctl, pidfd, /proc).

Orders come by one pipe, a line each: `signal NUMBER` (to the command's process group), `stop GRACE_S`. Reports go by
another: `started PID` or `failed PART ERRNO`, then `exited STATUS`; its end says that the tree is gone. Pipes and not
one socket, because a report that is still unread survives whatever happens to the orders.
"""

import ctypes
import errno
import marshal
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

DEFAULT_GRACE_S = 1.0
"""Between SIGTERM and SIGKILL, when the actor has died or the command has left processes behind."""

MAX_GRACE_S = 3.0
"""No tree gets longer than this, so that it is gone within 5 s whatever was asked for."""

_KILL_AGAIN_S = 0.1
_LONGEST_PAUSE_S = 0.02

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_RESET_SIGNALS = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGPIPE,
    signal.SIGCHLD,
    signal.SIGXFSZ,
)
"""What Python, or whoever started the actor, may have set to be ignored; a command expects the defaults."""

_libc = ctypes.CDLL(None, use_errno=True)


class CommandRequest:
    """What to run, in bytes, so that no locale has a say in it. A plain class: to import `typing` takes 10 ms."""

    __slots__ = ("actor_pid", "arguments", "cwd", "environment", "stdin")

    def __init__(
        self,
        arguments: list[bytes],
        cwd: bytes | None,
        environment: dict[bytes, bytes],
        actor_pid: int,
        stdin: int | None = None,
    ) -> None:
        """`stdin` is a descriptor that the command reads from; None: there is nothing to read."""
        self.arguments = arguments
        self.cwd = cwd
        self.environment = environment
        self.actor_pid = actor_pid
        self.stdin = stdin

    def dump(self) -> bytes:
        return marshal.dumps((self.arguments, self.cwd, self.environment, self.actor_pid, self.stdin))

    @classmethod
    def load(cls, dumped: bytes) -> "CommandRequest":
        return cls(*marshal.loads(dumped))  # noqa: S302 - written by the actor, for this process alone


class ProcessTree:
    """All descendants of the calling process, which must be a child subreaper."""

    def __init__(self) -> None:
        self.command_pid = 0
        self.command_status: int | None = None
        """The exit status of the command once it was reaped, negative for a signal."""

    def reap(self) -> bool:
        """Collect the children that have ended; False when none is left.

        A subreaper without children has no descendants at all, so False is proof that the tree is gone.
        """
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.command_pid:
                self.command_status = os.waitstatus_to_exitcode(status)

    def end(self, grace_s: float) -> None:
        """SIGTERM, SIGKILL after the grace, again and again until nothing is left."""
        if not self.reap():
            return
        if grace_s > 0:
            _signal_descendants(signal.SIGTERM)
            _signal_descendants(signal.SIGCONT)
            if self._is_gone_within(grace_s):
                return
        while True:
            _signal_descendants(signal.SIGKILL)
            if self._is_gone_within(_KILL_AGAIN_S):
                return

    def _is_gone_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        pause = 0.001
        while self.reap():
            if time.monotonic() >= deadline:
                return False
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_S)
        return True


class Supervisor:
    """Runs one command, does as the actor says, and ends the tree with it."""

    def __init__(self, orders: int, reports: int) -> None:
        self._orders = orders
        self._reports = reports
        self._tree = ProcessTree()
        self._unread = b""

    def run(self, request: CommandRequest) -> None:
        """Returns when the command has ended and nothing of it is left."""
        child_ended = _child_ended_descriptor()
        pid, failure = _start_command(request)
        if failure:
            self._report(b"failed " + failure)
            self._tree.end(0)
            return
        self._tree.command_pid = pid
        self._report(b"started %d" % pid)
        grace_s = self._watch(child_ended, request.actor_pid)
        self._tree.end(grace_s)
        if self._tree.command_status is not None:
            self._report(b"exited %d" % self._tree.command_status)

    def _watch(self, child_ended: int, actor_pid: int) -> float:
        """Wait until the tree is to end; the grace that it has."""
        try:
            actor = os.pidfd_open(actor_pid)
        except OSError:  # it has died already, or the kernel is older than pidfds: the pipe tells
            actor = self._orders
        poll = select.poll()
        for descriptor in {child_ended, self._orders, actor}:
            poll.register(descriptor, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if child_ended in ready:
                os.read(child_ended, 4096)
                self._tree.reap()
                if self._tree.command_status is not None:
                    return DEFAULT_GRACE_S
            if actor in ready - {self._orders}:
                return DEFAULT_GRACE_S
            grace_s = self._obey() if self._orders in ready else None
            if grace_s is not None:
                return grace_s

    def _obey(self) -> float | None:
        """Carry out what has arrived; the grace when it says to stop, as the end of the stream does."""
        arrived = os.read(self._orders, 4096)
        if not arrived:
            return DEFAULT_GRACE_S
        *lines, self._unread = (self._unread + arrived).split(b"\n")
        for line in lines:
            order, _, argument = line.partition(b" ")
            if order == b"stop":
                return min(float(argument), MAX_GRACE_S)
            _send_signal(-self._tree.command_pid, int(argument))
        return None

    def _report(self, line: bytes) -> None:
        with suppress(BrokenPipeError):  # nobody listens any more; the tree is ended all the same
            os.write(self._reports, line + b"\n")


def main() -> None:
    """Become the guard, with the supervisor as its child."""
    orders, reports = map(int, sys.argv[1:])
    for descriptor in (orders, reports):
        os.set_inheritable(descriptor, False)
    with os.fdopen(0, "rb", closefd=False) as stdin:
        request = CommandRequest.load(stdin.read())
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    supervisor_pid = os.fork()
    try:
        if supervisor_pid != 0 and request.stdin is not None:
            os.close(request.stdin)  # whoever writes there is to hear of the command's end
        if supervisor_pid == 0:
            _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # not inherited
            Supervisor(orders, reports).run(request)
        else:
            _guard(supervisor_pid)
    finally:
        os._exit(0)  # without the interpreter's own tidying, for which the run would wait


def _guard(supervisor_pid: int) -> None:
    """Wait for the supervisor's end and finish its work if it could not. SIGTERM replaces one that hangs.

    The pipe of reports stays open here until then, so that its end says the same whoever ended the tree.
    """
    _leave_standard_streams()

    def kill_supervisor(_number: int, _frame: object) -> None:
        _send_signal(supervisor_pid, signal.SIGKILL)

    signal.signal(signal.SIGTERM, kill_supervisor)
    os.waitpid(supervisor_pid, 0)
    ProcessTree().end(0)


def _start_command(request: CommandRequest) -> tuple[int, bytes]:
    """The command's pid, and why it could not start: the part at fault and the errno; empty when it runs."""
    failure_read, failure_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        _become_command(request, failure_write)
    os.close(failure_write)
    if request.stdin is not None:
        os.close(request.stdin)
    _leave_standard_streams()
    with os.fdopen(failure_read, "rb") as failures:  # closed by a successful exec
        return pid, failures.read()


def _become_command(request: CommandRequest, failure: int) -> None:
    """Never returns."""
    part = b"cwd"
    try:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in _RESET_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if request.stdin is None:
            _replace_with_null(0)
        else:
            os.dup2(request.stdin, 0)
            os.close(request.stdin)
        if request.cwd is not None:
            os.chdir(request.cwd)
        part = b"command"
        os.execvpe(request.arguments[0], request.arguments, request.environment)  # noqa: S606 - this is the task
    except (OSError, ValueError) as exc:
        os.write(failure, b"%s %d" % (part, getattr(exc, "errno", None) or errno.EINVAL))
    finally:
        os._exit(127)


def _leave_standard_streams() -> None:
    """Let go of the command's pipes, so that they end when the command's own processes have ended."""
    for descriptor in (0, 1, 2):
        _replace_with_null(descriptor)


def _replace_with_null(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, descriptor)
    os.close(null)


def _child_ended_descriptor() -> int:
    """A descriptor that becomes readable whenever a child has ended."""
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, _do_nothing)  # without a handler nothing is written to the descriptor
    return readable


def _do_nothing(_number: int, _frame: object) -> None:
    """What arrives by the descriptor is enough."""


def _signal_descendants(number: int) -> None:
    """Signal every process group of the tree as a whole, which no fork in it can escape, and lone processes by pid."""
    own_group = os.getpgrp()
    for target in {-group if group != own_group else pid for pid, group in _descendants()}:
        _send_signal(target, number)


def _descendants() -> list[tuple[int, int]]:
    """Pid and process group of all descendants of this process."""
    children: dict[int, list[tuple[int, int]]] = {}
    for pid, parent, group in _all_processes():
        children.setdefault(parent, []).append((pid, group))
    found = list(children.get(os.getpid(), ()))
    for pid, _ in found:  # grows as it goes
        found.extend(children.get(pid, ()))
    return found


def _all_processes() -> Iterator[tuple[int, int, int]]:
    """Pid, parent and process group of every process there is."""
    with os.scandir("/proc") as entries:
        pids = [int(entry.name) for entry in entries if entry.name.isdigit()]
    for pid in pids:
        with suppress(ProcessLookupError, FileNotFoundError):  # it has ended meanwhile
            stat = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
            with os.fdopen(stat, "rb", buffering=0) as file:
                fields = file.read(4096).rpartition(b")")[2].split()  # the name before may hold spaces and brackets
            yield pid, int(fields[1]), int(fields[2])


def _send_signal(target: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # it has ended; or it runs as another user by now
        os.kill(target, number)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    main()
