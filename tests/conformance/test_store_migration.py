"""A data_dir that an earlier version wrote: upgraded once, its files kept; one of a newer version is left alone."""

import asyncio
from pathlib import Path
from typing import Any

import duckdb
import msgpack
import pytest

from greenroom.adapters.data_dir import store_folder
from greenroom.adapters.direct_lane import DirectStore
from greenroom.adapters.duckdb.migration import KEPT_NAME, LAYOUT_1_NAME, upgrade
from greenroom.adapters.event_codec import BatchEncoder, decode_slab
from greenroom.domain.errors import InvalidFormat, StorageError
from greenroom.domain.event import NewEvent
from greenroom.domain.event_log import EventQuery, Ownership
from greenroom.domain.run import RunStatus

from .event_log_suite import completed, created, event, queued, sent, started

# As version 0.1 made them before there was a folder of files.
LAYOUT_1 = """
CREATE TABLE meta (name VARCHAR NOT NULL, value VARCHAR NOT NULL);
CREATE TABLE epochs (session_key BIGINT NOT NULL, session_id VARCHAR NOT NULL, epoch BIGINT NOT NULL,
    owner VARCHAR NOT NULL, granted_at_us BIGINT NOT NULL);
CREATE TABLE batches (batch_id BIGINT NOT NULL, session_key BIGINT NOT NULL, last_seq BIGINT NOT NULL,
    batch BLOB NOT NULL);
CREATE TABLE session_tools (session_id VARCHAR NOT NULL, tools BLOB NOT NULL);
CREATE TABLE watermark (batch_id BIGINT NOT NULL);
INSERT INTO watermark VALUES (0);
"""

BATCHES: list[tuple[int, list[NewEvent]]] = [
    (1, [created(), queued("run_1", key="k"), sent("run_1")]),
    (2, [created(), event("of another session")]),
    (1, [started("run_1"), event("x", run_id="run_1")]),
    (1, [completed("run_1")]),
]


def fail(exc: Exception) -> None:
    pytest.fail(f"the writer failed: {exc!r}")


def write_layout_1(path: Path, *, version: int = 1) -> None:
    encoder = BatchEncoder()
    ends: dict[int, int] = {}
    numbers: dict[int, int] = {}
    with duckdb.connect(str(path)) as connection:
        connection.execute(LAYOUT_1)
        connection.execute("INSERT INTO meta VALUES ('file_version', ?)", [str(version)])
        for row in ((1, "ses_1", 1, "first", 1), (2, "ses_2", 1, "first", 1), (1, "ses_1", 2, "second", 2)):
            connection.execute("INSERT INTO epochs VALUES (?, ?, ?, ?, ?)", row)
        for batch_id, (key, events) in enumerate(BATCHES, start=1):
            batch = encoder.encode(events)
            first = ends.get(key, 0) + 1
            ends[key] = first + batch.event_count - 1
            numbers[key] = numbers.get(key, 0) + 1
            header: tuple[Any, ...] = (2 if key == 1 else 1, numbers[key], first, 7, batch.types, batch.records)
            stored = msgpack.packb(header) + batch.payload
            connection.execute("INSERT INTO batches VALUES (?, ?, ?, ?)", [batch_id, key, ends[key], stored])
        connection.execute("INSERT INTO session_tools VALUES ('ses_1', 'tools'::BLOB)")


async def test_an_older_data_dir_is_upgraded_with_everything_in_it(tmp_path: Path) -> None:
    write_layout_1(tmp_path / LAYOUT_1_NAME)
    before = (tmp_path / LAYOUT_1_NAME).read_bytes()

    await asyncio.to_thread(upgrade, tmp_path)

    assert before == (tmp_path / KEPT_NAME).read_bytes()
    assert not (tmp_path / LAYOUT_1_NAME).exists()
    store = DirectStore(store_folder(tmp_path, 0), on_fatal=fail)
    await store.open()
    slabs = await store.read("ses_1", EventQuery())
    found = [one for slab in slabs for one in decode_slab("ses_1", slab)]
    expected = [one for key, events in BATCHES for one in events if key == 1]
    assert [(one.id, one.data) for one in expected] == [(one.id, one.data) for one in found]
    assert list(range(1, 7)) == [one.seq for one in found]
    assert (await store.verify_session("ses_1")).ok
    assert (await store.verify_session("ses_2")).ok
    run = await store.find_run("run_1")
    assert run is not None
    assert RunStatus.COMPLETED is run.status
    assert "run_1" == await store.find_run_by_key("ses_1", "k")
    assert "second" == await store.owner("ses_1")
    assert b"tools" == await store.tools("ses_1")
    assert Ownership(epoch=3, last_seq=6) == await store.grant("ses_1", "third")
    await store.close()


async def test_an_upgrade_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    write_layout_1(tmp_path / LAYOUT_1_NAME)
    scratch = tmp_path / "store.upgrading"
    scratch.mkdir()
    (scratch / "part-000001.duckdb").write_bytes(b"half")

    await asyncio.to_thread(upgrade, tmp_path)
    await asyncio.to_thread(upgrade, tmp_path)

    store = DirectStore(store_folder(tmp_path, 0), on_fatal=fail)
    await store.open()
    assert 8 == (await store.counts())["events"]
    await store.close()


@pytest.mark.parametrize("version", [2, 999])
def test_another_layout_is_refused_and_left_as_it_is(tmp_path: Path, version: int) -> None:
    write_layout_1(tmp_path / LAYOUT_1_NAME, version=version)
    before = (tmp_path / LAYOUT_1_NAME).read_bytes()

    with pytest.raises(InvalidFormat) as refused:
        upgrade(tmp_path)

    assert version == refused.value.details["schema_version"]
    assert before == (tmp_path / LAYOUT_1_NAME).read_bytes()
    assert not store_folder(tmp_path, 0).exists()


def test_a_file_that_is_no_database_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / LAYOUT_1_NAME).write_bytes(b"This is no database. " * 1_000)

    with pytest.raises(StorageError, match=LAYOUT_1_NAME):
        upgrade(tmp_path)

    assert b"This is no database. " * 1_000 == (tmp_path / LAYOUT_1_NAME).read_bytes()


def test_nothing_is_done_where_there_is_nothing(tmp_path: Path) -> None:
    upgrade(tmp_path)

    assert [] == list(tmp_path.iterdir())
