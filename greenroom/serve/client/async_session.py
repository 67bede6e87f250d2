"""A session of the service, for event loops."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...domain.errors import GreenroomError, NotFound, RunNotFound, SessionNotFound, Timeout
from ...domain.event import Event
from ...domain.run import Run, RunResult, RunStatus
from ...domain.run_options import RunOptions, given_options
from ...domain.run_outcome import outcome_of
from ...domain.session import Session, SessionStatus
from ...domain.steering import SteerReceipt
from .connection import Connection
from .event_streams import AsyncEventStream
from .parameters import segment, type_names
from .records import item, items, parsed
from .streams import PAGE_ITEMS, AsyncPages

POLL_S = 30.0
"""How long one request waits for a run to end; most proxies let one wait for a minute."""

_SOON_S = 1.0
_GRACE_S = 5.0
"""What the way there and back may take at the end of a caller's own wait."""


class AsyncClientSession:
    """A session of the service, by its id: cheap, and never stale. Its calls say so when it does not exist.

    They raise the errors that the calls of a SessionHandle do, and RuntimeGone when the service cannot be reached.
    """

    def __init__(self, connection: Connection, session_id: str) -> None:
        self.session_id = session_id
        self._connection = connection
        self._path = f"/v1/sessions/{segment(session_id, SessionNotFound)}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.session_id!r})"

    async def record(self) -> Session:
        """The session's record. SessionNotFound also for one of another tenant."""
        return parsed(Session, await self._connection.get(self._path))

    async def status(self) -> SessionStatus:
        """What the session is doing right now. Wakes it if it sleeps."""
        return parsed(SessionStatus, await self._connection.get(f"{self._path}/status"))

    async def submit_run(
        self,
        input: str | Mapping[str, Any],
        options: RunOptions | Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Queue a run; its id once that is durable. QueueFull when the queue stays full for some tries."""
        body = {"input": dict(input) if isinstance(input, Mapping) else input, "options": _run_options(options)}
        answer = await self._connection.post(f"{self._path}/runs", body, idempotency_key=idempotency_key)
        return item(answer, "run_id", str)

    async def await_run(self, run_id: str, timeout_s: float | None = None) -> RunResult:
        """The result of the run. A run that failed raises its error, a cancelled one Cancelled, one past its deadline
        DeadlineExceeded; Timeout when the own wait is over, and the run goes on. RunNotFound."""
        now = asyncio.get_running_loop().time
        ends_at = None if timeout_s is None else now() + timeout_s
        while True:
            left_s = math.inf if ends_at is None else max(0.0, ends_at - now())
            asked_at = now()
            run = await self._run(run_id, min(left_s, POLL_S), max(left_s - POLL_S, 0.0) + _GRACE_S)
            if run.status.is_terminal:
                return _result_of(run)
            if left_s <= POLL_S:
                raise Timeout(
                    f"Run {run_id} has not ended within {timeout_s} s; it goes on.", details={"run_id": run_id}
                )
            if now() - asked_at < _SOON_S:
                await asyncio.sleep(_SOON_S)  # the service did not wait, for whatever reason

    async def execute_run(
        self,
        input: str | Mapping[str, Any],
        options: RunOptions | Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
        idempotency_key: str | None = None,
    ) -> RunResult:
        """`submit_run` and `await_run`. A wait that is given up leaves the run to go on."""
        return await self.await_run(await self.submit_run(input, options, idempotency_key), timeout_s)

    async def get_run(self, run_id: str) -> Run:
        """The run's record as it is now. RunNotFound."""
        return await self._run(run_id, 0.0, math.inf)

    async def _run(self, run_id: str, wait_s: float, limit_s: float) -> Run:
        path = f"{self._path}/runs/{segment(run_id, RunNotFound)}"
        params = {"wait_s": wait_s or None}
        return parsed(
            Run, await self._connection.get(path, params, wait_s=wait_s, limit_s=limit_s, is_patient=wait_s > 0)
        )

    def list_runs(self, *, status: RunStatus | str | None = None, page_size: int = PAGE_ITEMS) -> AsyncPages[Run]:
        """The session's runs, in the order in which they were made; pages are fetched as they are needed."""
        params = {"status": status, "limit": page_size}
        return AsyncPages(self._connection, f"{self._path}/runs", params, Run)

    async def cancel_run(self, run_id: str, reason: str | None = None) -> bool:
        """Stop the run. True if this call did it, False if it had ended."""
        return item(await self._of_run(run_id, "cancel", {"reason": reason}), "cancelled", bool)

    async def interrupt_run(self, run_id: str) -> bool:
        """Stop the run's current turn, and keep what it has produced."""
        return item(await self._of_run(run_id, "interrupt", None), "cancelled", bool)

    async def steer_run(self, run_id: str, message: str) -> SteerReceipt:
        """Hand a message to a run that is under way."""
        return parsed(SteerReceipt, await self._of_run(run_id, "steer", {"message": message}))

    async def _of_run(self, run_id: str, verb: str, body: dict[str, Any] | None) -> dict[str, Any]:
        return await self._connection.post(f"{self._path}/runs/{segment(run_id, RunNotFound)}/{verb}", body)

    async def pause(self) -> Session:
        """Start no more of the session's runs."""
        return await self._move("pause")

    async def resume(self) -> Session:
        """Take runs off the queue again."""
        return await self._move("resume")

    async def complete(self) -> Session:
        """End the session, all of whose runs have ended."""
        return await self._move("complete")

    async def cancel(self) -> Session:
        """End the session, and cancel its runs."""
        return await self._move("cancel")

    async def _move(self, verb: str) -> Session:
        return parsed(Session, await self._connection.post(f"{self._path}/{verb}"))

    async def decide_approval(self, approval_id: str, decision: str, reason: str | None = None) -> None:
        """`approve` or `deny` a tool call that waits. NotFound; InvalidOperation when it was settled before."""
        path = f"{self._path}/approvals/{segment(approval_id, NotFound)}"
        await self._connection.post(path, {"decision": decision, "reason": reason})

    async def transcript(self, max_messages: int | None = None, max_tokens: int | None = None) -> list[dict[str, Any]]:
        """What was said in the session, oldest first: role, content, tool_call_id, tool_name, tool_input, tool_output
        and metadata of each message."""
        params = {"max_messages": max_messages, "max_tokens": max_tokens}
        return items(await self._connection.get(f"{self._path}/transcript", params), "messages")

    async def read_events(
        self,
        after: int = 0,
        before: int | None = None,
        limit: int = 100,
        run_id: str | None = None,
        types: Sequence[str] | str | None = None,
        *,
        wait_s: float = 0.0,
    ) -> list[Event]:
        """A page of events, bounds exclusive, at most 10,000; `wait_s`, up to 60, waits for a match.

        InvalidCursor beyond the end; ResyncRequired, with the `lowest_seq` that there is, where events were deleted.
        """
        params = {
            "after": after,
            "before": before,
            "limit": limit,
            "run_id": run_id,
            "types": type_names(types),
            "wait_s": wait_s or None,
        }
        answer = await self._connection.get(f"{self._path}/events", params, wait_s=wait_s)
        return [parsed(Event, record) for record in items(answer, "events")]

    def follow(
        self, from_seq: int = 0, run_id: str | None = None, types: Sequence[str] | str | None = None
    ) -> AsyncEventStream:
        """All events past the seq, and then those to come, each once, across broken connections; ends when the session,
        or the run, has ended. Sends nothing before the first event is asked for."""
        if run_id is not None:
            segment(run_id, RunNotFound)
        return AsyncEventStream(self._connection, self._path, from_seq=from_seq, run_id=run_id, types=type_names(types))


def _result_of(run: Run) -> RunResult:
    outcome = outcome_of(run)
    if isinstance(outcome, GreenroomError):
        raise outcome
    return outcome


def _run_options(options: RunOptions | Mapping[str, Any] | None) -> dict[str, Any]:
    return given_options(options) if isinstance(options, RunOptions) else dict(options or {})
