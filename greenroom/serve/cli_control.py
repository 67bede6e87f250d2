"""The commands that steer what goes on: `steer`, `pause`, `resume`, `approvals`, `approve`, `deny`."""

import asyncio
import getpass
import sys
from typing import Annotated, Any

import typer

from ..adapters.rendering.event_text import as_json, one_line
from ..domain.approval import BY_CALLER, BY_GREENROOM
from .cli_errors import OK
from .cli_options import DataDir, Debug, invocation_of
from .cli_runs import RunId
from .cli_runtime import opened_runtime
from .cli_sessions import SessionId
from .plain_table import table

_HEADERS = ("APPROVAL", "SESSION", "TOOL", "EXPIRES", "INPUT")
_PREVIEW_CHARACTERS = 60

ApprovalId = Annotated[str, typer.Argument(metavar="APPROVAL", help="The approval's id.")]
Reason = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why; it is kept.")]


def steer(
    context: typer.Context,
    run_id: RunId,
    message: Annotated[str, typer.Argument(metavar="MESSAGE", help="What the agent is to hear.")],
    data_dir: DataDir = None,
    debug: Debug = False,
) -> int:
    """Hand a message to a run that is under way."""
    with opened_runtime(invocation_of(context)) as runtime:
        session = runtime.get_session(runtime.get_run(run_id).session_id)
        receipt = asyncio.run(_answer(session.steer_run.remote(run_id, message)))
    how = "delivered" if receipt.delivered else "queued for the next turn"
    sys.stdout.write(f"{run_id} {how} at seq {receipt.seq}\n")
    return OK


def pause(context: typer.Context, session_id: SessionId, data_dir: DataDir = None, debug: Debug = False) -> int:
    """Start no more runs of a session; those under way go on."""
    with opened_runtime(invocation_of(context)) as runtime:
        asyncio.run(_answer(runtime.get_session(session_id).pause.remote()))
    sys.stdout.write(f"{session_id} paused\n")
    return OK


def resume(context: typer.Context, session_id: SessionId, data_dir: DataDir = None, debug: Debug = False) -> int:
    """Start runs of a session again, after a pause or a drain."""
    with opened_runtime(invocation_of(context)) as runtime:
        asyncio.run(_answer(runtime.get_session(session_id).resume.remote()))
    sys.stdout.write(f"{session_id} resumed\n")
    return OK


def approvals(context: typer.Context, data_dir: DataDir = None, debug: Debug = False) -> int:
    """List the tool calls that wait for a person."""
    with opened_runtime(invocation_of(context)) as runtime:
        pending = runtime.pending_approvals()
    rows = [
        (
            one["id"],
            one["session_id"],
            one["tool_name"],
            one["expires_at"],
            one_line(as_json(one["input"]), _PREVIEW_CHARACTERS),
        )
        for one in pending
    ]
    sys.stdout.write(table(_HEADERS, rows))
    return OK


def approve(
    context: typer.Context,
    approval_id: ApprovalId,
    reason: Reason = None,
    data_dir: DataDir = None,
    debug: Debug = False,
) -> int:
    """Let a tool call run that waits for a person."""
    return _decide(context, approval_id, "approve", reason, "approved")


def deny(
    context: typer.Context,
    approval_id: ApprovalId,
    reason: Reason = None,
    data_dir: DataDir = None,
    debug: Debug = False,
) -> int:
    """Do not let a tool call run that waits for a person; the agent is told why."""
    return _decide(context, approval_id, "deny", reason, "denied")


def _decide(context: typer.Context, approval_id: str, decision: str, reason: str | None, done: str) -> int:
    with opened_runtime(invocation_of(context)) as runtime:
        runtime.decide_approval(approval_id, decision, reason, by=_this_user())
    sys.stdout.write(f"{approval_id} {done}\n")
    return OK


def _this_user() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a number that has no name here, as in many containers
        return BY_CALLER
    return BY_CALLER if user == BY_GREENROOM else user


async def _answer(answer: Any) -> Any:
    return await answer
