"""One attempt at an agent's client: what the client says goes in at one end and comes out as events at the other."""

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from ....domain.errors import GreenroomError
from ....domain.provider import ProviderConversation, ProviderEvent, ProviderOutcome, ProviderRequest
from ....domain.tool import ToolOutcome, ToolResult
from ...logs import get_logger
from .options import AgentSurroundings
from .wire_mapping import WireMapping

_log = get_logger(__name__)

MAX_UNHEARD = 64
"""Messages that wait to be recorded; then the client has to wait."""

Said = Callable[[], Sequence[ProviderEvent]]
"""What a message makes of the mapping, called when its turn comes."""


@dataclass(frozen=True, slots=True)
class _Heard:
    said: Said
    recorded: "asyncio.Future[None] | None" = None
    """Done when the events are with the session."""

    def settle(self) -> None:
        if self.recorded is not None and not self.recorded.done():
            self.recorded.set_result(None)

    def give_up(self) -> None:
        if self.recorded is not None:
            self.recorded.cancel()


@dataclass(frozen=True, slots=True)
class _WireOver:
    error: GreenroomError | None


class AgentTurn(ABC):
    """Whoever reads the client calls `hear`, `permit` and `wire_is_over`; the provider reads `items`.

    Everything is taken in the order in which it was said, and as fast as the session records it.
    """

    def __init__(self, request: ProviderRequest, mapping: WireMapping, where: AgentSurroundings) -> None:
        self.request = request
        self.mapping = mapping
        self._where = where
        self.is_broken = False
        """Whether the client has gone before it ended the turn: there is nobody to be polite to."""
        self._inbox: asyncio.Queue[_Heard | _WireOver] = asyncio.Queue(MAX_UNHEARD)
        self._told: Mapping[str, str] | None = None
        self._given_up = False

    # For the kind of client

    @abstractmethod
    async def stop(self) -> None:
        """Ask the client in its own way to end the turn. What it says to that is heard as all else is."""

    @abstractmethod
    async def steer(self, message: str) -> bool:
        """Hand the message to the running turn, as Provider.steer says."""

    @abstractmethod
    async def release(self) -> None:
        """The turn is over, or has been given up if the mapping is not over: keep the client, or end it."""

    @abstractmethod
    def pids(self) -> list[int]:
        """Of the processes that the turn has started, or uses."""

    # For whoever reads the client

    async def hear(self, said: Said) -> None:
        """The client has said something; waits while too much of it is not recorded yet."""
        if self._given_up:
            _take(said)
        else:
            await self._inbox.put(_Heard(said))

    async def wire_is_over(self, error: GreenroomError | None = None) -> None:
        """The client says no more. With an error it went wrong; else the mapping knows how the turn ended."""
        await self._inbox.put(_WireOver(error))

    async def permit(
        self, began: Said, call: Callable[[], tuple[str, dict[str, Any]]], call_id: str, *, asks: bool
    ) -> ToolResult | None:
        """Whether the call may run: None, or what the agent is told instead. May wait for a person. Nothing may that
        comes when the turn has been given up.

        `began` gives the events that tell of the call, none if they are told already; `call` its name and arguments,
        asked after that.
        """
        if self._given_up:
            return ToolResult(output="The run has ended.", outcome=ToolOutcome.CANCELLED)
        recorded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self._inbox.put(_Heard(began, recorded))
        await recorded
        name, arguments = call()
        return await self.request.tools.permit(name, arguments, call_id, asks=asks)

    # For the provider

    async def items(self) -> AsyncGenerator[ProviderEvent | ProviderConversation | ProviderOutcome]:
        """The events, the conversation and the outcome. Raises the error that the turn ended with."""
        while not self.mapping.is_over:
            heard = await self._inbox.get()
            if isinstance(heard, _WireOver):
                self.is_broken = True
                if heard.error is not None and not self.mapping.is_over:
                    raise heard.error
                break
            try:
                for event in heard.said():
                    yield replace(event, data=self._where.redacted_value(event.data))
                handle = self.mapping.handle
                if handle is not None and handle != self._told:
                    self._told = handle
                    yield ProviderConversation(handle)
            except BaseException:
                heard.give_up()
                raise
            heard.settle()
        outcome = self.mapping.outcome()
        yield replace(outcome, content=self._where.redacted(outcome.content))

    async def wind_down(self) -> None:
        """Take what the client still says, for nobody, until it has ended the turn or is gone."""
        while not (self.mapping.is_over or self.is_broken):
            heard = await self._inbox.get()
            if isinstance(heard, _WireOver):
                self.is_broken = True
            else:
                _take(heard.said)
                heard.give_up()

    def close(self) -> None:
        """Let go of everybody who waits to be heard."""
        self._given_up = True
        with suppress(asyncio.QueueEmpty):
            while True:
                heard = self._inbox.get_nowait()
                if isinstance(heard, _Heard):
                    _take(heard.said)
                    heard.give_up()


def _take(said: Said) -> None:
    """Let the mapping know of what nobody records; it may be what broke it."""
    try:
        said()
    except Exception:  # noqa: BLE001  the turn is over: there is nobody to tell
        _log.exception("agent_message_not_understood")


def refusal_text(result: ToolResult) -> str:
    """What an agent is told whose call is not run: why, or what the same call gave in an earlier attempt."""
    said = result.output if isinstance(result.output, str) else json.dumps(result.output, ensure_ascii=False)
    if result.outcome is not None:
        return said
    return f"This call was made before, and is not made again. It gave: {said}"
