"""Kind `acp`: any agent that speaks the Agent Client Protocol, as one process with a session for each conversation."""

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ....domain.capability import Capability, CapabilityType
from ....domain.errors import GreenroomError
from ....domain.provider import ProviderRequest
from ..agents.provider import AgentProvider
from ..agents.turn import AgentTurn
from .options import AcpConversation, AcpLaunch, AcpOptions, check_acp_options, refuse_workspace_settings

if TYPE_CHECKING:
    from .agent import AcpAgent, AcpSession
    from .turn import AcpTurn


class AcpProvider(AgentProvider):
    """The agent stays for later runs that go on with a conversation; it is replaced when it has died, or when a run
    needs it started otherwise.

    Runs of one session that are under way at once share the process. Where they go on with the same conversation the
    later one waits, since the protocol has one prompt a conversation. An agent that does not stop a turn when it is
    told to is ended, and takes the other runs that it has with it (provider_unavailable). So is one that works on in
    the background after its run, as soon as it says so and has no other run: nobody would record that.
    """

    COUNTS_TURNS = False
    ENFORCES_TOOL_RULES = False

    CAPABILITIES = (
        Capability(name="streaming", type=CapabilityType.SAMPLING),
        Capability(name="interrupt", type=CapabilityType.SAMPLING),
        Capability(name="steer", type=CapabilityType.SAMPLING),
        Capability(name="tool_use", type=CapabilityType.TOOL),
        Capability(name="mcp", type=CapabilityType.TOOL),
    )

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._agent: AcpAgent | None = None
        """The one that takes up runs; others only end theirs."""
        self._choosing = asyncio.Lock()
        self._conversations: dict[str, asyncio.Event] = {}
        """Those that runs have, each with what says that it is given back."""

    @staticmethod
    def check_options(options: Mapping[str, Any], *, field: str) -> AcpOptions:
        """The parsed options; ValidationError names the field that is wrong."""
        return check_acp_options(options, field=field)

    async def begin(self, request: ProviderRequest) -> AgentTurn:
        from ..agents.prompt import prompt_of  # noqa: PLC0415
        from .turn import AcpTurn  # noqa: PLC0415  the library takes half a second

        options = self.check_options(request.options, field="options")
        launch, conversation = AcpLaunch.of(request, options), AcpConversation.of(request, options)
        if conversation.session_id is not None:
            await self._take(conversation.session_id)
        agent: AcpAgent | None = None
        try:
            agent = await self._fit_agent(launch)
            refuse_workspace_settings(request, agent.name, launch.where)
            session = await self._session(agent, conversation, title=request.session_id)
            await session.prepare(request.permission_mode, request.model or options.model, options)
            if agent.users == 1:
                await agent.note_processes()
        except BaseException as exc:
            self._give_back(conversation.session_id)
            if agent is not None:
                await self._let_go(agent, keep=request.continues and isinstance(exc, GreenroomError))
            raise
        if conversation.session_id is None:
            await self._take(session.session_id)
        turn = AcpTurn(request, agent, session, self._turn_released, system_prompt=conversation.system_prompt_name)
        turn.begin(prompt_of(request))
        return turn

    async def close_clients(self) -> None:
        agent, self._agent = self._agent, None
        if agent is not None:
            await agent.aclose()

    async def _fit_agent(self, launch: AcpLaunch) -> "AcpAgent":
        """One that is started in this way, with one user more."""
        from .agent import AcpAgent  # noqa: PLC0415  the library takes half a second

        async with self._choosing:
            agent = self._agent
            if agent is None or agent.launch != launch or not agent.is_fit:
                self._agent = None
                if agent is not None:
                    agent.is_retired = True
                    if not agent.users:
                        await agent.aclose()
                agent = self._agent = await AcpAgent.start(launch)
            agent.users += 1
            return agent

    @staticmethod
    async def _session(agent: "AcpAgent", conversation: AcpConversation, *, title: str) -> "AcpSession":
        session_id = conversation.session_id
        if session_id is None:
            return await agent.begin_session(conversation.system_prompt, title=title)
        return agent.session(session_id) or await agent.load_session(session_id)

    async def _turn_released(self, turn: "AcpTurn") -> None:
        session, agent = turn.session, turn.agent
        try:
            if not turn.mapping.is_over:
                agent.is_retired = True
                await agent.aclose()
            elif not turn.request.continues:
                agent.forget(session)
            await self._let_go(agent, keep=turn.request.continues)
        finally:
            self._give_back(session.session_id)

    async def _let_go(self, agent: "AcpAgent", *, keep: bool) -> None:
        """One user less. The last one ends it, unless it is to be kept and has nothing running for anybody."""
        agent.users -= 1
        if agent.users or (keep and agent.is_fit and not await agent.has_left_processes()) or agent.users:
            return
        if self._agent is agent:
            self._agent = None
        await agent.aclose()

    async def _take(self, conversation: str) -> None:
        """Wait until no other run has the conversation."""
        while (had := self._conversations.get(conversation)) is not None:
            await had.wait()
        self._conversations[conversation] = asyncio.Event()

    def _give_back(self, conversation: str | None) -> None:
        had = self._conversations.pop(conversation, None) if conversation is not None else None
        if had is not None:
            had.set()
