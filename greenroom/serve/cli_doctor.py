"""`doctor`: whether everything that Greenroom needs is there, each thing for itself."""

import platform
import socket
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from ..domain.errors import GreenroomError, InvalidOperation
from .cli_errors import FAILED, OK
from .cli_options import DataDir, Debug, Invocation, invocation_of
from .cli_providers import declared_providers
from .cli_runtime import data_dir_of, note, opened_runtime, runtime_lives, settings_of
from .plain_table import table

if TYPE_CHECKING:
    from ..actors.runtime import Runtime
    from ..adapters.settings import Settings

_PYTHON = (3, 11)
_PACKAGES = ("greenroom", "ray", "duckdb", "pydantic", "msgpack", "anthropic")
_CONNECT_S = 2.0


class Check(NamedTuple):
    """One thing that was looked at."""

    name: str
    verdict: str
    """`ok`, `note` for what some work needs and other work does not, or `FAILED`."""
    found: str


def doctor(
    context: typer.Context,
    *,
    repair: Annotated[
        bool, typer.Option("--repair", help="Recover what can be proven intact of a damaged store.")
    ] = False,
    data_dir: DataDir = None,
    debug: Debug = False,
) -> int:
    """Check what Greenroom needs on this machine. Starts a runtime on the data_dir, or joins the one there."""
    if repair:
        return _repair(settings_of(invocation_of(context)))
    checks = list(_checks(invocation_of(context)))
    sys.stdout.write(table(("CHECK", "", "FOUND"), checks))
    return FAILED if any(check.verdict == "FAILED" for check in checks) else OK


def _repair(settings: "Settings") -> int:
    """Repair every shard; says session by session what could not be recovered, and exits 1 if that is anything."""
    from ..adapters.data_dir import recorded_shards, store_folder  # noqa: PLC0415
    from ..adapters.duckdb.repair import repair_store  # noqa: PLC0415  loads DuckDB

    if settings.is_memory or runtime_lives(settings):
        raise InvalidOperation("Repair works on a data_dir that no runtime uses; end it with `greenroom down` first.")
    place = data_dir_of(settings)
    lost = 0
    for shard in range(recorded_shards(place)):
        report = repair_store(store_folder(place, shard))
        for name in report.damaged_files:
            sys.stdout.write(f"{name}  damaged, kept in {report.kept}\n")
        for session in report.sessions:
            sys.stdout.write(f"{session.session_id}  {session.recovered_events} events recovered\n")
            for first, last in session.lost:
                sys.stdout.write(f"{session.session_id}  LOST  seqs {first} to {last}\n")
        lost += report.lost_events
    sys.stdout.write(f"{lost} events lost\n" if lost else "nothing was lost\n")
    return FAILED if lost else OK


def _checks(invocation: Invocation) -> Iterator[Check]:
    """Stops where what comes next needs what has failed."""
    yield _python()
    yield from _packages()
    try:
        settings = settings_of(invocation)
        declared_providers(settings)
    except GreenroomError as exc:
        yield _failure("configuration", exc)
        return
    yield Check("configuration", "ok", f"default provider {settings.default_provider}")
    if not settings.is_memory:
        writable = _data_dir(settings)
        yield writable
        if writable.verdict == "FAILED":
            return
    yield from _runtime(invocation)
    yield from _keys(settings)


def _python() -> Check:
    return Check("python", "ok" if sys.version_info >= _PYTHON else "FAILED", platform.python_version())


def _packages() -> Iterator[Check]:
    for name in _PACKAGES:
        try:
            yield Check(name, "ok", version(name))
        except PackageNotFoundError:
            yield Check(name, "FAILED", f"not installed; pip install {name}")


def _data_dir(settings: "Settings") -> Check:
    place = data_dir_of(settings)
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place):
            return Check("data_dir", "ok", f"{place} can be written")
    except OSError as exc:
        return Check("data_dir", "FAILED", f"{place}: {exc.strerror}; choose another with --data-dir")


def _runtime(invocation: Invocation) -> Iterator[Check]:
    note("Starting a runtime, or joining the one there ...")
    try:
        with opened_runtime(invocation) as runtime:
            yield Check("ray", "ok", "started for this check" if runtime.owns_ray else "joined")
            stats = runtime.stats()
            counts = f"{stats.sessions} sessions, {stats.runs} runs, {stats.events} events, {stats.bytes} bytes"
            yield Check("event store", "ok", counts)
            if runtime.data_dir != ":memory:":
                yield _socket_lane(runtime)
    except GreenroomError as exc:
        yield _failure("event store" if exc.category == "storage" or exc.code == "invalid_format" else "runtime", exc)


def _socket_lane(runtime: "Runtime") -> Check:
    """The fast lane of appends; without it everything works, by Ray calls."""
    from ..adapters.socket_lane import SOCKET_NAME, reachable_path  # noqa: PLC0415  loads asyncio

    path = Path(runtime.data_dir) / SOCKET_NAME
    with socket.socket(socket.AF_UNIX) as lane:
        lane.settimeout(_CONNECT_S)
        try:
            lane.connect(reachable_path(path))
        except OSError as exc:
            return Check("socket lane", "note", f"{path}: {exc.strerror}; appends go by Ray calls, which is slower")
    return Check("socket lane", "ok", str(path))


def _keys(settings: "Settings") -> Iterator[Check]:
    """Whether the keys are there that the configuration names. Only names are shown."""
    for name, declared in sorted(declared_providers(settings).items()):
        if declared.kind != "anthropic":
            continue
        from ..adapters.providers.anthropic.options import (  # noqa: PLC0415  only for this kind
            check_anthropic_options,
            read_api_key,
        )

        options = check_anthropic_options(declared.options, field=f"providers.{name}")
        place = options.api_key_file or options.api_key_env
        needed = name in settings.providers or name == settings.default_provider
        try:
            read_api_key(options)
        except GreenroomError:
            hint = f"no key in {place}; runs on {name} need it"
            yield Check(f"key of {name}", "FAILED" if needed else "note", hint)
        else:
            yield Check(f"key of {name}", "ok", f"in {place}")


def _failure(name: str, error: GreenroomError) -> Check:
    return Check(name, "FAILED", f"{' '.join(error.message.split())} [{error.code}]")
