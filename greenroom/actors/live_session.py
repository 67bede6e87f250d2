"""A session while a process serves it: what callers ask of it. One asyncio object over ports, no Ray.

The rule that everything here follows: decide and append in one step without waiting, act when the append is durable.
Its runs, from the queue to their ends, are in open_runs.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

from ..adapters.json_safety import require_json_safe
from ..domain.approval import BY_CALLER, parse_decider, parse_decision
from ..domain.budget_scopes import scopes_of
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
from ..domain.event_log import EventLog, EventQuery, SessionRecords, parse_types
from ..domain.identifiers import IdFactory
from ..domain.policy import Policy, parse_policy, preflight
from ..domain.recovery import Recovery
from ..domain.run import RunResult
from ..domain.run_input import Message, parse_input
from ..domain.run_options import Busy, RunOptions
from ..domain.session import DRAINED, Session, SessionState, SessionStatus, next_session_status
from ..domain.steering import SteerReceipt
from ..domain.tool import Toolbox
from ..domain.transcript import TranscriptLimits
from .answered_calls import CallsOnce
from .approvals import Approvals
from .event_feed import PAGE_EVENTS, EventFeed
from .live_run import LiveRun
from .open_runs import LastWord, OpenRuns
from .past import SessionPast
from .placement import Placer, no_accounts
from .provider_set import ProviderSet
from .run_outcomes import Outcome, RunOutcomes
from .run_route import RunRoute
from .session_writer import SessionWriter
from .steering_desk import SteeringDesk, not_under_way
from .submissions import MAX_KEPT_CALLS, ParsedOptions, Submissions, new_among, run_ids_of
from .subscriptions import Subscriptions

if TYPE_CHECKING:
    from ..domain.run_gate import RunGate
    from .accounts import Accounts
    from .session_budget import SessionBudget

ROW_ENDINGS = {
    EventType.RUN_COMPLETED: EventType.SESSION_COMPLETED,
    EventType.RUN_CANCELLED: EventType.SESSION_CANCELLED,
    EventType.RUN_FAILED: EventType.SESSION_FAILED,
    EventType.RUN_TIMEOUT: EventType.SESSION_FAILED,
}
ERROR_KEYS = ("error_code", "error_message", "error")

INTERRUPTED = "interrupted"
WOUND_DOWN = "drained"


Plan = tuple[str, RunRoute, tuple[Policy, ...]]
"""The provider of a run (empty until a router has chosen), its way there, and its policies."""


def row_call_id(session_id: str) -> str:
    """The id of the call that submits the runs of a row of a batch: the same whoever makes it, so it is made once."""
    return f"row:{session_id}"


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
        gate: "RunGate | None" = None,
        accounts: "Callable[[], Accounts | None]" = no_accounts,
        scope_policies: Mapping[str, Mapping[str, Any]] | None = None,
        asks_before_start: bool = False,
        shared: bool = False,
        home: str | None = None,
        first_events: Sequence[NewEvent] = (),
    ) -> None:
        """`on_idle` is called when the last of its runs has ended. `home` is a directory of its own, for providers.
        `scope_policies` are those of tenants and projects, by the names of scopes. `asks_before_start`: a budget of the
        runtime may ask a person about a run that has not started. A `shared` one takes no runs of
        providers that need a process of their own. `first_events` say that it was created, and are not written yet."""
        self.session_id = session.id
        self.session = session
        self.status = session.status
        self.epoch = epoch
        self.feed = EventFeed(last_seq)
        self.providers = providers
        self.refuses_runs = False
        """Whether the whole runtime is draining."""
        self._log = log
        self._max_input_bytes = max_input_bytes
        self._on_lost = on_lost
        self.is_shared = shared
        self._writer = SessionWriter(
            session.id, epoch, log=log, ids=ids, now_us=now_us, on_lost=self._lose, first_events=first_events
        )
        self._approvals = Approvals(self._writer, expires_s=approval_expires_s)
        self._outcomes = RunOutcomes(session.id, log)
        self._past = SessionPast(session.id, log)
        self.asks_before_start = asks_before_start or session.budget is not None
        self._placer = Placer(session, providers=providers, accounts=accounts, writer=self._writer)
        self._scope_policies = _policies_of_scopes(session, scope_policies) if scope_policies else []
        row = session.row
        self._stops_at_failure = bool(row and row.get("stops_at_failure"))
        self._runs = OpenRuns(
            session,
            writer=self._writer,
            approvals=self._approvals,
            providers=providers,
            tools=tools,
            outcomes=self._outcomes,
            placer=self._placer,
            gate=gate,
            budget=_budget(session, log),
            on_idle=on_idle,
            home=home,
            past=self._past,
            last_word=self._last_word if row else None,
            stops_at_failure=self._stops_at_failure,
        )
        self.queue = self._runs.queue
        self._steering = SteeringDesk(providers, self._writer)
        self._subscriptions = Subscriptions(session.id, self.feed, log)
        self._run_count = 0
        self._submissions = Submissions(session, log, is_first=epoch == 1)
        self._calls = CallsOnce(MAX_KEPT_CALLS)
        self._last_call: str | None = session.last_call_id
        """The call that changed the session's status last, under whatever owner: it may come again."""
        self._draining = session.pause_reason == DRAINED
        self._closed = False
        self._end_seq: int | None = last_seq if session.status.is_terminal else None

    @property
    def idle_since(self) -> float | None:
        """Since when, on the loop's clock, the session has nothing to do; None while it has."""
        busy = self._runs or self._writer.under_way or self._closed
        return None if busy else self._runs.idle_since

    # Taking over

    def remember_past(self, records: SessionRecords) -> None:
        """Keep what earlier owners answered, so that a call that comes again gets the same."""
        self._run_count = records.run_count
        self._submissions.keep_past(records.recent_calls)

    async def adopt(self, plans: Sequence[tuple[LiveRun, Recovery, GreenroomError | None]]) -> None:
        """Carry out what was decided for the open runs, in the order of the queue; durable when it returns."""
        await self._runs.adopt(plans)

    # Taking runs

    async def submit_runs(
        self,
        inputs: Sequence[object],
        options: object,
        idempotency_keys: Sequence[str | None],
        call_id: str,
        *,
        acknowledged: bool = True,
    ) -> list[str]:
        """Queue runs, all or none; returns their ids once they are durable, or at once if not `acknowledged`."""
        parsed = self._submissions.options(options)
        if self._submissions.answer(call_id) is None:
            await self._log.require_room()
            steers = parsed.options.busy is Busy.STEER
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
        return await self._queued(run_ids) if acknowledged else run_ids

    def _take(
        self, inputs: Sequence[object], parsed: ParsedOptions, keys: Sequence[str | None], call_id: str
    ) -> list[str]:
        """Queue what has no key or a new one; the run ids of all, a key that comes twice among them once."""
        known = self._submissions.known(keys)
        wanted = new_among(keys, known)
        added: list[LiveRun] = []
        if wanted:
            new = list(wanted.values())
            added = self._admit([inputs[index] for index in new], parsed.options)
            self._enqueue(added, [keys[index] for index in new], call_id, given=parsed.given)
        return run_ids_of(keys, known, wanted, added)

    def _admit(self, inputs: Sequence[object], options: RunOptions) -> list[LiveRun]:
        """Everything that can refuse a submit; changes nothing."""
        self._refuse_unless_open()
        plan = self.plan(options)
        name = options.router or options.provider or self.session.provider
        if self.is_shared and not self.providers.runs_in_process(name):
            raise NeedsOwnServer
        messages = [parse_input(given, max_bytes=self._max_input_bytes) for given in inputs]
        if options.busy is Busy.REJECT and not self.queue.has_free_slot:
            raise QueueFull(
                "No slot is free and busy='reject' was asked for; nothing was kept.",
                details={"in_flight": len(self.queue.running)},
            )
        self._refuse_if_full(len(messages) - self._interruptible(options, len(messages)))
        plans = [plan, *(self.plan(options) for _ in messages[1:])]  # each run has a way of its own
        return [
            self._new_run(message, options, one, index)
            for index, (message, one) in enumerate(zip(messages, plans, strict=True), start=1)
        ]

    def _refuse_if_full(self, count: int) -> None:
        try:
            self.queue.admit(count)
        except QueueFull as exc:
            next_end_s = self._runs.next_end_s()
            if next_end_s is not None:
                exc.details["retry_after_s"] = next_end_s
            raise

    def plan(self, options: RunOptions) -> Plan:
        """The provider of a run with these options, its way there, and its policies. Everything that can be known to go
        wrong is refused: ValidationError, CapabilityNotSupported, MissingRequiredCapability, PolicyViolation."""
        provider, route = self._placer.plan(options)
        if not options.policies and not self._scope_policies:
            return provider, route, ()
        own = [parse_policy(given, field="options.policies") for given in options.policies]
        policies = (*self._scope_policies, *own)
        preflight(policies)
        return provider, route, policies

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
            steering = partial(self._steer, run_id, text, f"{call_id}/{place}", keys[place])
            await self._calls.do(f"{call_id}/{place}", steering)
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

    def _new_run(self, messages: tuple[Message, ...], options: RunOptions, plan: Plan, offset: int) -> LiveRun:
        provider, route, policies = plan
        return LiveRun(
            run_id=self._writer.ids.run_id(),
            session_id=self.session_id,
            number=self._run_count + offset,
            messages=messages,
            options=options,
            provider=provider,
            route=route,
            policies=policies,
            queued_at_us=self._writer.now_us(),
        )

    def _enqueue(
        self, runs: Sequence[LiveRun], keys: Sequence[str | None], call_id: str, *, given: dict[str, Any]
    ) -> None:
        """`given`: their options, as an event keeps them; those of one call have the same."""
        events: list[NewEvent] = []
        event = self._writer.event
        for run, key in zip(runs, keys, strict=True):
            metadata = {"call_id": call_id} if key is None else {"call_id": call_id, "idempotency_key": key}
            data: dict[str, Any] = {"options": given, "message_count": len(run.messages)}
            if run.route.negotiation is not None and run.route.is_degraded:
                data["negotiation"] = run.route.negotiation.to_dict()
            events.append(event(EventType.RUN_QUEUED, run, data, metadata=metadata, at_us=run.queued_at_us))
            events += [
                event(EventType.MESSAGE_SENT, run, {"role": message.role.value, "content": message.content})
                for message in run.messages
            ]
            self._submissions.keep_key(key, run.run_id)
        self._run_count += len(runs)
        interrupted = self._runs.running[: self._interruptible(runs[0].options, len(runs))]
        self._runs.enqueue(runs, events)
        for run in interrupted:
            self._runs.cancel(run, INTERRUPTED)

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

    def _lose(self) -> None:
        self.close()
        self._on_lost()

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
        run_ids = [run.run_id for run in reversed(list(self._runs))]  # the newest first: none is to start meanwhile
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
        committed = self._runs.cancel(run, reason, metadata={"call_id": call_id})
        if committed is not None:
            await asyncio.shield(committed)
        return True

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
        return await self._calls.do(call_id, lambda: self._steer(run_id, message, call_id, None))

    async def _steer(self, run_id: str, message: str, call_id: str, key: str | None) -> SteerReceipt:
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
            await self._calls.do(
                call_id, lambda: self._change_status(EventType.SESSION_PAUSED, {}, call_id, paused=True)
            )

    async def resume(self, call_id: str) -> None:
        """Take runs off the queue again, and take new ones after a drain."""
        self._check_here()
        if call_id == self._last_call:
            return
        if self._draining and self.status is SessionState.ACTIVE:
            self._draining = False  # a drain that is not over yet is given up
            return
        await self._calls.do(call_id, lambda: self._change_status(EventType.SESSION_RESUMED, {}, call_id, paused=False))

    async def _change_status(
        self, event_type: EventType, data: dict[str, Any], call_id: str | None, *, paused: bool
    ) -> None:
        self.status = next_session_status(self.status, event_type)
        self.queue.is_paused = paused
        self._draining = self._draining and paused
        metadata = None if call_id is None else {"call_id": call_id}
        committed = self._runs.append_and_start([self._event(event_type, None, data, metadata=metadata)])
        assert committed is not None, "there is an event"
        await asyncio.shield(committed)
        self._last_call = call_id

    async def drain(self, timeout_s: float | None) -> bool:
        """Refuse new runs and wait for the rest. Timeout says how many are left. Lasts until `resume`."""
        self._check_here()
        self._draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._runs.none_left()
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
        awaited = self._runs.running if self.queue.is_paused else list(self._runs)
        if awaited:
            with contextlib.suppress(Timeout):
                await self._outcomes.wait_for_all(awaited, timeout_s)
        self.queue.is_paused = True
        running = self._runs.running
        ends = [self._runs.cancel(run, WOUND_DOWN) for run in running]
        await asyncio.gather(*(asyncio.shield(end) for end in ends if end is not None))
        return len(running), len(self.queue.waiting)

    # Ending the session

    async def complete(self, call_id: str) -> None:
        """End the session. InvalidOperation while runs are open."""
        if self._runs and call_id not in self._calls and call_id != self._last_call:
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
        if call_id != self._last_call:
            await self._calls.do(call_id, lambda: self._end(event_type, data, call_id))

    async def _end(self, event_type: EventType, data: dict[str, Any], call_id: str) -> None:
        require_json_safe(data, field="error")
        status = next_session_status(self.status, event_type)
        self.status = status
        self._end_seq = await self._runs.cancel_all_with(
            f"session {status}", lambda: self._event(event_type, None, data, metadata={"call_id": call_id})
        )
        self._last_call = call_id
        self.feed.ring()

    def _last_word(self, run_ending: EventType, data: Mapping[str, Any]) -> LastWord | None:
        """How the session of a row ends: with its last run, and as that did if the others were on the way there."""
        if self.status.is_terminal or self._closed:
            return None
        as_run = self._stops_at_failure
        event_type = ROW_ENDINGS[run_ending] if as_run else EventType.SESSION_COMPLETED
        error = {name: data[name] for name in ERROR_KEYS if name in data}
        call_id = row_call_id(self.session_id)
        self.status = next_session_status(self.status, event_type)
        self._last_call = call_id
        event = self._event(
            event_type,
            None,
            error if event_type is EventType.SESSION_FAILED else {},
            metadata={"call_id": call_id},
        )
        return LastWord(event, self._was_ended_at)

    def _was_ended_at(self, seq: int) -> None:
        self._end_seq = seq
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
            waiting={run.run_id: waits for run in self._runs if (waits := run.route.shown_wait()) is not None},
        )

    def _processes(self) -> list[dict[str, Any]]:
        return [
            {"run_id": run.run_id, **process}
            for run in self._runs
            if run.task is not None and run.is_placed
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

    async def transcript(self, max_messages: int | None, max_tokens: int | None) -> list[dict[str, Any]]:
        """What was said in the session so far, the newest of it within the limits (and never more than 10,000 messages
        or 4,000,000 characters), oldest first.

        ValidationError for a limit below 1. Each message: role, content, tool_call_id, tool_name, tool_input,
        tool_output, metadata.
        """
        self._check_here()
        limits = TranscriptLimits(max_messages=max_messages, max_tokens=max_tokens)
        return [message.to_dict() for message in (await self._past.transcript()).messages(limits)]

    # Leaving

    def close(self) -> None:
        """Stop serving: nothing more is written, providers are stopped, whoever waits gets session_moved."""
        if self._closed:
            return
        self._closed = True
        self._runs.close()
        self._approvals.close()
        self.feed.close()
        self._writer.close()

    @property
    def lingers(self) -> bool:
        """Whether there is something to wait for with `aclose` after `close`."""
        return self._runs.under_way or not self.providers.are_shared

    async def aclose(self) -> None:
        """`close`, and wait until providers are gone."""
        self.close()
        await self._runs.given_up()
        await self.providers.aclose()


def _policies_of_scopes(session: Session, scope_policies: Mapping[str, Mapping[str, Any]]) -> list[Policy]:
    return [
        parse_policy(scope_policies[scope], field=f"limits of {scope}")
        for scope in scopes_of(session.tenant, session.project)
        if scope in scope_policies
    ]


def _budget(session: Session, log: EventLog) -> "SessionBudget | None":
    if session.budget is None:
        return None
    from ..domain.budget import BudgetOptions  # noqa: PLC0415  most sessions have none
    from .session_budget import SessionBudget  # noqa: PLC0415

    return SessionBudget(session.id, BudgetOptions.from_record(session.budget), log)
