"""The store beside a plain Python model of it: whatever is done to both, they never differ.

Maintenance runs in one process that stays, instead of one process for each task: what is proven here are the answers,
and starting a process takes longer than all the rest.
"""

# pyright: reportPrivateUsage=false

import asyncio
import multiprocessing
import shutil
import tempfile
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from greenroom.adapters.append_frames import AppendAnswer, AppendEntry, AppendStatus, decode_answers, encode_frame
from greenroom.adapters.direct_lane import DirectStore
from greenroom.adapters.duckdb import group_commit, log_keeper
from greenroom.adapters.event_codec import BatchEncoder, decode_slab
from greenroom.adapters.event_selection import EVERY_TYPE
from greenroom.adapters.recent_batches import RecentBatches
from greenroom.adapters.store_options import StoreOptions
from greenroom.domain.errors import (
    AlreadyExists,
    GreenroomError,
    InvalidCursor,
    ResyncRequired,
    SessionNotFound,
    error_from_record,
)
from greenroom.domain.event import Event, EventType, NewEvent
from greenroom.domain.event_log import EventQuery, Ownership
from greenroom.domain.log_head import REMEMBERED_BATCHES
from greenroom.domain.record_projection import fold_run, fold_session
from greenroom.domain.run import Run
from greenroom.domain.session import Session

from .event_log_suite import completed, created, event, queued, sent, started

ResultT = TypeVar("ResultT")

SESSIONS: tuple[str, ...] = ("ses_a", "ses_b", "ses_c")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
STREAMED = EventType.MESSAGE_STREAMED
PATIENCE_S = 30.0


def carried_out(task: str, order: dict[str, Any]) -> dict[str, Any]:
    """What the maintenance process does with an order. Runs in the process that stays."""
    from greenroom.adapters.duckdb.maintenance_process import TASKS

    try:
        return {"answer": TASKS[task](order)}
    except GreenroomError as exc:
        return {"error": exc.to_record()}


@pytest.fixture(scope="module")
def helper() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def as_event(session_id: str, seq: int, recorded_at_us: int, new: NewEvent) -> Event:
    return Event(
        seq=seq,
        id=new.id,
        session_id=session_id,
        run_id=new.run_id,
        attempt=new.attempt,
        type=new.type,
        timestamp=EPOCH + timedelta(microseconds=new.timestamp_us),
        recorded_at=EPOCH + timedelta(microseconds=recorded_at_us),
        provider=new.provider,
        data=new.data,
        metadata=new.metadata,
        schema_version=new.schema_version,
    )


@dataclass
class PlainSession:
    """One session as anybody would write it down."""

    name: str
    epoch: int = 0
    events: list[Event] = field(default_factory=list[Event])
    batches: dict[int, AppendAnswer] = field(default_factory=dict[int, AppendAnswer])
    """What was answered in this epoch, by number."""
    pruned: set[int] = field(default_factory=set[int])
    created_in: int = 0
    open_runs: dict[str, str] = field(default_factory=dict[str, str])
    """Id and phase of runs that have not ended."""

    @property
    def last_seq(self) -> int:
        return len(self.events)

    def grant(self) -> Ownership:
        self.epoch += 1
        self.batches = {}
        return Ownership(epoch=self.epoch, last_seq=self.last_seq)

    def judge(self, epoch: int, number: int) -> AppendAnswer | None:
        """The answer to a batch; None: it is the next one."""
        if epoch != self.epoch:
            return AppendAnswer(AppendStatus.FENCED, self.epoch, 0)
        if number == len(self.batches) + 1:
            return None
        if number in self.batches and number > len(self.batches) - REMEMBERED_BATCHES:
            return self.batches[number]
        return AppendAnswer(AppendStatus.OUT_OF_ORDER, len(self.batches) + 1, 0)

    def store(self, new: list[NewEvent], answer: AppendAnswer) -> None:
        assert (AppendStatus.STORED, self.last_seq + 1) == (answer.status, answer.first)
        self.batches[len(self.batches) + 1] = answer
        if not self.events:
            self.created_in = self.epoch
        self.events += [as_event(self.name, answer.first + at, answer.second, one) for at, one in enumerate(new)]

    def prunable(self) -> set[int]:
        """Streamed pieces that a whole message of their run and attempt followed."""
        whole = {(one.run_id, one.attempt): one.seq for one in self.events if one.type is EventType.MESSAGE_RECEIVED}
        return {
            one.seq for one in self.events if one.type is STREAMED and one.seq < whole.get((one.run_id, one.attempt), 0)
        }

    def answer(self, query: EventQuery, pruned: set[int]) -> list[Event] | int:
        """What a read gives, in the plainest words; a number is the lowest seq that resync_required names."""
        if query.types is not None and STREAMED not in query.types:
            pruned = set()
        found: list[Event] = []
        for one in self.events:
            if one.seq <= query.after:
                continue
            if (query.before is not None and one.seq >= query.before) or len(found) == query.limit:
                break
            if one.seq in pruned:
                lowest = min({*range(one.seq, self.last_seq + 2)} - pruned)
                return found if found or (query.before is not None and lowest >= query.before) else lowest
            if query.matches(one):
                found.append(one)
        return found

    def records(self) -> tuple[Session | None, dict[str, Run]]:
        session: Session | None = None
        runs: dict[str, Run] = {}
        for one in self.events:
            if one.type.value.startswith("session_"):
                session = fold_session(session, one, epoch=self.created_in)
            elif one.run_id is not None and (one.type.value.startswith("run_") or one.type is EventType.MESSAGE_SENT):
                runs[one.run_id] = fold_run(runs.get(one.run_id), one)
        return session, runs


