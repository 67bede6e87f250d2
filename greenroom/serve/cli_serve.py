"""`serve`: the HTTP service of a data_dir, in the foreground."""

import importlib
import logging
import sys
import threading
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..domain.errors import InvalidOperation, RuntimeGone, ValidationError
from ..domain.run import RunStatus
from .app import NAME, build
from .cli_errors import OK
from .cli_options import DataDir, Debug, invocation_of
from .cli_runtime import data_dir_of, note, opened_runtime, settings_of
from .ingress import is_loopback, quick_ingress

if TYPE_CHECKING:
    from ..actors.runtime import Runtime
    from ..adapters.settings import Settings

_LOOK_S = 1.0
_POLL_S = 0.1

_LISTENS_ALREADY = (
    "Ray Serve listens on this cluster already: another `greenroom serve` of this data_dir, or an application of your"
    " own. End that, or deploy greenroom.serve.app:build with `serve run` beside it."
)


def serve(
    context: typer.Context,
    *,
    host: Annotated[str | None, typer.Option("--host", help="Where to listen (127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option("--port", min=1, max=65_535, help="On which port (8000).")] = None,
    replicas: Annotated[int, typer.Option("--replicas", min=1, help="Processes that answer.")] = 1,
    data_dir: DataDir = None,
    debug: Debug = False,
) -> int:
    """Serve the data_dir over HTTP until Ctrl-C or SIGTERM. Runs go on in the runtime, whatever becomes of requests."""
    invocation = invocation_of(context)
    settings = settings_of(invocation)
    host, port = host or settings.http.host, port or settings.http.port
    _check_reach(settings, host)
    with quick_ingress(), opened_runtime(invocation) as runtime:
        note("Starting the service ...")
        ray_serve: Any = importlib.import_module("ray.serve")  # takes a second, and its types are not whole
        if ray_serve.status().proxies:
            raise InvalidOperation(_LISTENS_ALREADY)
        args = {
            "data_dir": runtime.data_dir,
            "http": {**settings.http.model_dump(), "host": host, "port": port},
            "replicas": replicas,
            "local": is_loopback(host),
        }
        try:
            _listen(ray_serve, host, port, args, debug=invocation.debug)
            sys.stdout.write(f"Greenroom serves {runtime.data_dir} on http://{host}:{port}\n")
            sys.stdout.flush()
            _hold(runtime)
        finally:
            if runtime.is_alive:
                ray_serve.shutdown()  # requests under way have their time; then nothing listens any more
                if runtime.owns_ray:
                    _await_runs(runtime, settings.http.drain_s)
    return OK


def _hold(runtime: "Runtime") -> None:
    """Until this process is told to end. RuntimeGone when the runtime has ended before."""
    tick = threading.Event()
    while runtime.is_alive:
        tick.wait(_LOOK_S)
    raise RuntimeGone


def _await_runs(runtime: "Runtime", timeout_s: float) -> None:
    """Give runs under way some time; those that take longer are accounted for at the next start."""
    deadline = time.monotonic() + timeout_s
    tick = threading.Event()
    while time.monotonic() < deadline and runtime.status_counts()["runs"].get(RunStatus.RUNNING, 0):
        tick.wait(_POLL_S)


def _check_reach(settings: "Settings", host: str) -> None:
    """Nothing listens beyond the loopback without keys."""
    from ..adapters.key_file import KeyFile  # noqa: PLC0415

    if settings.is_memory:
        raise ValidationError("The service needs a data_dir on disk.", details={"field": "data_dir"})
    if not is_loopback(host) and KeyFile(data_dir_of(settings)).keyring().is_empty:
        raise ValidationError(
            f"{host} can be reached from elsewhere, and there is no key yet: make one with"
            " `greenroom keys create --tenant T` first.",
            details={"field": "http.host"},
        )


def _listen(ray_serve: Any, host: str, port: int, args: dict[str, Any], *, debug: bool) -> None:
    if not debug:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
    ray_serve.start(http_options={"host": host, "port": port})
    ray_serve.run(build(args), name=NAME, route_prefix="/")
