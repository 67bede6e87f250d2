"""Gets rows of batches done, from any process of the cluster: finds places for them, sends them, hears how they end."""

import asyncio
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any

import ray
import ray.exceptions

from ..adapters.logs import get_logger
from ..domain.batch_row import RowsPlan, RowWork
from ..domain.errors import (
    Cancelled,
    GreenroomError,
    InternalError,
    RuntimeGone,
    SessionDraining,
    SessionMoved,
    StorageFull,
    ValidationError,
    WriterFenced,
)
from .address import DIRECTORY, RuntimeAddress
from .ray_errors import raise_bare
from .row_desk import RowEnd
from .run_outcomes import Outcome

_log = get_logger(__name__)

FEWEST_TOGETHER = 128
"""Rows that are placed with one call, where there are so many, though few of them share a server."""

MAX_TOGETHER_CHARACTERS = 8_000_000
"""Of the inputs of rows that are sent with one call, but for a single one that is larger."""

_RETRY_S = 0.2
_LATER_S = 1.0
"""How long to wait where it is not a server that died."""


class RowSender:
    """Belongs to one event loop. How many rows are under way is up to whoever calls it."""

    def __init__(self, address: RuntimeAddress, plan: RowsPlan) -> None:
        self._address = address
        self._plan = plan
        self._waiting: deque[RowWork] = deque()
        self._futures: dict[str, asyncio.Future[list[Outcome]]] = {}
        self._servers: dict[str, Any] = {}
        self._given_up: Cancelled | None = None
        self._placing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, row: RowWork) -> list[Outcome]:
        """How the runs of the row ended: results, or errors in their place. A row that is done, or under way, is not
        done again.

        A server that dies has no part in this: what had not ended is sent again to wherever it goes on. RuntimeGone,
        SessionDraining and what else the Directory answers is raised.
        """
        future = self._futures.get(row.session_id)
        if future is None:
            future = self._futures[row.session_id] = asyncio.get_running_loop().create_future()
            self._send(row)
        return await asyncio.shield(future)

    def give_up(self, reason: str) -> None:
        """Begin nothing more: what waits for a place, and what would have to be sent again, is cancelled with this
        reason."""
        self._given_up = Cancelled(f"The row was not begun: {reason}.", details={"reason": reason})
        waiting, self._waiting = list(self._waiting), deque()
        self._fail(waiting, self._given_up)

    def _send(self, row: RowWork) -> None:
        self._waiting.append(row)
        if self._placing is None or self._placing.done():
            self._placing = self._own(self._place())

    def _own(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _place(self) -> None:
        """Find places for those that wait, a group at a time: what comes meanwhile is in the next one."""
        await asyncio.sleep(0)  # what else is sent in this turn of the loop comes along
        while self._waiting:
            group = self._next_group()
            rows = {row.session_id: row for row in group}
            try:
                placed = await self._places(group)
            except (SessionDraining, RuntimeGone, ValidationError) as exc:
                self._fail(group, exc)
                continue
            except GreenroomError as exc:  # no place now, no room, or the Directory is being started anew
                _log.warning("rows_wait", count=len(group), code=exc.code)
                self._waiting.extendleft(reversed(group))
                await asyncio.sleep(_LATER_S)
                continue
            except Exception as exc:  # noqa: BLE001  told to those who wait, who would wait for ever
                self._fail(group, RuntimeGone(f"The runtime does not answer any more ({type(exc).__name__})."))
                continue
            if self._given_up is not None:  # nobody takes the places: they come back by themselves
                self._fail(group, self._given_up)
                continue
            for name, session_ids in placed.items():
                self._own(self._execute(name, [rows.pop(session_id) for session_id in session_ids]))
            self._waiting.extendleft(reversed(rows.values()))

    def _next_group(self) -> list[RowWork]:
        """Rows for one call: as many as share a server, and some at least, since each call costs round trips to the
        Directory, to servers and to the store. A row took 0.9 ms of CPU in groups of 128 and 0.6 to 0.75 in groups of
        512."""
        group: list[RowWork] = []
        left = MAX_TOGETHER_CHARACTERS
        while self._waiting and len(group) < max(FEWEST_TOGETHER, self._plan.per_server):
            left -= sum(len(one) if isinstance(one, str) else len(repr(one)) for one in self._waiting[0].inputs)
            if group and left < 0:
                break
            group.append(self._waiting.popleft())
        return group

    async def _places(self, rows: Sequence[RowWork]) -> dict[str, list[str]]:
        plan = self._plan
        session_ids = [row.session_id for row in rows]
        tools: dict[bytes, list[str]] = {}
        for row in rows:
            if row.tools is not None:
                tools.setdefault(row.tools, []).append(row.session_id)
        try:
            return await self._server(DIRECTORY).place_rows.remote(
                session_ids,
                plan.spec,
                alone=plan.needs_own_server,
                per_server=plan.per_server,
                tools=tools,
            )
        except ValueError as exc:
            raise RuntimeGone from exc
        except ray.exceptions.RayError as exc:
            raise_bare(exc)

    async def _execute(self, name: str, rows: Sequence[RowWork]) -> None:
        left = {row.session_id: row for row in rows}
        error = await self._hear(name, left)
        if error is not None:
            self._fail(list(left.values()), error)
        elif self._given_up is not None:
            self._fail(list(left.values()), self._given_up)
        else:
            for row in left.values():
                self._send(row)

    async def _hear(self, name: str, left: dict[str, RowWork]) -> GreenroomError | None:
        """Send the rows, and take those that have ended off them; why the others are not to be sent again, if so."""
        try:
            async for answer in self._server(name).execute_rows.remote(list(left.values()), self._plan):
                ends: list[RowEnd] = await answer
                for end in ends:
                    left.pop(end.session_id, None)
                    self._settle(end)
        except (StorageFull, SessionMoved, WriterFenced):
            await asyncio.sleep(_LATER_S)
        except GreenroomError as exc:
            return exc
        except (ray.exceptions.RayError, ValueError) as exc:  # ValueError: there is no such actor any more
            if isinstance(exc, ray.exceptions.RayTaskError):  # raised in the server, whatever it is
                return InternalError(f"A server failed with rows: {type(exc).__name__}.")
            self._servers.pop(name, None)
            await asyncio.sleep(_RETRY_S)
        except Exception as exc:  # noqa: BLE001  told to those who wait, who would wait for ever
            _log.exception("rows_not_sent")
            return InternalError(f"{type(exc).__name__}: {exc}")
        return None

    def _server(self, name: str) -> Any:
        """The server's handle; kept, since making one of an answer takes more than all the rest of a call."""
        if name not in self._servers:
            self._servers[name] = ray.get_actor(name, namespace=self._address.namespace)
        return self._servers[name]

    def _settle(self, end: RowEnd) -> None:
        future = self._futures.pop(end.session_id, None)
        if future is not None and not future.done():
            future.set_result(end.outcomes)

    def _fail(self, rows: Sequence[RowWork], error: GreenroomError) -> None:
        for row in rows:
            future = self._futures.pop(row.session_id, None)
            if future is not None and not future.done():
                future.set_exception(error)
