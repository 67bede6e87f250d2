"""One turn of `codex exec --json`: a process that takes its prompt from stdin, tells what it does, and ends."""

import asyncio
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NoReturn

from ....domain.errors import CapabilityNotSupported, GreenroomError
from ....domain.permission_mode import PermissionMode
from ....domain.provider import ProviderEvent, ProviderRequest
from ..agents.process import AgentProcess
from ..agents.prompt import prompt_of
from ..agents.turn import AgentTurn
from .errors import unreadable
from .exec_mapping import CodexExecMapping
from .options import MODES, CodexLaunch, CodexSetup, config_arguments, exposed

_SEEN = "on the command line of `codex exec`, where other users see it; use interface='app-server'"

_ENDS_WITHIN_S = 1.0
"""How long it may take from its last line to its end: until then it writes down its conversation."""


class CodexExecTurn(AgentTurn):
    """Nothing can be asked: what has to leave the sandbox, Codex refuses to its model by itself."""

    mapping: CodexExecMapping

    def __init__(
        self,
        request: ProviderRequest,
        mapping: CodexExecMapping,
        process: AgentProcess,
        released: "Callable[[], None]",
    ) -> None:
        super().__init__(request, mapping, process.where)
        self._process = process
        self._released = released
        self._is_stopped = False
        self._reader = asyncio.create_task(self._read(prompt_of(request)))

    @classmethod
    async def begin(
        cls,
        request: ProviderRequest,
        launch: CodexLaunch,
        setup: CodexSetup,
        released: "Callable[[], None]",
        *,
        fork: bool,
    ) -> "CodexExecTurn":
        """Start the process; `fork` where another turn has the conversation. CapabilityNotSupported for what only the
        app-server can do."""
        continued = request.conversation
        _refuse(request, setup)
        where = launch.where
        if launch.api_key is not None:
            where = replace(where, environment={**where.environment, "CODEX_API_KEY": launch.api_key})
        process = await AgentProcess.start(
            [*launch.program, *_arguments(launch, setup, None if continued is None else continued["thread_id"], fork)],
            where,
            record=launch.options.record,
        )
        return cls(request, CodexExecMapping(continued=continued, instructions=setup.digest), process, released)

    def pids(self) -> list[int]:
        return [self._process.pid]

    async def steer(self, message: str) -> bool:
        _cannot("steer", "`codex exec` takes no message while it runs; use interface='app-server'")

    async def stop(self) -> None:
        self._is_stopped = True
        self._process.send_signal(signal.SIGINT)

    async def release(self) -> None:
        try:
            if self.mapping.is_over and not self._is_stopped:  # one that was stopped has had its time
                await asyncio.wait((self._reader,), timeout=_ENDS_WITHIN_S)
        finally:
            await self._process.aclose()
            self._reader.cancel()
            await asyncio.wait((self._reader,))
            self._released()

    async def _read(self, prompt: str) -> None:
        try:
            await self._process.send(prompt)
            self._process.end_input()  # else it waits for more
            async for line in self._process.lines():
                if isinstance(line, dict):
                    await self.hear(partial(self.mapping.take, line))
            status, said = await self._process.wait(), await self._process.stderr_text()
            await self.hear(partial(self._ended, status, said))
            await self.wire_is_over()
        except GreenroomError as exc:
            await self.wire_is_over(exc)
        except Exception as exc:  # noqa: BLE001  or else the run would wait for ever
            await self.wire_is_over(unreadable(exc, self._process.redacted))

    def _ended(self, status: int, said: str) -> list[ProviderEvent]:
        self.mapping.ended(status, said)
        return []


def _arguments(launch: CodexLaunch, setup: CodexSetup, thread_id: str | None, fork: bool) -> list[str]:
    sandbox, _ = MODES[setup.mode]
    config = {**launch.settings, **setup.config, "approval_policy": "never"}
    if setup.instructions is not None:
        config["developer_instructions"] = setup.instructions
    arguments = ["exec", "--json", "--skip-git-repo-check", "--sandbox", sandbox, *config_arguments(config)]
    if setup.model is not None:
        arguments += ["--model", setup.model]
    if thread_id is not None:
        arguments += ["fork" if fork else "resume", thread_id]
    if any(secret in argument for secret in launch.where.secrets for argument in arguments):
        _cannot("mcp_servers", f"a secret of the options would be {_SEEN}")
    return [*arguments, "-"]


def _refuse(request: ProviderRequest, setup: CodexSetup) -> None:
    """CapabilityNotSupported for what `codex exec` would let pass in silence."""
    if any(policy.tool_rules for policy in request.policies):
        _cannot("policies", "`codex exec` asks before no call, so policies on tools need interface='app-server'")
    if setup.mode is PermissionMode.PLAN and "mcp_servers" in setup.config:
        _cannot("permission_mode", "`codex exec` keeps no MCP server from making changes; use interface='app-server'")
    for key, value in setup.config.items():
        if (found := exposed(key, value)) is not None:
            _cannot(
                found, f"it may be secret, and would be {_SEEN}, or name variables ('env_vars', 'env_http_headers')"
            )
    continued = request.conversation
    if continued is not None and setup.instructions is not None and continued.get("instructions") != setup.digest:
        _cannot(
            "system_prompt",
            "`codex exec` tells a conversation nothing anew; use interface='app-server' or continuation='replay'",
        )


def _cannot(at_fault: str, reason: str) -> NoReturn:
    raise CapabilityNotSupported(f"{at_fault}: {reason}.", details={"field": at_fault})
