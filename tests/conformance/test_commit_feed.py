"""The feed of what a store commits: every batch of a tenant once, in the order of commits, wherever it lies by now."""

# pyright: reportPrivateUsage=false

import asyncio
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from greenroom.adapters.direct_lane import DirectStore
from greenroom.adapters.duckdb import commit_feed, group_commit
from greenroom.adapters.duckdb.commit_feed import FeedBatch
from greenroom.adapters.event_codec import decode_slab
from greenroom.adapters.event_log_client import EventLogClient
from greenroom.adapters.event_selection import EVERY_TYPE
from greenroom.domain.errors import InvalidCursor
from greenroom.domain.event import EventType, mask_of

from .event_log_suite import Writer, completed, created, event, queued, started
from .test_store_files import idle, opened

Place = tuple[str, int]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that some hundred batches fill several files and pages."""
    monkeypatch.setattr(group_commit, "LOG_BATCHES", 20)
    monkeypatch.setattr(commit_feed, "PAGE_BATCHES", 7)


async def collected(store: DirectStore, tenant: str, *, after: int = 0, types: int = EVERY_TYPE) -> list[FeedBatch]:
    found: list[FeedBatch] = []
    while after < store.end_of_feed().batch_id:
        page = await store.read_feed(after, tenant=tenant, types=types, wait_s=0)
        found += page.batches
        assert page.read_to > after
        after = page.read_to
    return found


def places(batches: list[FeedBatch]) -> list[Place]:
    return [(batch.session_id, seq) for batch in batches for seq in batch.slab.seqs]


async def written(client: EventLogClient, count: int) -> dict[str, list[Place]]:
    """What each tenant's sessions have said, in the order in which it was committed."""
    chance = random.Random(5)
    expected: dict[str, list[Place]] = {"acme": [], "other": []}
    writers: list[tuple[str, Writer]] = []
    for index in range(6):
        tenant = ("acme", "other")[index % 2]
        writer = await Writer.of(client, f"ses_{index}")
        await writer.append(created(metadata={"tenant": tenant}))
        expected[tenant].append((writer.session_id, 1))
        writers.append((tenant, writer))
    for _ in range(count):
        tenant, writer = chance.choice(writers)
        count = chance.randint(1, 3)
        committed = await writer.append(*[event("x", run_id="run_1")] * count)
        expected[tenant] += [(writer.session_id, committed.first_seq + index) for index in range(count)]
    return expected


async def test_the_feed_is_the_same_from_memory_from_log_files_from_parts_and_after_a_restart(path: Path) -> None:
    async with opened(path) as store:
        client = EventLogClient(store)
        expected = await written(client, 90)
        for tenant, order in expected.items():
            assert order == places(await collected(store, tenant))
        await idle(store)
        store._commits._tail.clear()
        assert store._store.keeper.manifest.parts, "some of it is sealed"
        for tenant, order in expected.items():
            assert order == places(await collected(store, tenant))
        await client.aclose()
    async with opened(path) as store:
        for tenant, order in expected.items():
            found = await collected(store, tenant)
            assert order == places(found)
            for batch in found[::9]:
                rest = await collected(store, tenant, after=batch.batch_id)
                assert [one for one in found if one.batch_id > batch.batch_id] == rest


async def test_a_reader_at_the_end_is_woken_by_its_own_tenants_commits_only(path: Path) -> None:
    async with opened(path) as store:
        client = EventLogClient(store)
        await written(client, 3)
        ours, theirs = await Writer.of(client, "ses_0"), await Writer.of(client, "ses_1")
        after = store.end_of_feed().batch_id
        reading = asyncio.create_task(store.read_feed(after, tenant="acme", types=EVERY_TYPE, wait_s=60))
        await asyncio.sleep(0)  # it has begun, and waits
        for _ in range(20):
            await theirs.append(event("not yours"))
        assert not reading.done()
        await ours.append(event("yours"))

        page = await asyncio.wait_for(reading, 30)
        while not page.batches:  # a page looks at a few batches only
            page = await store.read_feed(page.read_to, tenant="acme", types=EVERY_TYPE, wait_s=30)
        assert ["yours"] == [
            found.data["content"] for batch in page.batches for found in decode_slab(batch.session_id, batch.slab)
        ]
        assert page.read_to == store.end_of_feed().batch_id
        await client.aclose()


