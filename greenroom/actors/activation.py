"""Taking a session over: acquire its log, read what is there, account for every open run, and serve on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from ..adapters.json_safety import require_json_safe
from ..adapters.run_option_parsing import parse_run_options
from ..domain.approval import APPROVAL_TYPES, Approval, fold_approvals
from ..domain.batch_row import RowsPlan, RowWork
from ..domain.errors import GreenroomError, RunInterrupted, SessionNotFound
from ..domain.event import Event, EventType, NewEvent
from ..domain.event_log import CommitListener, CommittedBatch, EventLog, SessionRecords
from ..domain.identifiers import IdFactory
from ..domain.policy import POLICY_QUESTION
from ..domain.record_projection import fold_session, new_session
from ..domain.recovery import CRASH_REASONS, Recovery, recovery_of
from ..domain.run import Run, RunStatus
from ..domain.run_options import RunOptions
from ..domain.session import Session, SessionSpec
from ..domain.token_usage import TokenUsage
from ..domain.tool import Toolbox
from .live_run import LiveRun, live_run_of
from .live_session import LiveSession, NeedsOwnServer
from .placement import no_accounts
from .provider_set import ProviderSet, refuse_secrets
from .run_history import past_calls_of, run_history
from .run_route import RunRoute

if TYPE_CHECKING:
    from ..domain.run_gate import RunGate
    from .accounts import Accounts


class _Listener:
    """Gets commits before there is a live session to hand them to."""

    def __init__(self) -> None:
        self.target: CommitListener | None = None
        self.early: list[CommittedBatch] = []

    def __call__(self, batch: CommittedBatch) -> None:
        if self.target is None:
            self.early.append(batch)
        else:
            self.target(batch)

    def turn_to(self, target: CommitListener) -> None:
        """Hand on what came up to now, and what comes."""
        for batch in self.early:
            target(batch)
        self.early = []
        self.target = target


class Activation:
    """Takes sessions over for one process; what they all are served with is given once."""

    def __init__(
        self,
        owner: str,
        *,
        log: EventLog,
        default_provider: str,
        max_input_bytes: int,
        approval_expires_s: float,
        ids: IdFactory,
        now_us: Callable[[], int],
        gate: "RunGate | None" = None,
        accounts: "Callable[[], Accounts | None]" = no_accounts,
        scope_policies: Mapping[str, Mapping[str, Any]] | None = None,
        asks_before_start: bool = False,
    ) -> None:
        self._owner = owner
        self._log = log
        self._default_provider = default_provider
        self._ids = ids
        self._now_us = now_us
        self._live = partial(
            LiveSession,
            log=log,
            max_input_bytes=max_input_bytes,
            approval_expires_s=approval_expires_s,
            ids=ids,
            now_us=now_us,
            gate=gate,
            accounts=accounts,
            scope_policies=scope_policies,
            asks_before_start=asks_before_start,
        )

    async def activate(
        self,
        session_id: str,
        *,
        spec: SessionSpec | None,
        idempotency_key: str | None,
        providers: ProviderSet,
        unpack_tools: Callable[[bytes | None], Toolbox],
        on_lost: Callable[[], None],
        on_idle: Callable[[], None] = lambda: None,
        home: str | None = None,
        shared: bool = False,
    ) -> LiveSession:
        """Become the session's owner. With a spec it is created if it does not exist; without, SessionNotFound. Where
        the process is `shared`, NeedsOwnServer if the session may not be in it; then it has no owner, and nothing else
        changed.

        After this every run of the session is accounted for: queued ones wait or run, interrupted ones have ended or
        wait for their next attempt.
        """
        log = self._log
        listener = _Listener()
        if spec is not None:
            await log.require_room()
        ownership = await log.acquire(session_id, self._owner, listener, must_exist=spec is None)
        records = ownership.records
        session = records.session
        if shared and _needs_own_server(spec, records, providers, self._default_provider):
            log.release(session_id, ownership.epoch)
            raise NeedsOwnServer
        if session is None:
            if spec is None:
                log.release(session_id, ownership.epoch)
                raise SessionNotFound(details={"session_id": session_id})
            events = self._creation(self._creation_data(spec), idempotency_key)
            await log.append(session_id, ownership.epoch, events)
            session = _fold(listener.early, ownership.epoch)
        live = self._live(
            session,
            epoch=ownership.epoch,
            last_seq=max([ownership.last_seq, *(batch.last_seq for batch in listener.early)]),
            providers=providers,
            home=home,
            tools=unpack_tools(records.tools),
            on_lost=on_lost,
            on_idle=on_idle,
            shared=shared,
        )
        listener.turn_to(live.feed.add)
        await _adopt(live, records, log, self._now_us())
        return live

    async def begin(
        self,
        rows: Sequence[RowWork],
        plan: RowsPlan,
        *,
        providers: ProviderSet,
        tools: Callable[[RowWork], Toolbox],
        on_lost: Callable[[str], None],
        on_idle: Callable[[str], None],
        home: Callable[[str], str],
        shared: bool,
    ) -> dict[str, LiveSession]:
        """Become the first owner of those of the rows' sessions that do not exist yet, all at once; the others are left
        out, and nothing changes for them. Their first events are written with their first runs.
        """
        await self._log.require_room()
        common = self._creation_data(plan.spec)
        own = {row.session_id: plan.own_of(row) for row in rows}
        for one in own.values():
            require_json_safe(one, field="batch.key")
        listeners = {row.session_id: _Listener() for row in rows}
        ownerships = await self._log.acquire_new(listeners, self._owner)
        begun: dict[str, LiveSession] = {}
        for row, ownership in zip(rows, ownerships, strict=True):
            if ownership is None:
                continue
            session_id = row.session_id
            listener = listeners[session_id]
            events = self._creation({**common, **own[session_id]}, None)
            begun[session_id] = live = self._live(
                new_session(session_id, events[0], epoch=ownership.epoch),
                epoch=ownership.epoch,
                last_seq=0,
                providers=providers,
                home=home(session_id),
                tools=tools(row),
                on_lost=partial(on_lost, session_id),
                on_idle=partial(on_idle, session_id),
                shared=shared,
                first_events=events,
            )
            listener.turn_to(live.feed.add)
        return begun

    def _creation_data(self, spec: SessionSpec) -> dict[str, Any]:
        data = {
            "agent_id": spec.agent_id,
            "provider": spec.provider or self._default_provider,
            "context": spec.context,
            "metadata": spec.metadata,
            "tags": list(spec.tags),
            "parent_session_id": spec.parent_session_id,
            "max_concurrent_runs": spec.max_concurrent_runs,
            "max_queued_runs": spec.max_queued_runs,
            "run_defaults": spec.run_defaults,
            "budget": asdict(spec.budget) if spec.budget else None,
        }
        require_json_safe(data, field="session")
        refuse_secrets(spec.run_defaults.get("provider_options") or {}, field="run_defaults.provider_options")
        return data

    def _creation(self, data: dict[str, Any], idempotency_key: str | None) -> tuple[NewEvent, NewEvent]:
        """session_created and session_started."""
        metadata = {} if idempotency_key is None else {"idempotency_key": idempotency_key}
        now = self._now_us()
        return (
            NewEvent(self._ids.event_id(), EventType.SESSION_CREATED, now, None, None, None, data, metadata),
            NewEvent(self._ids.event_id(), EventType.SESSION_STARTED, now, None, None, None, {}, {}),
        )


def _needs_own_server(
    spec: SessionSpec | None, records: SessionRecords, providers: ProviderSet, default_provider: str
) -> bool:
    """A provider that starts processes needs one of its own, and so does a run that was under way when a process died:
    it may have been what killed it, and the others there. Of rows of batches, of which many are in a process, only
    when it is the second one."""
    session = records.session
    own = session.provider if session else (spec and spec.provider) or default_provider
    names = {own, *(run.options.get("router") or run.options.get("provider") or own for run in records.open_runs)}
    once = session is not None and session.row is not None
    suspects = [run for run in records.open_runs if run.status is RunStatus.RUNNING and (run.attempt > 1 or not once)]
    return bool(suspects) or not all(providers.runs_in_process(name) for name in names)


def _fold(batches: list[CommittedBatch], epoch: int) -> Session:
    session: Session | None = None
    for batch in batches:
        for event in batch.events():
            session = fold_session(session, event, epoch=epoch)
    assert session is not None, "the append was answered, so its batch was heard of"
    return session


async def _adopt(live: LiveSession, records: SessionRecords, log: EventLog, now_us: int) -> None:
    """Account for what the log says of the session's past."""
    live.remember_past(records)
    if live.status.is_terminal:
        return
    numbered = enumerate(records.open_runs, start=records.run_count - len(records.open_runs) + 1)
    plans = [await _plan(live, run, number, log, now_us) for number, run in numbered]
    await live.adopt(plans)


