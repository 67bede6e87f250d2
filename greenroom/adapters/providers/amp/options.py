"""The options of kind `amp`, and what its client is started with. Light, but for what takes an `extra`."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError as PydanticError

from ....domain.errors import CapabilityNotSupported, ProviderInvalidRequest, ValidationError
from ....domain.permission_mode import PermissionMode
from ....domain.provider import ProviderRequest
from ..agents.extra import check_extra
from ..agents.options import AgentOptions, AgentSurroundings, parse_agent_options, require_module, surroundings
from ..agents.prompt import system_prompt_of
from .folder import RunFolder
from .rules import Rule, is_restricted, permission_rules

if TYPE_CHECKING:
    from amp_sdk import AmpOptions as SdkOptions

KIND = "amp"

CREDENTIALS = ("AMP_API_KEY", "AMP_URL", "AMP_CLI_PATH", "HTTPS_PROXY", "NO_PROXY")

_QUIET = {"AMP_REMOTE_CONTROL_TERMINAL": "0"}
"""Nobody gets a terminal on this machine through ampcode.com."""

_OWN = frozenset({"continue_thread", "cwd", "dangerously_allow_all", "enabled_tools", "env", "mcp_config"})
"""Fields of the SDK's options that follow from other options."""

_ELSEWHERE = frozenset({"executor", "project", "runner_dir", "runner_id"})
"""Fields that make the agent work on another machine, where it can neither be stopped nor held to rules."""

_PERMISSIONS = "amp.permissions"
_ALLOW_ALL = "amp.dangerouslyAllowAll"
_SETTINGS_NAMES = ("settings.json", "settings.jsonc")

_MODES_INSTEAD = "Amp has modes instead of models; choose one with the provider option extra={'mode': 'high'}."


@dataclass(frozen=True, slots=True, kw_only=True)
class AmpOptions(AgentOptions):
    """`command` is the `amp` program, with node before it if it is a .js file; None: $AMP_CLI_PATH, or where Amp's
    installer puts it, or the one on the PATH. There is no `model`, `max_turns` nor `system_prompt`: Amp has no such
    settings, but `extra={"mode": ...}`.

    In `extra`, the visibility of threads is private and thinking is told of unless it says otherwise.
    """


def check_amp_options(options: Mapping[str, Any], *, field: str) -> AmpOptions:
    """The parsed options. ValidationError names the field that is wrong, CapabilityNotSupported what Amp cannot do, or
    what to install."""
    require_module("amp_sdk", kind=KIND)
    parsed = parse_agent_options(AmpOptions, options, field=field, cannot=("max_turns", "system_prompt"))
    if parsed.model is not None:
        raise CapabilityNotSupported(f"{field}.model: {_MODES_INSTEAD}", details={"field": f"{field}.model"})
    for name in _ELSEWHERE & parsed.extra.keys():
        where = f"{field}.extra.{name}"
        raise CapabilityNotSupported(
            f"{where}: an agent on another machine can neither be stopped nor held to rules from here.",
            details={"field": where},
        )
    if parsed.extra:
        _checked_extra(parsed.extra, f"{field}.extra")
    return parsed


@dataclass(frozen=True, slots=True)
class AmpLaunch:
    """What one process of the client is started with."""

    options: AmpOptions
    where: AgentSurroundings
    mode: PermissionMode
    rules: tuple[Rule, ...]
    settings: Mapping[str, Any]
    thread_id: str | None
    """The thread to go on with."""

    @classmethod
    def of(cls, request: ProviderRequest, options: AmpOptions) -> "AmpLaunch":
        """Makes the home. CapabilityNotSupported for what Amp cannot do, ProviderInvalidRequest for what cannot be
        started."""
        _refuse_what_amp_lacks(request)
        where = surroundings(options, request.home, credentials=CREDENTIALS, defaults=_QUIET)
        mode = request.permission_mode
        if is_restricted(request.policies, mode, options.tools):
            _refuse_rules_of_the_workspace(where.cwd)
        extra = sdk_options(options)
        base = _base_settings(extra, where)
        own = [rule.model_dump(exclude_none=True) for rule in extra.permissions or ()]
        own += base.get(_PERMISSIONS) or []
        rules = permission_rules(request.policies, mode, tools=options.tools, own=own)
        skips = mode is PermissionMode.DANGEROUSLY_SKIP_PERMISSIONS
        settings = {"amp.updates.mode": "disabled", **base, _PERMISSIONS: rules, _ALLOW_ALL: skips}
        if options.tools is not None:
            settings["amp.tools.enable"] = list(options.tools)
        if extra.skills:
            settings["amp.skills.path"] = extra.skills
        return cls(
            options=options,
            where=where,
            mode=mode,
            rules=tuple(rules),
            settings=settings,
            thread_id=(request.conversation or {}).get("thread_id"),
        )

    def write_files(self) -> RunFolder:
        """A new folder in the home with the settings and the MCP servers, which may hold secrets: for this user."""
        folder = RunFolder.make(self.where.home)
        _write(folder.path / "settings.json", self.settings)
        if self.options.mcp_servers:
            servers = {name: _mcp_server(one) for name, one in self.options.mcp_servers.items()}
            _write(folder.path / "mcp.json", servers)
        return folder

    def command(self, folder: Path) -> list[str]:
        """The command line; `folder` is from `write_files`. ProviderInvalidRequest if there is no `amp`."""
        from amp_sdk.core import _build_cli_args  # noqa: PLC0415  # pyright: ignore[reportPrivateUsage]

        changes: dict[str, Any] = {
            "continue_thread": self.thread_id,
            "dangerously_allow_all": self.mode is PermissionMode.DANGEROUSLY_SKIP_PERMISSIONS,
            "mcp_config": str(folder / "mcp.json") if self.options.mcp_servers else None,
            "settings_file": str(folder / "settings.json"),
        }
        if self.thread_id is not None:
            changes["title"] = None  # only a new thread takes one
        arguments = _build_cli_args(sdk_options(self.options).model_copy(update=changes))
        return [*_program(self.options, self.where), *arguments, "--stream-json-input"]

    def surroundings(self) -> AgentSurroundings:
        """With what the SDK tells the client of itself."""
        import amp_sdk  # noqa: PLC0415

        return replace(self.where, environment={**self.where.environment, "AMP_SDK_VERSION": amp_sdk.__version__})


