"""What happens to a data_dir between runtimes: found again whole, or refused with the reason, never touched."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

import greenroom
from greenroom import RunStatus, Runtime
from greenroom.adapters.duckdb.manifest import Manifest, write_manifest
from tests.waiting import wait_until


def kill_for_good(runtime: Runtime) -> None:
    """Kill every process of the runtime, none of which Ray restarts: what is left is the data_dir."""
    namespace = runtime.record().namespace
    for row in sorted(runtime.stats().actors, key=lambda row: row["kind"]):
        ray.kill(ray.get_actor(row["name"], namespace=namespace))
    wait_until(lambda: not runtime.is_alive, what="this process has heard that the runtime is gone")


@pytest.fixture
def fresh(cluster: str, tmp_path: Path) -> Iterator[Runtime]:
    runtime = greenroom.start(data_dir=tmp_path / "data")
    yield runtime
    greenroom.start(data_dir=tmp_path / "data").shutdown()


def test_promise_1_everything_is_found_again_after_the_death_of_every_process(fresh: Runtime) -> None:
    session = fresh.open_session(agent_id="survivor", tags=["kept"])
    done = ray.get(session.execute_run.remote("x", {"provider_options": {"reply": "before"}}))
    open_runs = ray.get(session.submit_runs.remote(["a", "b", "c"], {"provider_options": {"latency_s": 1.0}}))
    before = list(session.follow(follow=False))

    kill_for_good(fresh)
    again = greenroom.start(data_dir=fresh.data_dir)
    wait_until(
        lambda: all(run.status.is_terminal for run in again.list_runs(session_id=session.session_id)),
        what="every run is accounted for, without a call for its session",
    )

    handle = again.get_session(session.session_id)
    events = list(handle.follow(follow=False))
    assert events[: len(before)] == before
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert ray.get(handle.await_run.remote(done.run_id)).output == {"content": "before"}
    statuses = [again.get_run(run_id).status for run_id in open_runs]
    assert statuses == [RunStatus.FAILED, RunStatus.COMPLETED, RunStatus.COMPLETED]
    assert [found.id for found in again.list_sessions(tag="kept")] == [session.session_id]
    assert ray.get(session.execute_run.remote("through the old handle")).output == {"content": "ok"}


def test_a_clean_shutdown_accounts_for_what_was_running(fresh: Runtime) -> None:
    session = fresh.open_session()
    run_id = ray.get(session.submit_run.remote("x", {"provider_options": {"hang": True}}))

    fresh.shutdown()
    again = greenroom.start(data_dir=fresh.data_dir)

    wait_until(lambda: again.get_run(run_id).status is RunStatus.FAILED, what="the run has ended")
    assert (again.get_run(run_id).error or {})["code"] == "run_interrupted"


def test_promise_14_a_store_that_was_damaged_is_kept_aside_and_named(cluster: str, tmp_path: Path) -> None:
    runtime = greenroom.start(data_dir=tmp_path)
    runtime.run_once("x", provider_options={"reply": "something to lose"})
    runtime.shutdown()
    log = tmp_path / "store" / "log-000001.duckdb"
    content = bytearray(log.read_bytes())
    place = content.index(b"something to lose")
    content[place] ^= 1
    log.write_bytes(content)

    with pytest.raises(greenroom.StorageError) as caught:
        greenroom.start(data_dir=tmp_path)

    kept = Path(caught.value.details["kept"])
    assert str(kept) in caught.value.message
    assert "greenroom doctor --repair" in caught.value.message
    assert (kept / log.name).read_bytes() == content
    assert log.read_bytes() == content
    with pytest.raises(greenroom.StorageError) as again:
        greenroom.start(data_dir=tmp_path)
    assert again.value.details["kept"] == str(kept)


def test_a_store_of_a_newer_layout_is_refused_and_left_as_it_is(cluster: str, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    write_manifest(folder, Manifest(layout=999))
    before = (folder / "manifest.json").read_bytes()

    with pytest.raises(greenroom.InvalidFormat) as caught:
        greenroom.start(data_dir=tmp_path)

    assert caught.value.details["schema_version"] == 999
    assert before == (folder / "manifest.json").read_bytes()


@pytest.mark.timeout(180)
def test_a_store_that_another_process_holds_is_refused_with_the_reason(cluster: str, tmp_path: Path) -> None:
    script = """
import fcntl, os, sys
os.mkdir(sys.argv[1])
held = open(sys.argv[1] + "/store.lock", "w")
fcntl.flock(held, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.readline()
"""
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "store")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"

    with pytest.raises(greenroom.StorageConnectionFailed, match="another data_dir"):
        greenroom.start(data_dir=tmp_path)

    holder.communicate("\n", timeout=60)


def test_a_data_dir_that_is_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")

    with pytest.raises(greenroom.ValidationError) as caught:
        greenroom.start(data_dir=path)

    assert caught.value.details["field"] == "data_dir"


def test_an_unknown_setting_is_refused_with_the_nearest_right_one() -> None:
    with pytest.raises(greenroom.ValidationError) as caught:
        greenroom.start(datadir="x")

    assert caught.value.details["nearest"] == ["data_dir"]
