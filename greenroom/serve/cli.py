"""The command line: one typer app, and what is the same for all its commands."""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer
from typer.exceptions import TyperException

from .cli_background import down, hold_runtime, up
from .cli_batch import batch
from .cli_control import approvals, approve, deny, pause, resume, steer
from .cli_data import backup, compact, delete, export, import_, restore, verify
from .cli_doctor import doctor
from .cli_errors import FAILED, INTERRUPTED, OK, report
from .cli_keys import keys
from .cli_options import DataDir, Debug, Invocation
from .cli_providers import providers
from .cli_query import query
from .cli_runs import cancel, interrupt, run
from .cli_runtime import leave
from .cli_serve import serve
from .cli_sessions import events, sessions, show
from .demo import demo

_NAME = "greenroom"

app = typer.Typer(
    name=_NAME,
    add_completion=False,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for command in (up, down, serve, demo, run, sessions, show, events, cancel, interrupt, providers, doctor):
    app.command()(command)
app.add_typer(keys, name="keys")
app.add_typer(batch, name="batch")
for command in (steer, pause, resume, approvals, approve, deny):
    app.command()(command)
for command in (query, export, verify, delete, compact, backup, restore):
    app.command()(command)
app.command("import")(import_)
app.command("hold", hidden=True)(hold_runtime)


def _show_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"{_NAME} {version(_NAME)}\n")
        raise typer.Exit


@app.callback()
def _greenroom(  # pyright: ignore[reportUnusedFunction]  typer calls it
    data_dir: DataDir = None,
    debug: Debug = False,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """AI-agent sessions as Ray actors, with one durable, sequenced stream of everything that happens.

    Commands join the runtime that lives on the data_dir (`greenroom up` starts one that stays); without one, each
    starts its own and ends it.
    """


def run_command_line(arguments: Sequence[str]) -> int:
    """Carry out one command; returns the exit code. Whatever goes wrong is said on one line on stderr."""
    return leave(_carried_out(arguments))


def _carried_out(arguments: Sequence[str]) -> int:
    invocation = Invocation()
    try:
        status = app(list(arguments), prog_name=_NAME, standalone_mode=False, obj=invocation)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return FAILED
    except TyperException as exc:
        return report(exc)
    except Exception as exc:  # noqa: BLE001  reported with its trace on demand: no command ends in a traceback
        return report(exc, debug=invocation.debug)
    return status if isinstance(status, int) else OK


def _drop_output() -> None:
    """Nobody reads stdout any more: what is still buffered must not fail again when Python closes it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
