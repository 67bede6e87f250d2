"""What an event store does about files that were changed, cut short or lost; what repair brings back, and what not."""

import asyncio
import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest

from greenroom.adapters.direct_lane import DirectStore
from greenroom.adapters.duckdb import log_keeper
from greenroom.adapters.duckdb.head_journal import RECORD_BYTES
from greenroom.adapters.duckdb.log_keeper import LogKeeper
from greenroom.adapters.duckdb.manifest import Manifest, read_manifest
from greenroom.adapters.duckdb.part_file import PartFile
from greenroom.adapters.duckdb.repair import RepairReport, repair_store
from greenroom.adapters.duckdb.store_folder import StoreFolder
from greenroom.adapters.event_log_client import EventLogClient
from greenroom.domain.errors import (
    InvalidCursor,
    ResyncRequired,
    SessionNotFound,
    StorageConnectionFailed,
    StorageError,
    StorageFull,
    WriterFenced,
)
from greenroom.domain.event import Event
from greenroom.domain.event_log import EventQuery, Ownership
from tests.conformance.event_log_suite import Writer, created, event, queued, sent

SESSIONS = ("ses_1", "ses_2", "ses_3")
DELETED = ("ses_gone_early", "ses_gone_late")
WAL = "log-*.duckdb.wal"


Damage = Callable[[bytes], bytes | None]
"""New bytes of a file, from what it holds; None removes it."""


def fail(exc: Exception) -> None:
    pytest.fail(f"the writer failed: {exc!r}")


@asynccontextmanager
async def opened(path: Path) -> AsyncGenerator[tuple[DirectStore, EventLogClient]]:
    store = DirectStore(path, on_fatal=fail)
    await store.open()
    client = EventLogClient(store)
    try:
        yield store, client
    finally:
        await client.aclose()
        await store.close()


def in_a_process_that_is_killed(path: Path, module: str, function: str) -> None:
    """Run `function(store, client)` on an open store, and let the process die: no file is closed."""
    script = f"""
import asyncio, os, pathlib
from {module} import {function} as work, opened
async def main():
    async with opened(pathlib.Path({str(path)!r})) as (store, client):
        await work(store, client)
        os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    assert -signal.SIGKILL == subprocess.run([sys.executable, "-c", script], check=False).returncode


@contextmanager
def all_file_handles_taken_but(spare: int) -> Generator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    taken: list[int] = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(spare):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for handle in taken:
            os.close(handle)


async def test_a_store_that_finds_no_free_file_handle_is_not_damaged(tmp_path: Path) -> None:
    async with opened(tmp_path) as (store, client):
        await write_a_whole_life(store, client)
    refused = 0
    for spare in range(24):
        with all_file_handles_taken_but(spare):
            try:
                folder = StoreFolder(tmp_path, lock_wait_s=0)
            except StorageConnectionFailed:
                refused += 1
                continue
            try:
                folder.open()
            except (StorageConnectionFailed, OSError):
                refused += 1
        folder.release()
    assert refused >= 3

    async with opened(tmp_path) as (store, client):
        assert [] == [path for path in tmp_path.iterdir() if "damage" in path.name]


async def write_a_whole_life(store: DirectStore, client: EventLogClient) -> None:
    """Parts, a frozen log, one that is written to, records, and two deleted sessions: one sealed, one in a log."""
    writers = [await Writer.of(client, name) for name in (*SESSIONS, *DELETED)]
    await _append_to(writers, "first")
    await _keeper(store).freeze()
    await _append_to(writers, "second")
    await store.delete_session(DELETED[0])
    await _keeper(store).freeze()
    await _append_to(writers[:3] + writers[4:], "third")
    await store.load(SESSIONS[0])
    await store.delete_session(DELETED[1])


def _keeper(store: DirectStore) -> LogKeeper:
    return store._store.keeper  # pyright: ignore[reportPrivateUsage]  no caller may order about what it does by itself


async def _append_to(writers: Sequence[Writer], what: str) -> None:
    for writer in writers:
        run = f"run_{writer.session_id}_{what}"
        first = [created()] if what == "first" else []
        await writer.append(*first, queued(run, key=what), sent(run))
        for at in range(4):
            await writer.append(event(f"{writer.session_id} {what} {at}"), event(f"{writer.session_id} {what} {at}b"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that nobody has open, as its process left it when it was killed."""
    path = tmp_path_factory.mktemp("whole") / "store"
    in_a_process_that_is_killed(path, __name__, write_a_whole_life.__name__)
    return path


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(whole, tmp_path / "store"))


