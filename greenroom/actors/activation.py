"""Taking a session over: acquire its log, read what is there, account for every open run, and serve on."""

from collections.abc import Callable

from ..adapters.option_parsing import require_json_safe
from ..adapters.run_option_parsing import parse_run_options
from ..domain.errors import GreenroomError, RunInterrupted, SessionNotFound
from ..domain.event import Event, EventType, NewEvent
from ..domain.event_log import CommitListener, CommittedBatch, EventLog, EventQuery, SessionRecords
from ..domain.identifiers import IdFactory
from ..domain.record_projection import fold_session
from ..domain.recovery import Recovery, recovery_of
from ..domain.run import Run, RunStatus
from ..domain.run_options import RunOptions
from ..domain.session import Session, SessionSpec
from ..domain.tool import Toolbox
from .live_run import LiveRun, live_run_of
from .live_session import LiveSession
from .provider_set import ProviderSet

_TOOL_TYPES = frozenset({EventType.TOOL_CALL_STARTED, EventType.TOOL_CALL_COMPLETED, EventType.TOOL_CALL_FAILED})
_MAX_TOOL_EVENTS = 10_000


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


async def activate(
    session_id: str,
    *,
    owner: str,
    spec: SessionSpec | None,
    idempotency_key: str | None,
    log: EventLog,
    providers: ProviderSet,
    default_provider: str,
    max_input_bytes: int,
    tools: Toolbox,
    ids: IdFactory,
    now_us: Callable[[], int],
    on_lost: Callable[[], None],
) -> LiveSession:
    """Become the session's owner. With a spec it is created if it does not exist; without, SessionNotFound.

    After this every run of the session is accounted for: queued ones wait or run, interrupted ones have ended or wait
    for their next attempt.
    """
    listener = _Listener()
    if spec is not None:
        await log.require_room()
    ownership = await log.acquire(session_id, owner, listener)
    records = await log.load(session_id)
    session = records.session
    if session is None:
        if spec is None:
            raise SessionNotFound(details={"session_id": session_id})
        events = _creation(spec, default_provider, idempotency_key, ids, now_us)
        await log.append(session_id, ownership.epoch, events)
        session = _fold(listener.early, ownership.epoch)
    live = LiveSession(
        session,
        epoch=ownership.epoch,
        last_seq=max([ownership.last_seq, *(batch.last_seq for batch in listener.early)]),
        log=log,
        providers=providers,
        max_input_bytes=max_input_bytes,
        tools=tools,
        ids=ids,
        now_us=now_us,
        on_lost=on_lost,
    )
    for batch in listener.early:
        live.feed.add(batch)
    listener.target = live.feed.add
    await _adopt(live, records, log, now_us())
    return live


def _creation(
    spec: SessionSpec, default_provider: str, idempotency_key: str | None, ids: IdFactory, now_us: Callable[[], int]
) -> list[NewEvent]:
    data = {
        "agent_id": spec.agent_id,
        "provider": spec.provider or default_provider,
        "context": spec.context,
        "metadata": spec.metadata,
        "tags": list(spec.tags),
        "parent_session_id": spec.parent_session_id,
        "max_concurrent_runs": spec.max_concurrent_runs,
        "max_queued_runs": spec.max_queued_runs,
        "run_defaults": spec.run_defaults,
    }
    require_json_safe(data, field="session")
    metadata = {} if idempotency_key is None else {"idempotency_key": idempotency_key}
    now = now_us()
    return [
        NewEvent(ids.event_id(), EventType.SESSION_CREATED, now, None, None, None, data, metadata),
        NewEvent(ids.event_id(), EventType.SESSION_STARTED, now, None, None, None, {}, {}),
    ]


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
        last = await log.read(live.session_id, EventQuery(after=live.feed.last_seq - 1))
        live.remember_end(last[-1])
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
        fate = recovery_of(run, options, now_us=now_us)
    except GreenroomError as exc:  # options that this version does not know: the run cannot be carried out here
        options, fate, error = RunOptions(), Recovery.INTERRUPT, exc
    found = live_run_of(run, options, number=number, provider=options.provider or live.session.provider)
    if run.status is RunStatus.RUNNING:
        found.open_tool_calls = await _open_tool_calls(live.session_id, run, log)
        error = error or RunInterrupted(details={"attempt": run.attempt})
    return found, fate, error


async def _open_tool_calls(session_id: str, run: Run, log: EventLog) -> dict[str, dict[str, object]]:
    """Data of the tool calls of this run that started and that nobody saw end."""
    query = EventQuery(after=run.queued_seq, run_id=run.id, types=_TOOL_TYPES, limit=_MAX_TOOL_EVENTS)
    still_open: dict[str, dict[str, object]] = {}
    for event in await log.read(session_id, query):
        _track(still_open, event)
    return still_open


def _track(still_open: dict[str, dict[str, object]], event: Event) -> None:
    call_id = event.data.get("tool_call_id", "")
    if event.type is EventType.TOOL_CALL_STARTED:
        still_open[call_id] = event.data
    else:
        still_open.pop(call_id, None)
