"""The commands that look at what there is: `sessions`, `show`, `events`."""

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from ..adapters.rendering.event_text import as_json, one_line, printable
from ..adapters.rendering.paint import Paint
from ..adapters.rendering.registry import EventFormat, new_renderer
from ..adapters.rendering.renderer import Renderer
from ..domain.errors import ResyncRequired
from ..domain.run import Run
from ..domain.session import Session
from .cli_errors import OK
from .cli_options import DataDir, Debug, invocation_of
from .cli_runtime import opened_runtime
from .plain_table import table

if TYPE_CHECKING:
    from ..actors.event_stream import EventStream
    from ..actors.runtime import Runtime

_PAGE = 1_000
_PREVIEW_CHARACTERS = 60
_SESSION_HEADERS = ("SESSION", "STATUS", "AGENT", "PROVIDER", "CREATED", "UPDATED")
_RUN_HEADERS = ("RUN", "STATUS", "ATTEMPT", "PROVIDER", "TOKENS", "ERROR", "INPUT")

SessionId = Annotated[str, typer.Argument(metavar="SESSION", help="The session's id.")]
RecordT = TypeVar("RecordT", Session, Run)


def sessions(context: typer.Context, data_dir: DataDir = None, debug: Debug = False) -> int:
    """List the sessions, oldest first."""
    with opened_runtime(invocation_of(context)) as runtime:
        found = list(session_pages(runtime))
    sys.stdout.write(table(_SESSION_HEADERS, [_session_row(session) for session in found]))
    return OK


def show(context: typer.Context, session_id: SessionId, data_dir: DataDir = None, debug: Debug = False) -> int:
    """Show a session and its runs."""
    with opened_runtime(invocation_of(context)) as runtime:
        session = runtime.session(session_id)
        runs = list(_pages(lambda after: runtime.list_runs(session_id=session_id, after=after, limit=_PAGE)))
    sys.stdout.write(_fields(session) + "\n")
    sys.stdout.write(table(_RUN_HEADERS, [_run_row(run) for run in runs]))
    return OK


def events(
    context: typer.Context,
    session_id: SessionId,
    *,
    after: Annotated[int, typer.Option("--after", metavar="N", min=0, help="Only events past this seq.")] = 0,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what comes, until the session ends.")] = False,
    event_format: Annotated[EventFormat, typer.Option("--format", help="In what form.")] = EventFormat.COMPACT,
    data_dir: DataDir = None,
    debug: Debug = False,
) -> int:
    """Show a session's events, and with --follow what comes, across restarts of its processes."""
    renderer = new_renderer(event_format, paint=Paint.for_stream(sys.stdout))
    with opened_runtime(invocation_of(context)) as runtime:
        session = runtime.get_session(session_id)
        asyncio.run(_show_events(lambda seq: session.follow(from_seq=seq, follow=follow), after, renderer))
    return OK


async def _show_events(open_stream: Callable[[int], "EventStream"], after: int, renderer: Renderer) -> None:
    """Everything that there is: where events were pruned it goes on behind them, and says so on stderr."""
    while True:
        try:
            async with contextlib.aclosing(open_stream(after)) as stream:
                async for event in stream:
                    sys.stdout.write(renderer.render(event))
                    sys.stdout.flush()
                    after = event.seq
        except ResyncRequired as exc:
            lowest = exc.details["lowest_seq"]
            sys.stderr.write(f"greenroom: seqs {after + 1} to {lowest - 1} are not there any more\n")
            after = lowest - 1
        else:
            break
    sys.stdout.write(renderer.finish())


def session_pages(runtime: "Runtime") -> Iterator[Session]:
    """All sessions, read page by page."""
    return _pages(lambda after: runtime.list_sessions(after=after, limit=_PAGE))


def _pages(read: Callable[[str | None], list[RecordT]]) -> Iterator[RecordT]:
    """All records, read page by page."""
    after: str | None = None
    while True:
        page = read(after)
        yield from page
        if len(page) < _PAGE:
            return
        after = page[-1].id


def _session_row(session: Session) -> tuple[str, ...]:
    return (
        session.id,
        session.status.value,
        one_line(session.agent_id, _PREVIEW_CHARACTERS),
        session.provider,
        f"{session.created_at:%Y-%m-%d %H:%M:%S}",
        f"{session.updated_at:%Y-%m-%d %H:%M:%S}",
    )


def _run_row(run: Run) -> tuple[str, ...]:
    prompt = run.input["messages"][-1]["content"]
    return (
        run.id,
        run.status.value,
        str(run.attempt),
        run.provider or "",
        str(run.token_usage.get("total_tokens", 0)),
        (run.error or {}).get("code", ""),
        one_line(prompt, _PREVIEW_CHARACTERS),
    )


def _fields(session: Session) -> str:
    """The session's record, a line per field that has a value; what is nested as JSON."""
    record = {name: value for name, value in session.to_dict().items() if value not in (None, {}, [])}
    width = max(len(name) for name in record)
    return "".join(
        f"{name:<{width}}  {printable(value if isinstance(value, str) else as_json(value))}\n"
        for name, value in record.items()
    )
