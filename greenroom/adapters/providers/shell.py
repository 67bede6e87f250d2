"""A local command per run: the last user message is the command, its exit status decides."""

import asyncio
import codecs
import errno
import signal
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from ...domain.capability import Capability, CapabilityType
from ...domain.errors import (
    CapabilityNotSupported,
    GreenroomError,
    InvalidInput,
    ProviderError,
    ProviderInvalidRequest,
    ProviderUnavailable,
    RunNotFound,
    ValidationError,
)
from ...domain.event import EventType
from ...domain.provider import ProviderEvent, ProviderOutcome, ProviderRequest
from ...domain.run_input import Role
from ...domain.token_usage import TokenUsage
from ..option_parsing import parse_options
from ..process_trees import measured_tree
from ..supervised_process import CommandNotStarted, SupervisedProcess, scrubbed_environment

StreamName = Literal["stdout", "stderr"]

DEFAULT_MAX_OUTPUT_BYTES = 1_048_576

_READ_BYTES = 65_536

_PROMPT_READS = 16
"""So many pieces of output go out the moment they come; what is printed later is gathered for a short while first."""

_GATHER_S = 0.02

_MACHINE_ERRORS = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""Reasons why nothing can be started just now."""

_ERROR_TEXT_CHARACTERS = 2_000
"""How much of stderr an error carries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellOptions:
    shell: str = "/bin/sh"
    """Called as `shell -c COMMAND`."""
    cwd: str | None = None
    """None: that of the session's process."""
    env: dict[str, str] = field(default_factory=dict[str, str])
    """What the command gets beside the scrubbed environment."""
    max_output_bytes: Annotated[int, Field(ge=0)] = DEFAULT_MAX_OUTPUT_BYTES
    """Of stdout, and the same again of stderr; what goes beyond is read and dropped."""


class ShellProvider:
    """Runs each run's command under a supervisor: however the run ends, none of its processes is left."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._processes: dict[str, SupervisedProcess | None] = {}
        """By run id; None while the process is being started."""
        self._interrupted: set[str] = set()
        """Runs to interrupt as soon as their process is there."""

    @staticmethod
    def check_options(options: Mapping[str, Any], *, field: str) -> ShellOptions:
        """The parsed options; ValidationError names the field that is wrong."""
        parsed = parse_options(ShellOptions, options, field=field)
        if not parsed.shell or "\0" in parsed.shell:
            raise _refusal(f"{field}.shell", "must be the path of a program")
        if parsed.cwd is not None and (not parsed.cwd or "\0" in parsed.cwd):
            raise _refusal(f"{field}.cwd", "must be the path of a directory")
        for name, value in parsed.env.items():
            if not name or "=" in name or "\0" in name + value:
                raise _refusal(f"{field}.env", f"has {name!r}, which cannot be an environment variable")
        return parsed

    def capabilities(self) -> tuple[Capability, ...]:
        return (
            Capability(name="streaming", type=CapabilityType.SAMPLING),
            Capability(name="bash", type=CapabilityType.TOOL),
            Capability(name="code_execution", type=CapabilityType.CODE_EXECUTION),
            Capability(name="interrupt", type=CapabilityType.SAMPLING),
        )

    async def execute(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent | ProviderOutcome]:
        options = self.check_options(request.options, field="options")
        process: SupervisedProcess | None = None
        self._processes[request.run_id] = None
        try:
            process = await self._start(request, options)
            outputs = {
                "stdout": CommandOutput("stdout", process.stdout, options.max_output_bytes),
                "stderr": CommandOutput("stderr", process.stderr, options.max_output_bytes),
            }
            async with aclosing(_stream(*outputs.values())) as events:
                async for event in events:
                    yield event
            result = CommandResult(await process.wait(), outputs["stdout"], outputs["stderr"])
            yield result.message()
            yield result.outcome()
        finally:
            self._processes.pop(request.run_id, None)
            self._interrupted.discard(request.run_id)
            if process is not None:
                await process.aclose()

    async def interrupt(self, run_id: str) -> None:
        """SIGINT to the command's process group, as Ctrl-C would. A command may ignore it."""
        if run_id not in self._processes:
            raise RunNotFound(f"No command of run {run_id} is running.", details={"run_id": run_id})
        process = self._processes[run_id]
        if process is None:
            self._interrupted.add(run_id)
        else:
            process.send_signal(signal.SIGINT)

    async def steer(self, run_id: str, message: str) -> bool:
        raise CapabilityNotSupported("A shell command cannot be steered; interrupt or cancel it.")

    def processes(self, run_id: str) -> list[dict[str, int]]:
        process = self._processes.get(run_id)
        return [] if process is None else [measured_tree(process.pid)]

    async def aclose(self) -> None:
        return None

    async def _start(self, request: ProviderRequest, options: ShellOptions) -> SupervisedProcess:
        command = _last_user_message(request)
        try:
            process = await SupervisedProcess.start(
                (options.shell, "-c", command), cwd=options.cwd, env=scrubbed_environment(options.env)
            )
        except OSError as exc:
            raise _not_started(exc, options, command) from exc
        self._processes[request.run_id] = process
        if request.run_id in self._interrupted:
            process.send_signal(signal.SIGINT)
        return process