async def _plan(
    live: LiveSession, run: Run, number: int, log: EventLog, now_us: int
) -> tuple[LiveRun, Recovery, GreenroomError | None]:
    error: GreenroomError | None = None
    try:
        options = parse_run_options({}, run.options)  # the session's run_defaults are in them already
        provider, route, policies = live.plan(options)
    except GreenroomError as exc:  # options that this version or configuration cannot honour: it cannot run here
        options, error = RunOptions(), exc
        provider, route, policies = run.provider or live.session.provider, RunRoute(), ()
    if run.status is RunStatus.RUNNING and run.provider:  # whatever a router would say now: it was there
        provider = run.provider
    found = live_run_of(run, options, number=number, provider=provider, route=route, policies=policies)
    crashes = 0
    if run.status is RunStatus.RUNNING or run.attempt > 1 or live.asks_before_start:
        history = await run_history(log, run.session_id, run.id, run.queued_seq)
        crashes = _remember(live, found, run, history)
    if run.status is RunStatus.RUNNING and error is None:
        error = RunInterrupted(details={"attempt": run.attempt})
    elif error is not None:
        return found, Recovery.INTERRUPT, error
    waits = run.status is RunStatus.RUNNING and _waits_for_approval(found)
    return found, recovery_of(run, options, crashes=crashes, now_us=now_us, waits_for_approval=waits), error


