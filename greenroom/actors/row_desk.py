"""Rows of batches in the process that serves them: many sessions begun at once, run, and ended."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..adapters.logs import get_logger
from ..domain.batch_row import RowsPlan, RowWork
from ..domain.errors import (
    GreenroomError,
    InternalError,
    SessionDraining,
    SessionMoved,
    StorageFull,
    WriterFenced,
)
from ..domain.tool import NoTools, Toolbox
from .live_session import LiveSession, NeedsOwnServer, row_call_id
from .provider_set import ProviderSet, SharedProviders
from .run_outcomes import Outcome

if TYPE_CHECKING:
    from ..adapters.tools import CallableToolbox

_log = get_logger(__name__)

MAX_TOOL_THREADS = 128
"""Calls of blocking tools of one toolbox that run at once; others wait."""

MAX_TOOLBOXES = 8
"""Toolboxes of different jobs that are kept unpacked."""

BeginRows = Callable[
    [Sequence[RowWork], RowsPlan, ProviderSet, Callable[[RowWork], Toolbox]], Awaitable[dict[str, LiveSession]]
]
ElsewhereRow = Callable[[RowWork, RowsPlan], Awaitable[list[Outcome]]]


class RowEnd(NamedTuple):
    """How the runs of a row ended, in their order: as many as it has inputs."""

    session_id: str
    outcomes: list[Outcome]


class RowDesk:
    """Belongs to one server."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        *,
        begin: BeginRows,
        elsewhere: ElsewhereRow,
        leave: Callable[[LiveSession], None],
    ) -> None:
        """`begin` makes sessions that do not exist yet; `elsewhere` carries out a row of one that does, wherever it is
        served; `leave` lets a session go that has ended."""
        self._settings = settings
        self._providers: ProviderSet | None = None
        self._toolboxes: dict[bytes, CallableToolbox] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._begin = begin
        self._elsewhere = elsewhere
        self._leave = leave

    async def execute(self, rows: Sequence[RowWork], plan: RowsPlan) -> AsyncGenerator[list[RowEnd]]:
        """Carry the rows out, all at once; gives what has ended as soon as there is any, each row once.

        Rows that were carried out before, or are under way, are not begun again: their end is given when it is known.
        What is left when the generator is closed goes on all the same.
        """
        begun = await self._begin(rows, plan, self._providers_of(plan), lambda row: self._toolbox(row.tools))
        ended: asyncio.Queue[RowEnd] = asyncio.Queue()  # no longer than there are rows
        for row in rows:
            task = asyncio.create_task(self._carry_out(row, plan, begun, ended))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        left = len(rows)
        while left:
            ends = [await ended.get()]
            while not ended.empty():
                ends.append(ended.get_nowait())
            left -= len(ends)
            yield ends

    def change_settings(self, settings: Mapping[str, Any]) -> None:
        """Declared providers hold for the runs that start from now on."""
        self._settings = settings
        if self._providers is not None:
            self._providers.declare(settings["providers"], settings["routers"])

    def _providers_of(self, plan: RowsPlan) -> ProviderSet:
        """One for all rows here: one pool of connections to a provider. One that starts processes has one session."""
        if plan.needs_own_server:
            return ProviderSet(self._settings["providers"], self._settings["routers"])
        if self._providers is None:
            self._providers = SharedProviders(self._settings["providers"], self._settings["routers"])
        return self._providers

    def _toolbox(self, packed: bytes | None) -> Toolbox:
        if packed is None:
            return NoTools()
        if packed not in self._toolboxes:
            self._toolboxes[packed] = unpacked(packed, max_threads=MAX_TOOL_THREADS)
            if len(self._toolboxes) > MAX_TOOLBOXES:  # not closed: rows may be using it, and it goes with the last one
                del self._toolboxes[next(iter(self._toolboxes))]
        return self._toolboxes[packed]

    async def _carry_out(
        self, row: RowWork, plan: RowsPlan, begun: dict[str, LiveSession], ended: "asyncio.Queue[RowEnd]"
    ) -> None:
        live = begun.get(row.session_id)
        outcomes: list[Outcome]
        try:
            try:
                outcomes = await self._elsewhere(row, plan) if live is None else await self.run(live, row, plan)
            except (SessionMoved, WriterFenced, NeedsOwnServer):  # somebody else has the session, or must have it
                outcomes = await self._elsewhere(row, plan)
        except GreenroomError as exc:
            outcomes = [exc.with_traceback(None) for _ in row.inputs]
        except Exception as exc:  # noqa: BLE001  told as the row's own, so that the others go on
            _log.exception("row_failed", session_id=row.session_id)
            error = InternalError(f"{type(exc).__name__}: {exc}. This is a fault in Greenroom.")
            outcomes = [error for _ in row.inputs]
        ended.put_nowait(RowEnd(row.session_id, outcomes))

    async def run(self, live: LiveSession, row: RowWork, plan: RowsPlan) -> list[Outcome]:
        """Submit the row's turns, wait for their ends, and end the session; what was done before is not done again."""
        call_id = row_call_id(row.session_id)
        try:
            run_ids = await live.submit_runs(
                row.inputs, plan.options, [None] * len(row.inputs), call_id, acknowledged=False
            )  # nobody is told of them before they have ended, and that is durable after this
        except (SessionMoved, WriterFenced):
            raise
        except (SessionDraining, StorageFull):  # it may be carried out later
            self._leave(live)
            raise
        except GreenroomError as exc:
            if not live.status.is_terminal:
                await live.fail({"error_code": exc.code, "error_message": exc.message, **exc.to_record()}, call_id)
            self._leave(live)
            raise
        outcomes = await live.await_runs(run_ids)
        if not live.status.is_terminal:  # its runs had ended before this process had it
            await live.complete(call_id)
        self._leave(live)
        return outcomes


def unpacked(tools: bytes, *, max_threads: int | None = None) -> "CallableToolbox":
    """The tools of a session, ready for use."""
    from ..adapters.tool_packing import unpack_toolbox  # noqa: PLC0415  most sessions have none

    return unpack_toolbox(tools, max_threads=max_threads)
