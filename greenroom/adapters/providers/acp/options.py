"""The options of kind `acp`, and what an agent is started with. Light."""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from ....domain.errors import CapabilityNotSupported, ProviderInvalidRequest, ValidationError
from ....domain.permission_mode import PermissionMode
from ....domain.provider import ProviderRequest
from ...session_homes import made_home
from ..agents.options import AgentOptions, AgentSurroundings, parse_agent_options, require_module, surroundings
from ..agents.prompt import system_prompt_of
from ..agents.wire_mapping import conversation_is_gone
from .presets import PRESETS, AcpPreset, preset_of_agent

KIND = "acp"

_CANNOT = ("extra", "max_turns", "tools")
"""The protocol has nothing for them; `meta` may, with some agents."""

_FREER = frozenset(
    {"agents", "allowDangerouslySkipPermissions", "allowedTools", "extraArgs", "hooks", "managedSettings"}
    | {"permissionMode", "permissionPromptToolName", "plugins", "sandbox", "settingSources", "settings"}
)
"""Options of Claude's SDK that allow tools, run commands, or say where that is to be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AcpOptions(AgentOptions):
    """`command` starts any agent that speaks the protocol on its stdin and stdout; `preset` knows the command of one,
    and what else it needs. With both, `command` is started in the preset's way.

    Claude and OpenCode are told to leave the settings of the working directory alone, which they could write and which
    run commands. Codex and Gemini cannot be told: where they find some, a run in plan mode or with policies on tools is
    refused, and in other runs they count. An agent that is not known may read what it likes. Claude's and Gemini's own
    homes count always. What `mcp_servers` has for claude-agent-acp, that puts on the command line of Claude, where
    other users of the machine see it.
    """

    preset: Literal["claude-agent-acp", "codex-acp", "gemini", "opencode"] | None = None
    modes: dict[PermissionMode, str] = field(default_factory=dict[PermissionMode, str])
    """What the agent calls a permission mode, for an agent that Greenroom does not know."""
    config_options: dict[str, str | bool] = field(default_factory=dict[str, str | bool])
    """Settings that the agent offers for a session (configOptions), by their id; not `mode` and `model`."""
    meta: dict[str, Any] = field(default_factory=dict[str, Any])
    """Goes to the agent as `_meta` when a session begins, for what it has beyond the protocol."""


def check_acp_options(options: Mapping[str, Any], *, field: str) -> AcpOptions:
    """The parsed options; ValidationError names the field that is wrong, CapabilityNotSupported what to install, or an
    option that the protocol has nothing for."""
    require_module("acp", kind=KIND)
    parsed = parse_agent_options(AcpOptions, options, field=field, cannot=_CANNOT)
    if parsed.command is None and parsed.preset is None:
        raise ValidationError(
            f"{field}.command is missing; give the command line of the agent, or a preset: {', '.join(PRESETS)}.",
            details={"field": f"{field}.command"},
        )
    for name in ("mode", "model"):
        if name in parsed.config_options:
            raise ValidationError(
                f"{field}.config_options.{name} is set by Greenroom; use the option of the run for it.",
                details={"field": f"{field}.config_options.{name}"},
            )
    if PermissionMode.FULL_AUTO in parsed.modes:
        raise ValidationError(
            f"{field}.modes.full_auto has no name of its own: it is the default mode, with all questions answered.",
            details={"field": f"{field}.modes.full_auto"},
        )
    _check_meta(parsed.meta, f"{field}.meta")
    for name in parsed.mcp_servers:
        _check_mcp_server(parsed.mcp_servers[name], f"{field}.mcp_servers.{name}")
    return parsed


@dataclass(frozen=True, slots=True)
class AcpLaunch:
    """What an agent is started with, and its sessions begin with. Runs for which they are equal share a process."""

    command: tuple[str, ...]
    where: AgentSurroundings
    record: str | None
    mcp_servers: dict[str, dict[str, Any]] = field(repr=False)
    meta: dict[str, Any] = field(repr=False)

    @classmethod
    def of(cls, request: ProviderRequest, options: AcpOptions) -> "AcpLaunch":
        """Makes the home. ProviderInvalidRequest for what cannot be started."""
        preset = PRESETS[options.preset] if options.preset else None
        where = surroundings(
            options,
            request.home,
            credentials=preset.credentials if preset else (),
            defaults=preset.environment if preset else {},
        )
        if preset is not None:
            where = _furnished(where, preset)
        return cls(
            command=_command(options, preset, where),
            where=where,
            record=options.record,
            mcp_servers=options.mcp_servers,
            meta=options.meta,
        )


@dataclass(frozen=True, slots=True)
class AcpConversation:
    """What a run goes on with, or begins: the session, and the system prompt."""

    session_id: str | None
    """None: one is to be begun."""
    system_prompt: str | None
    """For one that is to be begun."""
    system_prompt_name: str | None
    """Short, for the handle."""

    @classmethod
    def of(cls, request: ProviderRequest, options: AcpOptions) -> "AcpConversation":
        """ProviderInvalidRequest with `details.field` continuation for a conversation with another system prompt: the
        agents keep the one that they began with, whatever they are told later."""
        text = system_prompt_of(request, options.system_prompt)
        name = None if text is None else hashlib.sha256(text.encode()).hexdigest()[:16]
        if request.conversation is None:
            return cls(None, text, name)
        session_id, begun_with = request.conversation.get("session_id"), request.conversation.get("system_prompt")
        if session_id is None:
            raise ProviderInvalidRequest(
                conversation_is_gone("The handle is not one of this kind of provider"),
                details={"field": "continuation"},
            )
        if name is not None and name != begun_with:
            raise ProviderInvalidRequest(
                "The conversation began with another system prompt, and the agent cannot change it. Leave it as it"
                " was, or run with continuation='replay'.",
                details={"field": "continuation"},
            )
        return cls(session_id, None, begun_with)


def _furnished(where: AgentSurroundings, preset: AcpPreset) -> AgentSurroundings:
    """The home with what the preset needs in it."""
    environment = dict(where.environment)
    for name, value in preset.environment.items():
        if environment.get(name) == value:
            environment[name] = value.replace("$HOME", where.home)
    try:
        for name, content in preset.files.items():
            path = Path(where.home) / name
            made_home(str(path.parent))
            if not path.exists():
                path.write_text(content, encoding="utf-8")
    except OSError as exc:
        raise ProviderInvalidRequest(
            f"The home {where.home!r} cannot be furnished: {exc.strerror}.", details={"field": "home"}
        ) from exc
    return replace(where, environment=environment)


def _command(options: AcpOptions, preset: AcpPreset | None, where: AgentSurroundings) -> tuple[str, ...]:
    given = options.command_line()
    if given is not None:
        return (*given, *preset.command[1:]) if preset and len(given) == 1 else given
    assert preset is not None, "one of them is there"
    program = shutil.which(preset.command[0], path=where.environment.get("PATH"))
    if program is None:
        raise ProviderInvalidRequest(
            f"The program `{preset.command[0]}` was not found on PATH. Run: npm install -g {preset.package}"
            "  Or name it with the provider option 'command'.",
            details={"field": "command", "package": preset.package},
        )
    return (program, *preset.command[1:])


def _check_meta(meta: Mapping[str, Any], where: str) -> None:
    """ValidationError for what would let Claude do more than the permission mode and the policies do."""
    given: Any = meta
    for name in ("claudeCode", "options"):
        given = cast("Any", given).get(name) if isinstance(given, Mapping) else None
    if given is not None and not isinstance(given, Mapping):
        raise ValidationError(f"{where}.claudeCode.options must be a mapping.", details={"field": where})
    for name in _FREER.intersection(cast("Mapping[str, Any]", given or {})):
        at_fault = f"{where}.claudeCode.options.{name}"
        raise ValidationError(
            f"{at_fault} could allow more than the permission mode and the policies of the run; use those instead.",
            details={"field": at_fault},
        )


def refuse_workspace_settings(request: ProviderRequest, agent_name: str, where: AgentSurroundings) -> None:
    """CapabilityNotSupported where the agent must not do everything, and reads settings that it could write itself."""
    preset = preset_of_agent(agent_name)
    is_restricted = request.permission_mode is PermissionMode.PLAN or any(one.tool_rules for one in request.policies)
    if preset is None or not is_restricted:
        return
    for path in (folder / name for folder in _workspace(Path(where.cwd)) for name in preset.workspace):
        if path.exists() and not path.is_relative_to(where.home):
            raise CapabilityNotSupported(
                f"{str(path)!r} counts for {agent_name!r}, which could write it itself to get around the policies of"
                " the run. Remove it, or put it into the home of the agent.",
                details={"field": "cwd"},
            )


def _workspace(cwd: Path) -> tuple[Path, ...]:
    """The folders whose settings count: up to the root of the repository, if it is one."""
    above = (cwd, *cwd.parents)
    root = next((number for number, folder in enumerate(above) if (folder / ".git").exists()), 0)
    return above[: root + 1]


def _check_mcp_server(server: Mapping[str, Any], where: str) -> None:
    kind = server.get("type", "stdio")
    if kind not in ("stdio", "http", "sse"):
        raise ValidationError(f"{where}.type must be stdio, http or sse.", details={"field": f"{where}.type"})
    needed = "command" if kind == "stdio" else "url"
    if not isinstance(server.get(needed), str):
        raise ValidationError(f"{where}.{needed} is missing.", details={"field": f"{where}.{needed}"})
