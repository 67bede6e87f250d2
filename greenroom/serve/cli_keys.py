"""`keys`: who may use the HTTP service."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..adapters.rendering.event_text import as_json
from ..domain.api_key import Scope
from ..domain.errors import ValidationError
from .cli_errors import OK
from .cli_options import DataDir, Debug, Invocation, invocation_of
from .cli_runtime import settings_of
from .plain_table import table

if TYPE_CHECKING:
    from ..adapters.key_file import KeyFile

keys = typer.Typer(help="Make, list and revoke the keys of the HTTP service.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]


@keys.command()
def create(
    context: typer.Context,
    *,
    tenant: Annotated[str, typer.Option("--tenant", metavar="T", help="Whose sessions it is for.")],
    scope: Annotated[Scope, typer.Option("--scope", help="What it is good for.")] = Scope.RUN,
    as_json_: AsJson = False,
    data_dir: DataDir = None,
    debug: Debug = False,
) -> int:
    """Make a key and print it, this once: only its digest is kept."""
    key, token = _key_file(invocation_of(context)).create(tenant, scope)
    if as_json_:
        sys.stdout.write(as_json({"id": key.id, "tenant": key.tenant, "scope": key.scope.value, "key": token}) + "\n")
    else:
        sys.stdout.write(f"{token}\n")
    return OK


@keys.command("list")
def list_keys(
    context: typer.Context, *, as_json_: AsJson = False, data_dir: DataDir = None, debug: Debug = False
) -> int:
    """List the keys, never the keys themselves."""
    found = _key_file(invocation_of(context)).keyring().keys
    if as_json_:
        rows = [{name: value for name, value in key.to_record().items() if name != "digest"} for key in found]
        sys.stdout.write(as_json(rows) + "\n")
        return OK
    rows = [
        (key.id, key.tenant, key.scope.value, f"{key.created_at:%Y-%m-%d}", "revoked" if key.revoked_at else "")
        for key in found
    ]
    sys.stdout.write(table(("ID", "TENANT", "SCOPE", "CREATED", ""), rows))
    return OK


@keys.command()
def revoke(
    context: typer.Context,
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `keys list` shows it.")],
    *,
    data_dir: DataDir = None,
    debug: Debug = False,
) -> int:
    """Make a key good for nothing, at once."""
    _key_file(invocation_of(context)).revoke(key_id)
    return OK


def _key_file(invocation: Invocation) -> "KeyFile":
    settings = settings_of(invocation)
    if settings.is_memory:
        raise ValidationError("Keys need a data_dir on disk.", details={"field": "data_dir"})
    from ..adapters.key_file import KeyFile  # noqa: PLC0415

    data_dir = Path(settings.data_dir).expanduser()
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    return KeyFile(data_dir)
