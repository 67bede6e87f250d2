"""One `claude` process under the claude-agent-sdk: it takes one turn after another in one conversation."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import claude_agent_sdk
from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, HookMatcher
from claude_agent_sdk._internal.transport.subprocess_cli import SubprocessCLITransport
from claude_agent_sdk.types import (
    HookContext,
    HookInput,
    PermissionResultAllow,
    PermissionResultDeny,
    SyncHookJSONOutput,
    ToolPermissionContext,
)

from ....domain.errors import GreenroomError, ProviderInvalidRequest, ProviderUnavailable
from ....domain.permission_mode import PermissionMode
from ....domain.provider import ProviderRequest
from ...process_trees import processes_around
from ..agents.process import AgentProcess
from ..agents.turn import AgentTurn, refusal_text
from .mapping import ClaudeCodeMapping
from .options import ClaudeLaunch, write_mcp_file

_CONTROL = frozenset({"control_request", "control_response", "control_cancel_request"})
"""Types of lines that are between the SDK and the client."""

_PERSON_S = 14 * 86_400.0
"""How long a hook may take to answer, since a person may have to: longer than any approval lives."""

Fail = Callable[[GreenroomError], Awaitable[None]]
Hear = Callable[[Mapping[str, Any] | None], Awaitable[None]]

_PLAN_REFUSAL = "The run is in plan mode: nothing may be changed, and the plan itself is the answer."


class ClaudeClient:
    """Tells everything that is not the SDK's own to the turn that it has; between turns nobody hears it."""

    def __init__(self, launch: ClaudeLaunch, *, resume: str | None, fork: bool) -> None:
        self.launch = launch
        self.session_id = resume if resume is not None and not fork else None
        """The conversation; None until a new one has said its name."""
        self.turn: ClaudeTurn | None = None
        self._is_connected = False
        self._own_processes: frozenset[int] = frozenset()
        self._chosen = None if resume is not None else str(uuid.uuid4())
        options = launch.sdk_options(resume=resume, fork=fork, session_id=self._chosen)
        if launch.mode is not PermissionMode.DANGEROUSLY_SKIP_PERMISSIONS:  # there the client never asks
            options.can_use_tool = self._can_use_tool
        options.hooks = {"PreToolUse": [HookMatcher(hooks=[self._before_tool], timeout=_PERSON_S, on_failure="block")]}
        self._transport = SupervisedTransport(options, launch, self._hear, self._failed)
        self._sdk = ClaudeSDKClient(options, transport=self._transport)

    @property
    def pid(self) -> int:
        return self._transport.process.pid

    @property
    def is_fit(self) -> bool:
        """Whether it can take another turn."""
        return not self._transport.is_over

    async def has_left_processes(self) -> bool:
        """Whether something runs that a turn has started, as `&` of a shell does."""
        return bool(await asyncio.to_thread(processes_around, self.pid) - self._own_processes)

    async def start(self) -> None:
        """Start the process. ProviderUnavailable, ProviderInvalidRequest when that cannot be done."""
        await self._transport.connect()

    async def connect(self) -> None:
        """Begin the control protocol, which takes most of the time of a start; once."""
        if not self._is_connected:
            await self._sdk.connect()
            self._is_connected = True
            self._own_processes = await asyncio.to_thread(processes_around, self.pid)

    async def say(self, text: str, message_id: str) -> None:
        """Hand a message to the client: the prompt of a turn, or one more in the middle of it."""
        await self._transport.write(
            json.dumps(
                {
                    "type": "user",
                    "message": {"role": "user", "content": text},
                    "parent_tool_use_id": None,
                    "session_id": self.session_id or "default",
                    "uuid": message_id,
                }
            )
            + "\n"
        )

    async def interrupt(self) -> None:
        """Stop the turn; the client answers with its result."""
        await self._sdk.interrupt()

    async def aclose(self) -> None:
        """End it; nothing of it is left."""
        await self._transport.close()
        await self._sdk.disconnect()

    async def _hear(self, message: Mapping[str, Any] | None) -> None:
        """A line of the client, or None: there are no more."""
        turn = self.turn
        if message is not None:
            self.session_id = message.get("session_id") or self.session_id
        if turn is not None and message is not None:
            await turn.hear(partial(turn.mapping.take, message))
        elif turn is not None:
            await turn.wire_is_over(None if turn.mapping.has_result else await self._transport.process.ended_early())

    async def _failed(self, error: GreenroomError) -> None:
        """What the client says cannot be read any more."""
        if self.turn is not None:
            await self.turn.wire_is_over(error)

    async def _before_tool(self, given: HookInput, tool_use_id: str | None, context: HookContext) -> SyncHookJSONOutput:
        """No tool runs before its start is durable, nor against a policy, whatever the permission mode is."""
        name, arguments = str(given.get("tool_name")), dict(given.get("tool_input") or {})
        in_subagent = "agent_id" in given
        refusal = await self._permit(name, arguments, str(tool_use_id), asks=False, in_subagent=in_subagent)
        if refusal is None:
            return {}
        return {
            "hookSpecificOutput": {
                "hookEventName": "PreToolUse",
                "permissionDecision": "deny",
                "permissionDecisionReason": refusal,
            }
        }

    async def _can_use_tool(
        self, name: str, arguments: dict[str, Any], context: ToolPermissionContext
    ) -> PermissionResultAllow | PermissionResultDeny:
        """What the client itself would ask a person."""
        call_id = str(context.tool_use_id)
        if self.launch.mode is PermissionMode.FULL_AUTO:
            return PermissionResultAllow()
        if self.launch.mode is PermissionMode.PLAN:
            if self.turn is not None:
                self.turn.mapping.deny(call_id)
            return PermissionResultDeny(message=_PLAN_REFUSAL)
        refusal = await self._permit(name, arguments, call_id, asks=True)
        return PermissionResultAllow() if refusal is None else PermissionResultDeny(message=refusal)

    async def _permit(
        self, name: str, arguments: dict[str, Any], call_id: str, *, asks: bool, in_subagent: bool = False
    ) -> str | None:
        """None, or why not."""
        if self.turn is None:
            return "No run is under way."
        return await self.turn.may_call(name, arguments, call_id, asks=asks, in_subagent=in_subagent)


