"""What only the DuckDB store can get wrong: reopening, frames that come twice or out of order, and damaged files."""

import asyncio
import random
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from greenroom.adapters.append_frames import (
    AppendAnswer,
    AppendEntry,
    AppendStatus,
    decode_answers,
    encode_frame,
)
from greenroom.adapters.direct_lane import DirectStore
from greenroom.adapters.duckdb import event_store, group_commit
from greenroom.adapters.duckdb.event_store import DuckDBEventStore
from greenroom.adapters.duckdb.manifest import LAYOUT_VERSION, read_manifest, write_manifest
from greenroom.adapters.duckdb.store_folder import StoreFolder
from greenroom.adapters.event_codec import BatchEncoder, decode_slab
from greenroom.adapters.event_log_client import EventLogClient, Lane
from greenroom.adapters.socket_lane import SOCKET_NAME, SocketLane, SocketLaneServer
from greenroom.domain.errors import InvalidFormat, StorageConnectionFailed, WriterFenced
from greenroom.domain.event import Event, EventType, NewEvent
from greenroom.domain.event_log import EventQuery, Ownership
from greenroom.domain.record_projection import fold_run, fold_session
from greenroom.domain.run import Run, RunStatus
from greenroom.domain.session import Session

from .event_log_suite import Writer, completed, created, event, queued, sent, started

ALL = EventQuery(limit=10_000)


def fail(exc: Exception) -> None:
    pytest.fail(f"the writer failed: {exc!r}")


@asynccontextmanager
async def opened(path: Path) -> AsyncGenerator[DirectStore]:
    store = DirectStore(path, on_fatal=fail)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


def frame(*entries: tuple[str, int, int, list[NewEvent]], number: int = 1) -> bytes:
    encoder = BatchEncoder()
    return encode_frame(
        number,
        [AppendEntry(session_id, epoch, batch, encoder.encode(events)) for session_id, epoch, batch, events in entries],
    )


async def answers_of(store: DuckDBEventStore, *entries: tuple[str, int, int, list[NewEvent]]) -> list[AppendAnswer]:
    return decode_answers(await store.append(frame(*entries)))[1]


async def events_of(store: DuckDBEventStore, session_id: str = "ses_1") -> list[Event]:
    slabs = await store.read(session_id, ALL)
    return [found for slab in slabs for found in decode_slab(session_id, slab)]


# Opening again


async def test_everything_is_there_when_the_file_is_opened_again(path: Path) -> None:
    async with opened(path) as store:
        client = EventLogClient(store)
        writer, other = await Writer.of(client), await Writer.of(client, "ses_2")
        await writer.append(created(), queued("run_1", key="k"), sent("run_1"))
        await writer.append(started("run_1"))
        await other.append(event("b"))
        await store.save_tools("ses_1", b"tools")
        expected = (await events_of(store), await events_of(store, "ses_2"), await store.load("ses_1"))
        await client.aclose()

    async with opened(path) as store:
        assert expected == (await events_of(store), await events_of(store, "ses_2"), await store.load("ses_1"))
        assert "run_1" == await store.find_run_by_key("ses_1", "k")
        assert "ses_1" == await store.find_session_by_key("s")
        assert b"tools" == await store.tools("ses_1")
        assert Ownership(epoch=2, last_seq=4) == await store.grant("ses_1", "owner")
        assert {"sessions": 1, "runs": 1, "events": 5} == {
            name: count for name, count in (await store.counts()).items() if name != "bytes"
        }


async def test_the_owner_of_before_goes_on_where_it_was(path: Path) -> None:
    async with opened(path) as store:
        await store.grant("ses_1", "owner")
        for number in range(1, 4):
            await answers_of(store, ("ses_1", 1, number, [event(str(number))] * 2))

    async with opened(path) as store:
        (answer,) = await answers_of(store, ("ses_1", 1, 4, [event("4")]))

        assert (AppendStatus.STORED, 7) == (answer.status, answer.first)
        assert list(range(1, 8)) == [found.seq for found in await events_of(store)]


