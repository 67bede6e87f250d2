"""Two Ray nodes: sessions are spread over them, and those of a node that dies go on on the other."""

import contextlib
import subprocess
import sys
import threading
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import ray

import greenroom
from greenroom import EventType, Runtime, SessionHandle
from tests.ray.processes import actor_rows
from tests.waiting import wait_until

SESSIONS = 6


@dataclass
class SecondNode:
    node_id: str
    process: "subprocess.Popen[str]"

    def kill(self) -> None:
        """kill -9 of everything on it, as when a machine is gone."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            child.kill()


@contextlib.contextmanager
def second_node(address: str, *labels: str) -> Generator[SecondNode]:
    before = {node["NodeID"] for node in ray.nodes()}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.recovery.second_node", address, *labels], stdout=subprocess.PIPE, text=True
    )
    below: list[psutil.Process] = []
    try:
        joined = wait_until(
            lambda: [one["NodeID"] for one in ray.nodes() if one["Alive"] and one["NodeID"] not in before],
            what="the second node joined",
        )
        below = psutil.Process(process.pid).children(recursive=True)
        yield SecondNode(joined[0], process)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            below += psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate()
        for one in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        wait_until(
            lambda: not [one for one in ray.nodes() if one["Alive"] and one["NodeID"] not in before],
            what="the second node is known to be gone",
        )


def node_of(runtime: Runtime, session: SessionHandle) -> str:
    rows = wait_until(lambda: actor_rows(runtime, "SessionServer", session.session_id), what="the session has a server")
    return str(rows[0]["node_id"])


@pytest.mark.timeout(300)
def test_sessions_of_a_node_that_is_killed_go_on_on_the_other_and_followers_see_every_event_once(
    cluster: str, tmp_path: Path
) -> None:
    with second_node(cluster) as second:
        runtime = greenroom.start(data_dir=tmp_path, lease_s=5.0, warm_pool=2)
        sessions = [runtime.open_session() for _ in range(SESSIONS)]
        slow = {"provider_options": {"chunks": 300, "chunk_delay_s": 0.02, "reply": "x" * 300}, "on_crash": "retry"}
        run_ids = [ray.get(one.submit_run.remote("x", slow)) for one in sessions]
        queued = [ray.get(one.submit_run.remote("after")) for one in sessions]
        there = [one for one in sessions if node_of(runtime, one) == second.node_id]
        assert 0 < len(there) < SESSIONS
        seen: dict[str, list[int]] = {one.session_id: [] for one in sessions}

        def follow(session: SessionHandle) -> None:
            seen[session.session_id].extend(event.seq for event in session.follow())

        followers = [threading.Thread(target=follow, args=(one,)) for one in sessions]
        for follower in followers:
            follower.start()
        wait_until(lambda: all(len(seqs) > 20 for seqs in seen.values()), what="all are followed")

        second.kill()

        results = [ray.get(one.await_run.remote(run_id, 120)) for one, run_id in zip(sessions, run_ids, strict=True)]
        for one, run_id in zip(sessions, queued, strict=True):
            assert {"content": "ok"} == ray.get(one.await_run.remote(run_id, 120)).output
            ray.get(one.complete.remote())
        for follower in followers:
            follower.join(60)

        moved = {one.session_id for one in there}
        assert all(result.attempts >= 2 for result in results if result.session_id in moved)
        assert all(node_of_or_none(runtime, one) != second.node_id for one in sessions)
        for one in sessions:
            events = list(one.follow(follow=False))
            assert [event.seq for event in events] == list(range(1, len(events) + 1)) == seen[one.session_id]
            ends = [event for event in events if event.type is EventType.RUN_COMPLETED]
            assert 2 == len(ends)
        runtime.shutdown()


def node_of_or_none(runtime: Runtime, session: SessionHandle) -> str | None:
    rows = actor_rows(runtime, "SessionServer", session.session_id)
    return str(rows[0]["node_id"]) if rows else None


@pytest.mark.timeout(300)
def test_a_node_that_is_drained_keeps_nothing_and_its_queues_go_on_elsewhere(cluster: str, tmp_path: Path) -> None:
    with second_node(cluster) as second:
        runtime = greenroom.start(data_dir=tmp_path, warm_pool=2)
        sessions = [runtime.open_session() for _ in range(SESSIONS)]
        short = {"provider_options": {"latency_s": 0.3}}
        run_ids = [ray.get(one.submit_runs.remote(["a", "b", "c"], short)) for one in sessions]
        assert any(node_of(runtime, one) == second.node_id for one in sessions)

        assert runtime.drain(30, node_id=second.node_id)

        for one, ids in zip(sessions, run_ids, strict=True):
            assert [1, 1, 1] == [result.attempts for result in ray.get(one.await_runs.remote(ids, 60))]
            assert node_of(runtime, one) != second.node_id
        fresh = [runtime.open_session() for _ in range(4)]
        assert second.node_id not in [node_of(runtime, one) for one in fresh]
        with pytest.raises(greenroom.InvalidOperation):
            runtime.drain(1, node_id="nowhere")
        runtime.shutdown()


@pytest.mark.timeout(300)
def test_with_placement_labels_all_sessions_are_on_nodes_that_have_them(cluster: str, tmp_path: Path) -> None:
    with second_node(cluster, "purpose=agents") as second:
        runtime = greenroom.start(data_dir=tmp_path, warm_pool=1, placement_labels={"purpose": "in(agents, tools)"})
        sessions = [runtime.open_session() for _ in range(3)]

        assert {second.node_id} == {node_of(runtime, one) for one in sessions}
        runtime.shutdown()
