"""One `amp` process: it takes the prompt of a run, and further messages while it works, and ends."""

import asyncio
import signal
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, cast

from ....domain.errors import CapabilityNotSupported, GreenroomError, ProviderError, ProviderUnavailable
from ....domain.policy import Permission, tool_verdict
from ....domain.provider import ProviderEvent, ProviderRequest
from ....domain.tool import ToolApproval
from ..agents.process import AgentProcess
from ..agents.turn import AgentTurn
from .folder import RunFolder
from .mapping import AmpMapping, ToolCall, tool_calls
from .options import AmpLaunch
from .rules import rejects

_LEAVES_S = 2.0
"""How long the client may take to end after its result, while it puts its thread in order."""

_PLAIN_LINES = 50
"""So many of the last lines that are no JSON are kept for errors: Amp explains some of them on stdout."""


class AmpTurn(AgentTurn):
    """The client's input is held open until it may have ended a turn, and closed then: it ends by itself once all that
    it was told is answered, and not before its input has.

    The rules of the run are Amp's to keep. Calls are permitted here too, but after the fact: so a violation is
    recorded, and ends the run where its policy says so.
    """

    mapping: AmpMapping

    def __init__(self, request: ProviderRequest, launch: AmpLaunch, released: "Callable[[AmpTurn], None]") -> None:
        super().__init__(request, AmpMapping(), launch.where)
        self.over = asyncio.Event()
        """Nothing of it is left."""
        self._launch = launch
        self._released = released
        self._folder: RunFolder | None = None
        self._is_stopped = False
        self._started: AgentProcess | None = None
        self._reader: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._plain: deque[str] = deque(maxlen=_PLAIN_LINES)
        self._listens = True

    @property
    def thread_id(self) -> str | None:
        """The conversation; None until a new one has said its name."""
        return self.mapping.thread_id or self._launch.thread_id

    async def start(self, prompt: str) -> None:
        """Start the client. ProviderUnavailable, ProviderInvalidRequest when that cannot be done."""
        launch = self._launch
        try:
            self._folder = launch.write_files()
            command = launch.command(self._folder.path)
            self._started = await AgentProcess.start(command, launch.surroundings(), record=launch.options.record)
        except BaseException:
            self._leave()
            raise
        self._do(self._say(prompt))
        self._reader = self._do(self._read())

    def pids(self) -> list[int]:
        return [self._process.pid]

    async def steer(self, message: str) -> bool:
        if not self._listens:
            raise CapabilityNotSupported("Amp takes no further message in this run; give it to the next one.")
        await self._process.send(_user_message(message))
        return False

    async def stop(self) -> None:
        self._is_stopped = True
        self.mapping.asked_to_stop()
        self._process.send_signal(signal.SIGTERM)

    async def release(self) -> None:
        try:
            if self.mapping.is_over and self._reader is not None and not self._is_stopped:  # else it had its time
                self._end_input()
                await asyncio.wait((self._reader,), timeout=_LEAVES_S)
        finally:
            await self._process.aclose()
            tasks = set(self._tasks)
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
            self._leave()

    @property
    def _process(self) -> AgentProcess:
        assert self._started is not None, "start comes first"
        return self._started

    def _leave(self) -> None:
        if self._folder is not None:
            self._folder.remove()
        self._released(self)
        self.over.set()

    def _do(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _say(self, prompt: str) -> None:
        with suppress(ProviderUnavailable):  # it has ended, and its end says why
            await self._process.send(_user_message(prompt))

    def _end_input(self) -> None:
        if self._listens:
            self._listens = False
            self._process.end_input()

    async def _read(self) -> None:
        error: GreenroomError | None = None
        try:
            async with aclosing(self._process.lines()) as lines:
                async for line in lines:
                    if isinstance(line, dict):
                        await self._take(cast("dict[str, Any]", line))
                    else:
                        self._plain.append(str(line))
            await self._take_end(await self._process.wait())
        except GreenroomError as exc:
            error = exc
        except Exception as exc:  # noqa: BLE001  whoever waits for the turn must hear of it
            error = ProviderError(f"What Amp said cannot be read ({type(exc).__name__}: {exc}).")
        await self.wire_is_over(error)

    async def _take(self, line: dict[str, Any]) -> None:
        calls = tool_calls(line)
        for call in calls:
            if rejects(self._launch.rules, call.name):
                self.mapping.deny(call.call_id)
        await self.hear(partial(self.mapping.take, line))
        for call in calls:
            await self._permit_after_the_fact(call)
        if self.mapping.waits_after(line):
            self._end_input()

    async def _take_end(self, exit_status: int) -> None:
        printed = [await self._process.stderr_text(), *map(self._process.redacted, self._plain)]

        def said() -> tuple[ProviderEvent, ...]:
            self.mapping.ended(exit_status, "\n".join(printed))
            return ()

        await self.hear(said)

    async def _permit_after_the_fact(self, call: ToolCall) -> None:
        """A violation is recorded before what comes after it is heard. For calls that a policy wants asked there is
        nobody to ask: Amp rejects them."""
        verdict = tool_verdict(self.request.policies, call.name, ToolApproval.NEVER).permission
        if verdict is Permission.ASK:
            return
        task = self._do(self._permit(call))
        if verdict is Permission.DENY:
            await asyncio.wait((task,))

    async def _permit(self, call: ToolCall) -> None:
        try:
            await self.permit(tuple, lambda: (call.name, call.arguments), call.call_id, asks=False)
        except GreenroomError as exc:
            await self.wire_is_over(exc)


def _user_message(text: str) -> dict[str, Any]:
    return {"type": "user", "message": {"role": "user", "content": [{"type": "text", "text": text}]}}
