"""The attempts that a live session has under way: carried out at their providers, recorded, brought to their end."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from ..adapters.logs import get_logger
from ..adapters.providers.tool_calls import tool_call_abandoned
from ..domain.errors import (
    Cancelled,
    GreenroomError,
    InternalError,
    PolicyViolation,
    ProviderError,
    ProviderInvalidRequest,
    ProviderUnavailable,
)
from ..domain.event import EventType
from ..domain.policy import Metric, Verdict, binding, tightest
from ..domain.provider import ProviderEvent, ProviderOutcome, ProviderRequest
from ..domain.record_projection import CONVERSATION
from ..domain.run_options import Continuation, OnCrash
from ..domain.session import Session
from ..domain.token_usage import TokenUsage
from ..domain.tool import Toolbox, ToolOutcome
from ..domain.transcript import TranscriptLimits, TranscriptMessage
from .approvals import Approvals
from .guarded_tools import GuardedTools
from .live_run import LiveRun
from .past import SessionPast
from .placement import SUCCEEDED, Placer
from .provider_attempt import completed_data, consume, storable_error
from .provider_set import ProviderSet
from .run_history import past_calls_of, run_history
from .run_starts import start_events
from .session_writer import SessionWriter

if TYPE_CHECKING:
    from ..domain.failover import Fault, NextStep
    from .run_limits import RunLimits

_log = get_logger(__name__)

_CONTINUING = (Continuation.NATIVE, Continuation.AUTO)


class EndRun(Protocol):
    """How a run is ended: nothing happens to one that has its end already."""

    def __call__(
        self,
        run: LiveRun,
        event_type: EventType,
        data: dict[str, Any],
        *,
        error: GreenroomError | None = None,
        metadata: dict[str, Any] | None = None,
        tool_outcome: ToolOutcome = ToolOutcome.CANCELLED,
    ) -> object: ...


class Attempts:
    """Belongs to one live session. Each run ends through `end`: by outcome, failure, a policy or its deadline."""

    def __init__(
        self,
        session: Session,
        *,
        providers: ProviderSet,
        tools: Toolbox,
        writer: SessionWriter,
        approvals: Approvals,
        end: EndRun,
        placer: Placer,
        placed: Callable[[LiveRun], None],
        home: str | None,
        past: SessionPast,
    ) -> None:
        self._session = session
        self._providers = providers
        self._tools = tools
        self._writer = writer
        self._approvals = approvals
        self._end = end
        self._placer = placer
        self._placed = placed
        self._home = home
        self._past = past
        self._conversations = dict(session.conversations)
        """By provider: the newest that it had in this session."""
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    def launch(self, runs: Sequence[LiveRun]) -> None:
        """Begin at the providers; the starts are durable."""
        for run in runs:
            if run.ended:
                continue
            if run.deadline is None:
                self.set_deadline(run)
            if any(policy.limits for policy in run.policies):
                run.limits = self._limits_of(run)
                now_us = self._writer.now_us()
                run.limits.start((now_us - (run.first_started_at_us or now_us)) / 1_000_000)
            run.task = self._loop.create_task(self._execute(run))
            self._tasks.add(run.task)
            run.task.add_done_callback(self._tasks.discard)

    def _limits_of(self, run: LiveRun) -> "RunLimits":
        from .run_limits import RunLimits  # noqa: PLC0415  most runs have none

        return RunLimits(run, approvals=self._approvals, report=self._report_limit, stop=self._stop_for_violation)

    def set_deadline(self, run: LiveRun) -> None:
        """Its clock goes from here on, whatever it does."""
        left_s = max(0.0, run.remaining_s(self._writer.now_us()))
        run.deadline = self._loop.call_later(left_s, self._pass_deadline, run)

    def keep_conversation(self, provider: str, handle: dict[str, str]) -> None:
        """A run of the provider has ended with this conversation: a later one may go on with it."""
        self._conversations[provider] = handle

    @property
    def under_way(self) -> bool:
        """Whether something that was begun is not over."""
        return bool(self._tasks)

    def close(self) -> None:
        """End runs no more: whoever is told of it does not listen, and is not to be kept in memory by this."""
        self._end = _ended_elsewhere

    async def settle(self) -> None:
        """Wait until everything that was begun is over. Whoever calls this has cancelled it; to do so again would cut
        short what it does to clean up."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _execute(self, run: LiveRun) -> None:
        """Attempts, until one has ended the run."""
        try:
            while not await self._attempt(run):
                pass
        except Exception:  # noqa: BLE001  recorded: no run is left hanging between two attempts
            _log.exception("attempt_raised", session_id=self._session.id, run_id=run.run_id)
            self._fail(run, InternalError("The next attempt of the run could not be begun."))
        finally:
            self._placer.settle(run)

    async def _attempt(self, run: LiveRun) -> bool:
        """One attempt; whether the run has its end with it."""
        try:
            outcome = await self._consume(run)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self._fail(run, ProviderError(f"Provider {run.provider!r} was cancelled, and not by the session."))
        except Cancelled as exc:
            data = run.stopped_data(reason=storable_error(exc).message, stop_reason="cancelled")
            self._end(run, EventType.RUN_CANCELLED, data)
        except GreenroomError as exc:
            return await self._after_failure(run, exc)
        except Exception as exc:  # noqa: BLE001  recorded: the run ends with it
            _log.exception("provider_raised", session_id=self._session.id, run_id=run.run_id, provider=run.provider)
            self._fail(run, InternalError(f"Provider {run.provider!r} raised {type(exc).__name__}."))
        else:
            self._complete(run, outcome)
        return True

    # Failures of providers

    async def _after_failure(self, run: LiveRun, error: GreenroomError) -> bool:
        """Tell the account; then begin the next attempt if there is to be one, or end the run."""
        if run.ended:
            return True
        from ..domain.failover import ENDS, Recourse, fault_of, retry_after_of  # noqa: PLC0415  most attempts succeed

        fault = fault_of(error)
        self._placer.settle(run, ENDS[fault], retry_after_s=retry_after_of(error))
        step = self._next_step(run, fault, retry_after_of(error))
        if step.recourse is Recourse.FAIL:
            self._fail(run, error)
            return True
        await self._queue_again(run, storable_error(error), step)
        try:
            await asyncio.sleep(step.delay_s)
            await self._placer.place(run)
            self._placed(run)
        except GreenroomError as exc:
            self._fail(run, error if isinstance(exc, ProviderUnavailable) else exc)
            return True
        if not run.ended:
            run.started_at_us, run.is_between_attempts = self._writer.now_us(), False
            await asyncio.shield(self._writer.append(start_events(self._writer, run)))
        return run.ended

    def _next_step(self, run: LiveRun, fault: "Fault", retry_after_s: float | None) -> "NextStep":
        from ..domain.failover import Failure, next_step  # noqa: PLC0415

        route, now_s = run.route, self._loop.time()
        route.failures_here += 1
        if route.first_failed_s is None:
            route.first_failed_s = now_s
        failure = Failure(
            fault=fault,
            has_acted=run.has_acted and run.options.on_crash is not OnCrash.RETRY,
            failures_here=route.failures_here,
            elapsed_s=now_s - route.first_failed_s,
            budget_s=self._placer.retry_budget_s(run),
            can_fail_over=route.can_fail_over,
            retry_after_s=retry_after_s,
        )
        return next_step(failure, draw=random.random())  # noqa: S311  no secret

    async def _queue_again(self, run: LiveRun, error: GreenroomError, step: "NextStep") -> None:
        """Record what went wrong and that the run waits for its next attempt, which is another one from here on."""
        from ..domain.failover import Recourse, retry_after_of  # noqa: PLC0415

        route, writer = run.route, self._writer
        failed = {"attempt": run.attempt, "provider": run.provider, "error_code": error.code}
        route.failed.append(failed)
        told = {"error_code": error.code, "error_message": error.message, "retryable": True}
        told |= {"recourse": step.recourse.value, "delay_s": round(step.delay_s, 3)}
        if (retry_after_s := retry_after_of(error)) is not None:
            told["retry_after_s"] = retry_after_s
        events = [
            writer.event(EventType.TOOL_CALL_FAILED, run, tool_call_abandoned(started, ToolOutcome.CANCELLED))
            for started in run.open_tool_calls.values()
        ]
        events.append(writer.event(EventType.ERROR_OCCURRED, run, told))
        run.begin_next_attempt(writer.now_us())
        if step.recourse is Recourse.FAIL_OVER:
            self._placer.give_up_here(run, error.code)
        else:
            route.stays = True
        queued = {"reason": f"{step.recourse.value} after {error.code}"}
        events.append(writer.event(EventType.RUN_QUEUED, run, queued, at_us=run.queued_at_us))
        await asyncio.shield(writer.append(events))
        run.past_calls = past_calls_of(await run_history(self._writer.log, self._session.id, run.run_id, 0))

    async def _consume(self, run: LiveRun) -> ProviderOutcome:
        provider = self._providers.get(run.provider)
        request = await self._request(run)
        record, room = partial(self._record, run), partial(self._room, run)
        try:
            return await consume(provider, request, run, record=record, room=room)
        except ProviderInvalidRequest as exc:
            if run.options.continuation is not Continuation.AUTO or exc.details.get("field") != "continuation":
                raise
            self._record(run, _conversation_gone(exc))
        replayed = replace(request, conversation=None, history=await self._history(run))
        return await consume(provider, replayed, run, record=record, room=room)

    async def _request(self, run: LiveRun) -> ProviderRequest:
        conversation = self._conversation(run)
        run.is_advisory = bool(run.policies) and not self._providers.manifest(run.provider, None).enforces_tool_rules
        return ProviderRequest(
            session_id=self._session.id,
            run_id=run.run_id,
            attempt=run.attempt,
            run_number=run.number,
            messages=run.messages,
            system_prompt=self._session.context.get("system_prompt"),
            model=run.options.model,
            max_turns=self._max_turns(run),
            options=self._providers.options(run.provider, run.options.provider_options),
            tools=self._guarded(run),
            policies=run.policies,
            permission_mode=run.options.permission_mode,
            history=await self._history(run) if conversation is None else (),
            conversation=conversation,
            continues=run.options.continuation in _CONTINUING,
            home=self._home,
        )

    def _max_turns(self, run: LiveRun) -> int | None:
        """The run's own limit and those of its policies, where the provider can keep to one."""
        limit = tightest(binding(run.policies), Metric.TURNS)
        if limit is None or not self._providers.counts_turns(run.provider):
            if limit is not None:
                run.warn(f"Provider {run.provider!r} does not count turns: max_turns cannot be kept.")
            return run.options.max_turns
        return min(int(limit), run.options.max_turns or int(limit))

    def _conversation(self, run: LiveRun) -> dict[str, str] | None:
        """The provider's own one to go on with, if the run wants that and there is one."""
        if run.options.continuation not in _CONTINUING:
            return None
        return self._conversations.get(run.provider)

    async def _history(self, run: LiveRun) -> tuple[TranscriptMessage, ...]:
        """What the run is to be told of the past in words."""
        if run.options.continuation not in (Continuation.REPLAY, Continuation.AUTO):
            return ()
        transcript = await self._past.transcript()
        limits = run.options.continuation_limits or TranscriptLimits()
        return tuple(transcript.messages(limits, ended_only=True, without=run.run_id))

    def _guarded(self, run: LiveRun) -> GuardedTools:
        return GuardedTools(
            self._tools,
            run,
            approvals=self._approvals,
            past=run.past_calls,
            report=self._report_violation,
            stop=self._stop_for_violation,
        )

    def _record(self, run: LiveRun, event: ProviderEvent) -> None:
        new = self._writer.event(event.type, run, event.data, metadata=event.metadata, at_us=event.timestamp_us)
        if event.type is EventType.TOOL_CALL_STARTED:
            run.recorded_calls[event.data["tool_call_id"]] = self._writer.append([new])
        else:
            self._writer.record(new)
        run.observe(event)  # after: what cannot be stored must not come back in the run's last events
        if event.type is EventType.TOOL_CALL_STARTED:
            spec = next((one for one in self._tools.specs() if one.name == event.data["tool_name"]), None)
            run.has_acted = run.has_acted or spec is None or spec.side_effects
        elif event.type is EventType.TOKEN_USAGE_UPDATED:
            usage = TokenUsage.from_dict(event.data)
            run.cost_usd = self._providers.price_usd(run.provider, run.options.model, usage)
        if run.limits is not None:
            run.limits.observe(event)

    def _room(self, run: LiveRun) -> Awaitable[None] | None:
        """What to wait for until the log has room for more, and nobody has to be asked if the run may go on."""
        if run.limits is None and self._writer.log.has_room:
            return None
        return self._wait_for_room(run)

    async def _wait_for_room(self, run: LiveRun) -> None:
        await self._writer.log.room()
        if run.limits is not None:
            await run.limits.cleared()

    def _complete(self, run: LiveRun, outcome: ProviderOutcome) -> None:
        self._account(run, outcome)
        if run.ended:
            return
        try:
            data = completed_data(run, outcome)
        except ProviderError as exc:
            self._fail(run, exc)
        else:
            metadata = {key: value for key, value in outcome.metadata.items() if key != CONVERSATION}
            self._end(run, EventType.RUN_COMPLETED, data, metadata=metadata)

    def _account(self, run: LiveRun, outcome: ProviderOutcome) -> None:
        """What the attempt has used in all: for its account, its policies, its budgets. It may end the run."""
        usage, model = outcome.token_usage, outcome.model or run.options.model
        run.token_usage = usage.to_dict()
        run.cost_usd = outcome.cost_usd
        if run.cost_usd is None:
            run.cost_usd = self._providers.price_usd(run.provider, model, usage)
        self._placer.settle(run, SUCCEEDED)
        self._placer.served(run)
        if run.limits is not None and not run.ended:
            limit = tightest(binding(run.policies), Metric.TURNS)
            ran_out = outcome.stop_reason == "max_turns" and limit is not None and limit == self._max_turns(run)
            run.limits.settle(turns_ran_out_at=limit if ran_out else None)
        if run.cost_usd is None and tightest(run.policies, Metric.COST_USD) is not None:
            run.warn(f"The price of model {model!r} is not known: max_cost_usd was not kept.")

    def _fail(self, run: LiveRun, raised: GreenroomError, *, tool_outcome: ToolOutcome = ToolOutcome.CANCELLED) -> None:
        error = storable_error(raised)
        data = run.stopped_data(error=error.to_record(), error_code=error.code, error_message=error.message)
        self._end(run, EventType.RUN_FAILED, data, error=error, tool_outcome=tool_outcome)

    def _pass_deadline(self, run: LiveRun) -> None:
        self._end(run, EventType.RUN_TIMEOUT, run.stopped_data(deadline_s=run.options.deadline_s))

    def _report_violation(self, run: LiveRun, verdict: Verdict, tool_name: str, call_id: str) -> None:
        """One event for each rule and run."""
        rule = f"{verdict.policy} {verdict.rule}"
        if rule in run.violated or run.ended:
            return
        run.violated.add(rule)
        data: dict[str, Any] = {
            "policy": verdict.policy,
            "kind": "tool_denied",
            "rule": verdict.rule,
            "action": verdict.on_violation.value,
            "tool_name": tool_name,
            "tool_call_id": call_id,
        }
        if run.is_advisory:
            data["advisory"] = True
        self._report_limit(run, data)

    def _report_limit(self, run: LiveRun, data: dict[str, Any]) -> None:
        run.note_violation(data)
        self._writer.record(self._writer.event(EventType.POLICY_VIOLATION, run, data))

    def _stop_for_violation(self, run: LiveRun, violation: PolicyViolation) -> None:
        self._fail(run, violation, tool_outcome=ToolOutcome.DENIED)


def _ended_elsewhere(run: LiveRun, event_type: EventType, data: dict[str, Any], **how: Any) -> None:
    """The log is not this process's to write any more."""


def _conversation_gone(exc: ProviderInvalidRequest) -> ProviderEvent:
    """The run goes on with a replay."""
    data = {"error_code": exc.code, "error_message": exc.message, "retryable": True}
    return ProviderEvent(EventType.ERROR_OCCURRED, data)