@pytest.fixture
async def truth(whole: Path, tmp_path: Path) -> dict[str, list[Event]]:
    """What is in it."""
    copy = Path(shutil.copytree(whole, tmp_path / "truth"))
    async with opened(copy) as (store, client):
        found = {name: await every_event(client, name) for name in SESSIONS}
        assert all([(await store.verify_session(name)).ok for name in SESSIONS])
    assert all(31 == len(events) for events in found.values())
    return found


async def every_event(client: EventLogClient, name: str) -> list[Event]:
    """All that can be read, over gaps."""
    events: list[Event] = []
    after = 0
    while True:
        try:
            page = await client.read(name, EventQuery(after=after, limit=10_000))
        except ResyncRequired as exc:
            after = exc.details["lowest_seq"] - 1
            continue
        except InvalidCursor:
            return events
        if not page:
            return events
        events += page
        after = page[-1].seq


def only(path: Path, pattern: str) -> Path:
    """The newest file of that name that holds anything."""
    return [file for file in sorted(path.glob(pattern)) if file.stat().st_size][-1]


def files_of(path: Path) -> dict[str, bytes]:
    """The files of the log and the records, and what is in them."""
    return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file() and "damage" not in file.name}


def kept_in(path: Path) -> list[Path]:
    return sorted(path.glob("damaged-*"))


def lost_in(report: RepairReport) -> set[tuple[str, int]]:
    """Session and seq of everything that it says is lost."""
    return {
        (session.session_id, seq)
        for session in report.sessions
        for first, last in session.lost
        for seq in range(first, last + 1)
    }


async def refusal_of(path: Path) -> StorageError:
    with pytest.raises(StorageError) as refused:
        async with opened(path):
            pass
    return refused.value


def flipped(at: float) -> Damage:
    """One bit, at that part of the file."""

    def flip(content: bytes) -> bytes:
        place = int((len(content) - 1) * at)
        return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]

    return flip


