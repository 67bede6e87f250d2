"""One `codex app-server`, which serves the threads of a session: several turns at once, and one after another."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from ....domain.errors import CapabilityNotSupported, GreenroomError
from ....domain.provider import ProviderRequest
from ..agents.process import AgentProcess
from ..agents.prompt import prompt_of
from .connection import CodexConnection, Message
from .gate import CodexGate
from .mapping import CodexMapping
from .options import CodexLaunch, CodexSetup, config_arguments
from .turn import CodexTurn, answer_no

_CLEANED_WITHIN_S = 1.0
"""How long Codex may take to end the commands that a turn has left running."""

_BEHIND = "is behind durable rollout"
_FORKS = 20
_FORKS_EVERY_S = 0.1

_IN_USE = "already has an active writer"

_CLIENT = {"clientInfo": {"name": "greenroom", "title": "Greenroom", "version": "1"}}


class CodexServer:
    """Started by `start`; gone after `aclose`."""

    def __init__(self, launch: CodexLaunch) -> None:
        self.launch = launch
        self.turns: dict[str, CodexTurn] = {}
        """By thread."""
        self._loaded: dict[str, tuple[CodexSetup, str | None]] = {}
        """Threads that it has at hand: how they are set up, and their model."""
        self._trust: Mapping[str, Any] = {}
        self._leaves_behind = False
        self._gate: CodexGate | None = None
        self._started: CodexConnection | None = None

    @classmethod
    async def start(cls, launch: CodexLaunch) -> "CodexServer":
        """Raises the typed error of what cannot be started; then nothing is left of it."""
        server = cls(launch)
        try:
            await server._start()
        except BaseException:
            await server.aclose()
            raise
        return server

    @property
    def is_fit(self) -> bool:
        """Whether it can take another turn, and leaves nothing of the turns before behind."""
        return not self._connection.is_over and not self._leaves_behind and self.launch.confined

    def has_loaded(self, thread_id: str | None) -> bool:
        """Whether no other client can go on with the thread."""
        return thread_id in self._loaded

    @property
    def _connection(self) -> CodexConnection:
        assert self._started is not None, "start comes first"
        return self._started

    async def begin(
        self,
        request: ProviderRequest,
        setup: CodexSetup,
        release: Callable[["CodexServer", CodexTurn], Awaitable[None]],
    ) -> CodexTurn:
        """Have a thread take the request up: a new one, or the conversation's, or a fork of that where another turn
        uses it or it was set up in another way."""
        if not self._trust and any(policy.tool_rules for policy in request.policies):
            raise CapabilityNotSupported(
                "This Codex runs no hooks, so policies cannot be kept. Use the one that comes with openai-codex.",
                details={"field": "policies"},
            )
        continued = request.conversation
        thread_id, model = await self._thread(None if continued is None else continued["thread_id"], setup)
        mapping = CodexMapping(thread_id, model=model, continued=continued, instructions=setup.digest)
        turn = CodexTurn(request, mapping, self._connection, thread_id, lambda turn: release(self, turn))
        self.turns[thread_id] = turn
        knows = continued is None or continued.get("instructions") == setup.digest
        turn.begin(prompt_of(request), None if knows else setup.instructions)
        return turn

    async def end_turn(self, turn: CodexTurn) -> bool:
        """The turn is over: whether nothing of it is left, as far as the client can tell."""
        self.turns.pop(turn.thread_id, None)
        self._leaves_behind = self._leaves_behind or turn.leaves_behind
        if not turn.mapping.is_over or self._connection.is_over:
            return False
        try:
            async with asyncio.timeout(_CLEANED_WITHIN_S):
                await self._connection.request("thread/backgroundTerminals/clean", {"threadId": turn.thread_id})
        except (TimeoutError, GreenroomError):
            return False
        return True

    async def aclose(self) -> None:
        """End it; nothing of it is left. Turns that it has hear that it is gone."""
        if self._started is not None:
            await self._started.aclose()
        if self._gate is not None:
            await self._gate.aclose()

    async def _start(self) -> None:
        launch = self.launch
        self._gate = await CodexGate.open(self._hooked)
        config = {**launch.settings, **self._gate.settings}
        if launch.api_key is not None:
            config["cli_auth_credentials_store"] = "ephemeral"
        command = [*launch.program, *config_arguments(config), "app-server", "--listen", "stdio://"]
        process = await AgentProcess.start(command, launch.where, record=launch.options.record)
        connection = self._started = CodexConnection(process, self._hear, self._gone)
        await connection.request("initialize", {**_CLIENT, "capabilities": {"experimentalApi": True}})
        await connection.tell("initialized")
        if launch.api_key is not None:
            await connection.request("account/login/start", {"type": "apiKey", "apiKey": launch.api_key})
        self._trust = await self._trusted_hook()

    async def _trusted_hook(self) -> Mapping[str, Any]:
        """The setting by which Codex trusts our hook, and no other; empty if it does not know it."""
        assert self._gate is not None, "it is open"
        command = self._gate.command
        try:
            listed = await self._connection.request("hooks/list", {"cwds": [self.launch.where.cwd]})
        except GreenroomError:
            if self._connection.is_over:
                raise
            return {}
        found = [hook for entry in listed["data"] for hook in entry["hooks"] if hook.get("command") == command]
        state = {hook["key"]: {"trusted_hash": hook["currentHash"]} for hook in found}
        return {"hooks.state": state} if state else {}

    async def _thread(self, thread_id: str | None, setup: CodexSetup) -> tuple[str, str | None]:
        """Id and model of a thread that is set up like this and that no other turn uses."""
        parameters = setup.parameters(self.launch.where.cwd, self._trust)
        known = self._loaded.get(thread_id or "")
        if known is not None and known[0] == setup and thread_id is not None and thread_id not in self.turns:
            return thread_id, known[1]
        if thread_id is None:
            answer = await self._connection.request("thread/start", parameters)
        else:  # of a thread that it has loaded Codex takes no new setup, but of a fork
            method = "thread/resume" if known is None and thread_id not in self.turns else "thread/fork"
            answer = await self._continue(method, {**parameters, "threadId": thread_id, "excludeTurns": True})
        found = str(answer["thread"]["id"])
        self._loaded[found] = (setup, answer.get("model"))
        return found, answer.get("model")

    async def _continue(self, method: str, given: Message) -> Any:
        """The answer to thread/resume or thread/fork; a fork too where another client still has the thread."""
        try:
            return await self._connection.request(method, given)
        except GreenroomError as exc:
            if _IN_USE not in exc.message:
                raise
        return await self._fork(given)

    async def _fork(self, given: Message) -> Any:
        """The other client writes the thread; what it has just written Codex takes a moment to take up."""
        for _ in range(_FORKS):
            try:
                return await self._connection.request("thread/fork", given)
            except GreenroomError as exc:
                if _BEHIND not in exc.message:
                    raise
            await asyncio.sleep(_FORKS_EVERY_S)
        return await self._connection.request("thread/fork", given)

    async def _hear(self, message: Message) -> None:
        given: Mapping[str, Any] = message.get("params") or {}
        turn = self._turn_of(given.get("threadId"))
        if "id" in message:
            if turn is not None:
                turn.asked(message)
            else:
                with suppress(GreenroomError):
                    await answer_no(self._connection, message)
        elif turn is not None:
            await turn.take(message)

    async def _gone(self, error: GreenroomError) -> None:
        for turn in list(self.turns.values()):
            await turn.wire_is_over(error)

    async def _hooked(self, said: Mapping[str, Any]) -> str | None:
        turn = self._turn_of(said.get("session_id"))
        if said.get("hook_event_name") != "PreToolUse":
            if turn is not None:
                turn.called(said)
            return None
        return "No run is under way." if turn is None else await turn.may_call(said)

    def _turn_of(self, thread_id: str | None) -> CodexTurn | None:
        return None if thread_id is None else self.turns.get(thread_id)