class ClaudeTurn(AgentTurn):
    """One prompt of a client, until its result."""

    mapping: ClaudeCodeMapping

    def __init__(
        self, request: ProviderRequest, client: ClaudeClient, release: "Callable[[ClaudeTurn], Awaitable[None]]"
    ) -> None:
        super().__init__(request, ClaudeCodeMapping(), client.launch.where)
        self.client = client
        self._release = release
        self.begun: asyncio.Task[None] | None = None

    def pids(self) -> list[int]:
        return [self.client.pid]

    async def run(self, prompt: str) -> None:
        """Connect if need be, and send the prompt; what goes wrong is heard as the end of the wire."""
        try:
            await self.client.connect()
            await self.say(prompt)
        except GreenroomError as exc:
            await self.wire_is_over(exc)
        except Exception as exc:  # noqa: BLE001  the SDK raises bare ones too
            text = self.client.launch.where.redacted(str(exc))
            await self.wire_is_over(ProviderUnavailable(f"Claude Code could not begin: {text}"))

    async def say(self, text: str) -> None:
        """The client says when it takes the message up."""
        message_id = str(uuid.uuid4())
        self.mapping.sent(message_id)
        await self.client.say(text, message_id)

    async def steer(self, message: str) -> bool:
        await self.say(message)
        return True

    async def may_call(
        self, name: str, arguments: dict[str, Any], call_id: str, *, asks: bool, in_subagent: bool
    ) -> str | None:
        """None, or what to tell the agent instead."""
        result = await self.permit(
            partial(self.mapping.permission_requested, call_id, name, arguments, in_subagent=in_subagent),
            lambda: (name, arguments),
            call_id,
            asks=asks,
        )
        if result is None:
            return None
        self.mapping.deny(call_id)
        return refusal_text(result)

    async def stop(self) -> None:
        if self.begun is not None:
            await asyncio.wait((self.begun,))
        if self.mapping.asked_to_stop():
            await self.client.aclose()  # after an interrupt it would take up what it has not yet
        else:
            await self.client.interrupt()

    async def release(self) -> None:
        if self.begun is not None:
            self.begun.cancel()
            await asyncio.wait((self.begun,))
        self.client.turn = None
        await self._release(self)