class CommandOutput:
    """One stream of a command as text: decoded across reads, and kept up to the cap while all of it is read."""

    def __init__(self, name: StreamName, reader: asyncio.StreamReader, max_bytes: int) -> None:
        self.name = name
        self.ended = False
        self.dropped_bytes = 0
        self._reader = reader
        self._room = max_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._kept: list[str] = []
        self._read_count = 0

    @property
    def text(self) -> str:
        """All that was kept so far."""
        return "".join(self._kept)

    async def read(self) -> str:
        """The next piece of text, all that is there at once; may be empty. Sets `ended` at the end of the stream."""
        if self._read_count >= _PROMPT_READS and self._room:
            await asyncio.sleep(_GATHER_S)
        self._read_count += 1
        data = await self._reader.read(_READ_BYTES)
        self.ended = not data
        text = self._decode(data)
        self._kept.append(text)
        return text

    def _decode(self, data: bytes) -> str:
        kept = data[: self._room]
        self._room -= len(kept)
        self.dropped_bytes += len(data) - len(kept)
        if self.ended and self.dropped_bytes:  # a character that the cap has cut in two is dropped whole
            self.dropped_bytes += len(self._decoder.getstate()[0])
            return ""
        return self._decoder.decode(kept, final=self.ended)


@dataclass(frozen=True, slots=True)
class CommandResult:
    """A command that has ended, and what it printed."""

    exit_status: int
    stdout: CommandOutput
    stderr: CommandOutput

    def message(self) -> ProviderEvent:
        return ProviderEvent(
            EventType.MESSAGE_RECEIVED,
            {
                "role": "assistant",
                "content": self.stdout.text,
                "kind": "text",
                "stderr": self.stderr.text,
                **self._facts(),
            },
        )

    def outcome(self) -> ProviderOutcome:
        """What a command that ended with 0 gave; any other status raises ProviderError."""
        if self.exit_status != 0:
            raise self._failure()
        return ProviderOutcome(
            content=self.stdout.text,
            stop_reason="exit_0",
            token_usage=TokenUsage(),
            cost_usd=0.0,
            metadata=self._facts(),
        )

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "exit_status": self.exit_status,
            "truncated": bool(self.stdout.dropped_bytes or self.stderr.dropped_bytes),
            "dropped_bytes": self.stdout.dropped_bytes + self.stderr.dropped_bytes,
        }
        if self.exit_status < 0:
            facts["signal"] = _signal_name(-self.exit_status)
        return facts

    def _failure(self) -> ProviderError:
        facts = self._facts()
        error_text = self.stderr.text.rstrip()[-_ERROR_TEXT_CHARACTERS:]
        message = f"The command ended with exit status {self.exit_status}"
        if "signal" in facts:
            message = f"The command was killed by {facts['signal']} (exit status {self.exit_status})"
        last_line = error_text.rpartition("\n")[2].strip()
        return ProviderError(
            f"{message}: {last_line}" if last_line else f"{message}.", details={**facts, "stderr": error_text}
        )


async def _stream(*outputs: CommandOutput) -> AsyncGenerator[ProviderEvent]:
    """The text of all outputs as it comes. While nobody takes an event at most one more piece of each is read."""
    reads = {asyncio.create_task(output.read()): output for output in outputs}
    try:
        while reads:
            done, _ = await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
            for read in [read for read in reads if read in done]:
                output = reads.pop(read)
                if not output.ended:
                    reads[asyncio.create_task(output.read())] = output
                if text := read.result():
                    data = {"content": text, "kind": "text", "stream": output.name}
                    yield ProviderEvent(EventType.MESSAGE_STREAMED, data)
    finally:
        for read in reads:
            read.cancel()


def _last_user_message(request: ProviderRequest) -> str:
    for message in reversed(request.messages):
        if message.role is Role.USER:
            return message.content
    raise InvalidInput("There is no user message; the last one is the command.", details={"field": "input"})


def _not_started(exc: OSError, options: ShellOptions, command: str) -> GreenroomError:
    """Which field made the start fail, unless it was the machine, or a supervisor killed before it could tell."""
    if exc.errno == errno.EIO:
        return ProviderError("The command's supervisor was killed as it began; the command may have done something.")
    if not isinstance(exc, CommandNotStarted) or exc.errno in _MACHINE_ERRORS:
        return ProviderUnavailable(
            f"No process can be started ({exc.strerror}); try again when the machine is less busy.",
            details={"errno": exc.errno},
        )
    if exc.part == "cwd":
        at_fault, reason = "cwd", f"cwd {options.cwd!r} cannot be entered"
    elif exc.errno == errno.E2BIG or "\0" in command:
        at_fault, reason = "input", "The input cannot be a command (too long, or with a NUL character)"
    else:
        at_fault, reason = "shell", f"shell {options.shell!r} cannot be run"
    return ProviderInvalidRequest(f"{reason}: {exc.strerror}.", details={"field": at_fault, "errno": exc.errno})


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has no name
        return f"signal {number}"


def _refusal(at_fault: str, reason: str) -> ValidationError:
    return ValidationError(f"{at_fault} {reason}.", details={"field": at_fault})
