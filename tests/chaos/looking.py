"""Opening a store as the next process would, and reading everything in it."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from greenroom.adapters.direct_lane import DirectStore
from greenroom.adapters.duckdb.repair import repair_store
from greenroom.adapters.event_log_client import EventLogClient
from greenroom.adapters.store_options import StoreOptions
from greenroom.domain.errors import GreenroomError, InvalidCursor, ResyncRequired, SessionNotFound
from greenroom.domain.event import Event, EventType
from greenroom.domain.event_log import EventQuery

from ..conformance.event_log_suite import Writer, event as plain_event
from .ledger import Ledger

PATIENCE_S = 60


@dataclass(slots=True)
class Look:
    """What an open store shows."""

    events: dict[str, list[Event]] = field(default_factory=dict[str, list[Event]])
    """By session, of those that exist."""
    unverified: dict[str, str] = field(default_factory=dict[str, str])
    """Sessions that verify_session complains of, and what it says first."""
    problems: list[str] = field(default_factory=list[str])


async def look(
    folder: Path, names: Iterable[str], *, probe: bool = False, seals: bool = False, known: Ledger | None = None
) -> Look:
    """Read and verify the sessions; GreenroomError if the store does not open. With `seals` wait until everything that
    waits is sealed; with `probe` append one event to each, which must come behind everything that `known` knows of."""
    found = Look()
    fatal: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
    store = DirectStore(
        folder,
        StoreOptions(min_free_bytes=0, reserve_bytes=0),
        on_fatal=lambda exc: None if fatal.done() else fatal.set_result(exc),
    )
    await store.open()
    looking = asyncio.create_task(_look(store, names, found, known if probe else None, seals=seals))
    await asyncio.wait((looking, fatal), timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
    if looking.done() and not fatal.done():
        await store.close()
        looking.result()
        return found
    looking.cancel()
    why = f"it would have ended its process: {fatal.result()}" if fatal.done() else "it does not answer any more"
    found.problems.append(f"the store is out of service: {why}")
    store._store.folder.release()  # pyright: ignore[reportPrivateUsage]  its threads are dead, and closing waits for them
    return found


async def _look(store: DirectStore, names: Iterable[str], found: Look, known: Ledger | None, *, seals: bool) -> None:
    client = EventLogClient(store)
    if seals:
        await store._store.keeper.seal()  # pyright: ignore[reportPrivateUsage]
    for name in sorted(names):
        await _read_session(store, client, name, found)
    for name in sorted(found.events) if known is not None else ():
        await _append(client, name, found, known)
    await client.aclose()


async def _read_session(store: DirectStore, client: EventLogClient, name: str, found: Look) -> None:
    try:
        events = await _all_events(client, name)
        checked = await store.verify_session(name)
    except SessionNotFound:
        return
    except GreenroomError as exc:
        found.events[name] = []
        found.unverified[name] = f"it cannot be read: {exc.message}"
        return
    found.events[name] = events
    if not checked.ok:
        found.unverified[name] = checked.problems[0]
    records = await client.load(name)
    if any(event.type is EventType.SESSION_CREATED for event in events) != (records.session is not None):
        found.problems.append(f"{name}: its record is not what its events say")
    queued = [event for event in events if event.type is EventType.RUN_QUEUED]
    for event in queued:
        run = await client.find_run(event.run_id or "")
        if run is None or run.queued_seq != event.seq:
            found.problems.append(f"{name}: the record of {event.run_id} is not what its events say")
    if len(queued) != records.run_count:
        found.problems.append(f"{name}: {records.run_count} runs on record, and {len(queued)} were queued")


async def _all_events(client: EventLogClient, name: str) -> list[Event]:
    events: list[Event] = []
    after = 0
    while True:
        try:
            page = await client.read(name, EventQuery(after=after, limit=10_000))
        except ResyncRequired as exc:
            if exc.details["lowest_seq"] <= after + 1:
                raise
            after = exc.details["lowest_seq"] - 1
            continue
        except InvalidCursor:
            return events  # the end of the log was lost
        if not page:
            return events
        events += page
        after = page[-1].seq


async def _append(client: EventLogClient, name: str, found: Look, known: Ledger | None) -> None:
    try:
        writer = await Writer.of(client, name)
    except GreenroomError as exc:
        if name not in found.unverified:  # one whose end cannot be read takes nothing more, and verification says so
            found.problems.append(f"{name} takes no owner: {exc.message}")
        return
    try:
        committed = await asyncio.wait_for(writer.append(plain_event("probe")), 20)
    except TimeoutError:
        found.problems.append(f"{name} takes no more events")
        return
    before = known.sessions.get(name) if known else None
    if before is not None and committed.first_seq <= before.last_seq:
        found.problems.append(f"{name}: seq {committed.first_seq} was given out twice; it ended at {before.last_seq}")
    if before is not None and writer.ownership.epoch <= before.epoch:
        found.problems.append(f"{name}: epoch {writer.ownership.epoch} was granted twice")
    events = await client.read(name, EventQuery(after=committed.first_seq - 1))
    if [committed.first_seq] != [event.seq for event in events]:
        found.problems.append(f"{name}: what was appended is not read")


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a store came through a fault."""

    outcome: str
    problems: tuple[str, ...]
    events: Mapping[str, list[Event]]
    refusal: str = ""
    """Why it did not open at first."""

    @property
    def is_whole(self) -> bool:
        return self.outcome == OPENED

    def of_a_crash(self, left: str = "") -> tuple[str, ...]:
        """The problems, if nothing but a crash came before: what that leaves opens without repair."""
        if self.is_whole or self.problems:
            return self.problems
        return (f"what a crash left{left} does not open: {self.refusal}",)


