"""The runs of a live session that have not ended: started in order as slots get free, and ended once each."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ..adapters.providers.tool_calls import tool_call_abandoned
from ..domain.errors import GreenroomError, SessionMoved
from ..domain.event import EventType, NewEvent
from ..domain.event_log import Committed
from ..domain.record_projection import CONVERSATION
from ..domain.recovery import Recovery
from ..domain.run_pace import RunPace
from ..domain.run_queue import RunQueue
from ..domain.session import Session
from ..domain.tool import Toolbox, ToolOutcome
from .admissions import Admissions
from .approvals import Approvals
from .attempts import Attempts
from .live_run import LiveRun, error_of, result_of
from .past import SessionPast
from .placement import Placer
from .provider_attempt import storable_error
from .provider_set import ProviderSet
from .run_outcomes import Outcome, RunOutcomes
from .run_starts import start_events
from .session_writer import SessionWriter

if TYPE_CHECKING:
    from ..domain.run_gate import RunGate
    from .session_budget import SessionBudget


NOT_REACHED = "an earlier turn did not complete"
"""Why a run of a row of a batch was cancelled."""


class _Ending(NamedTuple):
    """The terminal event of a run, before it is durable."""

    run: LiveRun
    type: EventType
    data: dict[str, Any]
    error: GreenroomError | None
    at_us: int
    offset: int
    """Its place among the events that are appended with it."""


class LastWord(NamedTuple):
    """What a session says when its last run ends, in the same append."""

    event: NewEvent
    said: Callable[[int], None]
    """Told the seq of it, once it is durable."""


class OpenRuns:
    """Queue, slots and ends of a session's runs.

    A run starts at its provider only after its run_started is committed, so that after a crash the log tells exactly
    which runs may have done something; and because the end of one run and the start of the next are one append, this
    costs a session no extra commit.
    """

    def __init__(
        self,
        session: Session,
        *,
        writer: SessionWriter,
        approvals: Approvals,
        providers: ProviderSet,
        tools: Toolbox,
        outcomes: RunOutcomes,
        placer: Placer,
        gate: "RunGate | None",
        budget: "SessionBudget | None",
        on_idle: Callable[[], None],
        home: str | None,
        past: SessionPast,
        last_word: "Callable[[EventType, Mapping[str, Any]], LastWord | None] | None" = None,
        stops_at_failure: bool = False,
    ) -> None:
        """`on_idle` is called when the last run has ended; `last_word` before that, with how it does: what it says is
        appended with it. `stops_at_failure`: when a run does not complete, those that wait are cancelled."""
        self.queue = RunQueue(slots=session.max_concurrent_runs, capacity=session.max_queued_runs)
        self.queue.is_paused = session.is_paused
        self._pace = RunPace()
        self._session = session
        self._writer = writer
        self._approvals = approvals
        self._outcomes = outcomes
        self._admissions = Admissions(
            session,
            placer=placer,
            gate=gate,
            budget=budget,
            approvals=approvals,
            writer=writer,
        )
        self._on_idle = on_idle
        self._last_word = last_word
        self._stops_at_failure = stops_at_failure
        self._attempts = Attempts(
            session,
            providers=providers,
            tools=tools,
            writer=writer,
            approvals=approvals,
            end=self.end,
            placer=placer,
            placed=self._admissions.placed,
            home=home,
            past=past,
        )
        self._loop = asyncio.get_running_loop()
        self._runs: dict[str, LiveRun] = {}
        self._emptied: asyncio.Future[None] | None = None
        """There is one while somebody waits for the last of them to end."""
        self._closed = False
        self.idle_since: float = self._loop.time()
        """When the last run ended, on the loop's clock."""

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[LiveRun]:
        return iter(self._runs.values())

    def __contains__(self, run_id: object) -> bool:
        return run_id in self._runs

    def __getitem__(self, run_id: str) -> LiveRun:
        return self._runs[run_id]

    def get(self, run_id: str) -> LiveRun | None:
        """The run, if it is open."""
        return self._runs.get(run_id)

    @property
    def running(self) -> list[LiveRun]:
        """Those that have a slot, the longest under way first."""
        return [self._runs[run_id] for run_id in self.queue.running]

    def next_end_s(self) -> float | None:
        """When the next of those under way is likely to end; None if nobody knows."""
        now_us = self._writer.now_us()
        return self._pace.next_end_s(run.under_way_s(now_us) for run in self.running)

    async def none_left(self) -> None:
        """Wait until all have ended, or the session is served elsewhere."""
        if self._runs and not self._closed:
            self._emptied = self._emptied or self._loop.create_future()
            await asyncio.shield(self._emptied)

    def _tell_emptied(self) -> None:
        emptied, self._emptied = self._emptied, None
        if emptied is not None:
            emptied.set_result(None)

    # Beginning

    def enqueue(self, runs: Sequence[LiveRun], events: list[NewEvent]) -> None:
        """Append the events that say so, and start what a slot is free for."""
        for run in runs:
            self._runs[run.run_id] = run
        self.queue.enqueue(run.run_id for run in runs)
        committed = self.append_and_start(events)
        for run in runs:
            run.queued = committed

    async def adopt(self, plans: Sequence[tuple[LiveRun, Recovery, GreenroomError | None]]) -> None:
        """Carry out what was decided for the runs of earlier owners, in the order of the queue; durable when done."""
        if not plans:
            return
        events: list[NewEvent] = []
        endings: list[_Ending] = []
        for run, fate, error in plans:
            events += self._take_up(run)
            if fate in (Recovery.WAIT, Recovery.RETRY, Recovery.RESUME):
                self.queue.enqueue([run.run_id])
            if fate in (Recovery.RETRY, Recovery.RESUME):
                run.attempt += 1
                run.queued_at_us = self._writer.now_us()
                data = {"reason": f"{fate.value} after crash"}  # one of CRASH_REASONS
                events.append(self._writer.event(EventType.RUN_QUEUED, run, data, at_us=run.queued_at_us))
            elif fate is not Recovery.WAIT:
                event_type, data = _ending_of(run, fate, error)
                run.ended = True
                events += self._approvals.close_run(run)
                events.append(self._writer.event(event_type, run, data))
                endings.append(_Ending(run, event_type, data, error, events[-1].timestamp_us, len(events) - 1))
        last_word = self._close_row(endings, events)
        committed = self.append_and_start(events, endings, last_word)
        if committed is not None:  # else there is nothing to say of runs that go on waiting
            await asyncio.shield(committed)

    def _take_up(self, run: LiveRun) -> list[NewEvent]:
        """The run is one of these from now on; the ends of its tool calls that nobody saw end."""
        self._runs[run.run_id] = run
        if run.first_started_at_us is not None:  # it may wait for long before it starts again
            self._attempts.set_deadline(run)
        waiting = {approval.tool_call_id for approval in run.approvals if approval.decision is None}
        events: list[NewEvent] = []
        for call_id, started in run.open_tool_calls.items():
            how = ToolOutcome.CANCELLED if call_id in waiting else ToolOutcome.IN_DOUBT
            events.append(self._writer.event(EventType.TOOL_CALL_FAILED, run, tool_call_abandoned(started, how)))
        run.open_tool_calls = {}
        self._approvals.adopt(run, run.approvals)
        return events

    def append_and_start(
        self, events: list[NewEvent], endings: Sequence[_Ending] = (), last_word: LastWord | None = None
    ) -> "asyncio.Future[Committed] | None":
        """Append these, and the start of every run that a slot is free for; once it is durable, those run, and those
        who wait for the `endings` among them are told. The last word is the last of these. None if there was nothing to
        append."""
        said_at = len(events) - 1
        started = [self._runs[run_id] for run_id in self.queue.start_ready(self._may_start)]
        for run in started:
            run.started_at_us = self._writer.now_us()
            run.first_started_at_us = run.first_started_at_us or run.started_at_us
            events += start_events(self._writer, run)
        if not events:
            return None
        committed = self._writer.append(events)
        if started or endings:
            committed.add_done_callback(partial(self._committed, started, endings, last_word, said_at))
        return committed

    def _committed(
        self,
        started: Sequence[LiveRun],
        endings: Sequence[_Ending],
        last_word: LastWord | None,
        said_at: int,
        committed: "asyncio.Future[Committed]",
    ) -> None:
        if committed.cancelled() or committed.exception() is not None:
            return
        first_seq = committed.result().first_seq
        try:
            for ending in endings:
                self._settle(ending, first_seq + ending.offset)
            if last_word is not None:
                last_word.said(first_seq + said_at)
        finally:
            if not self._closed:
                self._attempts.launch(started)

    def _may_start(self, run_id: str) -> bool:
        """Whether the limits of the whole runtime let the run start now; if not, it is tried again when they may."""
        return self._admissions.admit(self._runs[run_id], self)

    def has_started(self, run_id: str) -> bool:
        return run_id in self.queue.running

    def refuse(self, run: LiveRun, error: GreenroomError) -> None:
        """End a run that may not start."""
        error = storable_error(error)
        data = run.stopped_data(error=error.to_record(), error_code=error.code, error_message=error.message)
        self.end(run, EventType.RUN_FAILED, data, error=error)

    def retry(self) -> None:
        """Start what may start by now."""
        if not self._closed:
            self.append_and_start([])

    # Ending

    def end(
        self,
        run: LiveRun,
        event_type: EventType,
        data: dict[str, Any],
        *,
        error: GreenroomError | None = None,
        metadata: dict[str, Any] | None = None,
        tool_outcome: ToolOutcome = ToolOutcome.CANCELLED,
    ) -> "asyncio.Future[Committed] | None":
        """Append the run's one terminal event, unless it has it already. Its slot is free from here on."""
        if run.ended or self._closed:
            return None
        events: list[NewEvent] = []
        endings = [
            self._close(run, event_type, data, events, error=error, metadata=metadata, tool_outcome=tool_outcome)
        ]
        last_word = self._close_row(endings, events)
        committed = self.append_and_start(events, endings, last_word)
        assert committed is not None, "there are events"
        return committed

    def _close_row(self, endings: list[_Ending], events: list[NewEvent]) -> LastWord | None:
        """Add what these ends of runs entail in the session of a row: the ends of those that wait behind one that did
        not complete, and the last word."""
        if self._last_word is None or not endings:
            return None
        first = next((one for one in endings if one.type is not EventType.RUN_COMPLETED), endings[0])
        if self._stops_at_failure and first.type is not EventType.RUN_COMPLETED:
            data = {"reason": NOT_REACHED, "stop_reason": NOT_REACHED}
            left = [run for run in self._runs.values() if not run.ended]
            endings += [self._close(run, EventType.RUN_CANCELLED, run.stopped_data(**data), events) for run in left]
        if not all(run.ended for run in self._runs.values()):
            return None
        said = self._last_word(first.type, first.data)
        if said is not None:
            events.append(said.event)
        return said

    def cancel(
        self, run: LiveRun, reason: str | None, *, metadata: dict[str, Any] | None = None
    ) -> "asyncio.Future[Committed] | None":
        """Stop the run, unless it has its end already."""
        data = run.stopped_data(reason=reason, stop_reason=reason)
        return self.end(run, EventType.RUN_CANCELLED, data, metadata=metadata)

    async def cancel_all_with(self, reason: str, last: Callable[[], NewEvent]) -> int:
        """Cancel everything and append what `last` makes, in one step, starting nothing; its seq, once durable."""
        events: list[NewEvent] = []
        endings = [
            self._close(run, EventType.RUN_CANCELLED, run.stopped_data(reason=reason, stop_reason=reason), events)
            for run in self._runs.values()
            if not run.ended
        ]
        events.append(last())
        committed = self._writer.append(events)
        committed.add_done_callback(partial(self._committed, (), endings, None, 0))
        return (await asyncio.shield(committed)).first_seq + len(events) - 1

    def _close(
        self,
        run: LiveRun,
        event_type: EventType,
        data: dict[str, Any],
        events: list[NewEvent],
        *,
        error: GreenroomError | None = None,
        metadata: dict[str, Any] | None = None,
        tool_outcome: ToolOutcome = ToolOutcome.CANCELLED,
    ) -> _Ending:
        """Take the run off queue, clock and provider, and add the events that close it, the terminal one last."""
        run.ended = True
        self.queue.leave(run.run_id)
        if run.started_at_us:
            self._pace.ended(run.under_way_s(self._writer.now_us()))
        self._admissions.release(run)
        if run.limits is not None:
            run.limits.close()
        if run.deadline is not None:
            run.deadline.cancel()
        if run.task is not None and run.task is not asyncio.current_task():
            run.task.cancel()
        events += [
            self._writer.event(EventType.TOOL_CALL_FAILED, run, tool_call_abandoned(started, tool_outcome))
            for started in run.open_tool_calls.values()
        ]
        events += self._approvals.close_run(run)
        if run.conversation is not None:
            metadata = {**(metadata or {}), CONVERSATION: run.conversation}
            self._attempts.keep_conversation(run.provider, run.conversation)
        events.append(self._writer.event(event_type, run, data, metadata=metadata))
        return _Ending(run, event_type, data, error, events[-1].timestamp_us, len(events) - 1)

    def _settle(self, ending: _Ending, last_seq: int) -> None:
        run = ending.run
        if ending.type is EventType.RUN_COMPLETED:
            outcome: Outcome = result_of(run, ending.data, ended_at_us=ending.at_us, last_seq=last_seq)
        else:
            outcome = error_of(run, ending.type, ending.data, ending.error, last_seq=last_seq)
        del self._runs[run.run_id]
        self._outcomes.settle(run, outcome)
        if not self._runs:
            self._tell_emptied()
            self.idle_since = self._loop.time()
            self._on_idle()

    # Leaving

    def close(self) -> None:
        """Stop: providers are given up, whoever waits for a run gets session_moved."""
        self._closed = True
        self._last_word = None
        self._attempts.close()
        moved = SessionMoved(details={"session_id": self._session.id})
        for run in self._runs.values():
            if run.deadline is not None:
                run.deadline.cancel()
            if run.task is not None and run.task is not asyncio.current_task():
                run.task.cancel()
            if run.limits is not None:
                run.limits.close()
            for waiter in run.waiters:
                if not waiter.done():
                    waiter.set_exception(moved)
            self._admissions.release(run)
        self._tell_emptied()

    @property
    def under_way(self) -> bool:
        """Whether an attempt is not over, be it of a run that has ended."""
        return self._attempts.under_way

    async def given_up(self) -> None:
        """Wait until the attempts of a session that was closed are over."""
        await self._attempts.settle()


def _ending_of(run: LiveRun, fate: Recovery, error: GreenroomError | None) -> tuple[EventType, dict[str, Any]]:
    if fate is Recovery.EXPIRE or error is None:
        return EventType.RUN_TIMEOUT, run.stopped_data(deadline_s=run.options.deadline_s)
    data = run.stopped_data(error=error.to_record(), error_code=error.code, error_message=error.message)
    return EventType.RUN_FAILED, data
