"""One attempt at an agent's client: what the client says goes in at one end and comes out as events at the other."""

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ....domain.errors import GreenroomError
from ....domain.provider import ProviderConversation, ProviderEvent, ProviderOutcome, ProviderRequest
from ....domain.tool import ToolResult
from .wire_mapping import WireMapping

MAX_UNHEARD = 64
"""Messages that wait to be recorded; then the client has to wait."""

Said = Callable[[], Sequence[ProviderEvent]]
"""What a message makes of the mapping, called when its turn comes."""


@dataclass(frozen=True, slots=True)
class _Heard:
    said: Said
    recorded: "asyncio.Future[None] | None" = None
    """Done when the events are with the session."""


@dataclass(frozen=True, slots=True)
class _WireOver:
    error: GreenroomError | None


class AgentTurn(ABC):
    """Whoever reads the client calls `hear`, `permit` and `wire_is_over`; the provider reads `items`.

    Everything is taken in the order in which it was said, and as fast as the session records it.
    """

    def __init__(self, request: ProviderRequest, mapping: WireMapping) -> None:
        self.request = request
        self.mapping = mapping
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
        if not self._given_up:
            await self._inbox.put(_Heard(said))

    async def wire_is_over(self, error: GreenroomError | None = None) -> None:
        """The client says no more. With an error it went wrong; else the mapping knows how the turn ended."""
        await self._inbox.put(_WireOver(error))

    async def permit(
        self, began: Said, call: Callable[[], tuple[str, dict[str, Any]]], call_id: str, *, asks: bool
    ) -> ToolResult | None:
        """Whether the call may run: None, or what the agent is told instead. May wait for a person.

        `began` gives the events that tell of the call, none if they are told already; `call` its name and arguments,
        asked after that.
        """
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
            for event in heard.said():
                yield event
            handle = self.mapping.handle
            if handle is not None and handle != self._told:
                self._told = handle
                yield ProviderConversation(handle)
            if heard.recorded is not None and not heard.recorded.done():
                heard.recorded.set_result(None)
        yield self.mapping.outcome()

    async def wind_down(self) -> None:
        """Take what the client still says, for nobody, until it has ended the turn or is gone."""
        while not (self.mapping.is_over or self.is_broken):
            heard = await self._inbox.get()
            if isinstance(heard, _WireOver):
                self.is_broken = True
            else:
                self._drop(heard)

    def close(self) -> None:
        """Let go of everybody who waits to be heard."""
        self._given_up = True
        with suppress(asyncio.QueueEmpty):
            while True:
                heard = self._inbox.get_nowait()
                if isinstance(heard, _Heard):
                    self._drop(heard)

    def _drop(self, heard: _Heard) -> None:
        heard.said()
        if heard.recorded is not None and not heard.recorded.done():
            heard.recorded.cancel()


def refusal_text(result: ToolResult) -> str:
    """What an agent is told whose call is not run: why, or what the same call gave in an earlier attempt."""
    said = result.output if isinstance(result.output, str) else json.dumps(result.output, ensure_ascii=False)
    if result.outcome is not None:
        return said
    return f"This call was made before, and is not made again. It gave: {said}"