RUNS = ("run_x", "run_y", None)
kinds = st.sampled_from(["streamed", "streamed", "streamed", "received", "turn", "run"])
contents = st.lists(st.tuples(kinds, st.sampled_from(RUNS)), min_size=1, max_size=5)
entries = st.tuples(
    st.sampled_from(SESSIONS),
    st.sampled_from(["next"] * 8 + ["again", "again", "ahead", "zero", "stale", "future"]),
    st.integers(1, 80),
    contents,
)
frames = st.lists(st.sampled_from(SESSIONS) | st.lists(entries, min_size=1, max_size=5), min_size=3, max_size=8)
"""A name alone stands for a new owner of the session."""

queries = st.tuples(
    st.floats(0, 1.05),
    st.none() | st.integers(1, 40),
    st.sampled_from([1, 2, 7, 10_000]),
    st.none() | st.sampled_from(["run_x", "run_y", "run_nobody"]),
    st.none()
    | st.frozensets(
        st.sampled_from([STREAMED, EventType.MESSAGE_RECEIVED, EventType.TURN_COMPLETED, EventType.RUN_QUEUED])
    ),
    st.none() | st.integers(0, 150),
)

Entry = tuple[str, str, int, Sequence[tuple[str, str | None]]]
Question = tuple[float, int | None, int, str | None, frozenset[EventType] | None, int | None]

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
PHASES = [Phase.explicit, Phase.reuse, Phase.generate]
"""No shrinking: it would take hours, as each try opens a store some times."""

MAX_HEAVY = 3
"""How often one example does what takes long."""


