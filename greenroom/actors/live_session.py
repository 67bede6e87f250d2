"""A session while a process serves it: queue, slots, runs, their ends. One asyncio object over ports, no Ray.

The rule that everything here follows: decide and append in one step without waiting, act when the append is durable.
A run starts at its provider only after its run_started is committed, so that after a crash the log tells exactly which
runs may have done something; and because the end of one run and the start of the next are one append, this costs a
session no extra commit.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ..adapters.logs import get_logger
from ..adapters.option_parsing import require_json_safe
from ..adapters.providers.tool_calls import tool_call_abandoned
from ..adapters.run_option_parsing import parse_run_options
from ..domain.errors import (
    GreenroomError,
    InternalError,
    InvalidCursor,
    InvalidOperation,
    ProviderError,
    QueueFull,
    SessionDraining,
    SessionMoved,
    Timeout,
    ValidationError,
)
from ..domain.event import Event, EventType, NewEvent
from ..domain.event_log import Committed, EventLog, EventQuery, SessionRecords, parse_types
from ..domain.identifiers import IdFactory
from ..domain.provider import ProviderEvent, ProviderOutcome, ProviderRequest
from ..domain.recovery import Recovery
from ..domain.run import RunResult
from ..domain.run_input import Message, parse_input
from ..domain.run_options import Busy, RunOptions, given_options
from ..domain.run_queue import RunQueue
from ..domain.session import Session, SessionStatus, next_session_status
from ..domain.tool import Toolbox, ToolOutcome
from .answered_calls import AnsweredCalls
from .event_feed import PAGE_EVENTS, EventFeed
from .event_following import follow_events
from .live_run import LiveRun, error_of, result_of
from .provider_attempt import completed_data, consume, storable_error
from .provider_set import ProviderSet
from .run_outcomes import Outcome, RunOutcomes

_log = get_logger(__name__)

MAX_KEPT_CALLS = 10_000
"""Newest mutating calls whose answer is repeated when they come again."""

MAX_KEPT_OPTIONS = 64
"""Different run options that are kept parsed."""

MAX_SUBSCRIBERS = 1_000
"""Subscriptions at once; one more is refused with queue_full."""


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
        tools: Toolbox,
        ids: IdFactory,
        now_us: Callable[[], int],
        on_lost: Callable[[], None],
    ) -> None:
        self.session_id = session.id
        self.session = session
        self.status = session.status
        self.epoch = epoch
        self.queue = RunQueue(slots=session.max_concurrent_runs, capacity=session.max_queued_runs)
        self.feed = EventFeed(last_seq)
        self.providers = providers
        self._log = log
        self._max_input_bytes = max_input_bytes
        self._tools = tools
        self._ids = ids
        self._now_us = now_us
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._runs: dict[str, LiveRun] = {}
        self._run_count = 0
        self._outcomes = RunOutcomes(session.id, log)
        self._submits: AnsweredCalls[list[str]] = AnsweredCalls(MAX_KEPT_CALLS)
        self._keys: AnsweredCalls[str] = AnsweredCalls(MAX_KEPT_CALLS)
        self._options: AnsweredCalls[RunOptions] = AnsweredCalls(MAX_KEPT_OPTIONS)
        self._end_call: str | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False
        self._closed = False
        self._end_seq: int | None = None
        self._subscribers = 0
        self._idle = asyncio.Event()
        self._idle.set()

    # Taking over

    def remember_past(self, records: SessionRecords) -> None:
        """Keep what earlier owners answered, so that a call that comes again gets the same."""
        self._run_count = records.run_count
        for call_id, run_id in records.recent_calls:
            self._submits.keep(call_id, [*(self._submits.get(call_id) or ()), run_id])

    def remember_end(self, last: Event) -> None:
        """The session has ended with this event."""
        self._end_seq = last.seq
        self._end_call = last.metadata.get("call_id")

    async def adopt(self, plans: Sequence[tuple[LiveRun, Recovery, GreenroomError | None]]) -> None:
        """Carry out what was decided for the open runs, in the order of the queue; durable when it returns."""
        if not plans:
            return
        events: list[NewEvent] = []
        endings: list[tuple[LiveRun, EventType, dict[str, Any], GreenroomError | None, int]] = []
        for run, fate, error in plans:
            self._runs[run.run_id] = run
            for started in run.open_tool_calls.values():
                data = tool_call_abandoned(started, ToolOutcome.IN_DOUBT)
                events.append(self._event(EventType.TOOL_CALL_FAILED, run, data))
            run.open_tool_calls = {}
            if fate in (Recovery.WAIT, Recovery.RETRY):
                self.queue.enqueue([run.run_id])
            if fate is Recovery.RETRY:
                run.attempt += 1
                run.queued_at_us = self._now_us()
                data = {"reason": "retry after crash"}
                events.append(self._event(EventType.RUN_QUEUED, run, data, at_us=run.queued_at_us))
            elif fate is not Recovery.WAIT:
                event_type, data = _ending_of(run, fate, error)
                run.ended = True
                events.append(self._event(event_type, run, data))
                endings.append((run, event_type, data, error, len(events) - 1))
        self._idle.clear()
        ended_at_us = self._now_us()
        committed = self._append_and_start(events)
        for run, event_type, data, error, offset in endings:
            committed.add_done_callback(partial(self._ended, run, event_type, data, error, ended_at_us, offset))
        await asyncio.shield(committed)

    # Taking runs

    async def submit_runs(
        self, inputs: Sequence[object], options: object, idempotency_keys: Sequence[str | None], call_id: str
    ) -> list[str]:
        """Queue runs, all or none; returns their ids once they are durable."""
        known: dict[str, str] = {}
        if call_id not in self._submits:
            await self._log.require_room()
            for key in idempotency_keys:
                stored = await self._find_key(key)
                if key is not None and stored is not None:
                    known[key] = stored
        # Nothing waits from here to the append: what came in during the lookups is seen.
        run_ids = self._submits.get(call_id)
        if run_ids is None:
            run_ids = self._take(inputs, options, idempotency_keys, known, call_id)
            self._submits.keep(call_id, run_ids)
        return await self._queued(run_ids)

    def _take(
        self,
        inputs: Sequence[object],
        options: object,
        keys: Sequence[str | None],
        known: dict[str, str],
        call_id: str,
    ) -> list[str]:
        """Queue what has no key or a new one; the run ids of all, a key that comes twice among them once."""
        known |= {key: self._keys[key] for key in keys if key is not None and key in self._keys}
        wanted: dict[str | int, int] = {}  # a key, or the place of what has none, and where its input is
        for index, key in enumerate(keys):
            if key not in known:
                wanted.setdefault(index if key is None else key, index)
        new = list(wanted.values())
        if new:
            added = self._admit([inputs[index] for index in new], options)
            self._enqueue(added, [keys[index] for index in new], call_id)
            taken = dict(zip(wanted, (run.run_id for run in added), strict=True))
        else:
            taken = {}
        return [known[key] if key in known else taken[index if key is None else key] for index, key in enumerate(keys)]

    async def _find_key(self, key: object) -> str | None:
        if key is None:
            return None
        if not isinstance(key, str) or not key:
            raise ValidationError("idempotency_key must be text.", details={"field": "idempotency_key"})
        require_json_safe(key, field="idempotency_key")
        if key not in self._keys:
            stored = await self._log.find_run_by_key(self.session_id, key)
            if stored is not None:
                self._keys.keep(key, stored)
        return self._keys.get(key)

    def _admit(self, inputs: Sequence[object], options: object) -> list[LiveRun]:
        """Everything that can refuse a submit; changes nothing."""
        self._refuse_unless_open()
        parsed = self._parsed_options(options)
        provider = parsed.provider or self.session.provider
        self.providers.check(provider, parsed.provider_options, field="options.provider_options")
        messages = [parse_input(given, max_bytes=self._max_input_bytes) for given in inputs]
        if parsed.busy is Busy.REJECT and not self.queue.has_free_slot:
            raise QueueFull(
                "No slot is free and busy='reject' was asked for; nothing was kept.",
                details={"in_flight": len(self.queue.running)},
            )
        self.queue.admit(len(messages))
        return [self._new_run(message, parsed, provider, index) for index, message in enumerate(messages, start=1)]

    def _parsed_options(self, given: object) -> RunOptions:
        """The run's options; the same object for the same options, since parsing them costs as much as a short run."""
        try:
            key = json.dumps(given, sort_keys=True)
        except (TypeError, ValueError, RecursionError):  # a RunOptions, or what parsing will refuse
            return parse_run_options(self.session.run_defaults, given)  # pyright: ignore[reportArgumentType]  checked there
        parsed = self._options.get(key)
        if parsed is None:
            parsed = parse_run_options(self.session.run_defaults, given)  # pyright: ignore[reportArgumentType]  checked there
            self._options.keep(key, parsed)
        return parsed

    def _refuse_unless_open(self) -> None:
        self._check_here()
        if self.status.is_terminal:
            raise InvalidOperation(
                f"The session is {self.status} and takes no more runs; open another one.",
                details={"session_id": self.session_id, "status": self.status.value},
            )
        if self._draining:
            raise SessionDraining(details={"session_id": self.session_id})

    def _check_here(self) -> None:
        if self._closed:
            raise SessionMoved(details={"session_id": self.session_id})

    def _new_run(self, messages: tuple[Message, ...], options: RunOptions, provider: str, offset: int) -> LiveRun:
        return LiveRun(
            run_id=self._ids.run_id(),
            session_id=self.session_id,
            number=self._run_count + offset,
            messages=messages,
            options=options,
            provider=provider,
            queued_at_us=self._now_us(),
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
            if key is not None:
                self._keys.keep(key, run.run_id)
        self._run_count += len(runs)
        self.queue.enqueue(run.run_id for run in runs)
        self._idle.clear()
        committed = self._append_and_start(events)
        for run in runs:
            run.queued = committed

    async def _queued(self, run_ids: Sequence[str]) -> list[str]:
        """The ids, once all of them are durable."""
        for run_id in run_ids:
            run = self._runs.get(run_id)
            if run is not None and run.queued is not None and not run.queued.done():
                await self._log.acknowledged(self.session_id, run.queued)
        self._check_here()
        return list(run_ids)

    # Appending

    def _event(
        self,
        event_type: EventType,
        run: LiveRun | None,
        data: dict[str, Any],
        *,
        metadata: dict[str, Any] | None = None,
        at_us: int | None = None,
    ) -> NewEvent:
        return NewEvent(
            self._ids.event_id(),
            event_type,
            at_us or self._now_us(),
            run.run_id if run else None,
            run.attempt if run else None,
            run.provider if run else None,
            data,
            metadata or {},
        )

    def _append(self, events: Sequence[NewEvent]) -> "asyncio.Future[Committed]":
        committed = self._log.append(self.session_id, self.epoch, events)
        committed.add_done_callback(self._check_written)
        return committed

    def _append_and_start(self, events: list[NewEvent]) -> "asyncio.Future[Committed]":
        """Append these, and the start of every run that a slot is free for; those run once it is durable."""
        started = [self._runs[run_id] for run_id in self.queue.start_ready()]
        for run in started:
            run.started_at_us = self._now_us()
            run.first_started_at_us = run.first_started_at_us or run.started_at_us
            events.append(
                self._event(EventType.RUN_STARTED, run, {"model": run.options.model}, at_us=run.started_at_us)
            )
        committed = self._append(events)
        if started:
            committed.add_done_callback(partial(self._launch, started))
        return committed

    def _check_written(self, committed: "asyncio.Future[Committed]") -> None:
        error = None if committed.cancelled() else committed.exception()
        if error is not None and not self._closed:
            _log.warning("session_lost", session_id=self.session_id, epoch=self.epoch, error=str(error))
            self.close()
            self._on_lost()

    # Running

    def _launch(self, runs: Sequence[LiveRun], committed: "asyncio.Future[Committed]") -> None:
        if self._closed or committed.cancelled() or committed.exception() is not None:
            return
        for run in runs:
            if run.ended:
                continue
            run.deadline = self._loop.call_later(max(0.0, run.remaining_s(self._now_us())), self._pass_deadline, run)
            run.task = self._loop.create_task(self._execute(run))
            self._tasks.add(run.task)
            run.task.add_done_callback(self._tasks.discard)

    async def _execute(self, run: LiveRun) -> None:
        try:
            outcome = await self._consume(run)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self._fail(run, ProviderError(f"Provider {run.provider!r} was cancelled, and not by the session."))
        except GreenroomError as exc:
            self._fail(run, exc)
        except Exception as exc:  # noqa: BLE001  recorded: the run ends with it
            _log.exception("provider_raised", session_id=self.session_id, run_id=run.run_id, provider=run.provider)
            self._fail(run, InternalError(f"Provider {run.provider!r} raised {type(exc).__name__}."))
        else:
            self._complete(run, outcome)

    async def _consume(self, run: LiveRun) -> ProviderOutcome:
        provider = self.providers.get(run.provider)
        request = ProviderRequest(
            session_id=self.session_id,
            run_id=run.run_id,
            attempt=run.attempt,
            run_number=run.number,
            messages=run.messages,
            system_prompt=self.session.context.get("system_prompt"),
            model=run.options.model,
            max_turns=run.options.max_turns,
            options=self.providers.options(run.provider, run.options.provider_options),
            tools=self._tools,
        )
        return await consume(provider, request, run, record=partial(self._record, run), room=self._log.room)

    def _record(self, run: LiveRun, event: ProviderEvent) -> None:
        new = self._event(event.type, run, event.data, metadata=event.metadata, at_us=event.timestamp_us)
        self._log.record(self.session_id, self.epoch, (new,))
        run.observe(event)  # after: what cannot be stored must not come back in the run's last events

    def _complete(self, run: LiveRun, outcome: ProviderOutcome) -> None:
        try:
            data = completed_data(run, outcome)
        except ProviderError as exc:
            self._fail(run, exc)
        else:
            self._end(run, EventType.RUN_COMPLETED, data, metadata=outcome.metadata)

    def _fail(self, run: LiveRun, raised: GreenroomError) -> None:
        error = storable_error(raised)
        data = run.stopped_data(error=error.to_record(), error_code=error.code, error_message=error.message)
        self._end(run, EventType.RUN_FAILED, data, error=error)

    def _pass_deadline(self, run: LiveRun) -> None:
        self._end(run, EventType.RUN_TIMEOUT, run.stopped_data(deadline_s=run.options.deadline_s))

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
        if run.deadline is not None:
            run.deadline.cancel()
        if run.task is not None and run.task is not asyncio.current_task():
            run.task.cancel()
        events = [
            self._event(EventType.TOOL_CALL_FAILED, run, tool_call_abandoned(started, tool_outcome))
            for started in run.open_tool_calls.values()
        ]
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
            self._idle.set()

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
            self.close()
            self._on_lost()
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
        return await self._stop(run_id, "interrupted", call_id)

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
        committed = self._end(
            run,
            EventType.RUN_CANCELLED,
            run.stopped_data(reason=reason, stop_reason=reason),
            metadata={"call_id": call_id},
        )
        if committed is not None:
            await asyncio.shield(committed)
        return True

    async def _was_ended_by(self, run_id: str, call_id: str) -> bool:
        """Whether this call has come before, maybe to an earlier owner, and ended the run. RunNotFound."""
        last_seq = await self._last_seq_of(run_id) or 0
        ending = await self._log.read(self.session_id, EventQuery(after=last_seq - 1, limit=1))
        return ending[0].metadata.get("call_id") == call_id

    # Ending the session

    async def drain(self, timeout_s: float | None) -> bool:
        """Refuse new runs and wait for the rest. Timeout says how many are left."""
        self._check_here()
        self._draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            raise Timeout(
                f"{len(self._runs)} runs have not ended within {timeout_s} s; they go on, and no new ones are taken.",
                details={"left": len(self._runs)},
            ) from None
        self._check_here()
        return True

    async def complete(self, call_id: str) -> None:
        """End the session. InvalidOperation while runs are open."""
        if self._runs and call_id != self._end_call:
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
        if call_id == self._end_call:
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
        self._end_call = call_id
        committed = self._append(events)
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
            draining=self._draining,
            epoch=self.epoch,
            queued=list(self.queue.waiting),
            in_flight=list(self.queue.running),
            max_concurrent_runs=self.queue.slots,
            max_queued_runs=self.queue.capacity,
            subscribers=self._subscribers,
            pending_approvals=[],
            last_seq=self.feed.last_seq,
        )

    async def read_events(self, query: EventQuery, *, wait_s: float) -> list[Event]:
        """One page of events."""
        return await self._log.read(self.session_id, query, wait_s=wait_s)

    async def subscribe(
        self, from_seq: int, run_id: str | None, types: Sequence[str] | str | None, follow: bool
    ) -> AsyncGenerator[list[Event]]:
        """Batches of all matching events past from_seq: what there is, then what comes, until the end."""
        query = EventQuery(after=from_seq, run_id=run_id, types=parse_types(types), limit=PAGE_EVENTS)
        if from_seq > self.feed.last_seq:
            raise InvalidCursor(
                f"from_seq is {from_seq}, but the log ends at seq {self.feed.last_seq}.",
                details={"field": "from_seq", "last_seq": self.feed.last_seq},
            )
        if run_id is not None and run_id not in self._runs:
            await self._outcome(run_id)
        if self._subscribers >= MAX_SUBSCRIBERS:
            raise QueueFull(f"The session has {self._subscribers} subscribers already.")
        self._subscribers += 1
        try:
            stop_at = self.feed.last_seq

            async def end_seq() -> int | None:
                return await self._last_seq_of(run_id) if follow else stop_at

            async for events in follow_events(self.session_id, query, feed=self.feed, log=self._log, end_seq=end_seq):
                yield events
        finally:
            self._subscribers -= 1

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
        self._idle.set()
        self.feed.close()
        self._log.release(self.session_id, self.epoch)

    async def aclose(self) -> None:
        """`close`, and wait until providers are gone."""
        self.close()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.providers.aclose()


def _ending_of(run: LiveRun, fate: Recovery, error: GreenroomError | None) -> tuple[EventType, dict[str, Any]]:
    if fate is Recovery.EXPIRE or error is None:
        return EventType.RUN_TIMEOUT, run.stopped_data(deadline_s=run.options.deadline_s)
    data = run.stopped_data(error=error.to_record(), error_code=error.code, error_message=error.message)
    return EventType.RUN_FAILED, data