async def test_a_batch_repeated_after_reopening_gets_its_first_answer_and_is_stored_once(path: Path) -> None:
    batches = [("ses_1", 1, number, [event(str(number))] * number) for number in range(1, 6)]
    async with opened(path) as store:
        await store.grant("ses_1", "owner")
        first = [await answers_of(store, batch) for batch in batches]
        again = [await answers_of(store, batch) for batch in batches]
        expected = await events_of(store)

    async with opened(path) as store:
        after = [await answers_of(store, batch) for batch in batches]

        assert first == again == after
        assert expected == await events_of(store)


async def test_an_epoch_fenced_before_reopening_stays_fenced(path: Path) -> None:
    async with opened(path) as store:
        await store.grant("ses_1", "old")
        await answers_of(store, ("ses_1", 1, 1, [event("a")]))
        await store.grant("ses_1", "new")

    async with opened(path) as store:
        found = await answers_of(store, ("ses_1", 1, 2, [event("b")]), ("ses_1", 1, 1, [event("a")]))

        assert [AppendAnswer(AppendStatus.FENCED, 2, 0)] * 2 == found
        assert 1 == len(await events_of(store))
        assert "new" == await store.owner("ses_1")


async def test_what_was_stored_survives_the_death_of_the_process(path: Path) -> None:
    script = f"""
import asyncio, os, pathlib
from greenroom.adapters.direct_lane import DirectStore
from tests.conformance.test_duckdb_event_store import answers_of, event
async def main():
    store = DirectStore(pathlib.Path({str(path)!r}), on_fatal=lambda exc: os._exit(1))
    await store.open()
    await store.grant("ses_1", "owner")
    for number in range(1, 51):
        await answers_of(store, ("ses_1", 1, number, [event(str(number))]))
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    killed = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
    assert -9 == await killed.wait()

    async with opened(path) as store:
        assert [str(number) for number in range(1, 51)] == [one.data["content"] for one in await events_of(store)]
        (answer,) = await answers_of(store, ("ses_1", 1, 51, [event()]))
        assert 51 == answer.first


async def test_a_closed_store_leaves_its_file_to_other_processes(path: Path) -> None:
    store = DirectStore(path, on_fatal=fail)
    await store.open()
    await store.grant("ses_1", "owner")
    await answers_of(store, ("ses_1", 1, 1, [event("a")]))
    await events_of(store)

    await store.close()

    script = (
        f"import duckdb; connection = duckdb.connect({str(path / 'log-000001.duckdb')!r});"
        "print(connection.execute('SELECT count(*) FROM batches').fetchone()[0])"
    )
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said, _ = await other.communicate()
    assert "1" == said.decode().strip()


# Frames


async def test_an_entry_out_of_order_is_refused_with_the_one_expected(path: Path) -> None:
    async with opened(path) as store:
        await store.grant("ses_1", "owner")
        await answers_of(store, ("ses_1", 1, 1, [event("a")]))

        found = await answers_of(store, ("ses_1", 1, 3, [event("c")]), ("ses_1", 1, 2, [event("b")]))

        assert [(AppendStatus.OUT_OF_ORDER, 2), (AppendStatus.STORED, 2)] == [(one.status, one.first) for one in found]
        assert ["a", "b"] == [one.data["content"] for one in await events_of(store)]


async def test_an_entry_twice_in_one_frame_is_stored_once(path: Path) -> None:
    async with opened(path) as store:
        await store.grant("ses_1", "owner")
        entry = ("ses_1", 1, 1, [event("a")])

        first, again = await answers_of(store, entry, entry)

        assert first == again
        assert 1 == len(await events_of(store))


async def test_a_session_that_nobody_owns_takes_no_entry(path: Path) -> None:
    async with opened(path) as store:
        assert [AppendAnswer(AppendStatus.FENCED, 0, 0)] == await answers_of(store, ("ses_1", 1, 1, [event()]))


async def test_heads_that_are_dropped_from_memory_are_read_from_the_file_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "MAX_HEADS", 2)
    monkeypatch.setattr(event_store, "MAX_KNOWN_ENDS", 2)
    names = [f"ses_{index}" for index in range(6)]
    async with opened(path) as store:
        for name in names:
            await store.grant(name, "owner")
        for number in (1, 2, 3):
            for name in names:
                (answer,) = await answers_of(store, (name, 1, number, [event(), event()]))
                assert (AppendStatus.STORED, 2 * number - 1) == (answer.status, answer.first)

        assert len(store._store.writer._sessions) <= 2  # pyright: ignore[reportPrivateUsage]  the bound is the point
        assert [6] * 6 == [len(await events_of(store, name)) for name in names]


class Unsteady(DuckDBEventStore):
    """A store whose lanes break: frames and replies get lost, and connecting fails at first."""

    def __init__(self, path: Path, seed: int) -> None:
        super().__init__(path, on_fatal=fail)
        self.random = random.Random(seed)
        self.steady = False

    async def open_lane(self, *, on_reply: Callable[[bytes], None], on_broken: Callable[[], None]) -> Lane:
        if not self.steady and self.random.random() < 0.3:
            raise StorageConnectionFailed
        return UnsteadyLane(self, on_reply, on_broken)


class UnsteadyLane:
    def __init__(self, store: Unsteady, on_reply: Callable[[bytes], None], on_broken: Callable[[], None]) -> None:
        self._store = store
        self._on_reply = on_reply
        self._on_broken = on_broken
        self._open = True

    def send(self, frame: bytes) -> None:
        fate = 1.0 if self._store.steady else self._store.random.random()
        if fate < 0.1:
            asyncio.get_running_loop().call_soon(self._break)  # the frame is lost, and then the lane
        elif fate < 0.15:
            asyncio.get_running_loop().call_later(0.005, self._break)  # those sent until then are out of order
        else:
            self._store.submit(frame, self._reply)

    def close(self) -> None:
        self._open = False

    def _reply(self, reply: bytes) -> None:
        if not self._open:
            return
        if not self._store.steady and self._store.random.random() < 0.1:
            self._break()
        else:
            self._on_reply(reply)

    def _break(self) -> None:
        if self._open:
            self._open = False
            self._on_broken()


@pytest.mark.parametrize("seed", range(5))
async def test_over_a_lane_that_breaks_everything_is_stored_once_and_in_order(path: Path, seed: int) -> None:
    store = Unsteady(path, seed)
    await store.open()
    client = EventLogClient(store)
    writers = [await Writer.of(client, f"ses_{index}") for index in range(3)]
    answers: list[list[asyncio.Future[Any]]] = [[], [], []]

    for turn in range(60):
        for at, writer in enumerate(writers):
            answers[at].append(writer.append(event(str(turn)), event(str(turn))))
        await asyncio.sleep(0.0005)
    store.steady = True
    await asyncio.gather(*(writer.append(event("last")) for writer in writers))

    for at, writer in enumerate(writers):
        assert list(range(1, 121, 2)) == [(await answer).first_seq for answer in answers[at]]
        found = await writer.read()
        assert [*(str(turn) for turn in range(60) for _ in "ab"), "last"] == [one.data["content"] for one in found]
        assert found == [one for batch in writer.heard for one in batch.events()]
    await client.aclose()
    await store.close()


class Overtaking(DuckDBEventStore):
    """A store whose answers overtake each other, and whose frames do too, as calls of an actor may."""

    random = random.Random(7)

    async def open_lane(self, *, on_reply: Callable[[bytes], None], on_broken: Callable[[], None]) -> Lane:
        return OvertakingLane(self, on_reply)


class OvertakingLane:
    def __init__(self, store: Overtaking, on_reply: Callable[[bytes], None]) -> None:
        self._store = store
        self._on_reply: Callable[[bytes], None] | None = on_reply

    def send(self, frame: bytes) -> None:
        if self._store.random.random() < 0.1:
            self._late(self._store.submit, frame, self._reply)
        else:
            self._store.submit(frame, self._reply)

    def close(self) -> None:
        self._on_reply = None

    def _reply(self, reply: bytes) -> None:
        if self._on_reply is not None:
            self._late(self._on_reply, reply)

    def _late(self, call: Callable[..., None], *args: Any) -> None:
        asyncio.get_running_loop().call_later(self._store.random.random() * 0.005, call, *args)


async def test_answers_that_overtake_each_other_are_taken_in_order(path: Path) -> None:
    store = Overtaking(path, on_fatal=fail)
    await store.open()
    client = EventLogClient(store)
    writer = await Writer.of(client)
    answers: list[asyncio.Future[Any]] = []
    answered: list[int] = []

    for index in range(100):
        answers.append(writer.append(event(str(index))))
        answers[-1].add_done_callback(lambda answer: answered.append(answer.result().first_seq))
        await asyncio.sleep(0)
    await asyncio.gather(*answers)
    await asyncio.sleep(0)

    assert (
        [*range(1, 101)] == answered == [one.first_seq + at for one in writer.heard for at in range(len(one.events()))]
    )
    assert [str(index) for index in range(100)] == await writer.texts()
    await client.aclose()
    await store.close()


class SocketStore(DuckDBEventStore):
    socket: Path

    async def open_lane(self, *, on_reply: Callable[[bytes], None], on_broken: Callable[[], None]) -> Lane:
        return await SocketLane.connect(self.socket, on_reply=on_reply, on_broken=on_broken)


async def test_a_socket_that_goes_away_and_comes_back_loses_nothing(path: Path, tmp_path: Path) -> None:
    store = SocketStore(path, on_fatal=fail)
    store.socket = tmp_path / SOCKET_NAME
    await store.open()
    server = SocketLaneServer(store.socket, store.submit)
    await server.start()
    client = EventLogClient(store)
    writer = await Writer.of(client)
    answers = [writer.append(event("0"))]
    await answers[0]

    for round_ in range(1, 4):
        answers += [writer.append(event(str(round_))) for _ in range(5)]
        await asyncio.sleep(0)  # the frame is on its way
        await server.close()
        answers += [writer.append(event(str(round_))) for _ in range(5)]
        await asyncio.sleep(0.01)  # it notices, and tries in vain
        server = SocketLaneServer(store.socket, store.submit)
        await server.start()

    assert list(range(1, 32)) == [(await answer).first_seq for answer in answers]
    assert ["0", *(str(round_) for round_ in (1, 2, 3) for _ in range(10))] == await writer.texts()
    await client.aclose()
    await server.close()
    await store.close()


async def test_a_lane_that_is_lost_as_it_is_made_is_no_lane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    server = SocketLaneServer(tmp_path / SOCKET_NAME, lambda _frame, _reply: None)
    await server.start()
    connect = loop.create_unix_connection
    broken: list[int] = []

    async def connect_and_lose(*args: Any) -> Any:
        transport, protocol = await connect(*args)
        transport.abort()
        await asyncio.sleep(0)
        return transport, protocol

    monkeypatch.setattr(loop, "create_unix_connection", connect_and_lose)

    with pytest.raises(StorageConnectionFailed) as refused:
        await SocketLane.connect(server.path, on_reply=lambda _: None, on_broken=lambda: broken.append(1))

    assert refused.value.retryable
    assert [] == broken
    await server.close()


async def test_a_socket_path_that_is_too_long_for_an_address_works(path: Path, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120) / ("e" * 120)
    deep.mkdir(parents=True)
    store = SocketStore(path, on_fatal=fail)
    store.socket = deep / SOCKET_NAME
    await store.open()
    server = SocketLaneServer(store.socket, store.submit)
    await server.start()
    client = EventLogClient(store)

    writer = await Writer.of(client)

    assert 1 == (await writer.append(event())).first_seq
    assert 0o600 == store.socket.stat().st_mode & 0o777
    await client.aclose()
    await server.close()
    await store.close()


async def test_room_comes_back_when_the_writer_that_filled_it_is_gone(path: Path) -> None:
    async with opened(path) as store:
        client = EventLogClient(store)
        full, other = await Writer.of(client), await Writer.of(client, "ses_2")
        for _ in range(9):
            full.record(event("x" * 1_000_000))
        waiting = asyncio.create_task(client.room())
        await asyncio.sleep(0)
        was_full = not waiting.done()

        client.release("ses_1", full.ownership.epoch)

        await asyncio.wait_for(waiting, 10)
        assert was_full
        assert 1 == (await other.append(event())).first_seq
        await client.aclose()


# Files


async def test_a_folder_of_a_newer_layout_is_refused_and_left_as_it_is(path: Path) -> None:
    async with opened(path):
        pass
    manifest = read_manifest(path)
    assert manifest is not None
    write_manifest(path, manifest.changed(layout=LAYOUT_VERSION + 1))
    before = {file: file.read_bytes() for file in path.iterdir() if file.is_file()}

    with pytest.raises(InvalidFormat) as refused:
        await DirectStore(path, on_fatal=fail).open()

    assert {"path": str(path / "manifest.json"), "schema_version": LAYOUT_VERSION + 1} == refused.value.details
    assert before == {file: file.read_bytes() for file in path.iterdir() if file.is_file()}


async def test_a_folder_that_cannot_be_made_gives_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(StorageConnectionFailed, match="cannot be used"):
        await DirectStore(tmp_path / "file" / "store", on_fatal=fail).open()


@pytest.fixture
async def locked(path: Path) -> AsyncGenerator[asyncio.subprocess.Process]:
    """Another process that has the folder open, until its stdin is closed."""
    script = (
        "import pathlib, sys; from greenroom.adapters.duckdb.store_folder import StoreFolder;"
        f"held = StoreFolder(pathlib.Path({str(path)!r})); print('held', flush=True); sys.stdin.read()"
    )
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert b"held\n" == await holder.stdout.readline()
    yield holder
    if holder.returncode is None:
        await holder.communicate(b"")


async def test_a_folder_that_another_process_has_is_refused_after_the_wait(
    path: Path, locked: asyncio.subprocess.Process
) -> None:
    with pytest.raises(StorageConnectionFailed) as refused:
        StoreFolder(path, lock_wait_s=0.2)

    assert str(path / "store.lock") == refused.value.details["path"]
    assert refused.value.retryable


async def test_opening_waits_for_a_process_that_is_just_going(path: Path, locked: asyncio.subprocess.Process) -> None:
    trying = threading.Event()

    def open_it() -> None:
        trying.set()
        StoreFolder(path, lock_wait_s=30).release()

    opening = asyncio.create_task(asyncio.to_thread(open_it))
    await asyncio.to_thread(trying.wait)

    await locked.communicate(b"")

    await opening


# Projections


def folded(events: list[Event], epoch: int) -> tuple[Session | None, dict[str, Run]]:
    session: Session | None = None
    runs: dict[str, Run] = {}
    for one in events:
        if one.type.value.startswith("session_"):
            session = fold_session(session, one, epoch=epoch)
        elif one.run_id is not None and (one.type.value.startswith("run_") or one.type is EventType.MESSAGE_SENT):
            runs[one.run_id] = fold_run(runs.get(one.run_id), one)
    return session, runs


class Scenario:
    """Sessions in which random legal things happen."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.states: dict[str, dict[str, str]] = {}
        self._made = 0

    def step(self, session_id: str) -> list[NewEvent]:
        if session_id not in self.states:
            self.states[session_id] = {}
            return [created(), NewEvent("evt_s", EventType.SESSION_STARTED, 2, None, None, None, {}, {})]
        runs = self.states[session_id]
        open_runs = [run_id for run_id, state in runs.items() if state != "ended"]
        if not open_runs or self.random.random() < 0.3:
            self._made += 1
            run_id = f"run_{self._made}"
            runs[run_id] = "pending"
            key = f"key_{self._made}" if self.random.random() < 0.5 else None
            return [queued(run_id, key=key, call_id=f"call_{self._made // 2}"), sent(run_id), sent(run_id, "And?")]
        run_id = self.random.choice(open_runs)
        if runs[run_id] == "pending":
            runs[run_id] = "running"
            return [started(run_id), event("x", run_id=run_id)]
        fate = self.random.random()
        if fate < 0.2:
            runs[run_id] = "pending"
            return [queued(run_id)._replace(attempt=2)]
        if fate < 0.5:
            return [event("y", run_id=run_id)] * 3
        runs[run_id] = "ended"
        ending = self.random.choice(
            [
                completed(run_id),
                completed(run_id)._replace(type=EventType.RUN_CANCELLED, data={"stop_reason": "no"}),
                completed(run_id)._replace(type=EventType.RUN_FAILED, data={"error": {"code": "x", "message": "y"}}),
            ]
        )
        return [event("z", run_id=run_id), ending]


