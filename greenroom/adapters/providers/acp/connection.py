"""JSON-RPC with an agent over its stdin and stdout, in the order in which things were said.

Not the `acp` library's own Connection: that runs each notification in a task of its own, without bound, and takes an
answer up before what was said ahead of it has been heard; it gives up at a line that its reader finds too long; and it
validates what comes in, so that an update of a kind that is newer than the library is lost. Its schema says what is
sent.
"""

import asyncio
import json
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any, Protocol, cast

from ....domain.errors import GreenroomError, ProviderError
from ...logs import get_logger
from ..agents.process import AgentProcess

_log = get_logger(__name__)

METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602

Params = Mapping[str, Any]


class RequestFailed(Exception):
    """The agent answered with an error, from which the secrets that it was given are gone."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(error.get("message"))
        self.error = error


class Listener(Protocol):
    """Hears the agent. Called for one message after another: while it waits, the agent has to."""

    async def notified(self, method: str, params: Params) -> None: ...

    async def asked(self, request_id: object, method: str, params: Params) -> None:
        """The agent waits for `AcpConnection.answer` with this id, which need not be given here."""
        ...

    def not_understood(self, request_id: object) -> None:
        """`asked` could make nothing of the request; the agent waits for its answer nevertheless."""
        ...


class AcpConnection:
    """One connection. What cannot be made sense of is left out, and ends nothing."""

    def __init__(self, process: AgentProcess, listener: Listener) -> None:
        self._process = process
        self._listener = listener
        self._waiting: dict[int, asyncio.Future[Params]] = {}
        self._next_id = 0
        self._gone: GreenroomError | None = None
        self._reader = asyncio.create_task(self._read())

    @property
    def is_over(self) -> bool:
        """Whether the agent has gone."""
        return self._reader.done() or self._gone is not None

    async def request(self, method: str, params: Params) -> Params:
        """Ask, and wait for the result. RequestFailed; the error of its end if the agent goes before it answers."""
        return await self.result(await self.begin_request(method, params))

    async def begin_request(self, method: str, params: Params) -> "asyncio.Future[Params]":
        """Ask; returns when that is written, with what will be the answer."""
        if self._gone is not None:
            raise self._gone
        self._next_id += 1
        number = self._next_id
        answer: asyncio.Future[Params] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        answer.add_done_callback(lambda _: self._waiting.pop(number, None))
        try:
            await self._process.send({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
        except BaseException:
            answer.cancel()
            raise
        return answer

    @staticmethod
    async def result(answer: "asyncio.Future[Params]") -> Params:
        """What was asked for, once it is there."""
        message = await answer
        if message.get("error") is not None:
            raise RequestFailed(_mapping(message["error"]))
        return _mapping(message.get("result"))

    async def notify(self, method: str, params: Params) -> None:
        """Tell the agent something."""
        await self._process.send({"jsonrpc": "2.0", "method": method, "params": params})

    async def answer(self, request_id: object, result: Params) -> None:
        """Answer what the agent has asked."""
        await self._process.send({"jsonrpc": "2.0", "id": request_id, "result": result})

    async def refuse(self, request_id: object, code: int, message: str) -> None:
        """Answer what the agent has asked with an error."""
        await self._process.send({"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": message}})

    async def aclose(self) -> None:
        """Read no more. Whoever waits for an answer gets none."""
        self._reader.cancel()
        await asyncio.wait((self._reader,))
        self._end(await self._process.ended_early())

    async def _read(self) -> None:
        error: GreenroomError | None = None
        try:
            async with aclosing(self._process.lines()) as lines:
                async for message in lines:
                    if isinstance(message, dict):
                        await self._take(cast("dict[str, Any]", message))
        except GreenroomError as exc:
            error = exc
        except Exception as exc:  # noqa: BLE001  whoever waits for an answer must hear of it
            error = ProviderError(f"What the agent said cannot be read ({self._process.redacted(repr(exc))}).")
        self._end(error or await self._process.ended_early())

    async def _take(self, message: dict[str, Any]) -> None:
        method, request_id = message.get("method"), message.get("id")
        try:
            if not isinstance(method, str):
                self._answered(request_id, message)
            elif "id" in message:
                await self._listener.asked(request_id, method, _mapping(message.get("params")))
            else:
                await self._listener.notified(method, _mapping(message.get("params")))
        except Exception as exc:  # noqa: BLE001  one message that makes no sense must not cost the others
            _log.warning("acp_message_not_taken", method=method, error=self._process.redacted(repr(exc)))
            if isinstance(method, str) and "id" in message:
                self._listener.not_understood(request_id)

    def _answered(self, request_id: object, message: dict[str, Any]) -> None:
        waiting = self._waiting.get(request_id) if isinstance(request_id, int) else None
        if waiting is not None and not waiting.done():
            error = json.loads(self._process.redacted(json.dumps(message.get("error"), ensure_ascii=False)))
            waiting.set_result({**message, "error": error})

    def _end(self, error: GreenroomError) -> None:
        self._gone = self._gone or error
        for waiting in list(self._waiting.values()):
            if not waiting.done():
                waiting.set_exception(self._gone)
                waiting.exception()  # whoever asked may have given up


def _mapping(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
