"""`up`, `down`, and the process between them."""

import sys
from typing import Annotated

import typer

from ..domain.errors import GreenroomError, ValidationError
from .background_runtime import LOG_FILE, Holder, ReadyPipe, hold, start_holder
from .cli_errors import OK, report
from .cli_options import DataDir, Debug, invocation_of
from .cli_runtime import data_dir_of, note, opened_runtime, runtime_lives, settings_of
from .ingress import quick_ingress


def up(context: typer.Context, data_dir: DataDir = None, debug: Debug = False) -> int:
    """Start a runtime in the background, which the other commands join."""
    invocation = invocation_of(context)
    settings = settings_of(invocation)
    if settings.is_memory:
        raise ValidationError(
            "A runtime in the background needs a data_dir on disk; give --data-dir.", details={"field": "data_dir"}
        )
    place = data_dir_of(settings)
    if not runtime_lives(settings):
        note(f"Starting a runtime on {place} ...")
        arguments = ["--data-dir", str(place), *(["--debug"] if invocation.debug else [])]
        start_holder(place, arguments)
    holder = Holder.find(place)
    process = f"process {holder.pid}, log {place / LOG_FILE}" if holder else "held by another process"
    sys.stdout.write(f"A runtime is up on {place} ({process}).\n")
    return OK


def down(context: typer.Context, data_dir: DataDir = None, debug: Debug = False) -> int:
    """End the runtime of the data_dir, whoever uses it; nothing of it is left when this returns."""
    invocation = invocation_of(context)
    settings = settings_of(invocation)
    place = data_dir_of(settings)
    holder = Holder.find(place)
    if holder is not None:
        note(f"Ending the runtime on {place} ...")
        holder.end()
        Holder.strike_out(place)
    elif runtime_lives(settings):
        with opened_runtime(invocation) as runtime:
            runtime.shutdown()
    else:
        sys.stdout.write(f"No runtime is up on {place}.\n")
        return OK
    sys.stdout.write(f"The runtime on {place} has ended.\n")
    return OK


def hold_runtime(
    context: typer.Context,
    ready_fd: Annotated[int, typer.Option("--ready-fd")],
    data_dir: DataDir = None,
    debug: Debug = False,
) -> int:
    """Hold a runtime until SIGTERM: what `up` starts."""
    invocation = invocation_of(context)
    ready = ReadyPipe(ready_fd)
    try:
        with quick_ingress(), opened_runtime(invocation) as runtime:
            if runtime.owns_ray:
                Holder.write_this_process(data_dir_of(settings_of(invocation)))
            ready.tell()
            if runtime.owns_ray:
                hold(runtime)
    except GreenroomError as exc:
        ready.tell(exc)
        return report(exc, debug=invocation.debug)
    return OK
