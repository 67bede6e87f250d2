"""What the kinds that drive an agent's own client have in common: their options, and what the client gets from them."""

import importlib.util
import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from pydantic import Field

from ....domain.errors import CapabilityNotSupported, ProviderInvalidRequest, ValidationError
from ....domain.secret_names import MASK, secret_values
from ...option_parsing import parse_options
from ...session_homes import made_home
from ...supervised_process import scrubbed_environment

_SHORTEST_SECRET = 6
"""Shorter values are no secrets, and taking them out would garble the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOptions:
    """Options that the kinds claude-code, codex, amp and acp have in common."""

    command: str | tuple[str, ...] | None = None
    """The client's command line, as text that is split as a shell would, or as a list; None: the program that the SDK
    brings or finds."""
    cwd: str | None = None
    """Where the agent works; None: the working directory of the session's process."""
    model: str | None = None
    env: dict[str, str] = field(default_factory=dict[str, str])
    """What the client gets beside the scrubbed environment. For what is not secret: options are kept in the log."""
    pass_env: tuple[str, ...] | None = None
    """Names of variables of the session's process that the client gets too; None: those that its credentials have."""
    home: str | None = None
    """The client's HOME; None: one of the session's own, so that sessions do not see each other's conversations."""
    max_turns: Annotated[int, Field(gt=0)] | None = None
    system_prompt: str | None = None
    tools: tuple[str, ...] | None = None
    """Names of the tools that the agent is given; None: all that it has."""
    mcp_servers: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    """By name: `{"command", "args", "env"}`, or `{"type": "http" | "sse", "url", "headers"}`."""
    extra: dict[str, Any] = field(default_factory=dict[str, Any])
    """Passed on under the names that the SDK has for them."""
    record: str | None = None
    """A directory: everything that the client says and hears is written to a file there, which kind `replay` plays."""

    def command_line(self) -> tuple[str, ...] | None:
        """Program and arguments, if they were given."""
        return tuple(shlex.split(self.command)) if isinstance(self.command, str) else self.command


_DEFAULTS = AgentOptions()

OptionsT = TypeVar("OptionsT", bound=AgentOptions)


def parse_agent_options(
    options_type: type[OptionsT], given: Mapping[str, Any], *, field: str, cannot: Iterable[str] = ()
) -> OptionsT:
    """The parsed options. ValidationError names the field that is wrong; CapabilityNotSupported one of `cannot`, the
    options that this client has nothing for."""
    parsed = parse_options(options_type, given, field=field)
    for name in cannot:
        if getattr(parsed, name) != getattr(_DEFAULTS, name):
            raise CapabilityNotSupported(
                f"{field}.{name}: this agent has no such setting.", details={"field": f"{field}.{name}"}
            )
    for name in ("cwd", "home", "record"):
        path = getattr(parsed, name)
        if path is not None and (not path or "\0" in path):
            raise _refusal(f"{field}.{name}", "must be the path of a directory")
    if parsed.command is not None and not _is_command(parsed):
        raise _refusal(f"{field}.command", "must be a command line, or a list of a program and its arguments")
    for name, value in parsed.env.items():
        if not _is_variable_name(name) or "\0" in value:
            raise _refusal(f"{field}.env", f"has {name!r}, which cannot be an environment variable")
    for name in parsed.pass_env or ():
        if not _is_variable_name(name):
            raise _refusal(f"{field}.pass_env", "must be names of environment variables, not values")
    return parsed


def require_module(module: str, *, kind: str) -> None:
    """CapabilityNotSupported, with the command that installs it, unless the module is there. Does not load it."""
    if importlib.util.find_spec(module) is None:
        raise CapabilityNotSupported(
            f"Provider kind {kind!r} needs a package that is not installed; run: pip install 'greenroom[{kind}]'",
            details={"field": "kind", "kind": kind, "module": module},
        )


@dataclass(frozen=True, slots=True)
class AgentSurroundings:
    """Where one client runs: its working directory, its home, its environment, and what of that must not be told."""

    cwd: str
    home: str
    environment: Mapping[str, str] = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)

    def redacted(self, text: str) -> str:
        """The text without the values of variables that are named like secrets."""
        for secret in self.secrets:
            text = text.replace(secret, MASK)
        return text

    def redacted_value(self, value: Any) -> Any:
        """The same of every text in a JSON-safe value."""
        if not self.secrets:
            return value
        if isinstance(value, str):
            return self.redacted(value)
        if isinstance(value, dict):
            return {key: self.redacted_value(item) for key, item in cast("dict[str, Any]", value).items()}
        if isinstance(value, list):
            return [self.redacted_value(item) for item in cast("list[Any]", value)]
        return value


def surroundings(
    options: AgentOptions, session_home: str | None, *, credentials: Iterable[str], defaults: Mapping[str, str]
) -> AgentSurroundings:
    """What the client gets. `credentials` names the variables that it finds its own account by; `defaults` is what it
    is told unless the options say otherwise. Makes the home. ProviderInvalidRequest names a directory that is no good.
    """
    home = options.home or session_home
    if home is None:
        raise ProviderInvalidRequest(
            "There is no home directory for the session; give the provider option 'home'.", details={"field": "home"}
        )
    home = str(Path(home).expanduser().absolute())
    try:
        for one in (session_home, home):  # the session's own also says that the session has been at work here
            if one is not None:
                made_home(one)
    except OSError as exc:
        raise ProviderInvalidRequest(
            f"The home {home!r} cannot be made: {exc.strerror}.", details={"field": "home"}
        ) from exc
    cwd = str(Path(options.cwd or ".").expanduser().absolute())
    if not Path(cwd).is_dir():
        raise ProviderInvalidRequest(f"cwd {cwd!r} is no directory.", details={"field": "cwd"})
    names = options.pass_env if options.pass_env is not None else tuple(credentials)
    passed = {name: os.environ[name] for name in names if name in os.environ}
    given = {**defaults, "HOME": home, **passed, **options.env}
    secrets = {value for value in secret_values([given, options.mcp_servers]) if len(value) >= _SHORTEST_SECRET}
    longest_first = tuple(sorted(secrets, key=len, reverse=True))
    return AgentSurroundings(cwd, home, scrubbed_environment(given), longest_first)


def _is_command(options: AgentOptions) -> bool:
    try:
        command = options.command_line()
    except ValueError:  # an open quote
        return False
    return bool(command) and bool(command[0]) and not any("\0" in part for part in command)


def _is_variable_name(name: str) -> bool:
    return bool(name) and "=" not in name and "\0" not in name


def _refusal(at_fault: str, reason: str) -> ValidationError:
    return ValidationError(f"{at_fault} {reason}.", details={"field": at_fault})
