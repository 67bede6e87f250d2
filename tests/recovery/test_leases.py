"""Owners that freeze, die and come back: the others go on, and what is late can write nothing."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

import greenroom
from greenroom import EventType, Runtime
from tests.ray.processes import actor_rows, pid_of
from tests.waiting import wait_until

LEASE_S = 2.0


@pytest.fixture
def leased(cluster: str, tmp_path: Path) -> Iterator[Runtime]:
    runtime = greenroom.start(data_dir=tmp_path, lease_s=LEASE_S, warm_pool=1)
    yield runtime
    runtime.shutdown()


@pytest.mark.timeout(180)
def test_a_frozen_twin_can_write_nothing_and_is_gone(leased: Runtime) -> None:
    session = leased.open_session(max_concurrent_runs=1)
    slow = {"provider_options": {"chunks": 1_000, "chunk_delay_s": 0.02, "reply": "x" * 1_000}}
    first = ray.get(session.submit_run.remote("x", slow))
    wait_until(lambda: len(ray.get(session.read_events.remote())) > 10, what="the first run streams")
    pid = pid_of(leased, "SessionServer", session.session_id)
    process = psutil.Process(pid)
    os.kill(pid, signal.SIGSTOP)
    frozen_at = time.monotonic()

    other = leased.get_session(session.session_id)
    result = ray.get(other.execute_run.remote("y"))
    took_s = time.monotonic() - frozen_at
    old_handle = ray.get(session.execute_run.remote("z"))

    # While it was frozen its session went on elsewhere. (Twice the lease is the promise; the rest is a busy machine.)
    assert took_s < 2 * LEASE_S + 30
    assert {"content": "ok"} == result.output == old_handle.output
    wait_until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, what="the twin is gone")
    with pytest.raises(greenroom.RunInterrupted):
        ray.get(session.await_run.remote(first))
    events = list(session.follow(follow=False))
    assert list(range(1, len(events) + 1)) == [event.seq for event in events]
    ended = next(event.seq for event in events if event.run_id == first and event.type is EventType.RUN_FAILED)
    assert [] == [event.seq for event in events if event.run_id == first and event.seq > ended]


@pytest.mark.timeout(180)
def test_the_directory_learns_from_the_servers_when_it_is_started_anew(leased: Runtime) -> None:
    sessions = [leased.open_session() for _ in range(3)]
    hanging = [ray.get(one.submit_run.remote("x", {"provider_options": {"hang": True}})) for one in sessions]
    epochs = [ray.get(one.status.remote()).epoch for one in sessions]
    pids = [pid_of(leased, "SessionServer", one.session_id) for one in sessions]

    os.kill(pid_of(leased, "Directory"), signal.SIGKILL)

    handles = [leased.get_session(one.session_id) for one in sessions]
    assert epochs == [ray.get(one.status.remote()).epoch for one in handles]
    assert pids == [pid_of(leased, "SessionServer", one.session_id) for one in handles]
    assert all(ray.get(one.cancel_run.remote(run_id)) for one, run_id in zip(handles, hanging, strict=True))


@pytest.mark.timeout(180)
def test_providers_declared_later_are_known_to_a_directory_that_was_started_anew(leased: Runtime) -> None:
    greenroom.start(data_dir=leased.data_dir, providers={"later": {"kind": "scripted", "reply": "declared later"}})
    os.kill(pid_of(leased, "Directory"), signal.SIGKILL)

    session = leased.open_session(provider="later")

    assert {"content": "declared later"} == ray.get(session.execute_run.remote("x")).output


@pytest.mark.timeout(180)
def test_promise_10_a_handle_works_whatever_happened_to_the_actor_behind_it(leased: Runtime) -> None:
    session = leased.open_session()
    assert {"content": "ok"} == ray.get(session.execute_run.remote("x")).output
    namespace = leased.record().namespace
    for blow in ("kill -9", "ray.kill", "ray.kill for good"):
        (row,) = actor_rows(leased, "SessionServer", session.session_id)
        if blow == "kill -9":
            os.kill(row["pid"], signal.SIGKILL)
        else:
            ray.kill(ray.get_actor(row["name"], namespace=namespace), no_restart=blow.endswith("good"))
        wait_until(
            lambda pid=row["pid"]: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE,
            what="the server is gone",
        )
        assert {"content": "ok"} == ray.get(session.execute_run.remote(blow)).output


@pytest.mark.timeout(180)
def test_an_approval_asked_before_everything_was_killed_is_granted_after_it_and_the_tool_runs_once(
    leased: Runtime, tmp_path: Path
) -> None:
    charged = tmp_path / "charged"

    def charge(amount: int) -> str:
        with charged.open("a") as file:
            file.write(f"{amount}\n")
        return "done"

    session = leased.open_session(tools=[greenroom.tool(charge, approval="always")])
    calls = {"provider_options": {"tool_calls": [{"name": "charge", "input": {"amount": 3}}]}}
    granted, denied = (ray.get(session.submit_run.remote("x", calls)) for _ in range(2))
    approval = wait_until(lambda: ray.get(session.status.remote()).pending_approvals, what="it is asked")[0]

    for row in leased.stats().actors:
        os.kill(row["pid"], signal.SIGKILL)

    leased.decide_approval(approval["id"], "approve")
    result = ray.get(session.await_run.remote(granted, 60))
    second = wait_until(lambda: ray.get(session.status.remote()).pending_approvals, what="the second is asked")[0]
    leased.decide_approval(second["id"], "deny")
    ray.get(session.await_run.remote(denied, 60))

    assert (2, "3\n") == (result.attempts, charged.read_text())
    with pytest.raises(greenroom.InvalidOperation):
        leased.decide_approval(approval["id"], "deny")
    with pytest.raises(greenroom.NotFound):
        leased.decide_approval("apr_none", "deny")


@pytest.mark.timeout(180)
def test_what_is_left_of_a_command_whose_whole_supervision_was_killed_is_found_and_ended(leased: Runtime) -> None:
    session = leased.open_session(provider="shell")
    ray.get(session.submit_run.remote("sleep 8644 & sleep 8645"))
    commands = wait_until(lambda: _running("864"), what="the command runs")
    server = psutil.Process(pid_of(leased, "SessionServer", session.session_id))
    below = [child for child in server.children(recursive=True) if "sleep" not in child.name()]

    for process in (server, *below):  # all at once, as when memory runs out: nobody is left to clean up
        process.suspend()
    for process in (server, *below):
        process.kill()

    wait_until(lambda: not any(one.is_running() for one in commands), what="the orphans are gone")


def _running(text: str) -> list[psutil.Process]:
    """The commands of this test: numbers alone also stand in the ports of Ray's own."""
    return [one for one in psutil.process_iter(["cmdline"]) if f"sleep {text}" in " ".join(one.info["cmdline"] or ())]
