"""Kind `codex`: Codex through its app-server, one for all runs of a session, or through `codex exec`."""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ....domain.provider import ProviderRequest
from ..agents.provider import AgentProvider
from ..agents.turn import AgentTurn
from .options import CodexLaunch, CodexOptions, CodexSetup, check_codex_options

if TYPE_CHECKING:
    from .server import CodexServer
    from .turn import CodexTurn


class CodexProvider(AgentProvider):
    """A client that has ended its turns waits for the next run that goes on.

    Runs of one session that are under way at once share it; where both go on with the same conversation the later one
    forks it, or waits for the other where one of them is a `codex exec`. A run without a sandbox has a client of its
    own, since only its end takes away what commands leave behind.
    """

    COUNTS_TURNS = False
    PRICE_LIST = "openai"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._server: CodexServer | None = None
        """The one that the next turn gets."""
        self._choosing = asyncio.Lock()
        self._exec: set[str] = set()
        """Threads that a `codex exec` goes on with."""
        self._held: set[str] = set()
        """Threads of turns of app-servers."""
        self._given_back = asyncio.Event()
        """Set, and replaced, when a turn has let go of its thread."""

    @staticmethod
    def check_options(options: Mapping[str, Any], *, field: str) -> CodexOptions:
        """The parsed options; ValidationError names the field that is wrong."""
        return check_codex_options(options, field=field)

    async def begin(self, request: ProviderRequest) -> AgentTurn:
        launch = CodexLaunch.of(request, self.check_options(request.options, field="options"))
        setup = CodexSetup.of(request, launch)
        if request.conversation is not None:
            await self.turns_given_up()  # the one before may still be writing to it
        begin = self._begin_exec if launch.options.interface == "exec" else self._begin_app
        while True:
            async with self._choosing:
                given_back = self._given_back
                if self._may_have(_thread_of(request), launch):
                    return await begin(request, launch, setup)
            await given_back.wait()

    async def close_clients(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.aclose()

    def _may_have(self, thread_id: str | None, launch: CodexLaunch) -> bool:
        """Of a thread that another process is writing to, none can make a fork that is whole."""
        is_exec = launch.options.interface == "exec"
        return thread_id not in self._exec and not (is_exec and thread_id in self._held)

    async def _begin_app(self, request: ProviderRequest, launch: CodexLaunch, setup: CodexSetup) -> AgentTurn:
        server = await self._server_for(launch)
        try:
            turn = await server.begin(request, setup, self._released)
        except BaseException:
            if not server.turns and server is not self._server:
                await server.aclose()
            raise
        self._held.add(turn.thread_id)
        return turn

    async def _begin_exec(self, request: ProviderRequest, launch: CodexLaunch, setup: CodexSetup) -> AgentTurn:
        from .exec import CodexExecTurn  # noqa: PLC0415

        thread_id = _thread_of(request)
        mine = set[str]() if thread_id is None else {thread_id}
        self._exec |= mine
        released = partial(self._give_back, self._exec, mine)
        try:
            if self._server is not None and not self._server.turns:
                await self.close_clients()  # no other can go on with what it has loaded
            fork = self._server is not None and self._server.has_loaded(thread_id)
            return await CodexExecTurn.begin(request, launch, setup, released, fork=fork)
        except BaseException:
            released()
            raise

    def _give_back(self, held: set[str], threads: set[str]) -> None:
        held -= threads
        self._given_back.set()
        self._given_back = asyncio.Event()

    async def _server_for(self, launch: CodexLaunch) -> "CodexServer":
        """One that was launched like this; one that is no use any more ends when its last turn does."""
        from .server import CodexServer  # noqa: PLC0415

        if not launch.confined:
            return await CodexServer.start(launch)
        current = self._server
        if current is not None and current.is_fit and current.launch == launch:
            return current
        self._server = None
        if current is not None and not current.turns:
            await current.aclose()
        self._server = await CodexServer.start(launch)
        return self._server

    async def _released(self, server: "CodexServer", turn: "CodexTurn") -> None:
        """Keep the client for other turns, and for a run that goes on, if it is fit for one."""
        try:
            is_clean = await server.end_turn(turn)
            keep = server.is_fit and server is self._server and turn.request.continues
            if is_clean and (server.turns or keep):
                return
            if server is self._server:
                self._server = None
            await server.aclose()
        finally:
            self._give_back(self._held, {turn.thread_id})


def _thread_of(request: ProviderRequest) -> str | None:
    return None if request.conversation is None else request.conversation["thread_id"]