class SupervisedTransport(SubprocessCLITransport):
    """The SDK's own way to find the program and to write its command line, over a process of ours.

    Lines that are not the SDK's own go to `hear`, and None when there are no more; the SDK sees the others alone, since
    its own reading of the rest would add nothing but a queue.
    """

    def __init__(self, options: ClaudeAgentOptions, launch: ClaudeLaunch, hear: Hear, fail: Fail) -> None:
        super().__init__(prompt="", options=replace(options, can_use_tool=None, permission_prompt_tool_name="stdio"))
        self._launch = launch
        self._hear = hear
        self._fail = fail
        self._mcp_file: Path | None = None
        self._started: AgentProcess | None = None
        self.is_over = False

    @property
    def process(self) -> AgentProcess:
        """Once it was started."""
        assert self._started is not None, "connect comes first"
        return self._started

    async def connect(self) -> None:
        if self._started is not None:
            return
        self._cli_path = self._cli_path or self._found_cli()
        if self._launch.options.mcp_servers:
            self._mcp_file = await asyncio.to_thread(write_mcp_file, self._launch)
            self._options = replace(self._options, mcp_servers=str(self._mcp_file))
        environment = {
            **self._launch.where.environment,
            "CLAUDE_CODE_ENTRYPOINT": "sdk-py",
            "CLAUDE_AGENT_SDK_VERSION": claude_agent_sdk.__version__,
            "PWD": self._launch.where.cwd,
        }
        where = replace(self._launch.where, environment=environment)
        program = self._launch.options.command_line() or (self._cli_path,)
        command = [*program, *self._build_command()[1:]]
        self._started = await AgentProcess.start(command, where, record=self._launch.options.record)

    async def write(self, data: str) -> None:
        await self.process.send(data.rstrip("\n"))

    async def read_messages(self) -> AsyncIterator[dict[str, Any]]:
        try:
            async with aclosing(self.process.lines()) as lines:
                async for message in lines:
                    if not isinstance(message, dict):
                        continue  # notes of some builds, in plain text
                    said = cast("dict[str, Any]", message)
                    if said.get("type") in _CONTROL:
                        yield said
                    else:
                        await self._hear(said)
        except GreenroomError as exc:
            self.is_over = True
            await self._fail(exc)
            raise
        was_closed, self.is_over = self.is_over, True
        await self._hear(None)
        if not was_closed:  # else whoever waits for an answer would wait for a minute
            raise claude_agent_sdk.CLIConnectionError("Claude Code has ended.")

    async def close(self) -> None:
        self.is_over = True
        try:
            if self._started is not None:
                await self._started.aclose()
        finally:
            if self._mcp_file is not None:
                await asyncio.to_thread(self._mcp_file.unlink, missing_ok=True)

    def is_ready(self) -> bool:
        return self._started is not None and not self.is_over

    async def end_input(self) -> None:
        self.process.end_input()

    def _found_cli(self) -> str:
        try:
            return self._find_cli()
        except claude_agent_sdk.CLINotFoundError as exc:
            raise ProviderInvalidRequest(
                "The program `claude` was not found. Install claude-agent-sdk from a wheel that brings it, or name it"
                " with the provider option 'command'.",
                details={"field": "command"},
            ) from exc
