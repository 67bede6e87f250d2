"""How the runs of a live session ended, and those who wait to hear it."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from ..domain.errors import GreenroomError, QueueFull, RunNotFound, Timeout
from ..domain.event_log import EventLog
from ..domain.run import RunResult
from ..domain.run_outcome import outcome_of
from .answered_calls import AnsweredCalls
from .live_run import LiveRun

MAX_KEPT_OUTCOMES = 1_000
"""Ended runs whose outcome is kept in memory; later awaits read it from the store."""

MAX_WAITERS = 10_000
"""Awaits that may wait at once; one more is refused with queue_full."""

Outcome = RunResult | GreenroomError


class RunOutcomes:
    """Outcomes of the newest ended runs, and the waiters of those that have not ended."""

    def __init__(self, session_id: str, log: EventLog) -> None:
        self._session_id = session_id
        self._log = log
        self._kept: AnsweredCalls[Outcome] = AnsweredCalls(MAX_KEPT_OUTCOMES)
        self._waiting = 0

    def settle(self, run: LiveRun, outcome: Outcome) -> None:
        """The run has ended, durably: tell whoever waits."""
        self._kept.keep(run.run_id, outcome)
        for waiter in run.waiters:
            if waiter.done():
                continue
            if isinstance(outcome, RunResult):
                waiter.set_result(outcome)
            else:
                waiter.set_exception(outcome)

    async def of_ended(self, run_id: str) -> Outcome | None:
        """The outcome of a run that is not live here; None if the log shows it as open. RunNotFound."""
        kept = self._kept.get(run_id)
        if kept is not None:
            return kept
        record = await self._log.find_run(run_id)
        if record is None or record.session_id != self._session_id:
            raise RunNotFound(
                f"Session {self._session_id} has no run {run_id}.",
                details={"session_id": self._session_id, "run_id": run_id},
            )
        return outcome_of(record) if record.status.is_terminal else None

    async def wait_for(self, run: LiveRun, timeout_s: float | None) -> RunResult:
        """The result of a live run; raises the error that it ends with. Timeout when the own wait is over."""
        waiter = self._add_waiter(run)
        try:
            async with asyncio.timeout(timeout_s):
                return await waiter
        except TimeoutError:
            raise Timeout(
                f"Run {run.run_id} has not ended within {timeout_s} s; it goes on.", details={"run_id": run.run_id}
            ) from None
        finally:
            self._drop_waiter(run, waiter)

    async def wait_for_all(self, runs: Sequence[LiveRun], timeout_s: float | None) -> dict[str, Outcome]:
        """The outcomes of live runs by their ids. Timeout when the own wait is over."""
        waiting: list[tuple[LiveRun, asyncio.Future[RunResult]]] = []
        try:
            for run in runs:
                waiting.append((run, self._add_waiter(run)))  # noqa: PERF401  those added before a refusal are dropped
            await _all_done([waiter for _, waiter in waiting], timeout_s)
            return {run.run_id: _outcome(waiter) for run, waiter in waiting}
        finally:
            for run, waiter in waiting:
                self._drop_waiter(run, waiter)

    def _add_waiter(self, run: LiveRun) -> "asyncio.Future[RunResult]":
        if self._waiting >= MAX_WAITERS:
            raise QueueFull(f"{self._waiting} calls wait for runs already; try again.")
        waiter: asyncio.Future[RunResult] = asyncio.get_running_loop().create_future()
        run.waiters.append(waiter)
        self._waiting += 1
        return waiter

    def _drop_waiter(self, run: LiveRun, waiter: "asyncio.Future[RunResult]") -> None:
        self._waiting -= 1
        if not waiter.done() or waiter.cancelled():
            run.waiters.remove(waiter)
        else:
            waiter.exception()  # seen, though whoever waited may be gone


async def _all_done(waiters: "Sequence[asyncio.Future[RunResult]]", timeout_s: float | None) -> None:
    if timeout_s is None:
        for waiter in waiters:
            with suppress(GreenroomError):  # it is kept
                await waiter
        return
    _, left = await asyncio.wait(waiters, timeout=timeout_s)
    if left:
        raise Timeout(f"{len(left)} of {len(waiters)} runs have not ended; they go on.", details={"left": len(left)})


def _outcome(waiter: "asyncio.Future[RunResult]") -> Outcome:
    error = waiter.exception()
    if error is None:
        return waiter.result()
    assert isinstance(error, GreenroomError), "settle and close set no other"
    return error.with_traceback(None)  # it is kept: every await would add to its traceback
