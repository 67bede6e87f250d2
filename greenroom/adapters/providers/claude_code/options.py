"""The options of kind `claude-code`, and what its client is started with. Light, but for what takes an `extra`."""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ....domain.errors import ProviderInvalidRequest
from ....domain.permission_mode import PermissionMode
from ....domain.provider import ProviderRequest
from ..agents.extra import check_extra
from ..agents.options import AgentOptions, AgentSurroundings, parse_agent_options, require_module, surroundings
from ..agents.prompt import system_prompt_of

if TYPE_CHECKING:
    from claude_agent_sdk import ClaudeAgentOptions

KIND = "claude-code"

CREDENTIALS = (
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "ANTHROPIC_BASE_URL",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "HTTPS_PROXY",
    "NO_PROXY",
)

_QUIET = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_TELEMETRY": "1",
    "CLAUDE_CODE_MAX_RETRIES": "2",
    "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",
}
"""Nothing but what the run is for leaves the machine, the client gives up a request before the run does, and what its
agents do is over when the run is: else a subagent would go on after the result, and nobody would record it."""

_OWN = frozenset(
    {
        "can_use_tool",
        "cli_path",
        "continue_conversation",
        "cwd",
        "env",
        "extra_args",
        "fork_session",
        "hooks",
        "include_partial_messages",
        "max_turns",
        "mcp_servers",
        "model",
        "permission_mode",
        "permission_prompt_tool_name",
        "resume",
        "session_id",
        "session_store",
        "stderr",
        "system_prompt",
        "tools",
        "user",
    }
)
"""Fields of ClaudeAgentOptions that follow from other options, or would break what Greenroom promises."""

_ModeOfClient = Literal["default", "acceptEdits", "plan", "bypassPermissions"]

MODES: Mapping[PermissionMode, _ModeOfClient] = {
    PermissionMode.DEFAULT: "default",
    PermissionMode.ACCEPT_EDITS: "acceptEdits",
    PermissionMode.PLAN: "plan",
    PermissionMode.FULL_AUTO: "default",
    PermissionMode.DANGEROUSLY_SKIP_PERMISSIONS: "bypassPermissions",
}
"""In full_auto the client asks as by default, and is always told yes: as bypass would, but policies stay in force and
root may use it. In plan mode what it asks for is always refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaudeCodeOptions(AgentOptions):
    """`command` is the path of the `claude` program; None: the one that comes with the SDK."""


def check_claude_code_options(options: Mapping[str, Any], *, field: str) -> ClaudeCodeOptions:
    """The parsed options; ValidationError names the field that is wrong, CapabilityNotSupported what to install."""
    require_module("claude_agent_sdk", kind=KIND)
    parsed = parse_agent_options(ClaudeCodeOptions, options, field=field)
    if parsed.extra:
        from claude_agent_sdk import ClaudeAgentOptions  # noqa: PLC0415  takes half a second

        check_extra(ClaudeAgentOptions, parsed.extra, own=_OWN, field=f"{field}.extra")
    return parsed


@dataclass(frozen=True, slots=True)
class ClaudeLaunch:
    """What a client is started with. Two that are equal can take each other's runs."""

    options: ClaudeCodeOptions
    where: AgentSurroundings
    model: str | None
    max_turns: int | None
    system_prompt: str | None
    mode: PermissionMode

    @classmethod
    def of(cls, request: ProviderRequest, options: ClaudeCodeOptions) -> "ClaudeLaunch":
        """Makes the home. ProviderInvalidRequest for what cannot be started."""
        where = surroundings(options, request.home, credentials=CREDENTIALS, defaults=_QUIET)
        mode = request.permission_mode
        skips = mode is PermissionMode.DANGEROUSLY_SKIP_PERMISSIONS
        if skips and os.geteuid() == 0 and "IS_SANDBOX" not in where.environment:
            raise ProviderInvalidRequest(
                "Claude Code does not skip permissions as root. Run as another user, use permission_mode='full_auto',"
                " or say that this machine is a sandbox with the provider option env={'IS_SANDBOX': '1'}.",
                details={"field": "permission_mode"},
            )
        return cls(
            options=options,
            where=where,
            model=request.model or options.model,
            max_turns=request.max_turns or options.max_turns,
            system_prompt=system_prompt_of(request, options.system_prompt),
            mode=mode,
        )

    def sdk_options(self, *, resume: str | None, fork: bool, session_id: str | None) -> "ClaudeAgentOptions":
        """For the SDK, without the callbacks."""
        from claude_agent_sdk import ClaudeAgentOptions  # noqa: PLC0415  takes half a second

        extra = dict(self.options.extra)
        command = self.options.command_line()
        extra.setdefault("setting_sources", [])  # those of the working directory run commands that no policy sees
        return ClaudeAgentOptions(
            **extra,
            cli_path=None if command is None else command[0],
            cwd=self.where.cwd,
            model=self.model,
            max_turns=self.max_turns,
            system_prompt=self.system_prompt or {"type": "preset", "preset": "claude_code"},
            tools=None if self.options.tools is None else list(self.options.tools),
            permission_mode=MODES[self.mode],
            include_partial_messages=True,
            extra_args={"replay-user-messages": None},
            resume=resume,
            fork_session=fork,
            session_id=session_id,
        )


def write_mcp_file(launch: ClaudeLaunch) -> Path:
    """The MCP servers in a file for this user alone: on the command line everybody could read their keys.

    Whoever starts the client removes it. What a killed process left goes with the session's home.
    """
    folder = Path(launch.where.home) / ".greenroom-mcp"
    folder.mkdir(mode=0o700, exist_ok=True)
    descriptor, name = tempfile.mkstemp(suffix=".json", dir=folder)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({"mcpServers": launch.options.mcp_servers}, file)
    return Path(name)
