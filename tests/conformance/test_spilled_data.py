"""Event data that is too large for the log goes to the artifact store by itself, and nobody who reads it notices."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from greenroom.adapters.direct_lane import DirectStore
from greenroom.adapters.event_log_client import EventLogClient
from greenroom.domain.errors import NotFound, StorageFull, StorageReadFailed
from greenroom.domain.event import EventType, NewEvent
from greenroom.domain.event_log import EventQuery

from .event_log_suite import Writer, created, event, queued, sent

SPILL_BYTES = 1_000
ALL = EventQuery(limit=1_000)


def fail(exc: Exception) -> None:
    pytest.fail(f"the writer failed: {exc!r}")


def large(text: str) -> NewEvent:
    return event(text * 2_000)._replace(id=f"evt_{text}")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncGenerator[DirectStore]:
    store = DirectStore(tmp_path / "store", on_fatal=fail)
    await store.open()
    yield store
    if store.is_open:
        await store.close()


@pytest.fixture
async def client(store: DirectStore) -> AsyncGenerator[EventLogClient]:
    client = EventLogClient(store, spill_bytes=SPILL_BYTES)
    yield client
    await client.aclose()


def artifacts_in(folder: Path) -> list[Path]:
    return [path for path in (folder / "artifacts" / "objects").rglob("*") if path.is_file()]


async def test_large_data_lies_in_the_artifact_store_and_comes_back_with_its_event(
    store: DirectStore, client: EventLogClient
) -> None:
    writer = await Writer.of(client)
    await writer.append(created(), event("before"), large("a"), event("between"), large("b"))

    found = await client.read("ses_1", ALL)

    assert ["before", "a" * 2_000, "between", "b" * 2_000] == [one.data["content"] for one in found[1:]]
    assert 2 == len(artifacts_in(store.path))
    log = store.path / "log-000001.duckdb"
    assert not any(b"a" * 2_000 in path.read_bytes() for path in (log, log.with_name(log.name + ".wal")))


async def test_listeners_get_the_data_itself(client: EventLogClient) -> None:
    writer = await Writer.of(client)

    await writer.append(large("a"))

    heard = [one for batch in writer.heard for one in batch.events()]
    assert ["a" * 2_000] == [one.data["content"] for one in heard]


async def test_the_order_of_appends_is_kept_while_large_data_is_on_its_way(client: EventLogClient) -> None:
    writer = await Writer.of(client)
    answers = [
        client.append("ses_1", writer.ownership.epoch, [large(str(number)) if number % 3 == 0 else event(str(number))])
        for number in range(20)
    ]

    committed = [await answer for answer in answers]

    assert list(range(1, 21)) == [one.first_seq for one in committed]
    found = await client.read("ses_1", ALL)
    assert [str(number) for number in range(20)] == [one.data["content"][: len(str(n))] for n, one in enumerate(found)]


async def test_events_that_make_records_stay_in_the_log(store: DirectStore, client: EventLogClient) -> None:
    writer = await Writer.of(client)

    await writer.append(created(), queued("run_1"), sent("run_1", "long " * 1_000))

    run = await store.find_run("run_1")
    assert run is not None
    assert "long " * 1_000 == run.input["messages"][0]["content"]
    assert [] == artifacts_in(store.path)


async def test_the_same_data_is_kept_once_for_all_sessions(store: DirectStore, client: EventLogClient) -> None:
    for name in ("ses_1", "ses_2"):
        writer = await Writer.of(client, name)
        await writer.append(large("a"), large("a"))

    assert 1 == len(artifacts_in(store.path))
    await store.delete_session("ses_1")
    found = await client.read("ses_2", ALL)
    assert ["a" * 2_000] * 2 == [one.data["content"] for one in found]
    await store.delete_session("ses_2")
    assert [] == artifacts_in(store.path)


async def test_filters_and_pages_see_through_it(client: EventLogClient) -> None:
    writer = await Writer.of(client)
    await writer.append(event("x", run_id="run_1"), large("a")._replace(run_id="run_1", attempt=1), event("y"))

    found = await client.read("ses_1", EventQuery(run_id="run_1", types=frozenset({EventType.MESSAGE_STREAMED})))

    assert [1, 2] == [one.seq for one in found]
    assert "a" * 2_000 == found[1].data["content"]


async def test_changed_or_missing_data_is_seen_by_verify_and_by_whoever_reads_it(
    store: DirectStore, client: EventLogClient
) -> None:
    writer = await Writer.of(client)
    await writer.append(large("a"))
    (kept,) = artifacts_in(store.path)
    assert (await store.verify_session("ses_1")).ok
    content = bytearray(kept.read_bytes())
    content[100] ^= 1
    kept.chmod(0o600)
    kept.write_bytes(content)

    assert not (await store.verify_session("ses_1")).ok
    with pytest.raises(StorageReadFailed):
        await client.read("ses_1", ALL)

    await store.put_artifact("ses_2", b"other")
    for path in (store.path / "artifacts" / "owners" / "ses_1").iterdir():
        path.unlink()
    assert not (await store.verify_session("ses_1")).ok
    with pytest.raises(NotFound):
        await client.read("ses_1", ALL)


async def test_it_survives_export_and_import(store: DirectStore, client: EventLogClient, tmp_path: Path) -> None:
    writer = await Writer.of(client)
    await writer.append(created(), large("a"))
    before = await client.read("ses_1", ALL)

    await store.export_session("ses_1", tmp_path / "session")
    await store.delete_session("ses_1")
    await store.compact()
    assert [] == artifacts_in(store.path)
    await store.import_session(tmp_path / "session")

    assert before == await client.read("ses_1", ALL)
    assert (await store.verify_session("ses_1")).ok


async def test_an_artifact_that_finds_no_room_is_held_until_there_is(
    store: DirectStore, client: EventLogClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = 0
    put = store.put_artifact

    async def full_twice(session_id: str, content: bytes) -> str:
        nonlocal refusals
        refusals += 1
        if refusals <= 2:
            raise StorageFull
        return await put(session_id, content)

    monkeypatch.setattr(store, "put_artifact", full_twice)
    writer = await Writer.of(client)

    first, second = await asyncio.gather(writer.append(large("a")), writer.append(event("b")))

    assert (1, 2) == (first.first_seq, second.first_seq)
    assert 3 == refusals
