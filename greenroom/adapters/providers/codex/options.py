"""The options of kind `codex`, and what its client is started with. Light, but for what takes an `extra`."""

import dataclasses
import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from ....domain.errors import CapabilityNotSupported, ProviderInvalidRequest, ValidationError
from ....domain.permission_mode import PermissionMode
from ....domain.policy import Permission, tool_verdict
from ....domain.provider import ProviderRequest
from ....domain.tool import ToolApproval
from ..agents.extra import check_extra
from ..agents.options import AgentOptions, AgentSurroundings, parse_agent_options, require_module, surroundings
from ..agents.prompt import system_prompt_of

KIND = "codex"

CREDENTIALS = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "CODEX_API_KEY", "HTTPS_PROXY", "NO_PROXY")

_CANNOT = ("max_turns",)

_OWN = frozenset(
    {"approvalPolicy", "approvalsReviewer", "cwd", "developerInstructions", "ephemeral", "model", "sandbox"}
)
"""Fields of ThreadStartParams that follow from other options, or would break what Greenroom promises."""

_OWN_CONFIG = (
    "approval_policy",
    "approvals_reviewer",
    "bypass_hook_trust",
    "default_permissions",
    "developer_instructions",
    "features.codex_hooks",
    "features.hooks",
    "hooks",
    "mcp_servers",
    "model",
    "permissions",
    "profile",
    "profiles",
    "projects",
    "sandbox_mode",
)
"""The same of Codex's configuration, with all that is under these keys."""

QUIET: Mapping[str, Any] = {
    "check_for_update_on_startup": False,
    "features.plugins": False,
    "features.api_key_cyber_access_programs": False,
    "features.api_key_model_discovery": False,
    "features.unbounded_connection_retries": False,
    "analytics.enabled": False,
}
"""Nothing but what the run is for leaves the machine, and the client gives up a request before the run does."""

_RETRIES: Mapping[str, int] = {"request_max_retries": 0, "stream_max_retries": 2}
"""Of a provider that the options declare. Only retries of the second kind are told of."""

_OPENAI_ELSEWHERE = "greenroom"
_OPENAI: Mapping[str, Any] = {
    "name": "OpenAI",
    "wire_api": "responses",
    "requires_openai_auth": True,
    "supports_websockets": False,
}
"""OpenAI's API behind another address. With `openai_base_url` Codex would first try a websocket there, for 12 s."""

_GIVEN = frozenset({"bearer_token", "env", "experimental_bearer_token", "headers", "http_headers"})
"""Keys of an MCP server or a model provider under which secrets are."""

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")