def sdk_options(options: AmpOptions) -> "SdkOptions":
    """What `extra` says, and Greenroom's defaults. ValidationError for what the SDK does not take."""
    return _checked_extra(options.extra, "options.extra")


def _checked_extra(extra: Mapping[str, Any], field: str) -> "SdkOptions":
    from amp_sdk import AmpOptions as SdkOptions  # noqa: PLC0415  needed only where a client is

    check_extra(SdkOptions, extra, own=_OWN, field=field)
    values: dict[str, Any] = {"visibility": "private", "thinking": True, **extra}
    try:
        return SdkOptions(**values)
    except PydanticError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        where = ".".join([field, *(str(part) for part in first["loc"])])
        raise ValidationError(f"{where}: {first['msg']}.", details={"field": where}) from None


def _refuse_what_amp_lacks(request: ProviderRequest) -> None:
    lacking = {
        "model": (request.model, _MODES_INSTEAD),
        "max_turns": (request.max_turns, "Amp has no limit of turns; give the run a deadline."),
        "system_prompt": (
            system_prompt_of(request, None),
            "Amp takes no system prompt; say it in the prompt, or in an AGENTS.md where it works.",
        ),
    }
    for name, (value, message) in lacking.items():
        if value is not None:
            raise CapabilityNotSupported(message, details={"field": name})


def _refuse_rules_of_the_workspace(cwd: str) -> None:
    """Amp merges the settings of a workspace with those that it is given, in an order that it does not promise."""
    for folder in (Path(cwd), *Path(cwd).parents):
        for path in (folder / ".amp" / name for name in _SETTINGS_NAMES):
            try:
                text = path.read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            if _PERMISSIONS in text or _ALLOW_ALL in text:
                raise ProviderInvalidRequest(
                    f"{path} has permission rules of its own, which may weaken the policies of the run; remove"
                    f" {_PERMISSIONS!r} and {_ALLOW_ALL!r} there.",
                    details={"field": "cwd"},
                )


def _base_settings(extra: "SdkOptions", where: AgentSurroundings) -> dict[str, Any]:
    """The settings that the client would have read by itself."""
    named = extra.settings_file or where.environment.get("AMP_SETTINGS_FILE")
    folder = Path(where.environment.get("XDG_CONFIG_HOME") or Path(where.home) / ".config") / "amp"
    paths = [Path(where.cwd) / named] if named else [folder / name for name in _SETTINGS_NAMES]
    path = next((one for one in paths if named or one.is_file()), None)
    if path is None:
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "it is no JSON, or has comments"
        raise ProviderInvalidRequest(
            f"Amp's settings {str(path)!r} cannot be read: {why}.", details={"field": "extra.settings_file"}
        ) from exc
    return settings if isinstance(settings, dict) else {}  # pyright: ignore[reportUnknownVariableType]


def _program(options: AmpOptions, where: AgentSurroundings) -> list[str]:
    """The program and what comes before its arguments. The SDK's own search starts node where it finds nothing else."""
    given = options.command_line() or ()
    if len(given) > 1:
        return list(given)
    named = (given[0] if given else None) or where.environment.get("AMP_CLI_PATH") or os.environ.get("AMP_CLI_PATH")
    program = named or _installed(where.environment.get("PATH"))
    if program is None:
        raise ProviderInvalidRequest(
            "The program `amp` was not found. Install it (npm install -g @ampcode/cli), or name it with the"
            " provider option 'command' or AMP_CLI_PATH.",
            details={"field": "command"},
        )
    return ["node", program] if program.endswith(".js") else [program]


def _installed(path: str | None) -> str | None:
    """Where the installers of Amp and of its SDK put it, or the one on the PATH."""
    user = Path.home()
    amp_home = Path(os.environ.get("AMP_HOME") or user / ".amp")
    places = (amp_home / "sdk" / "bin" / "amp", amp_home / "bin" / "amp", user / ".local" / "bin" / "amp")
    found = next((str(place) for place in places if os.access(place, os.X_OK) and place.is_file()), None)
    return found or shutil.which("amp", path=path)


def _mcp_server(given: Mapping[str, Any]) -> dict[str, Any]:
    """As Amp names it: no type, but a transport where it cannot tell by itself."""
    server = {name: value for name, value in given.items() if name != "type"}
    return {**server, "transport": "sse"} if given.get("type") == "sse" else server


def _write(path: Path, content: Mapping[str, Any]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(content, file)
