"""`providers`: who can execute runs."""

import sys
from typing import TYPE_CHECKING

import typer

from ..adapters.rendering.event_text import as_json
from .cli_errors import OK
from .cli_options import DataDir, Debug, Invocation, invocation_of
from .cli_runtime import opened_runtime, runtime_lives, settings_of
from .plain_table import table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..adapters.settings import Settings
    from ..domain.account import AccountState
    from ..domain.provider import ProviderDeclaration


def providers(context: typer.Context, data_dir: DataDir = None, debug: Debug = False) -> int:
    """List the providers: those of the runtime that lives on the data_dir, with how their accounts are, else those of
    the configuration."""
    invocation = invocation_of(context)
    settings = settings_of(invocation)
    declared, accounts = _declarations(invocation, settings)
    rows = [
        (
            name,
            found.kind,
            "default" if name == settings.default_provider else "",
            _account(accounts.get(name)),
            as_json(found.shown_options()),
        )
        for name, found in sorted(declared.items())
    ]
    sys.stdout.write(table(("PROVIDER", "KIND", "", "ACCOUNT", "OPTIONS"), rows))
    return OK


def _declarations(
    invocation: Invocation, settings: "Settings"
) -> "tuple[Mapping[str, ProviderDeclaration], Mapping[str, AccountState]]":
    if runtime_lives(settings):
        with opened_runtime(invocation) as runtime:
            return runtime.providers(), runtime.accounts()
    return declared_providers(settings), {}


def _account(state: "AccountState | None") -> str:
    """How the account is, in words; empty for a provider that has none."""
    if state is None:
        return ""
    waits = f" ({state.wait_reason.value}, {state.retry_in_s:.0f} s)" if state.wait_reason else ""
    return f"{state.state.value}{waits}, {state.under_way} under way, {state.waiting} waiting"


def declared_providers(settings: "Settings") -> "Mapping[str, ProviderDeclaration]":
    """Those that are there without declaration, and those of the configuration."""
    from ..adapters.providers.registry import BUILT_IN_DECLARATIONS  # noqa: PLC0415  loaded with the settings anyway

    return {**BUILT_IN_DECLARATIONS, **settings.declarations()}
