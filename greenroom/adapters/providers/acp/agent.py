"""One agent process that speaks the protocol, and the sessions that it has."""

import asyncio
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from importlib.metadata import version
from typing import Any, cast

from ....domain.errors import (
    CapabilityNotSupported,
    GreenroomError,
    ProviderAuthenticationFailed,
    ProviderInvalidRequest,
    ProviderTimeout,
)
from ...process_trees import processes_around
from ..agents.process import AgentProcess
from . import requests
from .connection import INVALID_PARAMS, METHOD_NOT_FOUND, AcpConnection, Params, RequestFailed
from .errors import AUTHENTICATION_REQUIRED, error_of_answer, error_of_load
from .login import way_to_log_in
from .options import AcpLaunch
from .session import AcpSession

START_S = 60.0
"""How long an agent may take to say hello, and as long again for a session to begin. OpenCode takes 5 s for both."""

MAX_SESSIONS = 64
"""So many an agent is asked for before the process is replaced: few can be told to forget one."""

UNHEARD = frozenset({"agent_message_chunk", "agent_thought_chunk", "tool_call"})
"""Kinds of updates that show an agent at work; others may come late."""

CANCELLED = {"outcome": {"outcome": "cancelled"}}

_CLAUDE = "claude-agent-acp"


class AcpAgent:
    """Implements Listener. Tells each session's turn what is said of the session; what nobody waits for is dropped."""

    def __init__(self, launch: AcpLaunch, process: AgentProcess) -> None:
        self.launch = launch
        self.process = process
        self.connection = AcpConnection(process, self)
        self.name = ""
        self.users = 0
        """Runs that have it."""
        self.is_retired = False
        """Whether it takes up no more runs."""
        self._capabilities: Mapping[str, Any] = {}
        self._auth_methods: list[Mapping[str, Any]] = []
        self._sessions: dict[str, AcpSession] = {}
        self._begun_sessions = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._own_processes: frozenset[int] = frozenset()

    @classmethod
    async def start(cls, launch: AcpLaunch) -> "AcpAgent":
        """Start it, and shake hands. Leaves nothing behind when it fails."""
        process = await AgentProcess.start(launch.command, launch.where, record=launch.record)
        agent = cls(launch, process)
        try:
            await agent._shake_hands()
        except BaseException:
            await agent.aclose()
            raise
        return agent

    @property
    def is_fit(self) -> bool:
        """Whether it can take up one more run."""
        return not (self.is_retired or self.connection.is_over) and self._begun_sessions < MAX_SESSIONS

    def session(self, session_id: str) -> AcpSession | None:
        """One that it has in memory."""
        return self._sessions.get(session_id)

    async def begin_session(self, system_prompt: str | None, *, title: str) -> AcpSession:
        """A new conversation. CapabilityNotSupported if the agent takes no system prompt."""
        params = requests.new_session(self.launch.where.cwd, self._mcp_servers())
        params |= self._beyond_protocol(system_prompt)
        answer = await self._begin("session/new", params)
        session = self._keep(str(answer.get("sessionId")), answer, cost_usd=0.0)
        if "title" in (self._capabilities.get("sessionCapabilities") or {}):
            await self._give_title(session.session_id, title)
        return session

    async def load_session(self, session_id: str) -> AcpSession:
        """One that goes on. What the agent tells of its past, before it answers, nobody hears.

        ProviderInvalidRequest with `details.field` continuation if it is not there, or the agent cannot.
        """
        if not self._capabilities.get("loadSession"):
            raise ProviderInvalidRequest(
                f"The agent {self.name!r} cannot load a conversation; run it with continuation='replay'.",
                details={"field": "continuation"},
            )
        servers = self._mcp_servers()
        params = requests.load_session(session_id, self.launch.where.cwd, servers) | self._beyond_protocol(None)
        return self._keep(session_id, await self._begin("session/load", params), cost_usd=None)

    def forget(self, session: AcpSession) -> None:
        """Nobody goes on with the session."""
        self._sessions.pop(session.session_id, None)
        if "close" in (self._capabilities.get("sessionCapabilities") or {}):
            self._later(self._close_session(session.session_id))

    async def note_processes(self) -> None:
        """What runs now is the agent's own."""
        self._own_processes = await asyncio.to_thread(processes_around, self.process.pid)

    async def has_left_processes(self) -> bool:
        """Whether something runs that a turn has started, as `&` of a shell does."""
        return bool(await asyncio.to_thread(processes_around, self.process.pid) - self._own_processes)

    def answer_later(self, request_id: object, result: Params) -> None:
        """Answer without waiting until the agent reads it: while it does not, it may be waiting to be read."""
        self._later(self.connection.answer(request_id, result))

    def refuse_later(self, request_id: object, code: int, message: str) -> None:
        """The same with an error."""
        self._later(self.connection.refuse(request_id, code, message))

    def end_unheard(self, session: AcpSession) -> None:
        """Work that goes on after its run, in the background, is recorded nowhere: it is stopped, and the agent takes
        up no more runs. It is ended at once if it has none."""
        if not self.is_retired:
            self._later(self.connection.notify("session/cancel", {"sessionId": session.session_id}))
        self.is_retired = True
        if not self.users:
            self._later(self.process.aclose())

    async def aclose(self) -> None:
        """End it; nothing of it is left."""
        self.is_retired = True
        try:
            await self.process.aclose()
        finally:
            await self.connection.aclose()
            for task in self._tasks:
                task.cancel()

    # What the agent says

    async def notified(self, method: str, params: Params) -> None:
        if method == "$/cancel_request":
            turns = [session.turn for session in self._sessions.values() if session.turn is not None]
            any(turn.withdrawn(params.get("requestId")) for turn in turns)
        elif method == "session/update":
            session = self._sessions.get(str(params.get("sessionId")))
            if session is None:
                return
            update = params.get("update")
            if isinstance(update, dict):
                session.settings = session.settings.updated(update)  # pyright: ignore[reportUnknownArgumentType]
            if session.turn is not None:
                await session.turn.heard(params)
            elif session.has_begun and isinstance(update, dict) and update.get("sessionUpdate") in UNHEARD:  # pyright: ignore[reportUnknownMemberType]
                self.end_unheard(session)

    async def asked(self, request_id: object, method: str, params: Params) -> None:
        session = self._sessions.get(str(params.get("sessionId")))
        if method != "session/request_permission":
            self.refuse_later(request_id, METHOD_NOT_FOUND, f"Method not found: {method}")
        elif session is None or session.turn is None:
            self.answer_later(request_id, CANCELLED)
            if session is not None and session.has_begun:
                self.end_unheard(session)
        else:
            await session.turn.permission_asked(request_id, params)

    def not_understood(self, request_id: object) -> None:
        self.refuse_later(request_id, INVALID_PARAMS, "Invalid params")

    # How it begins

    async def _shake_hands(self) -> None:
        try:
            answer = await self._within("initialize", requests.initialize(version("greenroom")))
        except RequestFailed as exc:
            raise error_of_answer(exc.error) from exc
        spoken = answer.get("protocolVersion")
        if spoken != requests.PROTOCOL:
            raise CapabilityNotSupported(
                f"The agent speaks version {spoken} of the Agent Client Protocol, and Greenroom version"
                f" {requests.PROTOCOL}. Install a version of the agent that speaks it.",
                details={"field": "command", "protocol_version": spoken},
            )
        info: Mapping[str, Any] = answer.get("agentInfo") or {}
        self.name = str(info.get("name") or "")
        self._capabilities = answer.get("agentCapabilities") or {}
        self._auth_methods = answer.get("authMethods") or []

    async def _begin(self, method: str, params: Params) -> Params:
        try:
            return await self._within(method, params)
        except RequestFailed as exc:
            if exc.error.get("code") != AUTHENTICATION_REQUIRED:
                raise self._error(method, exc) from exc
        way = way_to_log_in(self.name, self._auth_methods, self.launch.where.environment)
        try:
            await self._within("authenticate", {"methodId": way})
        except RequestFailed as exc:
            raise ProviderAuthenticationFailed(error_of_answer(exc.error).message) from exc
        try:
            return await self._within(method, params)
        except RequestFailed as exc:
            raise self._error(method, exc) from exc

    @staticmethod
    def _error(method: str, failed: RequestFailed) -> GreenroomError:
        return error_of_load(failed.error) if method == "session/load" else error_of_answer(failed.error)

    async def _within(self, method: str, params: Params) -> Params:
        try:
            async with asyncio.timeout(START_S):
                return await self.connection.request(method, params)
        except TimeoutError:
            self.is_retired = True
            said = (await self.process.stderr_text()).strip().rpartition("\n")[2]
            raise ProviderTimeout(
                f"The agent did not answer {method} within {START_S:.0f} s{': ' + said if said else '.'}"
            ) from None

    def _keep(self, session_id: str, answer: Params, *, cost_usd: float | None) -> AcpSession:
        self._begun_sessions += 1
        session = AcpSession(self.connection, self.name, session_id, answer, cost_usd=cost_usd)
        self._sessions[session_id] = session
        return session

    def _mcp_servers(self) -> list[requests.AnyMcpServer]:
        return requests.mcp_servers(self.launch.mcp_servers, self._capabilities.get("mcpCapabilities") or {})

    def _beyond_protocol(self, text: str | None) -> dict[str, Any]:
        """The system prompt, and what else a session begins with that the library has no words for."""
        meta = dict(self.launch.meta)
        if self.name.endswith(_CLAUDE):
            meta["claudeCode"] = _with_own_settings_alone(meta.get("claudeCode"))
        params: dict[str, Any] = {}
        if text is not None:
            if self.name.endswith(_CLAUDE):
                meta["systemPrompt"] = text
            elif "systemPrompt" in (self._capabilities.get("sessionCapabilities") or {}):
                params["systemPrompt"] = {"mode": "append", "content": [{"type": "text", "text": text}]}
            else:
                raise CapabilityNotSupported(
                    f"The agent {self.name!r} takes no system prompt over the protocol. Say it in the prompt, or in the"
                    " agent's own configuration.",
                    details={"field": "system_prompt"},
                )
        return params | ({"_meta": meta} if meta else {})

    async def _give_title(self, session_id: str, title: str) -> None:
        """Or else codex-acp has a model make one up, at the cost of one more request for each session."""
        with suppress(RequestFailed):
            await self._within("session/set_title", {"sessionId": session_id, "title": title})

    async def _close_session(self, session_id: str) -> None:
        with suppress(RequestFailed, TimeoutError):  # else it is forgotten with the process
            async with asyncio.timeout(START_S):
                await self.connection.request("session/close", {"sessionId": session_id})

    def _later(self, said: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(_unless_gone(said))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _with_own_settings_alone(given: object) -> dict[str, Any]:
    """Settings of the working directory, which the agent could write, run commands that nobody is asked about."""
    claude: dict[str, Any] = {"options": {}, **cast("dict[str, Any]", given or {})}
    return {**claude, "options": {"settingSources": ["user"], **cast("dict[str, Any]", claude["options"])}}


async def _unless_gone(said: Coroutine[Any, Any, None]) -> None:
    with suppress(GreenroomError):  # the reader tells whoever has to know
        await said
