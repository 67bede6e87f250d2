"""The attempts that a live session has under way: carried out at their providers, recorded, brought to their end."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from ..adapters.logs import get_logger
from ..domain.errors import (
    Cancelled,
    GreenroomError,
    InternalError,
    PolicyViolation,
    ProviderError,
    ProviderInvalidRequest,
)
from ..domain.event import EventType
from ..domain.provider import ProviderEvent, ProviderOutcome, ProviderRequest
from ..domain.record_projection import CONVERSATION
from ..domain.run_options import Continuation
from ..domain.session import Session
from ..domain.tool import Toolbox, ToolOutcome
from ..domain.tool_policy import Policy, Verdict, parse_policy
from ..domain.transcript import TranscriptLimits, TranscriptMessage
from .approvals import Approvals
from .guarded_tools import GuardedTools
from .live_run import LiveRun
from .past import SessionPast
from .provider_attempt import completed_data, consume, storable_error
from .provider_set import ProviderSet
from .session_writer import SessionWriter

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
        home: str | None,
        past: SessionPast,
    ) -> None:
        self._session = session
        self._providers = providers
        self._tools = tools
        self._writer = writer
        self._approvals = approvals
        self._end = end
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
            left_s = max(0.0, run.remaining_s(self._writer.now_us()))
            run.deadline = self._loop.call_later(left_s, self._pass_deadline, run)
            run.task = self._loop.create_task(self._execute(run))
            self._tasks.add(run.task)
            run.task.add_done_callback(self._tasks.discard)

    def keep_conversation(self, provider: str, handle: dict[str, str]) -> None:
        """A run of the provider has ended with this conversation: a later one may go on with it."""
        self._conversations[provider] = handle

    async def settle(self) -> None:
        """Wait until everything that was begun is over; whoever calls this has cancelled it."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _execute(self, run: LiveRun) -> None:
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
            self._fail(run, exc)
        except Exception as exc:  # noqa: BLE001  recorded: the run ends with it
            _log.exception("provider_raised", session_id=self._session.id, run_id=run.run_id, provider=run.provider)
            self._fail(run, InternalError(f"Provider {run.provider!r} raised {type(exc).__name__}."))
        else:
            self._complete(run, outcome)

    async def _consume(self, run: LiveRun) -> ProviderOutcome:
        provider = self._providers.get(run.provider)
        request = await self._request(run)
        record, room = partial(self._record, run), self._writer.log.room
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
        policies = [parse_policy(given, field="options.policies") for given in run.options.policies]
        return ProviderRequest(
            session_id=self._session.id,
            run_id=run.run_id,
            attempt=run.attempt,
            run_number=run.number,
            messages=run.messages,
            system_prompt=self._session.context.get("system_prompt"),
            model=run.options.model,
            max_turns=run.options.max_turns,
            options=self._providers.options(run.provider, run.options.provider_options),
            tools=self._guarded(run, policies),
            policies=tuple(policies),
            permission_mode=run.options.permission_mode,
            history=await self._history(run) if conversation is None else (),
            conversation=conversation,
            continues=run.options.continuation in _CONTINUING,
            home=self._home,
        )

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

    def _guarded(self, run: LiveRun, policies: Sequence[Policy]) -> GuardedTools:
        return GuardedTools(
            self._tools,
            run,
            policies=policies,
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

    def _complete(self, run: LiveRun, outcome: ProviderOutcome) -> None:
        try:
            data = completed_data(run, outcome)
        except ProviderError as exc:
            self._fail(run, exc)
        else:
            metadata = {key: value for key, value in outcome.metadata.items() if key != CONVERSATION}
            self._end(run, EventType.RUN_COMPLETED, data, metadata=metadata)

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
        data = {
            "policy": verdict.policy,
            "kind": "tool_denied",
            "rule": verdict.rule,
            "action": verdict.on_violation.value,
            "tool_name": tool_name,
            "tool_call_id": call_id,
        }
        self._writer.record(self._writer.event(EventType.POLICY_VIOLATION, run, data))

    def _stop_for_violation(self, run: LiveRun, violation: PolicyViolation) -> None:
        self._fail(run, violation, tool_outcome=ToolOutcome.DENIED)


def _conversation_gone(exc: ProviderInvalidRequest) -> ProviderEvent:
    """The run goes on with a replay."""
    data = {"error_code": exc.code, "error_message": exc.message, "retryable": True}
    return ProviderEvent(EventType.ERROR_OCCURRED, data)
