"""What every command takes, before its name or after it."""

from dataclasses import dataclass
from typing import Annotated

import typer


@dataclass(slots=True)
class Invocation:
    """How the command line was called: filled while it is parsed, read by the command and by whoever reports errors."""

    data_dir: str | None = None
    debug: bool = False

    def overrides(self) -> dict[str, str]:
        """The settings that were given as options."""
        return {} if self.data_dir is None else {"data_dir": self.data_dir}


def invocation_of(context: typer.Context) -> Invocation:
    """The invocation that a command belongs to."""
    return context.ensure_object(Invocation)


def _keep_data_dir(context: typer.Context, value: str | None) -> str | None:
    if value is not None:
        invocation_of(context).data_dir = value
    return value


def _keep_debug(context: typer.Context, value: bool) -> bool:
    invocation_of(context).debug |= value
    return value


DataDir = Annotated[
    str | None,
    typer.Option("--data-dir", metavar="DIR", callback=_keep_data_dir, help="Where everything is kept (./.greenroom)."),
]
Debug = Annotated[
    bool, typer.Option("--debug", callback=_keep_debug, help="Show the trace of an error, and what Ray says.")
]