def _remember(live: LiveSession, found: LiveRun, run: Run, past: list[Event]) -> int:
    """What it used, tool calls that nobody saw end, those that have an answer, and approvals. Returns after how many
    crashes it was begun again."""
    approvals: dict[str, Approval] = {}
    crashes, spent = 0, TokenUsage()
    for event in past:
        if event.type in APPROVAL_TYPES:
            fold_approvals(approvals, event)
        elif event.type is EventType.RUN_QUEUED:
            crashes += event.data.get("reason") in CRASH_REASONS
            found.usage_before, spent = found.usage_before + spent, TokenUsage()
        elif event.type is EventType.TOKEN_USAGE_UPDATED:
            spent = TokenUsage.from_dict(event.data)
        elif event.type is EventType.TURN_COMPLETED:
            found.turns_before += 1
        elif event.type is EventType.POLICY_VIOLATION:
            found.violations.append(event.data)
        elif event.type is EventType.TOOL_CALL_STARTED:
            found.open_tool_calls[event.data["tool_call_id"]] = event.data
            found.calls_before += 1
        else:
            found.open_tool_calls.pop(event.data["tool_call_id"], None)
    found.usage_before = found.usage_before + spent
    if found.usage_before.total_tokens:
        found.cost_before_usd = live.providers.price_usd(found.provider, found.options.model, found.usage_before)
    found.approvals = tuple(approvals.values())
    waiting = {approval.tool_call_id for approval in found.approvals if approval.decision is None}
    in_doubt = [data for call_id, data in found.open_tool_calls.items() if call_id not in waiting]
    found.past_calls = past_calls_of(past, in_doubt=[(run.attempt, data) for data in in_doubt])
    return crashes


def _waits_for_approval(run: LiveRun) -> bool:
    """Whether all that was under way of the run's attempt was a question to a person."""
    waiting = {
        approval.tool_call_id
        for approval in run.approvals
        if approval.decision is None and approval.attempt == run.attempt and approval.tool_name != POLICY_QUESTION
    }
    return bool(waiting) and waiting >= set(run.open_tool_calls)
