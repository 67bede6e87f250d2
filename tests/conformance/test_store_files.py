"""The files of a store over their whole life: sealed, merged, pruned, rewritten, exported, backed up, and cut short."""

# pyright: reportPrivateUsage=false

import asyncio
import errno
import gzip
import multiprocessing
import os
import random
import shutil
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pytest

from greenroom.adapters import event_log_client, room_watch
from greenroom.adapters.append_frames import AppendEntry, encode_frame
from greenroom.adapters.artifact_folder import ArtifactFolder
from greenroom.adapters.direct_lane import DirectStore
from greenroom.adapters.duckdb import group_commit, log_file, log_keeper
from greenroom.adapters.duckdb.backup import restore_store
from greenroom.adapters.duckdb.head_journal import HeadJournal
from greenroom.adapters.duckdb.log_file import scan_rows
from greenroom.adapters.duckdb.log_sources import CurrentSources
from greenroom.adapters.duckdb.manifest import Manifest
from greenroom.adapters.duckdb.part_file import scan_part
from greenroom.adapters.duckdb.session_transfer import ImportOrder, import_session
from greenroom.adapters.duckdb.store_folder import OpenLog, StoreFolder
from greenroom.adapters.event_codec import BatchEncoder, decode_slab
from greenroom.adapters.event_log_client import EventLogClient
from greenroom.adapters.recent_batches import RecentBatches
from greenroom.adapters.store_options import StoreOptions
from greenroom.domain.errors import (
    AlreadyExists,
    GreenroomError,
    InvalidFormat,
    InvalidOperation,
    ResyncRequired,
    SessionNotFound,
    StorageConnectionFailed,
    StorageFull,
    StorageWriteFailed,
    WriterFenced,
    error_from_record,
)
from greenroom.domain.event import Event, EventType, NewEvent
from greenroom.domain.event_log import EventQuery
from greenroom.domain.part_merging import FANOUT
from tests.waiting import wait_until

from .event_log_suite import Writer, completed, created, event, queued, sent, started
from .test_store_model import carried_out

ALL = EventQuery(limit=10_000)
PATIENCE_S = 60.0
LETTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUV"
PRUNING = StoreOptions(prune_streamed_after_s=0.0)
RECEIVED = EventType.MESSAGE_RECEIVED


def fail(exc: Exception) -> None:
    pytest.fail(f"the store failed: {exc!r}")


@asynccontextmanager
async def opened(
    path: Path, options: StoreOptions | None = None, *, on_fatal: Callable[[Exception], None] = fail
) -> AsyncGenerator[DirectStore]:
    store = DirectStore(path, options, on_fatal=on_fatal)
    await store.open()
    try:
        yield store
    finally:
        await idle(store)
        await store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def small_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "LOG_BATCHES", 20)


