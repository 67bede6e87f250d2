"""What all providers that drive an agent's own client have in common: turns begin, are stopped politely, and end."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import ClassVar

from ....domain.capability import Capability, CapabilityType
from ....domain.errors import CapabilityNotSupported, ProviderInvalidRequest, RunNotFound
from ....domain.permission_mode import PermissionMode
from ....domain.provider import ProviderConversation, ProviderEvent, ProviderOutcome, ProviderRequest
from ...logs import get_logger
from ...process_trees import measured_tree
from .turn import AgentTurn
from .wire_mapping import conversation_is_gone

_log = get_logger(__name__)

POLITE_S = 2.0
"""How long a client that is asked to stop its turn may take before its processes are ended, which takes up to 2.5 s
more: all in all less than the 5 s that a stopped run may leave processes behind."""


class AgentProvider(ABC):
    """Implements the Provider port. A kind of client says how a turn begins; AgentTurn is the rest of it.

    Cancellation asks the client in its own way to stop, so that its conversation stays fit to go on with, and ends its
    processes if it does not.
    """

    CONTINUES_NATIVELY: ClassVar[bool] = True
    PERMISSION_MODES: ClassVar[frozenset[PermissionMode]] = frozenset(PermissionMode)
    CAPABILITIES: ClassVar[tuple[Capability, ...]] = (
        Capability(name="streaming", type=CapabilityType.SAMPLING),
        Capability(name="interrupt", type=CapabilityType.SAMPLING),
        Capability(name="steer", type=CapabilityType.SAMPLING),
        Capability(name="system_prompts", type=CapabilityType.PROMPT),
        Capability(name="tool_use", type=CapabilityType.TOOL),
        Capability(name="bash", type=CapabilityType.TOOL),
        Capability(name="mcp", type=CapabilityType.TOOL),
        Capability(name="file_operations", type=CapabilityType.FILE_ACCESS),
        Capability(name="code_execution", type=CapabilityType.CODE_EXECUTION),
    )
    """Those of a coding agent that takes a system prompt; a kind with fewer says so."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._turns: dict[str, AgentTurn | None] = {}
        """By run id; None while the client is being asked to begin."""
        self._interrupted: set[str] = set()
        """Runs to interrupt as soon as they have begun."""
        self._finishing: set[asyncio.Task[None]] = set()

    @abstractmethod
    async def begin(self, request: ProviderRequest) -> AgentTurn:
        """Have a client take the request up. Leaves nothing behind when it raises or is cancelled."""

    @abstractmethod
    async def close_clients(self) -> None:
        """End the clients that are kept for later turns."""

    def capabilities(self) -> tuple[Capability, ...]:
        return self.CAPABILITIES

    async def execute(
        self, request: ProviderRequest
    ) -> AsyncGenerator[ProviderEvent | ProviderConversation | ProviderOutcome]:
        await _check_home(request)
        self._turns[request.run_id] = None
        turn: AgentTurn | None = None
        try:
            turn = self._turns[request.run_id] = await self.begin(request)
            if request.run_id in self._interrupted:
                await turn.stop()
            async with aclosing(turn.items()) as items:
                async for item in items:
                    yield item
        finally:
            self._turns.pop(request.run_id, None)
            self._interrupted.discard(request.run_id)
            if turn is not None:
                await self._finished(turn)

    async def interrupt(self, run_id: str) -> None:
        if run_id not in self._turns:
            raise RunNotFound(f"Nothing of run {run_id} is under way.", details={"run_id": run_id})
        turn = self._turns[run_id]
        if turn is None:
            self._interrupted.add(run_id)
        else:
            await turn.stop()

    async def steer(self, run_id: str, message: str) -> bool:
        turn = self._turns.get(run_id)
        if turn is None:
            raise CapabilityNotSupported("The agent has not begun yet; steer the run when it has.")
        return await turn.steer(message)

    def processes(self, run_id: str) -> list[dict[str, int]]:
        turn = self._turns.get(run_id)
        return [] if turn is None else [measured_tree(pid) for pid in turn.pids()]

    async def turns_given_up(self) -> None:
        """Wait until nothing is left to be done for turns that nobody listens to any more; less than 5 s."""
        if self._finishing:
            await asyncio.wait(self._finishing)

    async def aclose(self) -> None:
        await self.turns_given_up()
        await self.close_clients()

    async def _finished(self, turn: AgentTurn) -> None:
        """Bring the turn to its end; goes on if whoever waits for that is cancelled."""
        task = asyncio.create_task(_finish(turn))
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)
        await asyncio.shield(task)


async def _check_home(request: ProviderRequest) -> None:
    """A session that was imported brings the names of conversations, and nothing of what they are."""
    if request.conversation is None or request.home is None or await asyncio.to_thread(Path(request.home).is_dir):
        return
    raise ProviderInvalidRequest(
        conversation_is_gone("The session has no home here"), details={"field": "continuation"}
    )


async def _finish(turn: AgentTurn) -> None:
    try:
        if not (turn.mapping.is_over or turn.is_broken):
            await _stop(turn)
    except Exception:  # noqa: BLE001  whatever a client answers: it is ended
        _log.exception("agent_did_not_stop", run_id=turn.request.run_id)
    finally:
        turn.close()
        await turn.release()


async def _stop(turn: AgentTurn) -> None:
    """Ask the client, and hear what it says meanwhile: while nobody does it may not get to read what it is asked."""
    asking, hearing = asyncio.create_task(turn.stop()), asyncio.create_task(turn.wind_down())
    try:
        async with asyncio.timeout(POLITE_S):
            await asyncio.wait((asking, hearing), return_when=asyncio.FIRST_EXCEPTION)
            await asking
    except TimeoutError:
        _log.info("agent_did_not_stop", run_id=turn.request.run_id)
    finally:
        for task in (asking, hearing):
            task.cancel()
        await asyncio.wait((asking, hearing))