def cut_short(content: bytes) -> bytes:
    return content[: len(content) // 2]


def emptied(_content: bytes) -> bytes:
    return b""


def removed(_content: bytes) -> None:
    return None


def damage(file: Path, how: Damage) -> None:
    changed = how(file.read_bytes())
    if changed is None:
        file.unlink()
    else:
        file.write_bytes(changed)


REFUSED = [
    ("log-*.duckdb", flipped(0.001)),
    ("log-*.duckdb", cut_short),
    ("log-*.duckdb", removed),
    (WAL, flipped(0.5)),
    (WAL, cut_short),
    (WAL, emptied),
    (WAL, removed),
    ("log-*.heads", flipped(0.5)),
    ("log-*.heads", removed),
    ("part-*.duckdb", flipped(0.5)),
    ("part-*.duckdb", cut_short),
    ("part-*.duckdb", removed),
    ("part-*.heads", flipped(0.5)),
    ("part-*.heads", cut_short),
    ("part-*.heads", removed),
    ("records.duckdb", flipped(0.001)),
    ("records.duckdb", cut_short),
    ("records.duckdb", removed),
    ("manifest.json", flipped(0.5)),
    ("manifest.json", cut_short),
    ("manifest.json", emptied),
    ("manifest.json", removed),
]
TOUCHED = [("records.duckdb", cut_short), ("records.duckdb", removed)]
NOTHING_LOST = [case for case in REFUSED if case[0] not in {"log-*.duckdb", WAL, "part-*.duckdb"}]


def named(cases: Sequence[tuple[str, Damage]]) -> list[str]:
    return [f"{pattern} {getattr(how, '__name__', '')}" for pattern, how in cases]


@pytest.mark.parametrize(
    ("pattern", "how"),
    REFUSED,
    ids=named(REFUSED),
)
async def test_a_damaged_file_is_refused_kept_aside_once_and_left_as_it_is(
    path: Path, pattern: str, how: Damage
) -> None:
    file = only(path, pattern)
    damage(file, how)
    before = files_of(path)

    first = await refusal_of(path)
    again = await refusal_of(path)

    (kept,) = kept_in(path)
    assert str(kept) == first.details["kept"] == again.details["kept"]
    assert str(kept) in first.message
    assert file.stem.partition(".")[0] in first.message
    assert before == files_of(path)
    if file.exists():
        assert before[file.name] == (kept / file.name).read_bytes()


@pytest.mark.parametrize(("pattern", "how"), NOTHING_LOST, ids=named(NOTHING_LOST))
async def test_repair_loses_nothing_that_another_file_still_has(
    path: Path, truth: dict[str, list[Event]], pattern: str, how: Damage
) -> None:
    damage(only(path, pattern), how)
    await refusal_of(path)

    report = repair_store(path)

    assert 0 == report.lost_events
    async with opened(path) as (store, client):
        assert truth == {name: await every_event(client, name) for name in SESSIONS}
        for name in SESSIONS:
            assert (await store.verify_session(name)).ok
            assert 3 == (await store.load(name)).run_count
            assert 32 == (await (await Writer.of(client, name)).append(event())).first_seq


async def test_repair_of_a_store_that_is_whole_changes_nothing(path: Path, truth: dict[str, list[Event]]) -> None:
    report = repair_store(path)

    assert (None, [], []) == (report.kept, report.damaged_files, report.sessions)
    assert [] == kept_in(path)
    async with opened(path) as (_, client):
        assert truth == {name: await every_event(client, name) for name in SESSIONS}


@pytest.mark.parametrize(
    "pattern", ["log-*.duckdb", "log-*.heads", WAL, "part-*.duckdb", "records.duckdb", "manifest.json"]
)
async def test_a_deleted_session_does_not_come_back_through_repair(path: Path, pattern: str) -> None:
    for file in path.glob(pattern):
        if file.stat().st_size:
            damage(file, flipped(0.5))
    (path / "damage.json").write_text("{")  # as when damage was found that is not in these places

    repair_store(path)

    async with opened(path) as (store, client):
        for name in DELETED:
            with pytest.raises(SessionNotFound):
                await client.read(name, EventQuery())
            assert await store.find_session(name) is None


async def delete_what_lies_in_two_files(store: DirectStore, client: EventLogClient) -> None:
    """The part is rewritten without the deleted session, whose newest rows are still in the log."""
    writers = [await Writer.of(client, name) for name in ("ses_1", "ses_2")]
    for text in "ab":
        for writer in writers:
            await writer.append(event(text))
        if text == "a":
            await _keeper(store).freeze()
    await store.delete_session("ses_1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_keeper, "parts_to_merge", only_the_first)
        await _keeper(store).merge()


def only_the_first(_sizes: Sequence[int]) -> range:
    return range(1)


async def test_a_deleted_session_of_which_a_part_is_rid_and_a_log_is_not_hinders_no_opening(tmp_path: Path) -> None:
    path = tmp_path / "store"
    in_a_process_that_is_killed(path, __name__, delete_what_lies_in_two_files.__name__)

    async with opened(path) as (store, client):
        assert ["a", "b"] == [one.data["content"] for one in await every_event(client, "ses_2")]
        assert (await store.verify_session("ses_2")).ok
        with pytest.raises(SessionNotFound):
            await client.read("ses_1", EventQuery())


# One batch of many


async def write_one_log(_store: DirectStore, client: EventLogClient) -> None:
    writers = [await Writer.of(client, name) for name in SESSIONS]
    for at, writer in itertools.product(range(10), writers):
        await writer.append(event(f"{writer.session_id}-{at}-a"), event(f"{writer.session_id}-{at}-b"))


@pytest.fixture
def one_log(tmp_path: Path) -> Path:
    """Three sessions of ten batches of two events, all of them in a write-ahead log."""
    path = tmp_path / "one-log"
    in_a_process_that_is_killed(path, __name__, write_one_log.__name__)
    return path


def flip_batch(path: Path, text: str) -> None:
    """Change one bit of the event with this text in the write-ahead log."""
    (wal,) = (file for file in path.glob(WAL) if file.stat().st_size)
    content = bytearray(wal.read_bytes())
    assert 2 == content.count(text.encode()), "the id and the content"
    content[content.rindex(text.encode())] ^= 1
    wal.write_bytes(content)


async def test_a_flipped_bit_in_the_write_ahead_log_costs_one_batch_and_everybody_says_so(one_log: Path) -> None:
    flip_batch(one_log, "ses_2-4-a")
    await refusal_of(one_log)

    report = repair_store(one_log)

    assert {"ses_1": [], "ses_2": [(9, 10)], "ses_3": []} == {one.session_id: one.lost for one in report.sessions}
    assert {"ses_1": 20, "ses_2": 18, "ses_3": 20} == {one.session_id: one.recovered_events for one in report.sessions}
    assert 2 == report.lost_events
    async with opened(one_log) as (store, client):
        found = {name: await store.verify_session(name) for name in SESSIONS}
        assert {"ses_1": True, "ses_2": False, "ses_3": True} == {name: one.ok for name, one in found.items()}
        assert any("9 to 10" in problem for problem in found["ses_2"].problems)
        assert list(range(1, 9)) == [one.seq for one in await client.read("ses_2", EventQuery())]
        for after in (8, 9):
            with pytest.raises(ResyncRequired) as refused:
                await client.read("ses_2", EventQuery(after=after))
            assert 11 == refused.value.details["lowest_seq"]
        assert list(range(11, 21)) == [one.seq for one in await client.read("ses_2", EventQuery(after=10))]


async def test_the_seqs_of_a_batch_that_was_lost_at_the_end_are_never_given_out_again(one_log: Path) -> None:
    flip_batch(one_log, "ses_3-9-a")
    await refusal_of(one_log)
    report = repair_store(one_log)

    async with opened(one_log) as (store, client):
        writer = await Writer.of(client, "ses_3")
        committed = await writer.append(event("new"))

        assert [(19, 20)] == next(one.lost for one in report.sessions if one.session_id == "ses_3")
        assert Ownership(epoch=2, last_seq=20) == writer.ownership
        assert 21 == committed.first_seq
        assert [*range(1, 19), 21] == [one.seq for one in await every_event(client, "ses_3")]
        assert not (await store.verify_session("ses_3")).ok


async def test_what_was_lost_stays_reported_after_closing_and_sealing(one_log: Path) -> None:
    flip_batch(one_log, "ses_1-0-a")
    await refusal_of(one_log)
    repair_store(one_log)
    async with opened(one_log) as (store, client):
        await (await Writer.of(client, "ses_1")).append(event("new"))
        await store.compact()

    async with opened(one_log) as (store, client):
        assert not (await store.verify_session("ses_1")).ok
        with pytest.raises(ResyncRequired) as refused:
            await client.read("ses_1", EventQuery())
        assert 3 == refused.value.details["lowest_seq"]
        assert list(range(3, 22)) == [one.seq for one in await every_event(client, "ses_1")]


# What a crash may leave


@pytest.mark.parametrize("gone", [RECORD_BYTES, 3 * RECORD_BYTES, RECORD_BYTES // 2, 1])
async def test_rows_that_were_committed_and_not_recorded_are_kept(one_log: Path, gone: int) -> None:
    (journal,) = (file for file in one_log.glob("log-*.heads") if file.stat().st_size > RECORD_BYTES)
    content = journal.read_bytes()
    journal.write_bytes(content[:-gone])

    async with opened(one_log) as (store, client):
        for name in SESSIONS:
            assert list(range(1, 21)) == [one.seq for one in await every_event(client, name)]
            assert (await store.verify_session(name)).ok
    assert content == journal.read_bytes()


async def test_what_is_half_made_is_swept_away(path: Path, truth: dict[str, list[Event]]) -> None:
    left = [
        "manifest.json.new",
        "part-000099.duckdb.new",
        "part-000099.duckdb",
        "part-000099.heads",
        "log-000098.heads",
    ]
    for name in left:
        (path / name).write_bytes(b"half")
    (path / "work-1").mkdir()

    async with opened(path) as (_, client):
        assert truth == {name: await every_event(client, name) for name in SESSIONS}

    assert not {"part-000099.duckdb.new", "part-000099.duckdb", "work-1"} & {file.name for file in path.iterdir()}


# Epochs


async def grant_again_and_again(_store: DirectStore, client: EventLogClient) -> None:
    writer = [await Writer.of(client) for _ in range(3)][-1]
    await writer.append(event("a"))
    await Writer.of(client)


async def seal_and_grant(store: DirectStore, client: EventLogClient) -> None:
    writer = [await Writer.of(client) for _ in range(3)][-1]
    await writer.append(event("a"))
    await _keeper(store).freeze()
    await Writer.of(client)


async def append_to_the_next_log(store: DirectStore, client: EventLogClient) -> None:
    writer = [await Writer.of(client) for _ in range(3)][-1]
    await writer.append(event("a"))
    await _keeper(store).freeze()
    await writer.append(event("b"))


async def test_a_grant_that_was_lost_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "store"
    in_a_process_that_is_killed(path, __name__, grant_again_and_again.__name__)
    damage(only(path, WAL), lambda content: content[:-40])  # it ends with the last grant

    refused = await refusal_of(path)

    assert "the grant of epoch 4 is missing" in refused.message


@pytest.mark.parametrize(
    ("life", "granted"),
    [
        (grant_again_and_again, 4),
        (seal_and_grant, 4),
        (append_to_the_next_log, 3),
    ],
)
async def test_after_repair_no_epoch_is_granted_a_second_time(
    tmp_path: Path, life: Callable[..., Any], granted: int
) -> None:
    path = tmp_path / "store"
    in_a_process_that_is_killed(path, __name__, life.__name__)
    damage(only(path, WAL), emptied)
    await refusal_of(path)

    repair_store(path)

    async with opened(path) as (_, client):
        writer = await Writer.of(client)
        assert granted < writer.ownership.epoch
        with pytest.raises(WriterFenced):
            await asyncio.wait_for(client.append("ses_1", granted, [event()]), 10)


# Repair itself


class Crash(Exception):
    """Stands for the death of the process."""


@pytest.mark.parametrize("pattern", [WAL, "part-*.duckdb", "records.duckdb"])
async def test_repair_that_was_cut_short_can_be_begun_again(
    path: Path, truth: dict[str, list[Event]], pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(only(path, pattern), flipped(0.5) if pattern == WAL else cut_short)
    await refusal_of(path)

    def crash(_folder: StoreFolder, _manifest: Manifest) -> NoReturn:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(StoreFolder, "write_manifest", crash)
        with pytest.raises(Crash):
            repair_store(path)
    report = repair_store(path)

    async with opened(path) as (_, client):
        found = {(name, one.seq) for name in SESSIONS for one in await every_event(client, name)}
    assert lost_in(report) == {(name, one.seq) for name in SESSIONS for one in truth[name]} - found


async def write_parts_out_of_order(store: DirectStore, client: EventLogClient) -> None:
    """Compacting rewrites the first part alone: it gets the highest number."""
    writers = [await Writer.of(client, name) for name in ("ses_1", "ses_gone")]
    for name in ("a", "b", "c"):
        await writers[0].append(event(name))
        if name == "a":
            await writers[1].append(event("x"))
        await _keeper(store).freeze()
    await store.delete_session("ses_gone")
    await store.compact()
    await writers[0].append(event("d"))


async def test_repair_of_the_manifest_keeps_parts_in_the_order_of_what_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "store"
    in_a_process_that_is_killed(path, __name__, write_parts_out_of_order.__name__)
    manifest = read_manifest(path)
    assert manifest is not None
    numbers = [entry.number for entry in manifest.parts]
    assert sorted(numbers) != numbers, "else nothing is tested"
    damage(path / "manifest.json", cut_short)
    await refusal_of(path)

    report = repair_store(path)

    async with opened(path) as (store, client):
        assert 0 == report.lost_events
        assert ["a", "b", "c", "d"] == [one.data["content"] for one in await every_event(client, "ses_1")]
        assert (await store.verify_session("ses_1")).ok


def merge_nothing(_sizes: Sequence[int]) -> None:
    return None


async def write_six_parts(store: DirectStore, client: EventLogClient) -> None:
    writer = await Writer.of(client)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_keeper, "parts_to_merge", merge_nothing)
        for name in "abcdef":
            await writer.append(event(name))
            await _keeper(store).freeze()
    for file in (*store.path.glob("part-*"),):
        os.link(file, store.path / f"kept-{file.name}")
    await _keeper(store).merge()


async def test_parts_that_a_crash_left_beside_the_merged_one_are_not_taken_twice(tmp_path: Path) -> None:
    path = tmp_path / "store"
    in_a_process_that_is_killed(path, __name__, write_six_parts.__name__)
    manifest = read_manifest(path)
    assert manifest is not None
    assert 1 == len(manifest.parts), "else nothing is tested"
    for file in path.glob("kept-*"):  # as when the process died before it removed them
        file.rename(path / file.name.removeprefix("kept-"))
    damage(path / "manifest.json", cut_short)
    await refusal_of(path)

    repair_store(path)

    async with opened(path) as (store, client):
        assert list("abcdef") == [one.data["content"] for one in await client.read("ses_1", EventQuery())]
        assert (await store.verify_session("ses_1")).ok


async def test_a_part_that_rotted_without_its_time_changing_is_found_by_reading_and_mended_by_repair(
    path: Path, truth: dict[str, list[Event]]
) -> None:
    file = only(path, "part-*.duckdb")
    stat = file.stat()
    content = bytearray(file.read_bytes())
    for place in range(12_288 + 4096, len(content), 4096):  # every block of it
        content[place] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    try:
        async with opened(path) as (store, _):
            assert not all([(await store.verify_session(name)).ok for name in SESSIONS])
    except StorageError:
        pass  # its index could not be read either: refused

    report = repair_store(path)

    async with opened(path) as (_, client):
        found = {(name, one.seq) for name in SESSIONS for one in await every_event(client, name)}
    assert lost_in(report) == {(name, one.seq) for name in SESSIONS for one in truth[name]} - found


async def test_a_session_that_cannot_be_read_any_more_does_not_stop_the_others(
    path: Path, truth: dict[str, list[Event]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def rotten(_part: PartFile, _session_key: int, _limit: int) -> NoReturn:
        raise StorageError("a block of the part does not hold any more")

    async with opened(path) as (store, client):
        monkeypatch.setattr(PartFile, "newest_batches", rotten)
        answers = await asyncio.gather(*(store.grant(name, "new") for name in truth), return_exceptions=True)
        monkeypatch.undo()
        other = await Writer.of(client, "ses_of_its_own")

        assert any(isinstance(answer, StorageError) for answer in answers)
        assert 1 == (await other.append(event("works"))).first_seq


async def test_compacting_while_parts_are_being_merged_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path / "store") as (store, client):
        keeper = _keeper(store)
        writer = await Writer.of(client)
        with monkeypatch.context() as patch:
            patch.setattr(log_keeper, "parts_to_merge", merge_nothing)
            for name in "abcdef":
                await writer.append(event(name))
                await keeper.freeze()

        await asyncio.gather(keeper.merge(), keeper.merge())

        assert list("abcdef") == [one.data["content"] for one in await every_event(client, "ses_1")]
        assert (await store.verify_session("ses_1")).ok


# Opening that fails half way


async def test_records_whose_making_was_cut_short_are_made_again(tmp_path: Path) -> None:
    path = tmp_path / "store"
    in_a_process_that_is_killed(path, __name__, grant_again_and_again.__name__)
    half = f"""
import duckdb
duckdb.connect({str(path / "records.duckdb")!r}).execute("CREATE TABLE watermark (batch_id BIGINT NOT NULL)")
import os; os.kill(os.getpid(), 9)
"""
    for file in path.glob("records.duckdb*"):
        file.unlink()
    subprocess.run([sys.executable, "-c", half], check=False)

    async with opened(path) as (_, client):
        records = await asyncio.wait_for(client.load("ses_1"), 10)
        assert 0 == records.run_count


async def test_a_store_that_fails_to_open_gives_its_folder_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_folder: StoreFolder) -> NoReturn:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(StoreFolder, "open", full)
        with pytest.raises(StorageFull):
            async with opened(path):
                pass

    StoreFolder(path, lock_wait_s=0).release()


async def test_a_store_whose_deletions_cannot_be_finished_gives_its_folder_up(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_store: DirectStore) -> NoReturn:
        raise StorageError("no")

    with monkeypatch.context() as patch:
        patch.setattr(DirectStore, "_finish_deletions", broken)
        with pytest.raises(StorageError):
            async with opened(path):
                pass

    StoreFolder(path, lock_wait_s=0).release()


# The harness


@pytest.mark.timeout(400)
def test_a_quick_run_of_the_fault_harness_finds_no_promise_broken() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--quick", "--seed", "1"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )

    assert 0 == said.returncode, said.stdout