OPENED = "opened, all there"
RECOVERED = "refused, all recovered by repair"


def judge(folder: Path, ledger: Ledger, *, names: Iterable[str], probe: bool = False, seals: bool = False) -> Verdict:
    """Open the store; if that is refused, repair it and open it then. Everything that was acknowledged must be there,
    or repair must have reported exactly that as lost, and verification must complain of exactly those sessions."""
    try:
        return _judged(folder, ledger, names, probe=probe, seals=seals, reported=None)
    except GreenroomError as refusal:
        why = refusal.message
    try:
        report = repair_store(folder)
        reported = {
            session.session_id: {seq for first, last in session.lost for seq in range(first, last + 1)}
            for session in report.sessions
        }
        verdict = _judged(folder, ledger, names, probe=probe, seals=False, reported=reported)
        return replace(verdict, refusal=why)
    except Exception as exc:  # noqa: BLE001  whatever it was, the store is out of service
        return Verdict("out of service", (f"after {why!r} repair did not help: {exc!r}",), {})


def _judged(
    folder: Path,
    ledger: Ledger,
    names: Iterable[str],
    *,
    probe: bool,
    seals: bool,
    reported: Mapping[str, set[int]] | None,
) -> Verdict:
    found = asyncio.run(look(folder, {*names, *ledger.sessions}, probe=probe, seals=seals, known=ledger))
    lost = {name: seqs for name, seqs in (reported or {}).items() if seqs}
    compared = ledger.compare(found.events, reported=lost)
    problems = [*ledger.problems, *compared.problems]
    unsaid = set[str]()
    for name, missing in compared.missing.items():
        if reported is None and name in found.unverified:
            unsaid.add(name)  # open, and verification says that it is not whole
        elif not missing <= lost.get(name, set()):
            problems.append(f"{name}: seqs {_ranges(missing - lost.get(name, set()))} are gone, and nothing says so")
    for name, seqs in lost.items():
        there = {event.seq for event in found.events.get(name, ())} & seqs
        if there:
            problems.append(f"{name}: seqs {_ranges(there)} are reported as lost, and are there")
    problems += [f"{name} does not verify: {found.unverified[name]}" for name in found.unverified.keys() - lost.keys()
                 if name not in compared.missing]  # fmt: skip
    problems += [f"{name} verifies, though some of it is lost" for name in lost.keys() - found.unverified.keys()
                 if name in found.events]  # fmt: skip
    problems += [problem for problem in found.problems if not unsaid or "out of service" in problem]
    return Verdict(_outcome(compared.missing_count, reported, unsaid), tuple(problems), found.events)


def _outcome(missing: int, reported: Mapping[str, set[int]] | None, unsaid: set[str]) -> str:
    if reported is None:
        return OPENED if not unsaid else "opened; reading and verify_session refuse what was changed"
    return RECOVERED if not missing else "refused, and repair reported what was lost"


def _ranges(seqs: set[int]) -> str:
    ordered = sorted(seqs)
    return f"{ordered[0]} to {ordered[-1]} ({len(ordered)})"
