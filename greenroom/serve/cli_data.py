"""The commands for the whole life of data: `export`, `import`, `verify`, `delete`, `compact`, `backup`, `restore`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..domain.errors import InvalidOperation
from .cli_errors import FAILED, OK
from .cli_options import DataDir, Debug, invocation_of
from .cli_runtime import data_dir_of, note, opened_runtime, runtime_lives, settings_of
from .cli_sessions import SessionId, session_pages

if TYPE_CHECKING:
    from ..domain.verification import Verification

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the backup.")]


def export(
    context: typer.Context,
    session_id: SessionId,
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")],
    *,
    data_dir: DataDir = None,
    debug: Debug = False,
) -> int:
    """Write a session to one self-contained file."""
    with opened_runtime(invocation_of(context)) as runtime:
        written = runtime.export_session(session_id, path)
    sys.stdout.write(f"{written}\n")
    return OK


def import_(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A file that `export` wrote.")],
    *,
    data_dir: DataDir = None,
    debug: Debug = False,
) -> int:
    """Take in an exported session, once its whole chain was proven."""
    with opened_runtime(invocation_of(context)) as runtime:
        session = runtime.import_session(path)
    sys.stdout.write(f"{session.session_id}\n")
    return OK


def verify(
    context: typer.Context,
    session_id: Annotated[str | None, typer.Argument(metavar="[SESSION]", help="One session; without, all.")] = None,
    *,
    data_dir: DataDir = None,
    debug: Debug = False,
) -> int:
    """Read sessions from the disk and prove that nothing was lost or changed. Exit code 1 if something was."""
    bad = 0
    with opened_runtime(invocation_of(context)) as runtime:
        session_ids = [session_id] if session_id else [session.id for session in session_pages(runtime)]
        for number, each in enumerate(session_ids, start=1):
            note(f"{number} of {len(session_ids)}")
            found = runtime.verify_session(each)
            sys.stdout.write(_report(found))
            bad += not found.ok
    return FAILED if bad else OK


def _report(found: "Verification") -> str:
    if found.ok:
        pruned = f", {found.pruned} pruned" if found.pruned else ""
        return f"{found.session_id}  intact  {found.events} events{pruned}\n"
    return "".join(f"{found.session_id}  DAMAGED  {problem}\n" for problem in found.problems)


def delete(context: typer.Context, session_id: SessionId, data_dir: DataDir = None, debug: Debug = False) -> int:
    """Delete a session and every trace of it; its runs are cancelled first. `compact` takes its bytes off the disk."""
    with opened_runtime(invocation_of(context)) as runtime:
        runtime.delete_session(session_id)
    return OK


def compact(context: typer.Context, data_dir: DataDir = None, debug: Debug = False) -> int:
    """Rewrite the files without what was deleted or may be pruned; everything is served meanwhile."""
    with opened_runtime(invocation_of(context)) as runtime:
        before = runtime.stats().bytes
        runtime.compact()
        after = runtime.stats().bytes
    sys.stdout.write(f"{before} bytes before, {after} bytes after\n")
    return OK


def backup(context: typer.Context, folder: Folder, data_dir: DataDir = None, debug: Debug = False) -> int:
    """Copy everything as it is now to a new folder; everything is served meanwhile."""
    with opened_runtime(invocation_of(context)) as runtime:
        written = runtime.backup(folder)
    sys.stdout.write(f"{written}\n")
    return OK


def restore(context: typer.Context, folder: Folder, data_dir: DataDir = None, debug: Debug = False) -> int:
    """Put a backup into a data_dir that holds nothing yet, once every part of it was compared with its digest."""
    from ..adapters.duckdb.backup import restore_data_dir  # noqa: PLC0415  loads DuckDB

    settings = settings_of(invocation_of(context))
    if settings.is_memory:
        raise InvalidOperation("A backup cannot be restored into memory; give a --data-dir.")
    if runtime_lives(settings):
        raise InvalidOperation(f"A runtime lives on {data_dir_of(settings)}; end it with `greenroom down` first.")
    restore_data_dir(folder.expanduser().absolute(), data_dir_of(settings))
    sys.stdout.write(f"{data_dir_of(settings)}\n")
    return OK