MODES: Mapping[PermissionMode, tuple[str, str]] = {
    PermissionMode.DEFAULT: ("workspace-write", "on-request"),
    PermissionMode.ACCEPT_EDITS: ("workspace-write", "on-request"),
    PermissionMode.PLAN: ("read-only", "never"),
    PermissionMode.FULL_AUTO: ("workspace-write", "never"),
    PermissionMode.DANGEROUSLY_SKIP_PERMISSIONS: ("danger-full-access", "never"),
}
"""Sandbox and approval policy. In its sandbox Codex changes files of the workspace without asking, and asks for what
has to leave it; with `never` it refuses that by itself. Not `untrusted`: what is agreed to there runs outside the
sandbox, also what need not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodexOptions(AgentOptions):
    """`command` is the `codex` program; None: the one that comes with the SDK.

    `extra` has fields of ThreadStartParams; in its `config` may be all that config.toml may have. What widens the
    sandbox there (`sandbox_workspace_write`) or what commands see of the environment (`shell_environment_policy`) is
    taken as it is said.

    Of the working directory Codex reads no `.codex` (settings, MCP servers, rules), whoever trusts the project: the
    agent could write it. What the home says counts, so a home must be no part of where the agent may write.
    """

    interface: Literal["app-server", "exec"] = "app-server"
    """`exec` is the fallback: a process a run, nothing streamed, nothing asked, no steering, no policies."""


def check_codex_options(options: Mapping[str, Any], *, field: str) -> CodexOptions:
    """The parsed options; ValidationError names the field that is wrong, CapabilityNotSupported what to install or what
    Codex has nothing for."""
    require_module("openai_codex", kind=KIND)
    parsed = parse_agent_options(CodexOptions, options, field=field, cannot=_CANNOT)
    if parsed.tools is not None:
        raise _cannot(f"{field}.tools", "Codex has no list of its tools; use a policy")
    for name, server in parsed.mcp_servers.items():
        if server.get("type") == "sse":
            raise _cannot(f"{field}.mcp_servers.{name}.type", "Codex has no 'sse'; use 'http'")
    if parsed.extra:
        _check_extra(parsed, f"{field}.extra")
    return parsed


def _check_extra(options: CodexOptions, field: str) -> None:
    from openai_codex.generated.v2_all import ThreadStartParams  # noqa: PLC0415  takes half a second

    if options.interface == "exec" and (others := sorted(set(options.extra) - {"config"})):
        raise _cannot(f"{field}.{others[0]}", "`codex exec` has nothing but config for it")
    wire_names = [(info.alias or name, info.annotation) for name, info in ThreadStartParams.model_fields.items()]
    wire = dataclasses.make_dataclass("ThreadStartParams", cast("Any", wire_names))
    check_extra(wire, options.extra, own=_OWN, field=field)
    for key, _ in flat_config(options.extra.get("config") or {}):
        if any(key == own or key.startswith(f"{own}.") for own in _OWN_CONFIG):
            where = f"{field}.config.{key}"
            raise ValidationError(
                f"{where} is set by Greenroom; use the option of the run or the provider for it.",
                details={"field": where},
            )


def flat_config(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The configuration by dotted keys, so that each setting is laid over what else is there and replaces no table."""
    for key, value in config.items():
        inner: Mapping[str, Any] = cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}
        if inner and all(_PLAIN_KEY.fullmatch(name) for name in inner):
            yield from flat_config(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def as_toml(value: object) -> str:
    """The value as `--config key=value` takes it."""
    if isinstance(value, Mapping):
        table = cast("Mapping[str, object]", value)
        inner = ", ".join(f"{json.dumps(key)} = {as_toml(one)}" for key, one in table.items() if one is not None)
        return f"{{{inner}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(as_toml(one) for one in cast('list[object]', value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def config_arguments(config: Mapping[str, Any]) -> list[str]:
    """Arguments of `codex` that lay the settings over its config.toml."""
    return [part for key, value in config.items() for part in ("--config", f"{key}={as_toml(value)}")]


def exposed(key: str, value: object) -> str | None:
    """Where a setting says in so many words what an MCP server or an API is to be given; None if nowhere."""
    if key.rpartition(".")[2] in _GIVEN or _GIVEN & set(key.split(".")[2:]):
        return key if value else None
    table: Mapping[str, Any] = cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}
    return next((found for name, one in table.items() if (found := exposed(f"{key}.{name}", one))), None)


