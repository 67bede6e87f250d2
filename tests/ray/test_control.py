"""Draining a runtime, cancelling everything, and what is measured of the processes of providers."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

import greenroom
from greenroom import Runtime
from tests.waiting import wait_until

from .processes import actor_rows


@pytest.fixture
def own(cluster: str, tmp_path: Path) -> Iterator[Runtime]:
    """A runtime of the test's own."""
    runtime = greenroom.start(data_dir=tmp_path)
    yield runtime
    runtime.shutdown()


def test_a_runtime_that_drains_takes_nothing_new_and_says_what_it_cancelled_and_left(own: Runtime) -> None:
    session = own.open_session()
    hanging = ray.get(session.submit_run.remote("x", {"provider_options": {"hang": True}}))
    queued = ray.get(session.submit_run.remote("after"))
    wait_until(lambda: ray.get(session.status.remote()).in_flight, what="the run is under way")

    with pytest.raises(greenroom.Timeout) as over:
        own.drain(0.5)

    assert {"cancelled": 1, "left": 1} == over.value.details
    assert [] == [row for row in actor_rows(own, "SessionServer") if row["session_ids"]]
    with pytest.raises(greenroom.SessionDraining):
        own.open_session()
    with pytest.raises(greenroom.SessionDraining):
        ray.get(session.submit_run.remote("x"))
    own.resume()
    assert {"content": "ok"} == ray.get(session.await_run.remote(queued, 60)).output
    with pytest.raises(greenroom.Cancelled):
        ray.get(session.await_run.remote(hanging))


def test_a_drain_in_which_everything_ends_by_itself_is_true(own: Runtime) -> None:
    session = own.open_session()
    run_ids = ray.get(session.submit_runs.remote(["a", "b"], {"provider_options": {"latency_s": 0.2}}))

    assert own.drain(30)
    assert all(own.get_run(run_id).status.is_terminal for run_id in run_ids)


def test_cancel_all_reaches_every_session(own: Runtime) -> None:
    sessions = [own.open_session() for _ in range(3)]
    run_ids = [ray.get(one.submit_run.remote("x", {"provider_options": {"hang": True}})) for one in sessions]

    assert sorted(run_ids) == sorted(own.cancel_all("enough"))
    assert ["cancelled"] * 3 == [own.get_run(run_id).status for run_id in run_ids]
    assert [] == own.cancel_all()


def test_the_processes_of_a_run_are_counted_and_measured(own: Runtime) -> None:
    session = own.open_session(provider="shell")
    run_id = ray.get(session.submit_run.remote("sleep 8647 & sleep 8648"))

    (found,) = wait_until(
        lambda: [one for one in ray.get(session.status.remote()).processes if one["count"] > 2],
        what="the command and its children are there",
    )

    assert (run_id, True) == (found["run_id"], found["memory_bytes"] > 0)
    own.cancel_all()
    assert [] == ray.get(session.status.remote()).processes
