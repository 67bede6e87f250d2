"""The process of an agent's client: lines of JSON out of it and into it, and what it prints on stderr."""

import asyncio
import errno
import json
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

from ....domain.errors import GreenroomError, ProviderError, ProviderInvalidRequest, ProviderUnavailable
from ...supervised_process import CommandNotStarted, SupervisedProcess
from .options import AgentSurroundings
from .recording import Recording

MAX_LINE_BYTES = 64 * 1024 * 1024
"""A message of a client that is longer than this ends it: it would have to be held whole."""

STDERR_LINES = 200
STDERR_LINE_CHARACTERS = 2_000
"""So much of the end of stderr is kept for errors."""

_READ_BYTES = 262_144
_STDERR_WAIT_S = 1.0
_MACHINE_ERRORS = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


class AgentProcess:
    """A supervised command that speaks in lines. Reading is for one task at a time; writing for any.

    Nothing of it is left after `aclose`, nor after the death of this process.
    """

    def __init__(self, process: SupervisedProcess, where: AgentSurroundings, recording: Recording | None) -> None:
        self.where = where
        self._process = process
        self._recording = recording
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES)
        self._stderr_task = asyncio.create_task(self._read_stderr())
        self._write_lock = asyncio.Lock()

    @classmethod
    async def start(
        cls, command: Sequence[str], where: AgentSurroundings, *, record: str | None = None
    ) -> "AgentProcess":
        """Start it. ProviderInvalidRequest for a command that cannot be run, ProviderUnavailable where the machine
        has no room. With `record`, all its lines go to a new file in that directory too, secrets left out."""
        recording = Recording.create(record, where) if record else None
        try:
            process = await SupervisedProcess.start(
                tuple(command), cwd=where.cwd, env=where.environment, with_stdin=True
            )
        except BaseException as exc:
            if recording is not None:
                recording.close()
            if isinstance(exc, OSError):
                raise _not_started(exc, command[0], where) from exc
            raise
        if recording is not None:
            recording.write("argv", list(command))
        return cls(process, where, recording)

    @property
    def pid(self) -> int:
        """Of the command itself."""
        return self._process.pid

    async def lines(self) -> AsyncGenerator[Any]:
        """What the client says, line by line: what a JSON object says, or the text of any other line.

        Bytes that are no UTF-8 come as U+FFFD. Ends with stdout. ProviderError for a line that is too long.
        """
        async for line in self._raw_lines():
            message = _parsed(line)
            if self._recording is not None and message != "":
                self._recording.write("out", message)
            if message != "":
                yield message

    async def send(self, message: Mapping[str, Any] | str) -> None:
        """Write one line; returns when the client has room for more. ProviderUnavailable if it has ended."""
        text = message if isinstance(message, str) else json.dumps(message, ensure_ascii=False)
        if self._recording is not None:
            self._recording.write("in", _parsed(text.encode()))
        stdin = self._process.stdin
        assert stdin is not None, "it was started with one"
        try:
            async with self._write_lock:
                stdin.write(text.encode(errors="replace") + b"\n")
                await stdin.drain()
        except (ConnectionError, RuntimeError) as exc:
            raise await self.ended_early() from exc

    def end_input(self) -> None:
        """Close its stdin: there is no more."""
        assert self._process.stdin is not None, "it was started with one"
        self._process.stdin.close()

    async def wait(self) -> int:
        """Its exit status, negative for a signal, once it and everything that it started is gone."""
        status = await self._process.wait()
        if self._recording is not None:
            self._recording.write("exit", status)
        return status

    def send_signal(self, number: int) -> None:
        """Signal its process group."""
        self._process.send_signal(number)

    async def stderr_text(self) -> str:
        """The end of what it printed on stderr, without secrets; of a command that has ended all that there will be."""
        if self._process.stdout.at_eof():
            await asyncio.wait((self._stderr_task,), timeout=_STDERR_WAIT_S)
        return self.where.redacted("\n".join(self._stderr))

    async def ended_early(self) -> GreenroomError:
        """What to raise when it has gone in the middle of something."""
        said = (await self.stderr_text()).strip().rpartition("\n")[2].strip()
        message = "The agent's client ended in the middle of its work"
        return ProviderUnavailable(f"{message}: {said}" if said else f"{message}. Try again later.")

    def redacted(self, text: str) -> str:
        """The text without the secrets that the client was given."""
        return self.where.redacted(text)

    async def aclose(self, *, grace_s: float = 1.0) -> None:
        """SIGTERM, SIGKILL after the grace, until nothing of it is left. May be called again."""
        try:
            await self._process.terminate(grace_s)
        finally:
            await self._process.aclose()
            self._stderr_task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait((self._stderr_task,))
            if self._recording is not None:
                self._recording.close()

    async def _raw_lines(self) -> AsyncGenerator[bytes]:
        kept = bytearray()
        while data := await self._process.stdout.read(_READ_BYTES):
            first, *rest = data.split(b"\n")
            kept += first
            if len(kept) > MAX_LINE_BYTES:
                raise ProviderError(f"The agent's client sent a message of more than {MAX_LINE_BYTES} bytes.")
            for next_part in rest:
                yield bytes(kept)
                kept = bytearray(next_part)
        yield bytes(kept)

    async def _read_stderr(self) -> None:
        unfinished = ""
        while data := await self._process.stderr.read(_READ_BYTES):
            *lines, unfinished = (unfinished + data.decode(errors="replace")).split("\n")
            for line in lines:
                self._note(line)
            unfinished = unfinished[-STDERR_LINE_CHARACTERS:]
        self._note(unfinished)

    def _note(self, line: str) -> None:
        if line.strip():
            self._stderr.append(line[:STDERR_LINE_CHARACTERS])
            if self._recording is not None:
                self._recording.write("err", line)


def _parsed(line: bytes) -> Any:
    text = line.decode(errors="replace").strip()
    if text.startswith("{"):
        with suppress(ValueError):
            parsed: object = json.loads(text)
            if isinstance(parsed, dict):
                return cast("dict[str, Any]", parsed)
    return text


def _not_started(exc: OSError, program: str, where: AgentSurroundings) -> GreenroomError:
    if not isinstance(exc, CommandNotStarted) or exc.errno in (*_MACHINE_ERRORS, errno.EIO):
        return ProviderUnavailable(
            f"No process can be started ({exc.strerror}); try again when the machine is less busy.",
            details={"errno": exc.errno},
        )
    if exc.part == "cwd":
        at_fault, reason = "cwd", f"cwd {where.cwd!r} cannot be entered"
    else:
        at_fault, reason = "command", f"The agent's client {program!r} cannot be run"
    return ProviderInvalidRequest(f"{reason}: {exc.strerror}.", details={"field": at_fault, "errno": exc.errno})