async def test_batches_without_the_types_that_are_asked_for_are_left_out(path: Path) -> None:
    async with opened(path) as store:
        client = EventLogClient(store)
        writer = await Writer.of(client)
        await writer.append(created(metadata={"tenant": "acme"}))
        for batch in ([queued("run_1")], [started("run_1")], [event("x", run_id="run_1")], [completed("run_1")]):
            await writer.append(*batch)

        found = await collected(store, "acme", types=mask_of({EventType.RUN_QUEUED, EventType.RUN_COMPLETED}))

        assert [("ses_1", 2), ("ses_1", 5)] == places(found)
        await client.aclose()


async def test_a_deleted_session_is_not_in_the_feed(path: Path) -> None:
    async with opened(path) as store:
        client = EventLogClient(store)
        expected = await written(client, 60)
        await idle(store)
        await store.delete_session("ses_0")
        left = [place for place in expected["acme"] if place[0] != "ses_0"]

        assert left == places(await collected(store, "acme"))
        store._commits._tail.clear()
        assert left == places(await collected(store, "acme"))
        await client.aclose()


async def test_a_place_that_is_not_there_yet_is_refused(path: Path) -> None:
    async with opened(path) as store:
        with pytest.raises(InvalidCursor):
            await store.read_feed(1, tenant="acme", types=EVERY_TYPE, wait_s=0)


async def test_nothing_is_passed_over_that_is_committed_while_the_files_are_read(path: Path) -> None:
    async with opened(path) as store:
        client = EventLogClient(store)
        await written(client, 60)
        await idle(store)
        await store.delete_session("ses_0")
        ours = await Writer.of(client, "ses_2")
        feed = store._commits
        feed._tail.clear()
        began, may_end = threading.Event(), threading.Event()
        original = commit_feed._from_files

        def slow(*args: Any) -> Any:
            found = original(*args)
            began.set()
            assert may_end.wait(30)
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(commit_feed, "_from_files", slow)
            after = feed.end.batch_id - 1
            reading = asyncio.create_task(store.read_feed(after, tenant="acme", types=EVERY_TYPE, wait_s=0))
            await asyncio.to_thread(began.wait, 30)
            committed = await ours.append(event("meanwhile"))
            may_end.set()
            page = await reading

        rest = await collected(store, "acme", after=page.read_to)
        assert ("ses_2", committed.first_seq) in places([*page.batches, *rest])
        await client.aclose()


async def test_what_was_imported_is_in_no_feed_and_hides_nothing_of_what_happened_here(
    path: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "session.archive"
    async with opened(tmp_path / "other") as other:
        client = EventLogClient(other)
        writer = await Writer.of(client, "ses_far")
        await writer.append(created(metadata={"tenant": "acme"}))
        for _ in range(30):
            await writer.append(event("far"))
        await other.export_session("ses_far", archive)
        await client.aclose()
    async with opened(path) as store:
        client = EventLogClient(store)
        writer = await Writer.of(client, "ses_1")
        await writer.append(created(metadata={"tenant": "acme"}))
        expected = [("ses_1", 1)]
        for number in range(60):
            if number == 30:
                await store.import_session(archive)
            expected.append(("ses_1", (await writer.append(event("x"))).first_seq))
        assert expected == places(await collected(store, "acme"))
        await idle(store)
        store._commits._tail.clear()
        assert expected == places(await collected(store, "acme"))
        assert {"ses_1", "ses_far"} == set(await store.session_ids())
        await client.aclose()


async def test_a_session_that_takes_the_name_of_a_deleted_one_is_its_own_tenants(path: Path) -> None:
    async with opened(path) as store:
        client = EventLogClient(store)
        for tenant in ("acme", "other"):
            writer = await Writer.of(client)
            await writer.append(created(metadata={"tenant": tenant}))
            await writer.append(event(tenant))
            found = {name: places(await collected(store, name)) for name in ("acme", "other")}
            assert {tenant} == {name for name, seen in found.items() if seen}
            client.release("ses_1", writer.ownership.epoch)
            await store.delete_session("ses_1")
        await client.aclose()


async def test_sessions_that_were_forgotten_for_others_are_not_left_out(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit_feed, "MAX_KNOWN_TENANTS", 2)
    async with opened(path) as store:
        client = EventLogClient(store)
        expected = await written(client, 40)
        for tenant, order in expected.items():
            assert order == places(await collected(store, tenant))
        await client.aclose()


async def test_a_copy_of_a_store_is_another_one_to_a_cursor(path: Path, tmp_path: Path) -> None:
    async with opened(path) as store:
        client = EventLogClient(store)
        await written(client, 3)
        await store.back_up(tmp_path / "copy")
        original = store.end_of_feed()
        await client.aclose()
    async with opened(path) as store:
        assert original == store.end_of_feed(), "a restart changes nothing"
    async with opened(tmp_path / "copy") as copy:
        assert original.identity != copy.end_of_feed().identity
