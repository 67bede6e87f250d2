"""Kind `claude-code`: Claude Code through the claude-agent-sdk, one client after another or one that goes on."""

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ....domain.provider import ProviderRequest
from ..agents.provider import AgentProvider
from ..agents.turn import AgentTurn
from .options import ClaudeCodeOptions, ClaudeLaunch, check_claude_code_options

if TYPE_CHECKING:
    from .client import ClaudeClient, ClaudeTurn


class ClaudeCodeProvider(AgentProvider):
    """A client that has ended its turn waits for the next run that goes on with its conversation.

    Runs of one session that are under way at once have a client each; where both go on with the same conversation the
    later one forks it.
    """

    PRICE_LIST = "anthropic"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._idle: ClaudeClient | None = None
        self._busy: set[ClaudeClient] = set()
        """Those that a run has, from before they are started."""
        self._choosing = asyncio.Lock()

    @staticmethod
    def check_options(options: Mapping[str, Any], *, field: str) -> ClaudeCodeOptions:
        """The parsed options; ValidationError names the field that is wrong."""
        return check_claude_code_options(options, field=field)

    async def begin(self, request: ProviderRequest) -> AgentTurn:
        from ..agents.prompt import prompt_of  # noqa: PLC0415
        from .client import ClaudeTurn  # noqa: PLC0415  the SDK takes half a second

        launch = ClaudeLaunch.of(request, self.check_options(request.options, field="options"))
        client = await self._client(launch, (request.conversation or {}).get("session_id"))
        turn = ClaudeTurn(request, client, self._released)
        client.turn = turn
        turn.begun = asyncio.create_task(turn.run(prompt_of(request)))
        return turn

    async def close_clients(self) -> None:
        client, self._idle = self._idle, None
        if client is not None:
            await client.aclose()

    async def _client(self, launch: ClaudeLaunch, conversation: str | None) -> "ClaudeClient":
        """One that goes on with the conversation, or begins one."""
        from .client import ClaudeClient  # noqa: PLC0415

        async with self._choosing:
            if conversation is not None:
                await self.turns_given_up()  # the one before may still be writing to it
            idle, self._idle = self._idle, None
            if idle is not None and idle.is_fit and (idle.launch, idle.session_id) == (launch, conversation):
                self._busy.add(idle)
                return idle
            if idle is not None:
                await idle.aclose()
            fork = conversation is not None and any(client.session_id == conversation for client in self._busy)
            client = ClaudeClient(launch, resume=conversation, fork=fork)
            self._busy.add(client)
        try:
            await client.start()
        except BaseException:
            self._busy.discard(client)
            await client.aclose()
            raise
        return client

    async def _released(self, turn: "ClaudeTurn") -> None:
        """Keep the client for a run that goes on, if it is fit for one."""
        client = turn.client
        wanted = turn.request.continues and turn.mapping.is_over and client.is_fit
        if wanted and not await client.has_left_processes() and self._idle is None:
            self._idle = client
        else:
            await client.aclose()
        self._busy.discard(client)
