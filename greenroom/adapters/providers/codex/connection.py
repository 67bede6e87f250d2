"""Requests, answers and notifications between us and `codex app-server`: JSON-RPC, an object a line."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from itertools import count
from typing import Any, cast

from ....domain.errors import GreenroomError
from ..agents.process import AgentProcess
from .errors import error_of_end, error_of_text, unreadable

Message = Mapping[str, Any]

NO_SUCH_METHOD = -32601


class CodexConnection:
    """Reads the process from its making to `aclose`. What is no answer goes to `hear`, in order; the reader waits for
    it, so it must not wait for an answer itself. `gone` hears why there is nothing more."""

    def __init__(
        self,
        process: AgentProcess,
        hear: Callable[[Message], Awaitable[None]],
        gone: Callable[[GreenroomError], Awaitable[None]],
    ) -> None:
        self.process = process
        self._hear = hear
        self._gone = gone
        self._ids = count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._end: GreenroomError | None = None
        self._reader = asyncio.create_task(self._read())

    @property
    def is_over(self) -> bool:
        """Whether the process says nothing more."""
        return self._end is not None

    async def request(self, method: str, parameters: Message) -> Any:
        """The answer. Raises the typed error of a refusal, and of a process that ends before it answers."""
        if self._end is not None:
            raise self._end
        number = next(self._ids)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            await self.process.send({"id": number, "method": method, "params": parameters})
            return await answer
        finally:
            self._waiting.pop(number, None)
            if not answer.cancel():
                answer.exception()  # else asyncio complains of one that the failure to send came before

    async def tell(self, method: str, parameters: Message | None = None) -> None:
        """A notification: it has no answer."""
        await self.process.send({"method": method, **({} if parameters is None else {"params": parameters})})

    async def order(self, method: str, parameters: Message) -> None:
        """A request whose answer nobody waits for: to interrupt a turn that has ended is never answered."""
        await self.process.send({"id": next(self._ids), "method": method, "params": parameters})

    async def answer(self, number: object, result: Message) -> None:
        """Answer a request of the process."""
        await self.process.send({"id": number, "result": result})

    async def refuse(self, number: object, method: str) -> None:
        """Say that there is no such thing here."""
        error = {"code": NO_SUCH_METHOD, "message": f"{method} is not supported"}
        await self.process.send({"id": number, "error": error})

    async def aclose(self) -> None:
        """End the process; nothing of it is left."""
        await self.process.aclose()
        if asyncio.current_task() is not self._reader:
            await asyncio.wait((self._reader,), timeout=1.0)
            self._reader.cancel()

    async def _read(self) -> None:
        error: GreenroomError | None = None
        try:
            async with aclosing(self.process.lines()) as lines:
                async for line in lines:
                    if isinstance(line, dict):
                        await self._take(cast("dict[str, Any]", line))
        except GreenroomError as exc:
            error = exc
        except Exception as exc:  # noqa: BLE001  whoever waits for a turn or an answer must hear of it
            error = unreadable(exc, self.process.redacted)
        self._end = error or error_of_end(await self.process.stderr_text())
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(self._end)
        await self._gone(self._end)

    async def _take(self, message: dict[str, Any]) -> None:
        if "method" in message:
            await self._hear(message)
            return
        answer = self._waiting.get(message.get("id", 0))
        if answer is None or answer.done():
            return
        if "error" in message:
            error: Message = message["error"] or {}
            said = str(error.get("message") or "Codex refused without saying why.")
            answer.set_exception(error_of_text(self.process.redacted(said)))
        else:
            answer.set_result(message.get("result"))