@pytest.fixture(scope="module")
def helper() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture
def quick(helper: ProcessPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maintenance in a process that stays: for tests of what is done, and not of how a process is started."""

    async def run_there(task: str, order: dict[str, Any]) -> Any:
        answer = await asyncio.get_running_loop().run_in_executor(helper, carried_out, task, order)
        if "error" in answer:
            raise error_from_record(answer["error"])
        return answer["answer"]

    monkeypatch.setattr(log_keeper, "run_maintenance", run_there)


async def idle(store: DirectStore) -> None:
    """Wait until nothing is prepared or sealed any more."""
    if store._open is None:
        return
    while True:
        waiting = {*store._tasks, *filter(None, [store._open.keeper._sealing])}
        if not (waiting := {task for task in waiting if not task.done()}):
            return
        await asyncio.wait(waiting, timeout=PATIENCE_S)


async def sealed(store: DirectStore) -> None:
    await idle(store)
    assert () == store._store.sources().frozen


async def until(probe: Callable[[], object]) -> None:
    """Let the loop turn until it is true."""
    async with asyncio.timeout(PATIENCE_S):
        while not probe():
            await asyncio.sleep(0.001)


def forget_tail(store: DirectStore) -> None:
    store._recent = RecentBatches(max_bytes=0)


def noise(seed: object, size: int) -> str:
    """Text that does not get smaller by much."""
    return "".join(random.Random(str(seed)).choices(LETTERS, k=size))


async def events_of(store: DirectStore, session_id: str = "ses_1", query: EventQuery = ALL) -> list[Event]:
    return [one for slab in await store.read(session_id, query) for one in decode_slab(session_id, slab)]


async def written(store: DirectStore, client: EventLogClient, names: Sequence[str], batches: int) -> None:
    """Sessions with a record each and runs, and many small batches."""
    chance = random.Random(7)
    writers = [await Writer.of(client, name) for name in names]
    for writer in writers:
        run_id = f"run_{writer.session_id}"
        await writer.append(created(), queued(run_id, key=f"key_{writer.session_id}"), sent(run_id), started(run_id))
    for at in range(batches):
        writer = chance.choice(writers)
        text = f"text_{writer.session_id}_{at}"
        await writer.append(*[event(text, run_id=f"run_{writer.session_id}")] * chance.randint(1, 4))


class Load:
    """A writer that never rests, until it is told to; each of its appends must be answered."""

    def __init__(self, writer: Writer, *, size: int = 100) -> None:
        self.writer = writer
        self.texts: list[str] = []
        self._size = size
        self._ended = False
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while not self._ended:
            text = noise(len(self.texts), self._size)
            async with asyncio.timeout(PATIENCE_S):
                committed = await self.writer.append(event(text))
            self.texts.append(text)
            assert len(self.texts) == committed.first_seq

    async def during(self, work: Awaitable[Any]) -> Any:
        """The result of the work, while which appends must have been answered."""
        before = len(self.texts)
        result = await work
        assert len(self.texts) > before
        return result

    async def end(self) -> None:
        self._ended = True
        await self._task
        assert self.texts == await self.writer.texts()


# Sealing and merging


async def test_reads_are_the_same_before_while_and_after_full_log_files_are_sealed(
    path: Path, small_logs: None
) -> None:
    names = ["ses_1", "ses_2", "ses_3"]
    async with opened(path) as store:
        client = EventLogClient(store)
        await written(store, client, names, 90)
        expected = {name: await events_of(store, name) for name in names}
        forget_tail(store)

        rounds = 0
        while store._store.sources().frozen or not rounds:
            rounds += 1
            for name in names:
                assert expected[name] == await events_of(store, name)
        for name in names:
            for after in range(len(expected[name]) + 1):
                found = await events_of(store, name, EventQuery(after=after, limit=7))
                assert expected[name][after : after + 7] == found
            assert (await store.verify_session(name)).ok

        await sealed(store)
        manifest = store._store.keeper.manifest
        assert manifest.parts
        assert {f"log-{number:06}.duckdb" for number in manifest.logs} == {
            one.name for one in path.glob("log-*.duckdb")
        }
        assert {f"part-{one.number:06}.duckdb" for one in manifest.parts} == {
            one.name for one in path.glob("part-*.duckdb")
        }
        await client.aclose()
    async with opened(path) as store:
        assert expected == {name: await events_of(store, name) for name in names}


async def test_parts_are_merged_so_that_there_are_few(path: Path, quick: None) -> None:
    async with opened(path) as store:
        client = EventLogClient(store)
        writer, other = await Writer.of(client), await Writer.of(client, "ses_2")
        for at in range(2 * FANOUT + 2):
            await writer.append(event(f"{at}"))
            await other.append(event(f"other {at}"))
            await store._store.keeper.freeze()
            await sealed(store)
            assert len(store._store.sources().parts) < FANOUT
        forget_tail(store)

        assert [f"{at}" for at in range(2 * FANOUT + 2)] == await writer.texts()
        assert [f"other {at}" for at in range(2 * FANOUT + 2)] == await other.texts()
        assert (await store.verify_session("ses_1")).ok
        await client.aclose()


async def test_appends_are_answered_while_files_are_sealed_rewritten_exported_and_backed_up(
    path: Path, tmp_path: Path
) -> None:
    async with opened(path) as store:
        client = EventLogClient(store)
        await written(store, client, ["ses_1", "ses_2"], 30)
        load = Load(await Writer.of(client, "ses_load"))
        await until(lambda: load.texts)

        await load.during(store._store.keeper.freeze())
        await store.delete_session("ses_2")
        await load.during(store.compact())
        await load.during(store.export_session("ses_1", tmp_path / "archive"))
        await load.during(store.back_up(tmp_path / "backup"))

        await load.end()
        forget_tail(store)
        assert load.texts == await load.writer.texts()
        assert (await store.verify_session("ses_load")).ok
        await client.aclose()


# Deleting


def bytes_in(path: Path) -> int:
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())


def contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """Everything that can be read out of a store that is closed, with where it lies."""
    for file in sorted(path.rglob("*")):
        if not file.is_file():
            continue
        yield file.name, file.read_bytes()
        if file.suffix != ".duckdb":
            continue
        with duckdb.connect(str(file), read_only=True) as connection:
            tables = [name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
            for table in tables:
                if table not in ("chunks", "batches"):
                    yield f"{file.name} {table}", repr(connection.table(table).fetchall()).encode()
            scan = scan_part if "chunks" in tables else scan_rows if "batches" in tables else None
            if scan is not None:
                for _, batch in scan(connection):
                    yield f"{file.name} rows", batch.row


def traces(path: Path, *needles: str) -> set[tuple[str, str]]:
    return {(needle, place) for place, content in contents(path) for needle in needles if needle.encode() in content}


async def test_a_deleted_session_leaves_no_trace_once_the_files_were_compacted(
    path: Path, small_logs: None, tmp_path: Path
) -> None:
    needles = ("ses_SECRET", "run_SECRET", "key_SECRET", "text_SECRET", "tool_SECRET", "art_SECRET")
    async with opened(path) as store:
        client = EventLogClient(store)
        await written(store, client, ["ses_other"], 5)
        writer = await Writer.of(client, "ses_SECRET")
        await writer.append(created(tags=["text_SECRET"]), queued("run_SECRET", key="key_SECRET"))
        await writer.append(sent("run_SECRET", "text_SECRET"), started("run_SECRET"))
        for at in range(50):
            await writer.append(event(f"text_SECRET_{at}_{noise(at, 500)}", run_id="run_SECRET"))
        await store.save_tools("ses_SECRET", b"tool_SECRET")
        store._store.artifacts.put("ses_SECRET", b"art_SECRET")
        await client.aclose()
    before = traces(path, *needles)
    assert {*needles} == {needle for needle, _ in before}
    assert {"records.duckdb sessions", "records.duckdb runs", "records.duckdb session_tools"} <= {
        place for _, place in before
    }
    assert any(place.startswith("part-") and place.endswith("rows") for _, place in before)

    async with opened(path) as store:
        await store.delete_session("ses_SECRET")
        await store.compact()
    assert set() == traces(path, *needles)
    async with opened(path) as store:
        assert (await store.verify_session("ses_other")).ok
        with pytest.raises(SessionNotFound):
            await store.load("ses_SECRET")
        assert await store.find_run("run_SECRET") is None
        assert [] == store._store.artifacts.references("ses_SECRET")


async def test_compacting_after_half_of_the_sessions_were_deleted_gives_their_room_back(path: Path) -> None:
    async with opened(path) as store:
        client = EventLogClient(store)
        writers = [await Writer.of(client, f"ses_{at}") for at in range(20)]
        for turn in range(8):
            for at, writer in enumerate(writers):
                writer.record(*(event(noise((turn, at, one), 60_000)) for one in range(4)))
            await client.room()
        await asyncio.gather(*(writer.append(event("last")) for writer in writers))
        await store._store.keeper.freeze()
        await idle(store)
        before = bytes_in(path)
        load = Load(await Writer.of(client, "ses_load"))

        for writer in writers[::2]:
            await load.during(store.delete_session(writer.session_id))
        await load.during(store.compact())

        await load.end()
        assert before > 20_000_000
        assert bytes_in(path) <= 0.6 * before
        for writer in writers[1::2]:
            assert (await store.verify_session(writer.session_id)).ok
        await client.aclose()


async def test_a_session_made_again_under_the_name_of_a_deleted_one_is_a_new_one(
    path: Path, small_logs: None, quick: None
) -> None:
    async with opened(path) as store:
        client = EventLogClient(store)
        for round_ in range(4):
            writer = await Writer.of(client)
            assert (1, 0) == (writer.ownership.epoch, writer.ownership.last_seq)
            for at in range(15):
                await writer.append(event(f"{round_} {at}"))
            if round_ % 2:
                await sealed(store)
            assert [f"{round_} {at}" for at in range(15)] == await writer.texts()
            if round_ > 1:
                forget_tail(store)
                assert [f"{round_} {at}" for at in range(15)] == await writer.texts()
            if round_ < 3:
                await store.delete_session("ses_1")
                with pytest.raises(WriterFenced):
                    await writer.append(event("late"))
        await client.aclose()
    for _ in range(2):
        async with opened(path) as store:
            assert [f"3 {at}" for at in range(15)] == [one.data["content"] for one in await events_of(store)]
            assert (await store.verify_session("ses_1")).ok
            await store.compact()


async def test_a_session_that_is_deleted_while_the_files_are_compacted_stays_deleted(
    path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(path) as store:
        client = EventLogClient(store)
        await written(store, client, ["ses_1", "ses_2", "ses_3"], 15)
        await client.aclose()
        await store.compact()
        await store.delete_session("ses_2")
        run = log_keeper.run_maintenance
        ordered: list[str] = []

        async def run_and_delete(*args: Any) -> Any:
            answer = await run(*args)
            ordered.append(args[0])
            if len(ordered) == 1:
                await store.delete_session("ses_3")  # its rows are in what was just made
            return answer

        with monkeypatch.context() as patch:
            patch.setattr(log_keeper, "run_maintenance", run_and_delete)
            await store.compact()
        assert ordered
    async with opened(path) as store:
        assert [True, False, False] == [await store.has_session(name) for name in ("ses_1", "ses_2", "ses_3")]
        await store.compact()
    assert set() == traces(path, "ses_2", "ses_3")


# Cut short


class Cuts:
    """Copies of a store's folder, as a crash would have left it, made before and after each step of something."""

    def __init__(self, store: DirectStore, folder: Path) -> None:
        self.store = store
        self.folder = folder
        self.made: list[Path] = []

    def cut(self) -> None:
        copy = self.folder / f"cut-{len(self.made)}"
        shutil.copytree(self.store.path, copy)
        self.made.append(copy)

    def __enter__(self) -> "Cuts":
        keeper = self.store._store.keeper
        self._patch = pytest.MonkeyPatch()
        in_thread, run = keeper._in_thread, log_keeper.run_maintenance

        async def step(work: Any, *args: Any) -> Any:
            try:
                return await in_thread(work, *args)
            finally:
                self.cut()

        async def task(*args: Any) -> Any:
            self.cut()
            try:
                return await run(*args)
            finally:
                self.cut()

        self._patch.setattr(keeper, "_in_thread", step)
        self._patch.setattr(log_keeper, "run_maintenance", task)
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


async def test_a_crash_at_any_step_of_compacting_loses_nothing(
    path: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["ses_1", "ses_2", "ses_3"]
    async with opened(path) as store:
        client = EventLogClient(store)
        await written(store, client, names, 15)
        await store.compact()
        for name in names[:2]:
            writer = await Writer.of(client, name)
            await writer.append(event("more"))
        await store.delete_session("ses_3")
        expected = {name: await events_of(store, name) for name in names[:2]}
        records = {name: await store.load(name) for name in names[:2]}
        await client.aclose()
        await idle(store)

        with Cuts(store, tmp_path) as cuts:
            await store.compact()

    assert len(cuts.made) > 10
    for cut in cuts.made:
        async with opened(cut) as store:
            await idle(store)
            forget_tail(store)
            for name in names[:2]:
                assert expected[name] == await events_of(store, name)
                assert (await store.verify_session(name)).ok
                assert records[name] == await store.load(name)
                assert (await store.grant(name, "again")).last_seq == len(expected[name])
            with pytest.raises(SessionNotFound):
                await store.load("ses_3")
            await store.compact()
        assert set() == traces(cut, "ses_3")
        shutil.rmtree(cut)


async def test_compacting_that_is_given_up_can_be_begun_again(path: Path, small_logs: None, quick: None) -> None:
    async with opened(path) as store:
        client = EventLogClient(store)
        await written(store, client, ["ses_1", "ses_2"], 30)
        expected = await events_of(store)
        await store.delete_session("ses_2")
        for turns in (1, 3, 10, 30, 100):
            compacting = asyncio.create_task(store.compact())
            for _ in range(turns):
                await asyncio.sleep(0.001)
            compacting.cancel()
            await asyncio.wait([compacting])
        await idle(store)

        await store.compact()

        forget_tail(store)
        assert expected == await events_of(store)
        assert (await store.verify_session("ses_1")).ok
        await client.aclose()
    assert set() == traces(path, "ses_2")


@pytest.mark.parametrize("is_sealed", [False, True])
async def test_a_deletion_that_was_cut_short_is_finished_at_the_next_opening(
    path: Path, tmp_path: Path, quick: None, is_sealed: bool
) -> None:
    async with opened(path) as store:
        client = EventLogClient(store)
        await written(store, client, ["ses_1", "ses_2"], 10)
        store._store.artifacts.put("ses_2", b"content")
        await store.save_tools("ses_2", b"tools")
        if is_sealed:
            await store.compact()
        else:
            await store.load("ses_2")
        await client.aclose()
        with Cuts(store, tmp_path) as cuts:
            await store.delete_session("ses_2")

    async with opened(cuts.made[-1]) as store:
        with pytest.raises(SessionNotFound):
            await store.load("ses_2")
        assert [] == store._store.artifacts.references("ses_2")
        assert await store.find_run("run_ses_2") is None
        assert await store.tools("ses_2") is None
        assert ["ses_1"] == [
            one.id for one in await store.list_sessions(status=None, agent_id=None, tag=None, after=None, limit=10)
        ]
        assert (1, 0) == ((granted := await store.grant("ses_2", "new")).epoch, granted.last_seq)


async def test_what_a_crash_left_half_made_is_gone_after_the_next_opening(path: Path) -> None:
    async with opened(path) as store:
        await store.grant("ses_1", "owner")
    left = [
        "part-000099.duckdb",
        "part-000099.duckdb.new",
        "part-000099.heads",
        "log-000098.duckdb",
        "log-000098.heads",
    ]
    for name in left:
        (path / name).write_bytes(b"half")
    (path / "work-abc").mkdir()
    (path / "work-abc" / "log-000001.duckdb").write_bytes(b"half")

    async with opened(path):
        assert [] == [name for name in [*left, "work-abc"] if (path / name).exists()]


async def test_a_second_opener_is_refused_while_the_first_lives(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    defaults: Any = StoreFolder.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "lock_wait_s", 0.05)
    async with opened(path) as store:
        await store.grant("ses_1", "owner")

        with pytest.raises(StorageConnectionFailed):
            await DirectStore(path, on_fatal=fail).open()

        assert 2 == (await store.grant("ses_1", "owner")).epoch
    async with opened(path) as store:
        assert 3 == (await store.grant("ses_1", "owner")).epoch


# Pruning


def piece(text: str) -> NewEvent:
    return event(text, run_id="run_1")


def whole(text: str) -> NewEvent:
    return event(text, type=RECEIVED, run_id="run_1")


async def pruned_store(store: DirectStore) -> EventLogClient:
    """Seqs 2, 3 and 4 are pieces that go, 7 is one that stays."""
    client = EventLogClient(store)
    writer = await Writer.of(client)
    await writer.append(created())
    await writer.append(piece("a"), piece("b"))
    await writer.append(piece("c"), whole("abc"), event("turn", type=EventType.TURN_COMPLETED, run_id="run_1"))
    await writer.append(piece("d"))
    await store.compact()
    forget_tail(store)
    return client


async def test_pruned_pieces_are_asked_for_in_vain_but_never_passed_over(path: Path, quick: None) -> None:
    async with opened(path, PRUNING) as store:
        client = await pruned_store(store)

        verified = await store.verify_session("ses_1")
        assert (True, 4, 3, 7) == (verified.ok, verified.events, verified.pruned, verified.last_seq)
        assert [1] == [one.seq for one in await events_of(store)]
        for after in (1, 2, 3):
            with pytest.raises(ResyncRequired) as refused:
                await events_of(store, query=EventQuery(after=after))
            assert {"field": "after", "lowest_seq": 5} == refused.value.details
        assert [5, 6, 7] == [one.seq for one in await events_of(store, query=EventQuery(after=4))]
        others = frozenset(EventType) - {EventType.MESSAGE_STREAMED}
        assert [1, 5, 6] == [one.seq for one in await events_of(store, query=EventQuery(types=others))]
        assert [7] == [
            one.seq
            for one in await events_of(store, query=EventQuery(after=4, types=frozenset([EventType.MESSAGE_STREAMED])))
        ]
        await client.aclose()
    async with opened(path) as store:
        assert (await store.verify_session("ses_1")).ok


async def test_nothing_is_pruned_that_no_whole_message_of_its_attempt_followed(path: Path, quick: None) -> None:
    async with opened(path, PRUNING) as store:
        client = EventLogClient(store)
        writer = await Writer.of(client)
        await writer.append(piece("a"), piece("b")._replace(attempt=2), event("c", run_id="run_2"), event("d"))
        await writer.append(whole("ab")._replace(attempt=2), piece("e")._replace(attempt=2))
        await store.compact()
        forget_tail(store)

        assert [3, 4, 5, 6] == [one.seq for one in await events_of(store, query=EventQuery(after=2))]
        assert 1 == (await store.verify_session("ses_1")).pruned
        await client.aclose()


async def test_nothing_is_pruned_before_its_time(path: Path, quick: None) -> None:
    async with opened(path, StoreOptions(prune_streamed_after_s=1e9)) as store:
        client = EventLogClient(store)
        writer = await Writer.of(client)
        await writer.append(piece("a"), whole("a")._replace(timestamp_us=2_000_000_000_000_000))
        await store.compact()

        assert 0 == (await store.verify_session("ses_1")).pruned
        await client.aclose()


async def test_a_pruned_session_can_be_moved_to_another_store(path: Path, tmp_path: Path, quick: None) -> None:
    async with opened(path, PRUNING) as store:
        client = await pruned_store(store)
        assert 4 == await store.export_session("ses_1", tmp_path / "archive")
        expected = await events_of(store, query=EventQuery(after=4))
        await client.aclose()

    async with opened(tmp_path / "elsewhere") as store:
        await store.import_session(tmp_path / "archive")

        assert expected == await events_of(store, query=EventQuery(after=4))
        verified = await store.verify_session("ses_1")
        assert (True, 4, 3) == (verified.ok, verified.events, verified.pruned)
        with pytest.raises(ResyncRequired):
            await events_of(store, query=EventQuery(after=1))


# Archives


@pytest.fixture
async def archive(path: Path, tmp_path: Path, quick: None) -> Path:
    """Of ses_1, in a store where ses_1, ses_2 and ses_3 are."""
    async with opened(path) as store:
        client = EventLogClient(store)
        await written(store, client, ["ses_1", "ses_2", "ses_3"], 60)
        store._store.artifacts.put("ses_1", noise("artifact", 3_000).encode())
        store._store.artifacts.put("ses_2", b"text_ses_2")
        await store.compact()
        writer = await Writer.of(client, "ses_1")
        await writer.append(event("not sealed yet"))
        await store.export_session("ses_1", tmp_path / "archive")
        await client.aclose()
    return tmp_path / "archive"


async def test_an_archive_is_the_session_and_nothing_else(path: Path, archive: Path, tmp_path: Path) -> None:
    with gzip.open(archive) as file:
        content = file.read()
    assert b"ses_1" in content
    assert [] == [other for other in (b"ses_2", b"ses_3") if other in content]

    async with opened(path) as here, opened(tmp_path / "elsewhere") as there:
        assert "ses_1" == await there.import_session(archive)
        assert await events_of(here) == await events_of(there)
        assert await here.load("ses_1") == await there.load("ses_1")
        assert await here.verify_session("ses_1") == await there.verify_session("ses_1")
        (reference,) = there._store.artifacts.references("ses_1")
        assert noise("artifact", 3_000).encode() == there._store.artifacts.get("ses_1", reference)
        assert await here.grant("ses_1", "next") == await there.grant("ses_1", "next")


async def test_a_session_is_not_imported_over_one_that_is_there(path: Path, archive: Path) -> None:
    async with opened(path) as store:
        expected = await events_of(store)
        with pytest.raises(AlreadyExists) as refused:
            await store.import_session(archive)
        assert {"session_id": "ses_1"} == refused.value.details
        assert expected == await events_of(store)


def imported(archive: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    import_session(
        ImportOrder(
            path=str(archive),
            output=str(folder / "part-000001.duckdb"),
            session_key=1,
            first_batch=1,
            artifacts=str(folder / "artifacts"),
        )
    )


def refused(content: bytes, tmp_path: Path) -> bool:
    damaged = tmp_path / "damaged"
    damaged.write_bytes(content)
    try:
        imported(damaged, tmp_path / "imported")
    except InvalidFormat:
        assert [] == ArtifactFolder(tmp_path / "imported" / "artifacts").owners()
        assert not (tmp_path / "imported" / "part-000001.duckdb").exists()
        return True
    return False


GZIP_HEADER, GZIP_TRAILER = 10, 8


async def test_an_archive_with_any_changed_byte_is_refused(archive: Path, tmp_path: Path) -> None:
    content = archive.read_bytes()
    assert not refused(content, tmp_path)
    chance = random.Random(11)
    for _ in range(200):
        changed = bytearray(content)
        place = chance.randrange(GZIP_HEADER, len(content) - GZIP_TRAILER)
        changed[place] ^= 1 << chance.randrange(8)
        assert refused(bytes(changed), tmp_path) or says_the_same(bytes(changed), content), place


def says_the_same(changed: bytes, content: bytes) -> bool:
    """Some bits after the last compressed block mean nothing."""
    return gzip.decompress(changed) == gzip.decompress(content)


async def test_an_archive_that_was_cut_short_is_refused(archive: Path, tmp_path: Path) -> None:
    content = archive.read_bytes()
    chance = random.Random(11)
    for length in [0, 1, GZIP_HEADER, *(chance.randrange(len(content) - GZIP_TRAILER) for _ in range(40))]:
        assert refused(content[:length], tmp_path), length


async def test_a_changed_byte_around_the_content_of_an_archive_is_refused_too(archive: Path, tmp_path: Path) -> None:
    content = archive.read_bytes()
    accepted: list[int] = []
    for place in [*range(GZIP_HEADER), *range(len(content) - GZIP_TRAILER, len(content))]:
        changed = bytearray(content)
        changed[place] ^= 0x10
        if not refused(bytes(changed), tmp_path):
            accepted.append(place)
    accepted += [-cut for cut in range(1, GZIP_TRAILER + 1) if not refused(content[:-cut], tmp_path)]
    assert [] == accepted


async def test_a_store_that_refuses_an_archive_is_as_it_was(archive: Path, tmp_path: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    async with opened(tmp_path / "elsewhere") as store:
        with pytest.raises(InvalidFormat):
            await store.import_session(archive)
        with pytest.raises(SessionNotFound):
            await store.load("ses_1")
        assert [] == store._store.artifacts.owners()
        assert () == store._store.keeper.manifest.parts
        assert 1 == (await store.grant("ses_1", "owner")).epoch


# Copies of the store


async def test_a_backup_made_under_load_holds_everything_acknowledged_before_it_began(
    path: Path, tmp_path: Path
) -> None:
    async with opened(path) as store:
        client = EventLogClient(store)
        await written(store, client, ["ses_1", "ses_2"], 40)
        store._store.artifacts.put("ses_1", b"content")
        load = Load(await Writer.of(client, "ses_load"))
        await until(lambda: len(load.texts) > 20)
        expected = {name: await events_of(store, name) for name in ("ses_1", "ses_2")}
        records = {name: await store.load(name) for name in ("ses_1", "ses_2")}
        acknowledged = len(load.texts)

        assert 0 < await load.during(store.back_up(tmp_path / "backup"))

        await load.end()
        await client.aclose()
    restore_store(tmp_path / "backup", tmp_path / "restored")
    async with opened(tmp_path / "restored") as store:
        assert expected == {name: await events_of(store, name) for name in expected}
        assert records == {name: await store.load(name) for name in expected}
        found = [one.data["content"] for one in await events_of(store, "ses_load")]
        assert load.texts[: len(found)] == found
        assert len(found) >= acknowledged
        for name in ("ses_1", "ses_2", "ses_load"):
            assert (await store.verify_session(name)).ok
        (reference,) = store._store.artifacts.references("ses_1")
        assert b"content" == store._store.artifacts.get("ses_1", reference)


@pytest.fixture
async def backup(path: Path, tmp_path: Path, quick: None) -> Path:
    async with opened(path) as store:
        client = EventLogClient(store)
        await written(store, client, ["ses_1", "ses_2"], 10)
        await store.compact()
        await store.back_up(tmp_path / "backup")
        await client.aclose()
    return tmp_path / "backup"


async def test_a_backup_is_not_restored_over_anything(path: Path, backup: Path, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(InvalidOperation):
        restore_store(backup, path)
    assert before == {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(GreenroomError):
        restore_store(tmp_path / "nothing", tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


@pytest.mark.parametrize("pattern", ["part-*.duckdb", "part-*.heads", "manifest.json"])
async def test_a_backup_that_was_changed_is_not_restored(backup: Path, tmp_path: Path, pattern: str) -> None:
    (file,) = backup.glob(pattern)
    content = file.read_bytes()
    for place in (len(content) // 3, len(content) // 2, len(content) - 2):
        file.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(GreenroomError):
            restore_store(backup, tmp_path / "restored")
        assert not (tmp_path / "restored").exists()
    file.unlink()
    with pytest.raises(GreenroomError):
        restore_store(backup, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()
    file.write_bytes(content)
    restore_store(backup, tmp_path / "restored")
    async with opened(tmp_path / "restored") as store:
        assert (await store.verify_session("ses_1")).ok


async def test_a_backup_never_replaces_another(path: Path, backup: Path) -> None:
    before = {file: file.read_bytes() for file in backup.rglob("*") if file.is_file()}
    async with opened(path) as store:
        with pytest.raises(StorageWriteFailed):
            await store.back_up(backup)
    assert before == {file: file.read_bytes() for file in backup.rglob("*") if file.is_file()}


# Races. Each is held still at its narrowest place.


class Gate:
    """What the thread that records waits for before it writes to the journal."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self.waiting = 0

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def pass_through(self) -> None:
        self.waiting += 1
        assert self._open.wait(PATIENCE_S)
        self.waiting -= 1


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    append = HeadJournal.append

    def held(self: HeadJournal, records: bytes) -> None:
        gate.pass_through()
        append(self, records)

    monkeypatch.setattr(HeadJournal, "append", held)
    yield gate
    gate.open()


async def test_a_caller_who_gives_up_does_not_end_the_store(path: Path, journal: Gate) -> None:
    failures: list[Exception] = []
    async with opened(path, on_fatal=failures.append) as store:
        await store.grant("ses_1", "owner")
        journal.close()
        granting = asyncio.create_task(store.grant("ses_1", "owner"))
        await until(lambda: journal.waiting)
        granting.cancel()
        await asyncio.wait([granting])
        journal.open()

        await until(lambda: failures or not journal.waiting)
        asking = [asyncio.create_task(store.is_short_of_room()) for _ in range(50)]
        await asyncio.sleep(0)
        for one in asking:
            one.cancel()
        await asyncio.wait(asking)
        with suppress(TimeoutError):
            async with asyncio.timeout(2):
                assert 3 == (await store.grant("ses_1", "owner")).epoch
        await until(lambda: True)
        assert [] == failures


async def test_a_caller_who_gives_up_while_the_records_are_read_does_not_end_the_store(path: Path) -> None:
    failures: list[Exception] = []
    began, go_on = threading.Event(), threading.Event()

    def slow(_: Any) -> None:
        began.set()
        go_on.wait(PATIENCE_S)

    async with opened(path, on_fatal=failures.append) as store:
        asking = asyncio.create_task(store._records(slow))
        await asyncio.to_thread(began.wait, PATIENCE_S)
        asking.cancel()
        await asyncio.wait([asking])
        go_on.set()

        answer = store._store.records.run(lambda _: "answer")
        await until(lambda: failures or answer.done())
        assert [] == failures


async def test_a_store_that_is_closed_while_it_prepares_a_file_can_be_opened_again_and_keeps_everything(
    path: Path, small_logs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()
    new_log = StoreFolder.new_log

    def slow(self: StoreFolder, number: int) -> Any:
        began.set()
        assert go_on.wait(PATIENCE_S)
        return new_log(self, number)

    monkeypatch.setattr(StoreFolder, "new_log", slow)
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    store = DirectStore(path, on_fatal=fail)
    await store.open()
    client = EventLogClient(store)
    writer = await Writer.of(client)
    for at in range(12):
        await writer.append(event(f"{at}"))
    await asyncio.to_thread(began.wait, PATIENCE_S)

    def let_go() -> None:
        wait_until(lambda: store._open is None, what="the store closes")
        go_on.set()

    letting_go = threading.Thread(target=let_go)
    letting_go.start()
    await store.close()
    letting_go.join()
    await client.aclose()

    async with opened(path) as store:
        client = EventLogClient(store)
        writer = await Writer.of(client)
        for at in range(12, 60):
            await writer.append(event(f"{at}"))
        await client.aclose()
    async with opened(path) as store:
        assert [f"{at}" for at in range(60)] == [one.data["content"] for one in await events_of(store)]
        assert (await store.verify_session("ses_1")).ok
    assert [] == problems


def no_merging(_: Sequence[int]) -> None:
    return None


async def test_two_who_merge_at_once_as_sealing_and_compacting_do_not_disturb_each_other(
    path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(path) as store:
        client = EventLogClient(store)
        writer = await Writer.of(client)
        with monkeypatch.context() as patch:
            patch.setattr(log_keeper, "parts_to_merge", no_merging)
            for at in range(FANOUT):
                await writer.append(event(f"{at}"))
                await store.compact()
                await idle(store)
        assert FANOUT == len(store._store.sources().parts)

        merged = await asyncio.gather(store._store.keeper.merge(), store._store.keeper.merge())

        assert [False, True] == sorted(merged)
        assert 1 == len(store._store.sources().parts)
        await client.aclose()


async def test_a_store_opens_when_a_part_of_a_deleted_session_was_left_out_and_another_waits(
    path: Path, quick: None
) -> None:
    async with opened(path) as store:
        client = EventLogClient(store)
        await written(store, client, ["ses_1", "ses_2"], 10)
        await store._store.keeper.prepare()
        assert await asyncio.wrap_future(store._store.writer.rotate())
        await (await Writer.of(client, "ses_2")).append(event("in the next file"))
        await store.delete_session("ses_2")
        await store._store.keeper.seal()
        await client.aclose()
    async with opened(path) as store:
        assert (await store.verify_session("ses_1")).ok
        assert not await store.has_session("ses_2")


async def test_a_reader_does_not_bring_a_session_back_that_is_being_deleted(
    path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(path) as store:
        client = EventLogClient(store)
        await written(store, client, ["ses_1", "ses_2"], 10)
        await store.compact()
        began, go_on = threading.Event(), threading.Event()

        def slow(_: str) -> None:
            began.set()
            assert go_on.wait(PATIENCE_S)

        monkeypatch.setattr(store._store.artifacts, "delete_owner", slow)
        deleting = asyncio.create_task(store.delete_session("ses_1"))
        await asyncio.to_thread(began.wait, PATIENCE_S)
        with suppress(SessionNotFound):
            await events_of(store)
        go_on.set()
        await deleting

        with pytest.raises(SessionNotFound):
            await events_of(store)
        await client.aclose()


async def test_a_deletion_that_the_disk_refuses_in_the_middle_is_told_and_carried_out_later(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(path) as store:
        client = EventLogClient(store)
        await written(store, client, ["ses_1", "ses_2"], 10)
        before, deleted = await events_of(store, "ses_2"), await events_of(store)
        room = threading.Event()
        write = StoreFolder.write_manifest

        def refused(folder: StoreFolder, manifest: Manifest) -> None:
            if not room.is_set():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(folder, manifest)

        monkeypatch.setattr(StoreFolder, "write_manifest", refused)
        with pytest.raises(StorageFull):
            await store.delete_session("ses_1")
        with pytest.raises(InvalidOperation):
            await store.grant("ses_1", "somebody")
        assert before == await events_of(store, "ses_2")
        await store.load("ses_2")  # the records follow the log meanwhile
        crashed = shutil.copytree(path, path.with_name("crashed"))
        room.set()
        async with asyncio.timeout(PATIENCE_S):
            with suppress(SessionNotFound):
                while await events_of(store):
                    await asyncio.sleep(0.01)
        await client.aclose()
    async with opened(path) as store:
        assert ["ses_2"] == await store.session_ids()
    async with opened(crashed) as store:
        assert deleted == await events_of(store)
        queued = [one for one in deleted if one.type is EventType.RUN_QUEUED]
        assert len(queued) == (await store.load("ses_1")).run_count


async def test_a_file_stays_that_a_manifest_names_whose_writing_failed_at_its_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(path) as store:
        client = EventLogClient(store)
        await written(store, client, ["ses_1"], 10)
        write, failed = StoreFolder.write_manifest, list[Manifest]()

        def written_and_failed(folder: StoreFolder, manifest: Manifest) -> None:
            write(folder, manifest)
            if not failed:
                failed.append(manifest)
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(StoreFolder, "write_manifest", written_and_failed)
        with pytest.raises(OSError, match="Input/output"):
            await store._store.keeper.prepare()
        made: list[int] = []
        new_log = StoreFolder.new_log

        def noted(folder: StoreFolder, number: int) -> OpenLog:
            made.append(number)
            return new_log(folder, number)

        monkeypatch.setattr(StoreFolder, "new_log", noted)
        await store._store.keeper.prepare()

        assert failed[0].logs[-1] not in made
        await client.aclose()


async def test_a_log_file_that_could_not_be_made_is_not_mistaken_for_the_next_try(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[Path] = []

    async with opened(path) as store:
        keeper = store._store.keeper
        schema = log_file.files

        def broken(package: str) -> Any:
            if failed:
                return schema(package)
            failed.append(path)
            return _Text("CREATE TABLE batches (x INTEGER); SELECT error('the disk said no');")

        monkeypatch.setattr(log_file, "files", broken)
        with pytest.raises(GreenroomError):
            await keeper.prepare()
        await keeper.prepare()
        client = EventLogClient(store)
        await keeper.freeze()
        await written(store, client, ["ses_1"], 5)
        before = await events_of(store)
        await client.aclose()

    async with opened(path) as store:
        assert before == await events_of(store)


class _Text:
    """A resource of a package that a test made up."""

    def __init__(self, text: str) -> None:
        self._text = text

    def joinpath(self, name: str) -> "_Text":
        return self

    def read_text(self) -> str:
        return self._text


async def test_nothing_is_deleted_while_the_disk_has_no_room_for_the_note_of_it(path: Path) -> None:
    async with opened(path) as store:
        await written(store, EventLogClient(store), ["ses_1"], 10)
        before = await events_of(store)
    async with opened(path, StoreOptions(reserve_bytes=1 << 60)) as store:
        with pytest.raises(StorageFull):
            await store.delete_session("ses_1")

        assert before == await events_of(store)


async def test_an_append_under_way_does_not_bring_a_session_back_that_was_deleted(path: Path, journal: Gate) -> None:
    async with opened(path) as store:
        client = EventLogClient(store)
        writer = await Writer.of(client)
        await writer.append(event("a"))
        journal.close()
        late = writer.append(event("b"))
        await until(lambda: journal.waiting)
        deleting = asyncio.create_task(store.delete_session("ses_1"))
        await asyncio.wait([deleting], timeout=1)  # it may wait for the journal, or not
        journal.open()
        await deleting
        await asyncio.wait([late])
        assert not await store.has_session("ses_2")  # what was told meanwhile has been heard

        with pytest.raises(SessionNotFound):
            await events_of(store)
        await client.aclose()


def frame_of(session_id: str, epoch: int, first: int, texts: Sequence[str]) -> bytes:
    """One frame with a batch for each text."""
    encoder = BatchEncoder()
    return encode_frame(
        1,
        [
            AppendEntry(session_id, epoch, number, encoder.encode([event(text)]))
            for number, text in enumerate(texts, first)
        ],
    )


async def test_a_file_is_not_sealed_before_all_of_it_is_recorded_and_nothing_is_left_out(
    path: Path, small_logs: None, quick: None, journal: Gate
) -> None:
    async with opened(path) as store:
        await store.grant("ses_1", "owner")
        await store.grant("ses_SECRET", "owner")
        await store.append(frame_of("ses_1", 1, 1, ["a"] * 12))
        await idle(store)  # the next file is prepared
        journal.close()
        appends = [asyncio.create_task(store.append(frame_of("ses_1", 1, 13, ["b"] * 10)))]
        await until(lambda: store._store.sources().frozen)
        appends.append(asyncio.create_task(store.append(frame_of("ses_SECRET", 1, 1, ["text_SECRET"]))))
        await until(lambda: store._store.sources().hot.contents.batch_count == 1)

        deleting = asyncio.create_task(store.delete_session("ses_SECRET"))
        await asyncio.wait([deleting], timeout=1)  # it may wait for the journal, or not
        compacting = asyncio.create_task(store.compact())
        await asyncio.wait([compacting], timeout=1)
        journal.open()
        await asyncio.gather(deleting, compacting, *appends)

        assert (await store.verify_session("ses_1")).ok
    assert set() == traces(path, "text_SECRET")
    async with opened(path) as store:
        assert not await store.has_session("ses_SECRET")
        assert 22 == len(await events_of(store))


async def test_what_is_sealed_while_a_session_is_verified_is_looked_at_once(
    path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(path) as store:
        await store.grant("ses_1", "owner")
        await store.append(frame_of("ses_1", 1, 1, ["a"] * 12))
        await store._store.keeper.prepare()
        looked, go_on = threading.Event(), threading.Event()
        look = CurrentSources.__call__

        def slow(self: CurrentSources) -> Any:
            found = look(self)
            if threading.current_thread().name == "greenroom-commit" and not looked.is_set():
                looked.set()
                go_on.wait(PATIENCE_S)
            return found

        assert await asyncio.wrap_future(store._store.writer.rotate())
        monkeypatch.setattr(CurrentSources, "__call__", slow)
        verifying = asyncio.create_task(store.verify_session("ses_1"))
        await asyncio.to_thread(looked.wait, PATIENCE_S)
        sealing = asyncio.create_task(until(lambda: not store._store.sources().frozen))
        await asyncio.wait([sealing], timeout=3)  # it may wait for the thread that is held, or not
        go_on.set()
        await sealing

        verified = await verifying
        assert (12, ()) == (verified.events, verified.problems)


async def test_a_reader_is_never_given_an_event_that_a_cursor_may_not_name_yet(path: Path, journal: Gate) -> None:
    async with opened(path) as store:
        await store.grant("ses_1", "owner")
        await store.append(frame_of("ses_1", 1, 1, ["a"]))
        forget_tail(store)
        assert 1 == len(await events_of(store))
        journal.close()
        late = asyncio.create_task(store.append(frame_of("ses_1", 1, 2, ["b"])))
        await until(lambda: journal.waiting)

        try:
            found = await events_of(store)
            assert [] == await events_of(store, query=EventQuery(after=found[-1].seq))
        finally:
            journal.open()
            await late


async def test_of_two_imports_of_one_session_at_once_the_second_is_refused(archive: Path, tmp_path: Path) -> None:
    async with opened(tmp_path / "elsewhere") as store:
        found = await asyncio.gather(
            store.import_session(archive), store.import_session(archive), return_exceptions=True
        )
        assert {str, AlreadyExists} == {type(one) for one in found}
        assert 1 == len(store._store.keeper.manifest.parts)


# What is left behind


async def test_a_session_without_events_can_be_moved_to_another_store(path: Path, tmp_path: Path, quick: None) -> None:
    async with opened(path) as store:
        await store.grant("ses_1", "owner")
        assert 0 == await store.export_session("ses_1", tmp_path / "archive")
    async with opened(tmp_path / "elsewhere") as store:
        assert "ses_1" == await store.import_session(tmp_path / "archive")
        assert [] == await events_of(store)
        assert 2 == (await store.grant("ses_1", "owner")).epoch


async def test_a_refused_archive_leaves_no_file_behind(archive: Path, tmp_path: Path) -> None:
    async with opened(tmp_path / "larger") as store:
        client = EventLogClient(store)
        await (await Writer.of(client)).append(*(event(noise(at, 50_000)) for at in range(20)))
        await store.export_session("ses_1", archive)
        await client.aclose()
    content = bytearray(archive.read_bytes())
    content[-GZIP_TRAILER - 40] ^= 1
    archive.write_bytes(content)
    async with opened(tmp_path / "elsewhere") as store:
        with pytest.raises(InvalidFormat):
            await store.import_session(archive)
        assert [] == [one.name for one in store.path.iterdir() if one.name.startswith("part-")]


async def test_a_backup_whose_records_were_changed_is_not_restored(backup: Path, tmp_path: Path) -> None:
    records = backup / "records.duckdb"
    content = bytearray(records.read_bytes())
    for place in range(0x3000, len(content), 4096):
        content[place] ^= 4
    records.write_bytes(content)
    with pytest.raises(GreenroomError):
        restore_store(backup, tmp_path / "restored")


async def test_a_refused_backup_leaves_nothing_behind(backup: Path, tmp_path: Path) -> None:
    (heads,) = backup.glob("part-*.heads")
    heads.write_bytes(heads.read_bytes()[:-1])
    before = {*tmp_path.iterdir()}
    with pytest.raises(GreenroomError):
        restore_store(backup, tmp_path / "restored")
    assert before == {*tmp_path.iterdir()}


async def test_records_that_a_crash_left_half_rewritten_are_gone_after_the_next_opening(path: Path) -> None:
    async with opened(path) as store:
        await store.grant("ses_1", "owner")
    left = ["records.duckdb.new", "records.duckdb.new.wal", "manifest.json.new"]
    for name in left:
        (path / name).write_bytes(b"text_SECRET of a session that was deleted before")
    async with opened(path):
        assert [] == [name for name in left if (path / name).exists()]


async def test_pieces_that_stayed_when_their_batch_was_pruned_go_when_their_message_is_whole(
    path: Path, quick: None
) -> None:
    async with opened(path, PRUNING) as store:
        client = EventLogClient(store)
        writer = await Writer.of(client)
        await writer.append(piece("a"), whole("a"), piece("b"))
        await store.compact()
        assert 1 == (await store.verify_session("ses_1")).pruned
        await writer.append(whole("b"))
        for at in range(FANOUT):  # so that both lie in one part
            await store.compact()
            await writer.append(event(f"{at}"))
        await idle(store)
        await store._store.keeper.merge()
        await store.compact()

        assert 2 == (await store.verify_session("ses_1")).pruned
        await client.aclose()


async def test_a_backup_right_after_an_import_holds_each_record_once(archive: Path, tmp_path: Path) -> None:
    async with opened(tmp_path / "elsewhere") as store:
        await store.import_session(archive)
        expected = await store.load("ses_1")
        await store.back_up(tmp_path / "backup")
    restore_store(tmp_path / "backup", tmp_path / "restored")
    async with opened(tmp_path / "restored") as store:
        assert expected == await store.load("ses_1")
        assert {"sessions": 1, "runs": 1} == {
            name: count for name, count in (await store.counts()).items() if name in ("sessions", "runs")
        }


async def test_a_restored_backup_goes_on_where_it_was(path: Path, tmp_path: Path, quick: None) -> None:
    async with opened(path) as store:
        client = EventLogClient(store)
        await written(store, client, ["ses_1", "ses_gone"], 10)
        await store.compact()
        await store.delete_session("ses_gone")
        writer = await Writer.of(client)
        backing_up = asyncio.create_task(store.back_up(tmp_path / "backup"))
        made = 0
        while not backing_up.done():
            await writer.append(queued(f"run_{made}"), started(f"run_{made}"))
            await store.find_run(f"run_{made}")  # so that the records follow
            made += 1
        await backing_up
        await client.aclose()
    restore_store(tmp_path / "backup", tmp_path / "restored")
    async with opened(tmp_path / "restored") as store:
        queued_there = {one.run_id for one in await events_of(store) if one.type is EventType.RUN_QUEUED}
        records = await store.load("ses_1")
        assert queued_there == {run.id for run in records.open_runs}
        client = EventLogClient(store)
        writer = await Writer.of(client)
        await writer.append(queued("run_new"), started("run_new"), completed("run_new"))
        run = await store.find_run("run_new")
        assert run is not None
        assert run.status.is_terminal
        await store.compact()
        await client.aclose()
    assert set() == traces(tmp_path / "restored", "ses_gone")


async def test_an_import_that_was_cut_short_is_there_or_not_and_leaves_no_trace_when_deleted(
    archive: Path, tmp_path: Path
) -> None:
    async with opened(tmp_path / "elsewhere") as store:
        with Cuts(store, tmp_path) as cuts:
            await store.import_session(archive)
        expected, records = await events_of(store), await store.load("ses_1")

    found: set[bool] = set()
    for cut in cuts.made:
        async with opened(cut) as store:
            is_there = await store.has_session("ses_1")
            found.add(is_there)
            if not is_there:
                await store.import_session(archive)
            assert expected == await events_of(store)
            assert records == await store.load("ses_1")
            assert (await store.verify_session("ses_1")).ok
            await store.delete_session("ses_1")
            await store.compact()
        assert set() == traces(cut, "ses_1")
    assert {True, False} == found


async def test_a_log_file_without_batches_does_not_turn_the_numbers_of_batches_back(
    path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(path) as store:
        client = EventLogClient(store)
        writer = await Writer.of(client)
        await writer.append(created(), queued("run_1"))
        await store.compact()
        await store.grant("ses_1", "next")
        await store._store.keeper.prepare()
        await client.aclose()
        with monkeypatch.context() as patch:
            patch.setattr(store._store.keeper, "rotated", lambda: None)
            assert await asyncio.wrap_future(store._store.writer.rotate())
    for _ in range(2):
        async with opened(path) as store:
            await sealed(store)
    async with opened(path) as store:
        client = EventLogClient(store)
        writer = await Writer.of(client)
        await writer.append(queued("run_2"))
        assert 3 == writer.ownership.epoch
        assert 2 == (await store.load("ses_1")).run_count
        assert await store.find_run("run_2") is not None
        await client.aclose()


# Room


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How much is free on a disk that is looked at each time."""
    free = {"free": 1 << 40}
    monkeypatch.setattr(room_watch, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(event_log_client, "_FULL_RETRY_S", 0.01)

    def usage(_: Path) -> Usage:
        return Usage(1 << 41, 1 << 40, free["free"])

    monkeypatch.setattr(room_watch.shutil, "disk_usage", usage)
    return free


async def test_new_work_is_refused_while_room_is_low_and_what_runs_goes_on(path: Path, disk: dict[str, int]) -> None:
    options = StoreOptions(min_free_bytes=1 << 30, reserve_bytes=1 << 20, max_memory_bytes=1 << 40)
    async with opened(path, options) as store:
        client = EventLogClient(store)
        writer = await Writer.of(client)
        await writer.append(event("1"))
        await client.require_room()
        disk["free"] = 1 << 29

        await writer.append(event("2"))

        with pytest.raises(StorageFull):
            await client.require_room()
        assert 3 == (await writer.append(event("3"))).first_seq
        disk["free"] = 1 << 40
        await client.require_room()
        assert ["1", "2", "3"] == await writer.texts()
        await client.aclose()


async def test_appends_without_room_are_held_and_go_on_by_themselves_when_there_is_some(
    path: Path, disk: dict[str, int]
) -> None:
    options = StoreOptions(min_free_bytes=1 << 30, reserve_bytes=1 << 20, max_memory_bytes=1 << 40)
    async with opened(path, options) as store:
        client = EventLogClient(store)
        writer, other = await Writer.of(client), await Writer.of(client, "ses_2")
        await writer.append(event("0"))
        disk["free"] = 0

        held = [writer.append(event(f"{at}")) for at in range(1, 4)]
        with pytest.raises(StorageFull):
            await client.acknowledged("ses_1", held[0])
        held.append(other.append(event("other")))
        with pytest.raises(StorageFull):
            await store.grant("ses_3", "owner")
        with pytest.raises(StorageFull):
            await client.require_room()
        assert [False] * 4 == [one.done() for one in held]
        disk["free"] = 1 << 40

        assert [2, 3, 4, 1] == [one.first_seq for one in await asyncio.gather(*held)]
        assert ["0", "1", "2", "3"] == await writer.texts()
        with pytest.raises(SessionNotFound):
            await store.load("ses_3")
        await client.aclose()


async def test_room_that_is_missing_from_the_start_refuses_everything(path: Path) -> None:
    async with opened(path, StoreOptions(reserve_bytes=1 << 60)) as store:
        with pytest.raises(StorageFull):
            await store.grant("ses_1", "owner")
        assert await store.is_short_of_room()
    async with opened(path, StoreOptions(min_free_bytes=1 << 60)) as store:
        client = EventLogClient(store)
        writer = await Writer.of(client)
        assert 1 == (await writer.append(event())).first_seq
        with pytest.raises(StorageFull):
            await client.require_room()
        await client.aclose()