@pytest.mark.parametrize("seed", range(3))
async def test_projections_are_the_fold_of_all_events_whenever_the_file_is_reopened(path: Path, seed: int) -> None:
    scenario = Scenario(seed)
    names = [f"ses_{index}" for index in range(4)]
    epochs = 0
    for _ in range(4):
        async with opened(path) as store:
            epochs += 1
            numbers = dict.fromkeys(names, 0)
            for name in names:
                await store.grant(name, f"owner_{epochs}")
            for _ in range(60):
                name = scenario.random.choice(names)
                numbers[name] += 1
                await answers_of(store, (name, epochs, numbers[name], scenario.step(name)))
                if scenario.random.random() < 0.1:
                    await store.load(name)

    async with opened(path) as store:
        for name in names:
            session, runs = folded(await events_of(store, name), 1)
            records = await store.load(name)
            assert session == records.session
            assert list(runs.values()) == [await store.find_run(run_id) for run_id in runs]
            assert [run for run in runs.values() if not run.status.is_terminal] == [*records.open_runs]
            assert len(runs) == records.run_count
            for run in runs.values():
                if run.idempotency_key is not None:
                    assert run.id == await store.find_run_by_key(name, run.idempotency_key)
        owned = {name for name in names if any(state != "ended" for state in scenario.states[name].values())}
        assert owned == set(await store.sessions_with_open_runs()) == set(await store.sessions_of("owner_4"))
        assert [] == await store.sessions_of("owner_1")


async def test_an_event_that_the_writer_would_have_refused_does_not_stop_the_store(path: Path) -> None:
    async with opened(path) as store:
        await store.grant("ses_1", "owner")
        await answers_of(store, ("ses_1", 1, 1, [created(), queued("run_1"), completed("run_1")]))
        await answers_of(store, ("ses_1", 1, 2, [sent("run_1")._replace(data={}), started("run_1")]))

        run = await store.find_run("run_1")

        assert run is not None
        assert RunStatus.RUNNING == run.status
        assert 5 == len(await events_of(store))


async def test_a_fenced_writer_is_told_who_is_newer(path: Path) -> None:
    async with opened(path) as store:
        client = EventLogClient(store)
        old = await Writer.of(client)
        await Writer.of(client)

        with pytest.raises(WriterFenced) as refused:
            await old.append(event())

        assert {"session_id": "ses_1", "epoch": 1, "newer_epoch": 2} == refused.value.details
        await client.aclose()
