"""Kinds of providers by name, loaded when first used: a session pays only for the kinds it runs."""

import difflib
import functools
import importlib
from collections.abc import Mapping
from typing import Any, Protocol, cast

from ...domain.errors import ValidationError
from ...domain.provider import Provider, ProviderDeclaration

KINDS = {
    "scripted": "greenroom.adapters.providers.scripted:ScriptedProvider",
    "shell": "greenroom.adapters.providers.shell:ShellProvider",
    "anthropic": "greenroom.adapters.providers.anthropic.provider:AnthropicProvider",
    "replay": "greenroom.adapters.providers.replay:ReplayProvider",
    "acp": "greenroom.adapters.providers.acp.provider:AcpProvider",
    "codex": "greenroom.adapters.providers.codex.provider:CodexProvider",
    "amp": "greenroom.adapters.providers.amp.provider:AmpProvider",
    "claude-code": "greenroom.adapters.providers.claude_code.provider:ClaudeCodeProvider",
}

BUILT_IN_DECLARATIONS: Mapping[str, ProviderDeclaration] = {
    "scripted": ProviderDeclaration(name="scripted", kind="scripted"),
    "shell": ProviderDeclaration(name="shell", kind="shell"),
    "claude": ProviderDeclaration(name="claude", kind="anthropic"),
}
"""The providers that are there without declaration."""


class ProviderClass(Protocol):
    """What a kind is: a class whose instances are providers, and that can check options without making one.

    What it can do beyond the port it says in attributes. `RUNS_IN_PROCESS = True`: it starts no processes and keeps no
    working directory, so its sessions may share a process with others; else each gets one of its own.
    `CONTINUES_NATIVELY = True`: it has conversations of its own and goes on with them. `PERMISSION_MODES`, a frozenset:
    the modes that it honours; else only the default one. `ENFORCES_TOOL_RULES = False`: it may run a tool before it
    asks, so that policies are advisory. `COUNTS_TURNS = False`: it can neither count nor limit turns. `DEFAULT_MODEL`:
    the one that it takes where none is named. `PRICE_LIST`: whose prices its models have, by the names of genai-prices.
    """

    def __call__(self, name: str) -> Provider: ...

    def check_options(self, options: Mapping[str, Any], *, field: str) -> object: ...


def provider_class(kind: str) -> ProviderClass:
    """The class of a built-in kind, or of `package.module:Class`. ValidationError if there is no such thing."""
    path = KINDS.get(kind, kind)
    module_name, _, class_name = path.partition(":")
    if not class_name:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(KINDS)}, and package.module:Class."
        raise ValidationError(f"Provider kind {kind!r} is not known; {hint}", details={"field": "kind"})
    try:
        return _loaded(module_name, class_name)
    except (ImportError, AttributeError) as exc:
        raise ValidationError(
            f"Provider kind {kind!r} cannot be loaded ({exc}); check the path package.module:Class.",
            details={"field": "kind"},
        ) from exc


@functools.cache
def _loaded(module_name: str, class_name: str) -> ProviderClass:
    return cast("ProviderClass", getattr(importlib.import_module(module_name), class_name))


def declaration(name: str, declared: Mapping[str, Any]) -> ProviderDeclaration:
    """A declaration as it stands in the configuration: `kind`, and the options of that kind, checked."""
    options = dict(declared)
    kind = options.pop("kind", None)
    if kind is None and name in BUILT_IN_DECLARATIONS:
        kind = BUILT_IN_DECLARATIONS[name].kind
    if not isinstance(kind, str):
        raise ValidationError(
            f"providers.{name}.kind is missing; give one of {', '.join(KINDS)}, or package.module:Class.",
            details={"field": f"providers.{name}.kind"},
        )
    account = _account(options, f"providers.{name}")
    provider_class(kind).check_options(options, field=f"providers.{name}")
    return ProviderDeclaration(name=name, kind=kind, options=options, **account)


def _account(options: dict[str, Any], field: str) -> dict[str, Any]:
    """What a declaration says beside the options of its kind, taken out of them."""
    # Session servers need none of these.
    from ...domain.capability import ModelAbilities  # noqa: PLC0415
    from ...domain.circuit import BreakerOptions  # noqa: PLC0415
    from ...domain.rate_budget import RateOptions  # noqa: PLC0415
    from ..option_parsing import parse_options  # noqa: PLC0415  loads pydantic

    account: dict[str, Any] = {}
    for key, kind in (("breaker", BreakerOptions), ("rate", RateOptions)):
        if (given := options.pop(key, None)) is not None:
            account[key] = parse_options(kind, given, field=f"{field}.{key}")
    models: Mapping[str, Any] = options.pop("models", None) or {}
    account["models"] = {
        model: parse_options(ModelAbilities, given, field=f"{field}.models.{model}") for model, given in models.items()
    }
    return account