@dataclass(frozen=True, slots=True)
class CodexLaunch:
    """What a client is started with. Equal ones may share a client."""

    options: CodexOptions
    where: AgentSurroundings
    program: tuple[str, ...]
    api_key: str | None = field(repr=False)
    """For the client to log in with; None where it finds what it needs by itself."""
    has_provider: bool
    """Whether it has been told whose models to use."""
    confined: bool
    """Whether its commands run in a sandbox, which takes them down with itself."""

    @classmethod
    def of(cls, request: ProviderRequest, options: CodexOptions) -> "CodexLaunch":
        """Makes the home. ProviderInvalidRequest for what cannot be started, CapabilityNotSupported for max_turns."""
        if request.max_turns is not None:
            raise _cannot("max_turns", "Codex does not count turns; leave it out")
        where = surroundings(options, request.home, credentials=CREDENTIALS, defaults={})
        environment = dict(where.environment)
        codex_home = Path(environment.setdefault("CODEX_HOME", f"{where.home}/.codex"))
        try:
            codex_home.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise ProviderInvalidRequest(
                f"The home {str(codex_home)!r} cannot be made: {exc.strerror}.", details={"field": "home"}
            ) from exc
        program = _program(options, environment)
        has_login = (codex_home / "auth.json").exists()
        api_key = None if has_login else environment.get("CODEX_API_KEY") or environment.get("OPENAI_API_KEY")
        return cls(
            options=options,
            where=dataclasses.replace(where, environment=environment),
            program=program,
            api_key=api_key or None,
            has_provider=_has_provider(options, codex_home),
            confined=request.permission_mode is not PermissionMode.DANGEROUSLY_SKIP_PERMISSIONS,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What holds for every thread. Unless it is told otherwise, Codex trusts the folder of a thread that may write
        there, and then starts what a `.codex` in it or above it says, outside the sandbox."""
        folders = {one for cwd in (Path(self.where.cwd), Path(self.where.cwd).resolve()) for one in (cwd, *cwd.parents)}
        return {**QUIET, "projects": {str(one): {"trust_level": "untrusted"} for one in sorted(folders)}}


@dataclass(frozen=True, slots=True)
class CodexSetup:
    """How one thread is set up."""

    model: str | None
    instructions: str | None
    """What Codex is told beside its own instructions, which stay."""
    mode: PermissionMode
    config: Mapping[str, Any]
    others: Mapping[str, Any]
    """What else `extra` has for it."""

    @classmethod
    def of(cls, request: ProviderRequest, launch: CodexLaunch) -> "CodexSetup":
        options = launch.options
        given: Mapping[str, Any] = options.extra.get("config") or {}
        providers: Mapping[str, Any] = given.get("model_providers") or {}
        config = dict(flat_config(given))
        base_url = launch.where.environment.get("OPENAI_BASE_URL")
        if base_url and not launch.has_provider:  # Codex itself does not look for it
            config["model_provider"] = _OPENAI_ELSEWHERE
            config[f"model_providers.{_OPENAI_ELSEWHERE}"] = {**_OPENAI, **_RETRIES, "base_url": base_url}
        for name in providers:
            for setting, count in _RETRIES.items():
                config.setdefault(f"model_providers.{name}.{setting}", count)
        if tool_verdict(request.policies, "web_search", ToolApproval.NEVER).permission is not Permission.ALLOW:
            config["web_search"] = "disabled"  # the API runs it, so no hook can hold it back
        if options.mcp_servers:
            asks = request.permission_mode is not PermissionMode.FULL_AUTO
            config["mcp_servers"] = {
                name: _mcp_server(server, asks=asks) for name, server in options.mcp_servers.items()
            }
        return cls(
            model=request.model or options.model,
            instructions=system_prompt_of(request, options.system_prompt),
            mode=request.permission_mode,
            config=config,
            others={name: value for name, value in options.extra.items() if name != "config"},
        )

    @property
    def digest(self) -> str | None:
        """By which later runs know whether the agent was told the same."""
        return None if self.instructions is None else hashlib.sha256(self.instructions.encode()).hexdigest()[:16]

    def parameters(self, cwd: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """Of thread/start, thread/resume and thread/fork, with more configuration."""
        sandbox, approval_policy = MODES[self.mode]
        given = {"model": self.model, "developerInstructions": self.instructions}
        return {
            **self.others,
            **{name: value for name, value in given.items() if value is not None},
            "cwd": cwd,
            "sandbox": sandbox,
            "approvalPolicy": approval_policy,
            "approvalsReviewer": "user",
            "config": {**self.config, **config},
        }


def _program(options: CodexOptions, environment: dict[str, str]) -> tuple[str, ...]:
    """The command; what comes with the SDK's one is put where that finds it."""
    if (command := options.command_line()) is not None:
        return command
    try:
        from codex_cli_bin import bundled_codex_path, bundled_path_dir  # noqa: PLC0415  may not be installed
    except ImportError as exc:
        raise _no_program() from exc
    try:
        program = bundled_codex_path()
    except FileNotFoundError as exc:
        raise _no_program() from exc
    if (helpers := bundled_path_dir()) is not None:
        environment["PATH"] = os.pathsep.join([str(helpers), environment.get("PATH", os.defpath)])
    return (str(program),)


def _has_provider(options: CodexOptions, codex_home: Path) -> bool:
    given: Mapping[str, Any] = options.extra.get("config") or {}
    if "modelProvider" in options.extra or "model_provider" in given or "openai_base_url" in given:
        return True
    try:
        written = tomllib.loads((codex_home / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or Codex itself will say what is wrong with it
        return False
    return "model_provider" in written or "openai_base_url" in written


def _no_program() -> ProviderInvalidRequest:
    return ProviderInvalidRequest(
        "The program `codex` was not found. Install openai-codex with its openai-codex-cli-bin, or name it with the"
        " provider option 'command'.",
        details={"field": "command"},
    )


def _mcp_server(given: Mapping[str, Any], *, asks: bool) -> dict[str, Any]:
    """In the words of Codex, which tells the kinds apart by what they have. Where nobody is to be asked it is told so:
    with the approval policy `never` it would refuse their tools by itself."""
    words = {"headers": "http_headers"}
    server = {words.get(name, name): value for name, value in given.items() if name != "type"}
    return server if asks else {"default_tools_approval_mode": "approve", **server}


def _cannot(at_fault: str, reason: str) -> CapabilityNotSupported:
    return CapabilityNotSupported(f"{at_fault}: {reason}.", details={"field": at_fault})
