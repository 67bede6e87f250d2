"""A session while a process serves it: queue, slots, runs, their ends. One asyncio object over ports, no Ray.

The rule that everything here follows: decide and append in one step without waiting, act when the append is durable.
A run starts at its provider only after its run_started is committed, so that after a crash the log tells exactly which
runs may have done something; and because the end of one run and the start of the next are one append, this costs a
session no extra commit.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from ..adapters.json_safety import require_json_safe
from ..adapters.providers.tool_calls import tool_call_abandoned
from ..domain.approval import BY_CALLER, parse_decider, parse_decision
from ..domain.errors import (
    GreenroomError,
    InvalidOperation,
    QueueFull,
    SessionDraining,
    SessionMoved,
    Timeout,
    ValidationError,
)
from ..domain.event import Event, EventType, NewEvent
from ..domain.event_log import Committed, EventLog, EventQuery, SessionRecords, parse_types
from ..domain.identifiers import IdFactory
from ..domain.recovery import Recovery
from ..domain.run import RunResult
from ..domain.run_gate import OpenGate, RunGate
from ..domain.run_input import Message, parse_input
from ..domain.run_options import Busy, RunOptions, given_options
from ..domain.run_queue import RunQueue
from ..domain.session import DRAINED, Session, SessionState, SessionStatus, next_session_status
from ..domain.steering import SteerReceipt
from ..domain.tool import Toolbox, ToolOutcome
from .approvals import Approvals
from .attempts import Attempts
from .event_feed import PAGE_EVENTS, EventFeed
from .live_run import LiveRun, error_of, result_of
from .provider_set import ProviderSet
from .run_outcomes import Outcome, RunOutcomes
from .session_writer import SessionWriter
from .steering_desk import SteeringDesk, not_under_way
from .submissions import Submissions, new_among, run_ids_of
from .subscriptions import Subscriptions

INTERRUPTED = "interrupted"
WOUND_DOWN = "drained"


class NeedsOwnServer(Exception):
    """The session may not share its process, for a provider that starts others. Never leaves its server."""


class LiveSession:
    """Serves one session for as long as its epoch is the newest one."""

    def __init__(
        self,
        session: Session,
        *,
        epoch: int,
        last_seq: int,
        log: EventLog,
        providers: ProviderSet,
        max_input_bytes: int,
        approval_expires_s: float,
        tools: Toolbox,
        ids: IdFactory,
        now_us: Callable[[], int],
        on_lost: Callable[[], None],
        on_idle: Callable[[], None] = lambda: None,
        gate: RunGate | None = None,
        shared: bool = False,
    ) -> None:
        """`on_idle` is called when the last of its runs has ended. A `shared` one takes no runs of providers that need
        a process of their own."""
        self.session_id = session.id
        self.session = session
        self.status = session.status
        self.epoch = epoch
        self.queue = RunQueue(slots=session.max_concurrent_runs, capacity=session.max_queued_runs)
        self.queue.is_paused = session.is_paused
        self.feed = EventFeed(last_seq)
        self.providers = providers
        self.refuses_runs = False
        """Whether the whole runtime is draining."""
        self._log = log
        self._max_input_bytes = max_input_bytes
        self._on_lost = on_lost
        self._on_idle = on_idle
        self._shared = shared
        self._gate: RunGate = gate or OpenGate()
        self._loop = asyncio.get_running_loop()
        self._writer = SessionWriter(session.id, epoch, log=log, ids=ids, now_us=now_us, on_lost=self._lose)
        self._approvals = Approvals(self._writer, expires_s=approval_expires_s)
        self._attempts = Attempts(
            session, providers=providers, tools=tools, writer=self._writer, approvals=self._approvals, end=self._end
        )
        self._steering = SteeringDesk(providers, self._writer)
        self._subscriptions = Subscriptions(session.id, self.feed, log)
        self._runs: dict[str, LiveRun] = {}
        self._run_count = 0
        self._outcomes = RunOutcomes(session.id, log)
        self._submissions = Submissions(session, log)
        self._last_call: str | None = session.last_call_id
        """The call that changed the session's status last: it may come again."""
        self._draining = session.pause_reason == DRAINED
        self._closed = False
        self._end_seq: int | None = last_seq if session.status.is_terminal else None
        self._no_runs = asyncio.Event()
        self._no_runs.set()
        self._idle_since: float = self._loop.time()

    @property
    def idle_since(self) -> float | None:
        """Since when, on the loop's clock, the session has nothing to do; None while it has."""
        busy = self._runs or self._writer.under_way or self._closed
        return None if busy else self._idle_since

    # Taking over

    def remember_past(self, records: SessionRecords) -> None:
        """Keep what earlier owners answered, so that a call that comes again gets the same."""
        self._run_count = records.run_count
        self._submissions.keep_past(records.recent_calls)

    async def adopt(self, plans: Sequence[tuple[LiveRun, Recovery, GreenroomError | None]]) -> None:
        """Carry out what was decided for the open runs, in the order of the queue; durable when it returns."""
        if not plans:
            return
        events: list[NewEvent] = []
        endings: list[tuple[LiveRun, EventType, dict[str, Any], GreenroomError | None, int]] = []
        for run, fate, error in plans:
            self._runs[run.run_id] = run
            waiting = {approval.tool_call_id for approval in run.approvals if approval.decision is None}
            for call_id, started in run.open_tool_calls.items():
                how = ToolOutcome.CANCELLED if call_id in waiting else ToolOutcome.IN_DOUBT
                events.append(self._event(EventType.TOOL_CALL_FAILED, run, tool_call_abandoned(started, how)))
            run.open_tool_calls = {}
            self._approvals.adopt(run, run.approvals)
            if fate in (Recovery.WAIT, Recovery.RETRY, Recovery.RESUME):
                self.queue.enqueue([run.run_id])
            if fate in (Recovery.RETRY, Recovery.RESUME):
                run.attempt += 1
                run.queued_at_us = self._writer.now_us()
                data = {"reason": f"{fate.value} after crash"}
                events.append(self._event(EventType.RUN_QUEUED, run, data, at_us=run.queued_at_us))
            elif fate is not Recovery.WAIT:
                event_type, data = _ending_of(run, fate, error)
                run.ended = True
                events += self._approvals.close_run(run)
                events.append(self._event(event_type, run, data))
                endings.append((run, event_type, data, error, len(events) - 1))
        self._no_runs.clear()
        ended_at_us = self._writer.now_us()
        committed = self._append_and_start(events)
        if committed is None:  # nothing to say of runs that go on waiting
            return
        for run, event_type, data, error, offset in endings:
            committed.add_done_callback(partial(self._ended, run, event_type, data, error, ended_at_us, offset))
        await asyncio.shield(committed)

    # Taking runs

    async def submit_runs(
        self, inputs: Sequence[object], options: object, idempotency_keys: Sequence[str | None], call_id: str
    ) -> list[str]:
        """Queue runs, all or none; returns their ids once they are durable."""
        parsed = self._submissions.options(options)
        if self._submissions.answer(call_id) is None:
            await self._log.require_room()
            steers = parsed.busy is Busy.STEER
            await self._submissions.look_up(idempotency_keys, steering=steers)
            if steers:
                steered = await self._steer_instead(inputs, idempotency_keys, call_id)
                if steered is not None:
                    return steered
        # Nothing waits from here to the append: what came in during the lookups is seen.
        run_ids = self._submissions.answer(call_id)
        if run_ids is None:
            run_ids = self._take(inputs, parsed, idempotency_keys, call_id)
            self._submissions.keep_answer(call_id, run_ids)
        return await self._queued(run_ids)

    def _take(
        self, inputs: Sequence[object], options: RunOptions, keys: Sequence[str | None], call_id: str
    ) -> list[str]:
        """Queue what has no key or a new one; the run ids of all, a key that comes twice among them once."""
        known = self._submissions.known(keys)
        wanted = new_among(keys, known)
        added: list[LiveRun] = []
        if wanted:
            new = list(wanted.values())
            added = self._admit([inputs[index] for index in new], options)
            self._enqueue(added, [keys[index] for index in new], call_id)
        return run_ids_of(keys, known, wanted, added)

    def _admit(self, inputs: Sequence[object], options: RunOptions) -> list[LiveRun]:
        """Everything that can refuse a submit; changes nothing."""
        self._refuse_unless_open()
        provider = options.provider or self.session.provider
        self.providers.check(provider, options.provider_options, field="options.provider_options")
        if self._shared and not self.providers.runs_in_process(provider):
            raise NeedsOwnServer
        messages = [parse_input(given, max_bytes=self._max_input_bytes) for given in inputs]
        if options.busy is Busy.REJECT and not self.queue.has_free_slot:
            raise QueueFull(
                "No slot is free and busy='reject' was asked for; nothing was kept.",
                details={"in_flight": len(self.queue.running)},
            )
        self.queue.admit(len(messages) - self._interruptible(options, len(messages)))
        return [self._new_run(message, options, provider, index) for index, message in enumerate(messages, start=1)]

    def _interruptible(self, options: RunOptions, count: int) -> int:
        """How many runs have to go for so many new ones."""
        if options.busy is not Busy.INTERRUPT or self.queue.has_free_slot:
            return 0
        return min(count, len(self.queue.running))

    async def _steer_instead(
        self, inputs: Sequence[object], keys: Sequence[str | None], call_id: str
    ) -> list[str] | None:
        """Hand inputs that would have to wait to the run that has been under way longest; None if they need not."""
        self._refuse_unless_open()
        if self.queue.has_free_slot or not self.queue.running:
            return None
        messages = [parse_input(given, max_bytes=self._max_input_bytes) for given in inputs]
        known = self._submissions.known(keys)
        run_id = next(iter(self.queue.running))
        for place in new_among(keys, known).values():
            text = "\n\n".join(message.content for message in messages[place])
            await self._steer(run_id, text, f"{call_id}/{place}", keys[place])
            self._submissions.keep_key(keys[place], run_id)
        run_ids = [known.get(key, run_id) if key is not None else run_id for key in keys]
        self._submissions.keep_answer(call_id, run_ids)
        return run_ids

    def _refuse_unless_open(self) -> None:
        self._check_here()
        if self.status.is_terminal:
            raise InvalidOperation(
                f"The session is {self.status} and takes no more runs; open another one.",
                details={"session_id": self.session_id, "status": self.status.value},
            )
        if self._draining or self.refuses_runs:
            raise SessionDraining(details={"session_id": self.session_id})

    def _check_here(self) -> None:
        if self._closed:
            raise SessionMoved(details={"session_id": self.session_id})

    def _new_run(self, messages: tuple[Message, ...], options: RunOptions, provider: str, offset: int) -> LiveRun:
        return LiveRun(
            run_id=self._writer.ids.run_id(),
            session_id=self.session_id,
            number=self._run_count + offset,
            messages=messages,
            options=options,
            provider=provider,
            queued_at_us=self._writer.now_us(),
        )

    def _enqueue(self, runs: Sequence[LiveRun], keys: Sequence[str | None], call_id: str) -> None:
        events: list[NewEvent] = []
        for run, key in zip(runs, keys, strict=True):
            self._runs[run.run_id] = run
            metadata = {"call_id": call_id} if key is None else {"call_id": call_id, "idempotency_key": key}
            data = {"options": given_options(run.options), "message_count": len(run.messages)}
            events.append(self._event(EventType.RUN_QUEUED, run, data, metadata=metadata, at_us=run.queued_at_us))
            events += [
                self._event(EventType.MESSAGE_SENT, run, {"role": message.role.value, "content": message.content})
                for message in run.messages
            ]
            self._submissions.keep_key(key, run.run_id)
        self._run_count += len(runs)
        interrupted = list(self.queue.running)[: self._interruptible(runs[0].options, len(runs))]
        self.queue.enqueue(run.run_id for run in runs)
        self._no_runs.clear()
        committed = self._append_and_start(events)
        for run in runs:
            run.queued = committed
        for run_id in interrupted:
            self._cancel(self._runs[run_id], INTERRUPTED)

    async def _queued(self, run_ids: Sequence[str]) -> list[str]:
        """The ids, once all of them are durable."""
        for run_id in run_ids:
            run = self._runs.get(run_id)
            if run is not None and run.queued is not None and not run.queued.done():
                await self._log.acknowledged(self.session_id, run.queued)
        self._check_here()
        return list(run_ids)

    # Appending

    def _event(self, event_type: EventType, run: LiveRun | None, data: dict[str, Any], **more: Any) -> NewEvent:
        return self._writer.event(event_type, run, data, **more)

    def _append_and_start(self, events: list[NewEvent]) -> "asyncio.Future[Committed] | None":
        """Append these, and the start of every run that a slot is free for; those run once it is durable. None if there
        was nothing to append."""
        started = [self._runs[run_id] for run_id in self.queue.start_ready(self._may_start)]
        for run in started:
            run.started_at_us = self._writer.now_us()
            run.first_started_at_us = run.first_started_at_us or run.started_at_us
            events.append(
                self._event(EventType.RUN_STARTED, run, {"model": run.options.model}, at_us=run.started_at_us)
            )
        if not events:
            return None
        committed = self._writer.append(events)
        if started:
            committed.add_done_callback(partial(self._launch, started))
        return committed

    def _launch(self, runs: Sequence[LiveRun], committed: "asyncio.Future[Committed]") -> None:
        if not self._closed and not committed.cancelled() and committed.exception() is None:
            self._attempts.launch(runs)

    def _may_start(self, run_id: str) -> bool:
        """Whether the limits of the whole runtime let the run start now; if not, it is tried again when they may."""
        run = self._runs[run_id]
        return self._gate.admit(
            run_id, provider=run.provider, tenant=self.session.tenant, priority=run.options.priority, retry=self._retry
        )

    def _retry(self) -> None:
        if not self._closed:
            self._append_and_start([])

    def _lose(self) -> None:
        self.close()
        self._on_lost()

    # Ending runs

    def _end(
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
        events = self._end_events(run, event_type, data, metadata=metadata, tool_outcome=tool_outcome)
        ended_at_us = events[-1].timestamp_us
        offset = len(events) - 1
        committed = self._append_and_start(events)
        assert committed is not None, "there are events"
        committed.add_done_callback(partial(self._ended, run, event_type, data, error, ended_at_us, offset))
        return committed

    def _end_events(
        self,
        run: LiveRun,
        event_type: EventType,
        data: dict[str, Any],
        *,
        metadata: dict[str, Any] | None = None,
        tool_outcome: ToolOutcome = ToolOutcome.CANCELLED,
    ) -> list[NewEvent]:
        """Take the run off queue, clock and provider; the events that close it, the terminal one last."""
        run.ended = True
        self.queue.leave(run.run_id)
        self._gate.release(run.run_id)
        if run.deadline is not None:
            run.deadline.cancel()
        if run.task is not None and run.task is not asyncio.current_task():
            run.task.cancel()
        events = [
            self._event(EventType.TOOL_CALL_FAILED, run, tool_call_abandoned(started, tool_outcome))
            for started in run.open_tool_calls.values()
        ]
        events += self._approvals.close_run(run)
        events.append(self._event(event_type, run, data, metadata=metadata))
        return events

    def _ended(
        self,
        run: LiveRun,
        event_type: EventType,
        data: dict[str, Any],
        error: GreenroomError | None,
        ended_at_us: int,
        offset: int,
        committed: "asyncio.Future[Committed]",
    ) -> None:
        if committed.cancelled() or committed.exception() is not None:
            return
        last_seq = committed.result().first_seq + offset
        if event_type is EventType.RUN_COMPLETED:
            outcome: Outcome = result_of(run, data, ended_at_us=ended_at_us, last_seq=last_seq)
        else:
            outcome = error_of(run, event_type, data, error, last_seq=last_seq)
        del self._runs[run.run_id]
        self._outcomes.settle(run, outcome)
        if not self._runs:
            self._no_runs.set()
            self._idle_since = self._loop.time()
            self._on_idle()

    # Waiting for runs

    async def await_run(self, run_id: str, timeout_s: float | None = None) -> RunResult:
        """The result; raises the error that the run ended with. Timeout when the own wait is over."""
        self._check_here()
        run = self._runs.get(run_id)
        if run is None:
            outcome = await self._outcome(run_id)
            if isinstance(outcome, GreenroomError):
                raise outcome.with_traceback(None)  # it is kept: every await would add to its traceback
            return outcome
        return await self._outcomes.wait_for(run, timeout_s)

    async def _outcome(self, run_id: str) -> Outcome:
        self._check_here()
        outcome = await self._outcomes.of_ended(run_id)
        if outcome is None:  # it is open in the log and not here: another process has taken over
            self._lose()
            raise SessionMoved(details={"session_id": self.session_id})
        return outcome

    async def await_runs(self, run_ids: Sequence[str], timeout_s: float | None = None) -> list[Outcome]:
        """The outcomes of many runs, in the order of the ids, errors in place of results."""
        self._check_here()
        live = {run_id: self._runs[run_id] for run_id in run_ids if run_id in self._runs}
        outcomes = {run_id: await self._outcome(run_id) for run_id in run_ids if run_id not in live}
        if live:
            outcomes |= await self._outcomes.wait_for_all(list(live.values()), timeout_s)
            self._check_here()
        return [outcomes[run_id] for run_id in run_ids]

    # Stopping runs

    async def cancel_run(self, run_id: str, reason: str | None, call_id: str) -> bool:
        """Stop the run now. True if this call did it, False if it had ended."""
        return await self._stop(run_id, reason, call_id)

    async def interrupt_run(self, run_id: str, call_id: str) -> bool:
        """Stop the current turn and keep what was produced; the run ends cancelled, reason `interrupted`."""
        return await self._stop(run_id, INTERRUPTED, call_id)

    async def cancel_all(self, reason: str | None, call_id: str) -> list[str]:
        """Stop every run that has not ended; the ids of those that this call cancelled."""
        self._check_here()
        require_json_safe(reason, field="reason")
        run_ids = list(reversed(self._runs))  # the newest first: none of them is to start meanwhile
        stopped = await asyncio.gather(*(self._stop(run_id, reason, call_id) for run_id in run_ids))
        return [run_id for run_id, is_stopped in zip(run_ids, stopped, strict=True) if is_stopped]

    async def _stop(self, run_id: str, reason: str | None, call_id: str) -> bool:
        self._check_here()
        require_json_safe(reason, field="reason")
        run = self._runs.get(run_id)
        if run is None:
            return await self._was_ended_by(run_id, call_id)
        if run.ended:
            await self._outcomes.wait_for_all([run], None)
            self._check_here()
            return await self._was_ended_by(run_id, call_id)
        committed = self._cancel(run, reason, metadata={"call_id": call_id})
        if committed is not None:
            await asyncio.shield(committed)
        return True

    def _cancel(
        self, run: LiveRun, reason: str | None, *, metadata: dict[str, Any] | None = None
    ) -> "asyncio.Future[Committed] | None":
        data = run.stopped_data(reason=reason, stop_reason=reason)
        return self._end(run, EventType.RUN_CANCELLED, data, metadata=metadata)

    async def _was_ended_by(self, run_id: str, call_id: str) -> bool:
        """Whether this call has come before, maybe to an earlier owner, and ended the run. RunNotFound."""
        last_seq = await self._last_seq_of(run_id) or 0
        ending = await self._log.read(self.session_id, EventQuery(after=last_seq - 1, limit=1))
        return ending[0].metadata.get("call_id") == call_id

    # Steering runs and deciding for them

    async def steer_run(self, run_id: str, message: object, call_id: str) -> SteerReceipt:
        """Hand a message to a run that is under way. InvalidOperation for one that is not; CapabilityNotSupported."""
        self._check_here()
        if not isinstance(message, str) or not message:
            raise ValidationError("message must be text that says something.", details={"field": "message"})
        require_json_safe(message, field="message")
        return await self._steer(run_id, message, call_id, None)

    async def _steer(self, run_id: str, message: str, call_id: str, key: str | None) -> SteerReceipt:
        known = self._steering.receipt(call_id)
        if known is not None:
            return known
        run = self._runs.get(run_id)
        if run is None:
            await self._outcome(run_id)  # RunNotFound if there is none
            raise not_under_way(run_id)
        return await self._steering.steer(run, message, call_id, key)

    async def decide_approval(
        self, approval_id: str, decision: object, reason: str | None, call_id: str, by: object = BY_CALLER
    ) -> None:
        """Let a waiting tool call run, or not. NotFound; InvalidOperation when it was settled before."""
        self._check_here()
        require_json_safe(reason, field="reason")
        await self._approvals.decide(
            approval_id, parse_decision(decision), by=parse_decider(by), reason=reason, call_id=call_id
        )

    # The queue as a whole

    async def pause(self, call_id: str) -> None:
        """Start no more runs until `resume`; those under way go on. InvalidTransition if it is paused or has ended."""
        self._check_here()
        if call_id != self._last_call:
            await self._change_status(EventType.SESSION_PAUSED, {}, call_id, paused=True)

    async def resume(self, call_id: str) -> None:
        """Take runs off the queue again, and take new ones after a drain."""
        self._check_here()
        if call_id == self._last_call:
            return
        if self._draining and self.status is SessionState.ACTIVE:
            self._draining = False  # a drain that is not over yet is given up
            return
        await self._change_status(EventType.SESSION_RESUMED, {}, call_id, paused=False)

    async def _change_status(
        self, event_type: EventType, data: dict[str, Any], call_id: str | None, *, paused: bool
    ) -> None:
        self.status = next_session_status(self.status, event_type)
        self.queue.is_paused = paused
        self._draining = self._draining and paused
        self._last_call = call_id
        metadata = None if call_id is None else {"call_id": call_id}
        committed = self._append_and_start([self._event(event_type, None, data, metadata=metadata)])
        assert committed is not None, "there is an event"
        await asyncio.shield(committed)

    async def drain(self, timeout_s: float | None) -> bool:
        """Refuse new runs and wait for the rest. Timeout says how many are left. Lasts until `resume`."""
        self._check_here()
        self._draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._no_runs.wait()
        except TimeoutError:
            raise Timeout(
                f"{len(self._runs)} runs have not ended within {timeout_s} s; they go on, and no new ones are taken.",
                details={"left": len(self._runs)},
            ) from None
        self._check_here()
        if self._draining and self.status is SessionState.ACTIVE:
            await self._change_status(EventType.SESSION_PAUSED, {"reason": DRAINED}, None, paused=True)
        return True

    async def wind_down(self, timeout_s: float, *, finish_queue: bool) -> tuple[int, int]:
        """Get ready to leave: wait until no run is under way, and cancel at the deadline those that are.

        Without `finish_queue` no more runs start here. How many were cancelled, and how many are left in the queue.
        """
        self.queue.is_paused = self.queue.is_paused or not finish_queue
        awaited = self.queue.running if self.queue.is_paused else self._runs
        if awaited:
            with contextlib.suppress(Timeout):
                await self._outcomes.wait_for_all([self._runs[run_id] for run_id in awaited], timeout_s)
        self.queue.is_paused = True
        running = [self._runs[run_id] for run_id in self.queue.running]
        ends = [self._cancel(run, WOUND_DOWN) for run in running]
        await asyncio.gather(*(asyncio.shield(end) for end in ends if end is not None))
        return len(running), len(self.queue.waiting)

    # Ending the session

    async def complete(self, call_id: str) -> None:
        """End the session. InvalidOperation while runs are open."""
        if self._runs and call_id != self._last_call:
            raise InvalidOperation(
                f"{len(self._runs)} runs have not ended; drain the session first, or cancel it.",
                details={"left": len(self._runs)},
            )
        await self._end_session(EventType.SESSION_COMPLETED, {}, call_id)

    async def fail(self, error: Mapping[str, Any], call_id: str) -> None:
        """End the session as failed; its open runs are cancelled."""
        await self._end_session(EventType.SESSION_FAILED, dict(error), call_id)

    async def cancel(self, call_id: str) -> None:
        """End the session and cancel its open runs."""
        await self._end_session(EventType.SESSION_CANCELLED, {}, call_id)

    async def _end_session(self, event_type: EventType, data: dict[str, Any], call_id: str) -> None:
        self._check_here()
        if call_id == self._last_call:
            return
        require_json_safe(data, field="error")
        status = next_session_status(self.status, event_type)
        self.status = status
        reason = f"session {status}"
        events: list[NewEvent] = []
        ends: list[tuple[LiveRun, dict[str, Any], int, int]] = []
        for run in [run for run in self._runs.values() if not run.ended]:
            stopped = run.stopped_data(reason=reason, stop_reason=reason)
            events += self._end_events(run, EventType.RUN_CANCELLED, stopped)
            ends.append((run, stopped, events[-1].timestamp_us, len(events) - 1))
        events.append(self._event(event_type, None, data, metadata={"call_id": call_id}))
        self._last_call = call_id
        committed = self._writer.append(events)
        for run, stopped, ended_at_us, offset in ends:
            committed.add_done_callback(
                partial(self._ended, run, EventType.RUN_CANCELLED, stopped, None, ended_at_us, offset)
            )
        self._end_seq = (await asyncio.shield(committed)).first_seq + len(events) - 1
        self.feed.ring()

    # Looking

    def state(self) -> SessionStatus:
        """What the session is doing right now."""
        return SessionStatus(
            session_id=self.session_id,
            state=self.status,
            draining=self._draining or self.refuses_runs,
            epoch=self.epoch,
            queued=list(self.queue.waiting),
            in_flight=list(self.queue.running),
            max_concurrent_runs=self.queue.slots,
            max_queued_runs=self.queue.capacity,
            subscribers=self._subscriptions.count,
            pending_approvals=[approval.to_record() for approval in self._approvals.pending],
            processes=self._processes(),
            last_seq=self.feed.last_seq,
        )

    def _processes(self) -> list[dict[str, Any]]:
        return [
            {"run_id": run.run_id, **process}
            for run in self._runs.values()
            if run.task is not None
            for process in self.providers.get(run.provider).processes(run.run_id)
        ]

    async def subscribe(
        self, from_seq: int, run_id: str | None, types: Sequence[str] | str | None, follow: bool
    ) -> AsyncGenerator[list[Event]]:
        """Batches of all matching events past from_seq: what there is, then what comes, until the end."""
        query = EventQuery(after=from_seq, run_id=run_id, types=parse_types(types), limit=PAGE_EVENTS)
        if run_id is not None and run_id not in self._runs:
            await self._outcome(run_id)  # RunNotFound if there is none
        end_seq = partial(self._last_seq_of, run_id)
        async with aclosing(self._subscriptions.follow(query, follow=follow, end_seq=end_seq)) as batches:
            async for events in batches:
                yield events

    async def _last_seq_of(self, run_id: str | None) -> int | None:
        """The seq after which nothing more comes; None while that is open."""
        if run_id is None:
            return self._end_seq
        if run_id in self._runs:
            return None
        outcome = await self._outcome(run_id)
        return outcome.last_seq if isinstance(outcome, RunResult) else outcome.details["last_seq"]

    # Leaving

    def close(self) -> None:
        """Stop serving: nothing more is written, providers are stopped, whoever waits gets session_moved."""
        if self._closed:
            return
        self._closed = True
        moved = SessionMoved(details={"session_id": self.session_id})
        for run in self._runs.values():
            if run.deadline is not None:
                run.deadline.cancel()
            if run.task is not None and run.task is not asyncio.current_task():
                run.task.cancel()
            for waiter in run.waiters:
                if not waiter.done():
                    waiter.set_exception(moved)
            self._gate.release(run.run_id)
        self._no_runs.set()
        self._approvals.close()
        self.feed.close()
        self._writer.close()

    async def aclose(self) -> None:
        """`close`, and wait until providers are gone."""
        self.close()
        await self._attempts.settle()
        await self.providers.aclose()


def _ending_of(run: LiveRun, fate: Recovery, error: GreenroomError | None) -> tuple[EventType, dict[str, Any]]:
    if fate is Recovery.EXPIRE or error is None:
        return EventType.RUN_TIMEOUT, run.stopped_data(deadline_s=run.options.deadline_s)
    data = run.stopped_data(error=error.to_record(), error_code=error.code, error_message=error.message)
    return EventType.RUN_FAILED, data