class StoreModel(RuleBasedStateMachine):
    """A store with tiny log files, and what must be in it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=folder))
        self.runner = asyncio.Runner()
        self.encoder = BatchEncoder()
        self.plain: dict[str, PlainSession] = {}
        self.gone_runs: list[str] = []
        self.made = 0
        self.heavy = 0
        self.prunes = False
        self.failures: list[Exception] = []

    def do(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        async def bounded() -> ResultT:
            return await asyncio.wait_for(work, PATIENCE_S)

        return self.runner.run(bounded())

    def open(self) -> None:
        async def opened() -> DirectStore:
            options = StoreOptions(prune_streamed_after_s=0.0 if self.prunes else None)
            store = DirectStore(self.folder / "store", options, on_fatal=self.failures.append)
            await store.open()
            return store

        self.store = self.do(opened())

    def close(self) -> None:
        self.do(self.store.close())

    def forget_tail(self) -> None:
        self.store._recent = RecentBatches(max_bytes=0)

    def settle(self) -> None:
        """Wait until nothing is being sealed, and find out what was pruned."""

        async def idle() -> None:
            keeper = self.store._store.keeper
            while keeper._sealing is not None and not keeper._sealing.done():
                await asyncio.wait([keeper._sealing])

        self.do(idle())
        for plain in self.plain.values():
            located = self.store._store.locate(plain.name)
            assert located is not None
            there = {
                seq
                for batch in self.store._store.sources().batches(located[0], after=0, types=EVERY_TYPE)
                for seq in batch.seqs
            }
            gone = {*range(1, plain.last_seq + 1)} - there
            assert plain.pruned <= gone <= plain.prunable()
            plain.pruned = gone

    # What is done

    @initialize(prunes=st.booleans())
    def begin(self, prunes: bool) -> None:
        self.prunes = prunes
        self.open()
        for name in SESSIONS[:2]:
            self.grant(name)

    @rule(frames=frames)
    def write(self, frames: Sequence[str | Sequence[Entry]]) -> None:
        for each in frames:
            if isinstance(each, str):
                self.grant(each)
            else:
                self.send(each)

    def grant(self, name: str) -> None:
        plain = self.plain.setdefault(name, PlainSession(name))

        assert plain.grant() == self.do(self.store.grant(name, f"owner of {name}"))

    def send(self, entries: Sequence[Entry]) -> None:
        frame: list[AppendEntry] = []
        given: list[list[NewEvent]] = []
        under_way = dict.fromkeys(SESSIONS, 0)
        for name, how, at, content in entries:
            plain = self.plain.get(name) or PlainSession(name)
            end = len(plain.batches) + under_way[name]
            epoch = plain.epoch + {"stale": -1, "future": 1}.get(how, 0)
            number = {"ahead": end + 1 + at, "zero": 0, "again": max(1, end - at)}.get(how, end + 1)
            new = [event("never")]
            if plain.epoch and epoch == plain.epoch and number == end + 1:
                new = self.batch(plain, content, first=end == 0 and not plain.events)
                under_way[name] += 1
            frame.append(AppendEntry(name, epoch, number, self.encoder.encode(new)))
            given.append(new)

        answers = decode_answers(self.do(self.store.append(encode_frame(7, frame))))[1]

        for entry, new, answer in zip(frame, given, answers, strict=True):
            plain = self.plain.get(entry.session_id)
            verdict = plain.judge(entry.epoch, entry.batch_number) if plain else AppendAnswer(AppendStatus.FENCED, 0, 0)
            if verdict is not None:
                assert verdict == answer
            elif plain is not None:
                plain.store(new, answer)

    def batch(self, plain: PlainSession, content: Sequence[tuple[str, str | None]], *, first: bool) -> list[NewEvent]:
        new: list[NewEvent] = [created()._replace(metadata={"idempotency_key": f"k_{plain.name}"})] if first else []
        for kind, run_id in content:
            self.made += 1
            text = f"{self.made}"
            if kind == "run":
                new.append(self.next_of_a_run(plain))
            elif kind == "streamed":
                new.append(event(text, run_id=run_id, at_us=self.made))
            elif kind == "received":
                new.append(event(text, type=EventType.MESSAGE_RECEIVED, run_id=run_id, at_us=self.made))
            else:
                new.append(event(text, type=EventType.TURN_COMPLETED, run_id=run_id, at_us=self.made))
        return new

    def next_of_a_run(self, plain: PlainSession) -> NewEvent:
        for run_id, phase in plain.open_runs.items():
            if phase == "queued":
                plain.open_runs[run_id] = "sent"
                return sent(run_id)
            if phase == "sent":
                plain.open_runs[run_id] = "started"
                return started(run_id)
            if self.made % 2:
                del plain.open_runs[run_id]
                return completed(run_id)
        run_id = f"run_{self.made}"
        plain.open_runs[run_id] = "queued"
        return queued(run_id, key=f"key_{run_id}", call_id=f"call_{self.made}")

    @precondition(lambda self: self.heavy < MAX_HEAVY)
    @rule(prunes=st.booleans())
    def restart(self, prunes: bool) -> None:
        self.heavy += 1
        self.prunes = prunes
        self.close()
        self.open()

    @precondition(lambda self: self.heavy < MAX_HEAVY and self.plain)
    @rule()
    def compact(self) -> None:
        self.heavy += 1
        self.settle()
        self.do(self.store.compact())
        self.settle()
        assert () == self.store._store.keeper.manifest.deleted

    @precondition(lambda self: self.heavy < MAX_HEAVY and self.plain)
    @rule(at=st.integers(0, 2))
    def delete(self, at: int) -> None:
        self.heavy += 1
        plain = [*self.plain.values()][at % len(self.plain)]
        self.remove(plain)
        self.gone_runs += plain.records()[1]
        del self.plain[plain.name]

        for asked in (self.store.read(plain.name, EventQuery()), self.store.load(plain.name)):
            with pytest.raises(SessionNotFound):
                self.do(asked)

    def remove(self, plain: PlainSession) -> None:
        self.do(self.store.delete_session(plain.name))

    @precondition(lambda self: self.heavy < MAX_HEAVY and any(plain.events for plain in self.plain.values()))
    @rule(at=st.integers(0, 2))
    def move_out_and_in(self, at: int) -> None:
        self.heavy += 1
        found = [plain for plain in self.plain.values() if plain.events]
        plain = found[at % len(found)]
        self.settle()
        archive = self.folder / "archive"

        assert plain.last_seq - len(plain.pruned) == self.do(self.store.export_session(plain.name, archive))
        with pytest.raises(AlreadyExists):
            self.do(self.store.import_session(archive))
        self.remove(plain)
        assert plain.name == self.do(self.store.import_session(archive))

    # What is asked

    def read(self, plain: PlainSession, query: EventQuery) -> list[Event] | int:
        try:
            slabs = self.do(self.store.read(plain.name, query))
        except ResyncRequired as exc:
            return exc.details["lowest_seq"]
        return [one for slab in slabs for one in decode_slab(plain.name, slab)]

    @precondition(lambda self: self.plain)
    @rule(questions=st.lists(queries, min_size=5, max_size=15), cold=st.booleans())
    def look(self, questions: Sequence[Question], cold: bool) -> None:
        if cold:
            self.forget_tail()
        self.settle()
        for question in questions:
            for plain in self.plain.values():
                self.ask(plain, *question)
        self.look_at_the_records()

    def ask(
        self,
        plain: PlainSession,
        after: float,
        window: int | None,
        limit: int,
        run_id: str | None,
        types: frozenset[EventType] | None,
        since_us: int | None,
    ) -> None:
        cursor = round(plain.last_seq * after)
        before = None if window is None else cursor + window
        query = EventQuery(after=cursor, before=before, limit=limit, run_id=run_id, types=types, since_us=since_us)
        if cursor > plain.last_seq:
            with pytest.raises(InvalidCursor) as refused:
                self.do(self.store.read(plain.name, query))
            assert {"field": "after", "last_seq": plain.last_seq} == refused.value.details
            return
        in_memory = self.store._recent.after(plain.name, cursor) is not None

        assert plain.answer(query, set() if in_memory else plain.pruned) == self.read(plain, query)

    def look_at_the_records(self) -> None:
        sessions: list[Session] = []
        for plain in self.plain.values():
            session, runs = plain.records()
            found = self.do(self.store.load(plain.name))
            assert session == found.session
            assert [run for run in runs.values() if not run.status.is_terminal] == [*found.open_runs]
            assert len(runs) == found.run_count
            assert [(run.call_id, run.id) for run in runs.values()] == [*found.recent_calls]
            for run in runs.values():
                assert run == self.do(self.store.find_run(run.id))
                assert run.id == self.do(self.store.find_run_by_key(plain.name, run.idempotency_key or ""))
            sessions += [session] if session is not None else []
        assert sorted(sessions, key=lambda one: one.id) == self.do(
            self.store.list_sessions(status=None, agent_id=None, tag=None, after=None, limit=100)
        )
        assert [] == [run_id for run_id in self.gone_runs if self.do(self.store.find_run(run_id)) is not None]

    def verify(self) -> None:
        for plain in self.plain.values():
            found = self.do(self.store.verify_session(plain.name))
            assert () == found.problems
            assert (plain.last_seq - len(plain.pruned), len(plain.pruned), plain.last_seq) == (
                *(found.events, found.pruned),
                found.last_seq,
            )

    def look_at_everything(self) -> None:
        self.settle()
        self.forget_tail()
        self.verify()
        self.look_at_the_records()
        for name in {*SESSIONS} - {*self.plain}:
            with pytest.raises(SessionNotFound):
                self.do(self.store.read(name, EventQuery()))
        for plain in self.plain.values():
            seen: list[Event] = []
            cursor = 0
            while cursor < plain.last_seq:
                found = self.read(plain, EventQuery(after=cursor, limit=13))
                if isinstance(found, int):
                    assert {*range(cursor + 1, found)} <= plain.pruned
                    cursor = found - 1
                else:
                    seen += found
                    cursor = found[-1].seq
            assert [one for one in plain.events if one.seq not in plain.pruned] == seen

    def teardown(self) -> None:
        try:
            self.look_at_everything()
            self.close()
            self.open()
            self.look_at_everything()
            self.close()
            assert [] == self.failures
        finally:
            self.runner.close()
            shutil.rmtree(self.folder)


def test_whatever_is_done_the_store_and_a_plain_model_of_it_never_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, helper: ProcessPoolExecutor
) -> None:
    async def run_there(task: str, order: dict[str, Any]) -> Any:
        answer = await asyncio.get_running_loop().run_in_executor(helper, carried_out, task, order)
        if "error" in answer:
            raise error_from_record(answer["error"])
        return answer["answer"]

    monkeypatch.setattr(log_keeper, "run_maintenance", run_there)
    monkeypatch.setattr(group_commit, "LOG_BATCHES", 8)

    class Machine(StoreModel):
        def __init__(self) -> None:
            super().__init__(tmp_path)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=10, stateful_step_count=12, deadline=None, suppress_health_check=SLOW, phases=PHASES
        ),
    )
