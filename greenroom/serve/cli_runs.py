"""The commands about runs: `run`, `cancel`, `interrupt`."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..adapters.rendering.jsonl import JsonLinesRenderer
from ..domain.errors import GreenroomError, error_from_record
from ..domain.event import Event, EventType
from ..domain.run_outcome import cancelled_error, deadline_error
from .cli_errors import FAILED, INTERRUPTED, OK, report
from .cli_options import DataDir, Debug, invocation_of
from .cli_runtime import opened_runtime
from .run_output import RunOutput
from .watched_run import WatchedRun

if TYPE_CHECKING:
    from ..actors.runtime import Runtime
    from ..actors.session_handle import SessionHandle

AGENT_ID = "cli"

RunId = Annotated[str, typer.Argument(metavar="RUN", help="The run's id.")]


def run(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the agent is to do; for shell a command.")],
    *,
    provider: Annotated[str | None, typer.Option("--provider", metavar="NAME", help="Who does it.")] = None,
    session_id: Annotated[
        str | None, typer.Option("--session", metavar="ID", help="A session to go on with; else a new one is opened.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Which model; else the provider's.")
    ] = None,
    permission_mode: Annotated[
        str | None,
        typer.Option("--permission-mode", metavar="MODE", help="How freely an agent may use its tools: plan, ..."),
    ] = None,
    continuation: Annotated[
        str | None,
        typer.Option("--continuation", metavar="HOW", help="What it hears of the session: off, auto, replay, native."),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option("--record", metavar="DIR", help="Keep what the agent's client says and hears, for kind replay."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The run's events, one JSON object per line.")] = False,
    data_dir: DataDir = None,
    debug: Debug = False,
) -> int:
    """Execute one run and show what it says as it comes. Ctrl-C cancels it."""
    given = {
        "provider": provider,
        "model": model,
        "permission_mode": permission_mode,
        "continuation": continuation,
        "provider_options": {"record": str(record.absolute())} if record is not None else None,
    }
    options = {name: value for name, value in given.items() if value is not None}
    output = RunOutput(sys.stdout, sys.stderr)
    with opened_runtime(invocation_of(context)) as runtime:
        session = _session(runtime, session_id, provider)
        output.note(f"session {session.session_id}")
        watched = WatchedRun(session, _write_json if as_json else output.show)
        end = _execute(watched, prompt, options)
        output.end_line()
    if watched.interrupted:
        return INTERRUPTED
    error = _error_of(end)
    if error is None:
        return OK
    report(error)
    return FAILED


def _session(runtime: "Runtime", session_id: str | None, provider: str | None) -> "SessionHandle":
    if session_id is not None:
        return runtime.get_session(session_id)
    return runtime.open_session(agent_id=AGENT_ID, provider=provider)


def _execute(watched: WatchedRun, prompt: str, options: dict[str, Any]) -> Event:
    try:
        return asyncio.run(watched.execute(prompt, options))
    except asyncio.CancelledError as exc:
        raise KeyboardInterrupt from exc


_json_lines = JsonLinesRenderer()


def _write_json(event: Event) -> None:
    sys.stdout.write(_json_lines.render(event))
    sys.stdout.flush()


def _error_of(end: Event) -> GreenroomError | None:
    """What the event that ended a run means for whoever waited for it."""
    if end.type is EventType.RUN_COMPLETED:
        return None
    if end.type is EventType.RUN_CANCELLED:
        return cancelled_error({}, end.data.get("reason"))
    if end.type is EventType.RUN_TIMEOUT:
        return deadline_error({})
    return error_from_record(end.data.get("error") or {})


def cancel(
    context: typer.Context,
    run_id: RunId,
    reason: Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why; it is kept.")] = None,
    data_dir: DataDir = None,
    debug: Debug = False,
) -> int:
    """Stop a run now."""
    return _stop(context, run_id, lambda session: session.cancel_run.remote(run_id, reason), "cancelled")


def interrupt(context: typer.Context, run_id: RunId, data_dir: DataDir = None, debug: Debug = False) -> int:
    """Stop the current turn of a run and keep what it has produced."""
    return _stop(context, run_id, lambda session: session.interrupt_run.remote(run_id), "interrupted")


def _stop(context: typer.Context, run_id: str, stop: "Callable[[SessionHandle], Any]", done: str) -> int:
    async def answer(session: "SessionHandle") -> bool:
        return await stop(session)

    with opened_runtime(invocation_of(context)) as runtime:
        session = runtime.get_session(runtime.get_run(run_id).session_id)
        stopped = asyncio.run(answer(session))
        status = runtime.get_run(run_id).status
    sys.stdout.write(f"{run_id} {done}\n" if stopped else f"{run_id} had ended: {status}\n")
    return OK
