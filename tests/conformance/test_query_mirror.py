"""The mirror against a plain model, with crashes in the middle, and files that are damaged, foreign or in use."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings, strategies as st

from greenroom.adapters.duckdb import query_mirror
from greenroom.adapters.duckdb.query_mirror import MirroredBatch, QueryMirror, discard
from greenroom.adapters.duckdb.query_process import LAYOUT_VERSION
from greenroom.adapters.event_codec import BatchEncoder, Slab, decode_slab
from greenroom.domain.errors import InvalidFormat, StorageConnectionFailed
from greenroom.domain.event import Event, EventType, NewEvent
from greenroom.domain.record_projection import fold_run, fold_session
from greenroom.domain.run import Run
from greenroom.domain.session import Session

_encoder = BatchEncoder()


class Crash(Exception):
    """The process that fills the mirror dies here."""


def event(type_: EventType, data: dict[str, Any], run_id: str | None = None, at_us: int = 1) -> NewEvent:
    return NewEvent(f"evt_{type_}", type_, at_us, run_id, None if run_id is None else 1, "scripted", data, {"m": 1})


def created(tenant: str | None = None, **changes: Any) -> NewEvent:
    data: dict[str, Any] = {
        "agent_id": "agent",
        "parent_session_id": None,
        "metadata": {"team": "a"},
        "context": {},
        "tags": ["x", "ü"],
        "provider": "scripted",
        "max_concurrent_runs": 1,
        "max_queued_runs": 10,
        "run_defaults": {},
    }
    data |= changes
    if tenant is not None:
        data["metadata"] = {**data["metadata"], "tenant": tenant}
    return event(EventType.SESSION_CREATED, data)


def whole_run(run_id: str, text: str = "Hi.") -> list[NewEvent]:
    return [
        event(EventType.RUN_QUEUED, {"options": {"metadata": {"n": 1}}}, run_id, 10),
        event(EventType.MESSAGE_SENT, {"role": "user", "content": text}, run_id, 10),
        event(EventType.RUN_STARTED, {"model": "m"}, run_id, 20),
        event(EventType.TOOL_CALL_STARTED, {"tool_call_id": "c1", "tool_name": "t", "tool_input": {}}, run_id, 30),
        event(EventType.MESSAGE_STREAMED, {"content": text, "delta": text}, run_id, 40),
        event(EventType.TOOL_CALL_COMPLETED, {"tool_call_id": "c1", "tool_name": "t", "tool_input": {}}, run_id, 50),
        event(
            EventType.RUN_COMPLETED,
            {"output": {"content": text}, "token_usage": {"input_tokens": 3, "output_tokens": 4}, "cost_usd": 0.25}
            | {"turn_count": 2, "model": "m-2", "stop_reason": "end_turn"},
            run_id,
            60,
        ),
    ]


@dataclass
class Log:
    """What the store has: batches of many sessions, numbered as they were committed."""

    batches: list[MirroredBatch] = field(default_factory=list[MirroredBatch])
    last_seqs: dict[str, int] = field(default_factory=dict[str, int])

    def append(self, session_id: str, events: Iterable[NewEvent], *, epoch: int = 1) -> MirroredBatch:
        packed = _encoder.encode(events)
        first = self.last_seqs.get(session_id, 0) + 1
        self.last_seqs[session_id] = first + packed.event_count - 1
        slab = Slab(range(first, first + packed.event_count), 1_000 + len(self.batches), packed.payload)
        batch = MirroredBatch(len(self.batches) + 1, session_id, epoch, slab)
        self.batches.append(batch)
        return batch

    @property
    def newest(self) -> int:
        return len(self.batches)


def naive(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=None)


class Model:
    """The tables, made the plain way: every event folded, one after the other."""

    def __init__(self, batches: Iterable[MirroredBatch]) -> None:
        self.events: list[Event] = []
        self.sessions: dict[str, Session] = {}
        self.runs: dict[tuple[str, str], Run] = {}
        for batch in batches:
            for found in decode_slab(batch.session_id, batch.slab):
                self.events.append(found)
                self._fold(found, batch.epoch)

    def _fold(self, found: Event, epoch: int) -> None:
        if found.type not in query_mirror.RECORD_TYPES:
            return
        if found.run_id is None:
            self.sessions[found.session_id] = fold_session(self.sessions.get(found.session_id), found, epoch=epoch)
        else:
            key = (found.session_id, found.run_id)
            self.runs[key] = fold_run(self.runs.get(key), found)

    def rows(self) -> dict[str, list[tuple[Any, ...]]]:
        return {
            "events": sorted(
                (one.session_id, one.seq, one.id, one.type.value, one.run_id, naive(one.timestamp), one.data)
                for one in self.events
            ),
            "sessions": sorted(
                (one.id, one.status.value, one.agent_id, one.tags, one.metadata, naive(one.updated_at), one.epoch)
                for one in self.sessions.values()
            ),
            "runs": sorted(
                (
                    *(one.session_id, one.id, one.status.value, one.model, one.input, one.output, one.turn_count),
                    *(one.cost_usd, naive(one.created_at), naive(one.ended_at), one.token_usage.get("input_tokens")),
                )
                for one in self.runs.values()
            ),
        }


def rows_of(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """What a reader of the closed file finds, as the model has it."""
    import json

    def parsed(text: str | None) -> Any:
        return None if text is None else json.loads(text)

    with duckdb.connect(str(path), read_only=True) as reader:
        events = reader.execute(
            "SELECT session_id, seq, event_id, type, run_id, timestamp, data FROM events"
        ).fetchall()
        sessions = reader.execute(
            "SELECT session_id, status, agent_id, tags, metadata, updated_at, epoch FROM sessions"
        ).fetchall()
        runs = reader.execute(
            "SELECT session_id, run_id, status, model, input, output, turn_count, cost_usd, created_at, ended_at,"
            " input_tokens FROM runs"
        ).fetchall()
    return {
        "events": sorted((*row[:6], parsed(row[6])) for row in events),
        "sessions": sorted((*row[:4], parsed(row[4]), *row[5:]) for row in sessions),
        "runs": sorted((*row[:4], parsed(row[4]), parsed(row[5]), *row[6:]) for row in runs),
    }


def dying(batches: Iterable[MirroredBatch], after: int) -> Iterator[MirroredBatch]:
    for count, batch in enumerate(batches):
        if count == after:
            raise Crash
        yield batch


def value_of(path: Path, statement: str) -> Any:
    with duckdb.connect(str(path), read_only=True) as reader:
        row = reader.execute(statement).fetchone()
    assert row is not None
    return row[0]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mirror.duckdb"


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query_mirror, "STEP_EVENTS", 5)


# Whole histories, against the model

_SESSIONS = ("ses_a", "ses_b", "ses_c")
_texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)


@st.composite
def histories(draw: st.DrawFn) -> Log:
    """A log of several sessions: their events in order, cut into batches, the sessions interleaved."""
    waiting: dict[str, list[NewEvent]] = {}
    for session_id in _SESSIONS[: draw(st.integers(1, 3))]:
        events = [created(draw(st.sampled_from([None, "", "A"]))), event(EventType.SESSION_STARTED, {})]
        for number in range(draw(st.integers(0, 3))):
            # the same run ids in every session, as after an import
            events += whole_run(f"run_{number}", draw(_texts))[: draw(st.integers(1, 7))]
        if draw(st.booleans()):
            events.append(event(EventType.SESSION_COMPLETED, {}))
        waiting[session_id] = events
    log = Log()
    while any(waiting.values()):
        session_id = draw(st.sampled_from([name for name, events in waiting.items() if events]))
        count = draw(st.integers(1, 6))
        log.append(session_id, waiting[session_id][:count], epoch=draw(st.integers(1, 3)))
        waiting[session_id] = waiting[session_id][count:]
    return log


def in_some_order(draw: st.DrawFn, batches: list[MirroredBatch]) -> list[MirroredBatch]:
    """Session after session: in the order of seqs within each, and not in that of the batch numbers."""
    order: list[str] = draw(st.permutations(sorted({batch.session_id for batch in batches})))
    return sorted(batches, key=lambda batch: order.index(batch.session_id))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), log=histories())
def test_the_mirror_is_what_the_events_make_of_it_however_often_it_was_interrupted(data: Any, log: Log) -> None:
    draw = data.draw
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(query_mirror, "STEP_EVENTS", draw(st.integers(1, 12)))
        path = Path(folder) / "mirror.duckdb"
        mirror = QueryMirror.open(path)
        while mirror.watermark < log.newest:
            up_to = draw(st.integers(mirror.watermark + 1, log.newest))
            batches = in_some_order(draw, log.batches[mirror.watermark : up_to])
            before = mirror.watermark
            if draw(st.booleans()):
                with pytest.raises(Crash):
                    mirror.catch_up(dying(batches, draw(st.integers(0, len(batches) - 1))), up_to)
                assert before == mirror.watermark
                path = _copied_as_a_crash_leaves_it(path) if draw(st.booleans()) else path
                mirror.close()
                mirror = QueryMirror.open(path)
                assert before == mirror.watermark
                batches = in_some_order(draw, log.batches[before:up_to])
            mirror.catch_up(batches, up_to)
            assert up_to == mirror.watermark
            if draw(st.booleans()):
                mirror.compact()
        assert 0 == mirror.catch_up(log.batches, log.newest)

        forgotten = set(draw(st.lists(st.sampled_from(_SESSIONS))))
        mirror.forget(forgotten)
        mirror.close()

        assert Model(batch for batch in log.batches if batch.session_id not in forgotten).rows() == rows_of(path)


def _copied_as_a_crash_leaves_it(path: Path) -> Path:
    """The file and its WAL as they are now, while the first process still has them open."""
    copy = path.with_name(path.name + "x")
    for suffix in ("", ".wal"):
        if (path.parent / (path.name + suffix)).exists():
            shutil.copy(path.parent / (path.name + suffix), path.parent / (copy.name + suffix))
    return copy


# Catching up


def test_it_tells_how_many_events_were_new(path: Path) -> None:
    log = Log()
    log.append("ses_a", [created()])
    log.append("ses_a", whole_run("run_1"))
    mirror = QueryMirror.open(path)

    assert 8 == mirror.catch_up(log.batches, 2)
    assert 0 == mirror.catch_up(log.batches, 2)
    assert 2 == mirror.watermark
    mirror.close()


def test_the_watermark_rises_to_what_was_said_even_without_a_batch_and_never_falls(path: Path) -> None:
    mirror = QueryMirror.open(path)

    mirror.catch_up([], 7)
    mirror.catch_up([], 3)

    assert 7 == mirror.watermark
    mirror.close()
    reopened = QueryMirror.open(path)
    assert 7 == reopened.watermark
    reopened.close()


@pytest.mark.usefixtures("small_steps")
def test_what_was_committed_before_a_crash_is_kept_and_not_taken_in_twice(path: Path) -> None:
    log = Log()
    for number in range(10):
        log.append("ses_a", [created()] if number == 0 else whole_run(f"run_{number}"))
    mirror = QueryMirror.open(path)
    with pytest.raises(Crash):
        mirror.catch_up(dying(log.batches, 6), log.newest)
    mirror.close()
    kept = value_of(path, "SELECT count(*) FROM events")

    mirror = QueryMirror.open(path)
    added = mirror.catch_up(log.batches, log.newest)
    mirror.close()

    assert 0 < kept < 64
    assert 64 == kept + added == value_of(path, "SELECT count(DISTINCT seq) FROM events")


def test_each_row_bears_the_tenant_of_its_session(path: Path) -> None:
    log = Log()
    log.append("ses_a", [created("A"), *whole_run("run_1")])
    log.append("ses_b", [created(), *whole_run("run_1")])
    log.append("ses_a", whole_run("run_2"))
    mirror = QueryMirror.open(path)
    for batch in log.batches:  # the tenant of a later call comes from an earlier one
        mirror.catch_up([batch], batch.batch_id)
    mirror.close()

    with duckdb.connect(str(path), read_only=True) as reader:
        for table, of_a, of_nobody in (("events", 15, 8), ("runs", 2, 1), ("sessions", 1, 1)):
            found = reader.execute(f"SELECT tenant, session_id, count(*) FROM {table} GROUP BY ALL").fetchall()
            assert {("A", "ses_a", of_a), ("", "ses_b", of_nobody)} == set(found)


def test_events_whose_session_is_unknown_belong_to_no_tenant(path: Path) -> None:
    log = Log()
    log.append("ses_a", whole_run("run_1"))
    mirror = QueryMirror.open(path)

    mirror.catch_up(log.batches, 1)

    mirror.close()
    assert 7 == value_of(path, "SELECT count(*) FROM events WHERE tenant IS NULL")


def test_an_event_that_does_not_fit_is_kept_as_an_event_and_changes_no_record(path: Path) -> None:
    log = Log()
    log.append("ses_a", [created(), *whole_run("run_1")])
    log.append("ses_a", [event(EventType.RUN_FAILED, {"error": {"code": "x"}}, "run_1")])
    log.append("ses_a", [event(EventType.RUN_STARTED, {}, "run_none"), event(EventType.SESSION_RESUMED, {})])
    mirror = QueryMirror.open(path)

    for batch in log.batches:
        mirror.catch_up([batch], batch.batch_id)

    mirror.close()
    assert 11 == value_of(path, "SELECT count(*) FROM events")
    assert "completed" == value_of(path, "SELECT string_agg(status) FROM runs")
    assert "pending" == value_of(path, "SELECT string_agg(status) FROM sessions")


def test_values_of_odd_types_from_a_provider_do_not_stop_the_mirror(path: Path) -> None:
    log = Log()
    odd = {"output": [1], "token_usage": {"input_tokens": "many", "output_tokens": 2.5}, "cost_usd": "free"}
    odd |= {"turn_count": {"a": 1}, "model": ["m"]}
    log.append("ses_a", [created(), *whole_run("run_1")[:-1], event(EventType.RUN_COMPLETED, odd, "run_1")])
    log.append("ses_a", [event(EventType.TOOL_CALL_STARTED, {"tool_call_id": 7, "x": (1 << 64) - 1}, "run_1")])
    mirror = QueryMirror.open(path)

    assert 9 == mirror.catch_up(log.batches, 2)

    mirror.close()
    assert "completed" == value_of(path, "SELECT status FROM runs WHERE cost_usd IS NULL AND input_tokens = 0")


def test_events_of_a_newer_version_are_refused_and_nothing_of_their_step_is_kept(path: Path) -> None:
    log = Log()
    log.append("ses_a", [created()])
    log.append("ses_a", [created()._replace(schema_version=99)])
    mirror = QueryMirror.open(path)

    with pytest.raises(InvalidFormat):
        mirror.catch_up(log.batches, 2)

    assert 0 == mirror.watermark
    mirror.close()
    assert 0 == value_of(path, "SELECT count(*) FROM events")


def test_a_step_that_fails_in_its_middle_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    log.append("ses_a", [created(), *whole_run("run_1")])
    mirror = QueryMirror.open(path)

    def crash(*_: Any) -> tuple[Any, ...]:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(query_mirror, "_run_row", crash)
        with pytest.raises(Crash):
            mirror.catch_up(log.batches, 1)
    added = mirror.catch_up(log.batches, 1)

    mirror.close()
    assert 8 == added
    assert Model(log.batches).rows() == rows_of(path)


# Forgetting


def bytes_beside(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(path.parent.rglob("*")) if file.is_file())


@pytest.mark.usefixtures("small_steps")
def test_the_text_of_a_forgotten_session_is_nowhere_in_the_files_after_compacting(path: Path) -> None:
    log = Log()
    secret, kept = "forget-me-" + "0123456789" * 5, "keep-me-" + "0123456789" * 5
    for number in range(20):
        log.append("ses_a", [created(metadata={"note": secret})] if number == 0 else whole_run(f"run_{number}", secret))
        log.append("ses_b", [created(metadata={"note": kept})] if number == 0 else whole_run(f"run_{number}", kept))
    mirror = QueryMirror.open(path)
    mirror.catch_up(log.batches, log.newest)
    mirror.close()
    assert secret.encode() in bytes_beside(path)

    mirror = QueryMirror.open(path)
    mirror.forget(["ses_a", "ses_none"])
    mirror.compact()

    mirror.close()
    assert b"forget-me" not in bytes_beside(path)
    assert b"ses_a" not in bytes_beside(path)
    assert kept.encode() in bytes_beside(path)
    assert Model(batch for batch in log.batches if batch.session_id == "ses_b").rows() == rows_of(path)


def test_a_compacted_mirror_goes_on_where_it_was(path: Path) -> None:
    log = Log()
    log.append("ses_a", [created("A"), *whole_run("run_1")[:3]])
    log.append("ses_a", whole_run("run_1")[3:])
    mirror = QueryMirror.open(path)
    mirror.catch_up(log.batches[:1], 1)

    mirror.compact()
    mirror.catch_up(log.batches[1:], 2)

    mirror.close()
    assert Model(log.batches).rows() == rows_of(path)
    assert 0o600 == path.stat().st_mode & 0o777


def test_a_crash_before_the_new_file_takes_the_place_of_the_old_one_costs_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log()
    log.append("ses_a", [created(), *whole_run("run_1", "forget-me")])
    mirror = QueryMirror.open(path)
    mirror.catch_up(log.batches, 1)

    def crash(_: Path, __: Path) -> Path:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        with pytest.raises(Crash):
            mirror.compact()

    assert Model(log.batches).rows() == rows_of(path)
    mirror = QueryMirror.open(path)
    assert [path.name] == [file.name for file in path.parent.iterdir() if file.suffix != ".wal"]
    mirror.forget(["ses_a"])
    mirror.compact()
    mirror.close()
    assert b"forget-me" not in bytes_beside(path)


def test_a_session_may_come_again_after_it_was_forgotten(path: Path) -> None:
    first, second = Log(), Log()
    first.append("ses_a", [created("A"), *whole_run("run_1")])
    second.batches = list(first.batches)
    second.append("ses_a", [created("B"), *whole_run("run_9")])
    mirror = QueryMirror.open(path)
    mirror.catch_up(first.batches, 1)

    mirror.forget(["ses_a"])
    mirror.catch_up(second.batches, 2)

    mirror.close()
    assert Model(second.batches[1:]).rows() == rows_of(path)
    assert "B" == value_of(path, "SELECT any_value(tenant) FROM events")


# Files


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5_000])


def _of_another_layout(path: Path) -> None:
    with duckdb.connect(str(path)) as connection:
        connection.execute(f"UPDATE meta SET layout_version = {LAYOUT_VERSION + 1}")


def _of_somebody_else(path: Path) -> None:
    path.unlink()
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE something (x INTEGER)")


def _missing(path: Path) -> None:
    path.unlink()


def _garbage(path: Path) -> None:
    path.write_bytes(b"no database, but long enough to be looked at" * 500)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "harm",
    [_missing, _garbage, _empty, _cut, _of_another_layout, _of_somebody_else],
)
def test_a_file_that_cannot_be_used_is_begun_anew(path: Path, harm: Callable[[Path], Any]) -> None:
    log = Log()
    log.append("ses_a", [created(), *whole_run("run_1")])
    mirror = QueryMirror.open(path)
    mirror.catch_up(log.batches, 1)
    mirror.close()
    harm(path)

    mirror = QueryMirror.open(path)

    assert 0 == mirror.watermark
    assert 8 == mirror.catch_up(log.batches, 1)
    mirror.close()
    assert Model(log.batches).rows() == rows_of(path)
    assert 0o600 == path.stat().st_mode & 0o777


def test_a_wal_that_cannot_be_read_costs_no_more_than_what_was_in_it(path: Path) -> None:
    log = Log()
    log.append("ses_a", [created(), *whole_run("run_1")])
    log.append("ses_a", whole_run("run_2"))
    mirror = QueryMirror.open(path)
    mirror.catch_up(log.batches[:1], 1)
    mirror.close()
    mirror = QueryMirror.open(path)
    mirror.catch_up(log.batches, 2)
    copy = _copied_as_a_crash_leaves_it(path)
    mirror.close()
    wal = copy.with_name(copy.name + ".wal")
    wal.write_bytes(wal.read_bytes()[:-40])

    mirror = QueryMirror.open(copy)
    mirror.catch_up(log.batches[mirror.watermark :], 2)
    mirror.close()

    assert Model(log.batches).rows() == rows_of(copy)


def test_a_discarded_mirror_leaves_no_file(path: Path) -> None:
    QueryMirror.open(path).close()

    discard(path)

    assert [] == list(path.parent.iterdir())
    discard(path)


def test_a_file_that_another_process_reads_is_left_alone(path: Path) -> None:
    log = Log()
    log.append("ses_a", [created()])
    mirror = QueryMirror.open(path)
    mirror.catch_up(log.batches, 1)
    mirror.close()
    program = f"import duckdb; c = duckdb.connect({str(path)!r}, read_only=True); print('open', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None
        assert "open\n" == reader.stdout.readline()

        with pytest.raises(StorageConnectionFailed):
            QueryMirror.open(path)

        reader.communicate("\n")
    mirror = QueryMirror.open(path)
    assert 1 == mirror.watermark
    mirror.close()


def test_the_json_extension_is_part_of_the_wheel_and_needs_no_loading() -> None:
    off: dict[str, Any] = {"autoload_known_extensions": False, "autoinstall_known_extensions": False}
    with duckdb.connect(config=off) as connection:
        row = connection.execute(
            "SELECT install_mode FROM duckdb_extensions() WHERE extension_name = 'json' AND loaded"
        ).fetchone()
        assert ("STATICALLY_LINKED",) == row
        assert ('"b"',) == connection.execute("""SELECT '{"a": "b"}'::JSON->'a'""").fetchone()
