"""Sessions that leave their servers and come back, many on one server, and limits on how many there are."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

import greenroom
from greenroom import EventType, Runtime, SessionHandle
from greenroom.actors.address import DIRECTORY
from tests.waiting import wait_until

from .processes import actor_rows, pid_of


@pytest.fixture(scope="module")
def sleepy(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """A runtime whose sessions leave soon."""
    runtime = greenroom.start(data_dir=tmp_path_factory.mktemp("sleepy"), idle_after_s=0.2, warm_pool=1)
    yield runtime
    runtime.shutdown()


def is_asleep(runtime: Runtime, session: SessionHandle) -> bool:
    return not actor_rows(runtime, "SessionServer", session.session_id)


def until_asleep(runtime: Runtime, session: SessionHandle) -> None:
    wait_until(lambda: is_asleep(runtime, session), what="the session has left its server")


def reply(session: SessionHandle, text: str = "hello", **options: Any) -> str:
    result = ray.get(session.execute_run.remote(text, {"provider_options": {"echo": True}, **options}))
    return str(result.output["content"])


def test_an_idle_session_leaves_its_server_and_any_call_on_an_old_handle_brings_it_back(sleepy: Runtime) -> None:
    session = sleepy.open_session()
    assert "one" == reply(session, "one")
    until_asleep(sleepy, session)

    assert "two" == reply(session, "two")
    status = ray.get(session.status.remote())

    assert (2, []) == (status.epoch, status.in_flight)
    assert ["one", "two"] == [
        str((run.output or {})["content"]) for run in sleepy.list_runs(session_id=session.session_id)
    ]


def test_a_session_that_works_or_waits_for_a_person_stays(sleepy: Runtime) -> None:
    session = sleepy.open_session()
    run_id = ray.get(session.submit_run.remote("x", {"provider_options": {"hang": True}}))
    other = sleepy.open_session()
    until_asleep(sleepy, other)

    assert not is_asleep(sleepy, session)
    assert ray.get(session.cancel_run.remote(run_id))


def test_opening_a_sleeping_session_again_is_the_same_session(sleepy: Runtime) -> None:
    session = sleepy.open_session("ses_again", metadata={"a": 1})
    reply(session)
    until_asleep(sleepy, session)

    again = sleepy.open_session("ses_again")

    assert {"a": 1} == sleepy.session(again.session_id).metadata
    assert 2 == ray.get(again.status.remote()).epoch


def test_following_does_not_keep_a_session_awake_and_misses_nothing(sleepy: Runtime) -> None:
    session = sleepy.open_session()
    seen: list[int] = []
    follower = threading.Thread(target=lambda: seen.extend(event.seq for event in session.follow()))
    follower.start()
    for text in ("one", "two", "three"):
        reply(session, text)
        until_asleep(sleepy, session)
    ray.get(session.complete.remote())
    follower.join(30)

    last = sleepy.query("SELECT max(seq) AS last FROM events WHERE session_id = ?", [session.session_id])
    assert list(range(1, last[0]["last"] + 1)) == seen


def test_reading_a_sleeping_session_does_not_wake_it(sleepy: Runtime) -> None:
    session = sleepy.open_session()
    reply(session)
    until_asleep(sleepy, session)

    events = ray.get(session.read_events.remote(limit=1_000))
    followed = list(session.follow(follow=False))

    assert events == followed
    assert is_asleep(sleepy, session)


def test_following_a_run_of_a_sleeping_session_ends_with_the_run(sleepy: Runtime) -> None:
    session = sleepy.open_session()
    result = ray.get(session.execute_run.remote("x", {"provider_options": {"reply": "y" * 200_000}}))
    until_asleep(sleepy, session)

    events = list(session.follow(run_id=result.run_id))

    assert EventType.RUN_COMPLETED is events[-1].type
    assert {"content": "y" * 200_000} == events[-1].data["output"]


def test_a_raw_subscription_ends_with_session_moved_when_the_session_leaves(sleepy: Runtime) -> None:
    session = sleepy.open_session()
    stream = session.subscribe.remote()

    with pytest.raises(greenroom.SessionMoved):
        ray.get(list(stream))


def test_a_queue_that_is_paused_keeps_its_session_where_it_is_and_a_pause_outlives_sleep(sleepy: Runtime) -> None:
    session = sleepy.open_session()
    ray.get(session.pause.remote())
    until_asleep(sleepy, session)
    run_id = ray.get(session.submit_run.remote("x"))
    assert [run_id] == ray.get(session.status.remote()).queued

    ray.get(session.resume.remote())

    assert {"content": "ok"} == ray.get(session.await_run.remote(run_id)).output


def test_many_sessions_share_one_server_and_those_with_processes_get_their_own(cluster: str, tmp_path: Path) -> None:
    runtime = greenroom.start(data_dir=tmp_path, sessions_per_actor=50, warm_pool=1)
    sessions = [runtime.open_session() for _ in range(30)]
    assert ["hello"] * 30 == [reply(session) for session in sessions]
    assert 1 == len({pid_of(runtime, "SessionServer", session.session_id) for session in sessions})

    shell = runtime.open_session(provider="shell")
    assert "42" == ray.get(shell.execute_run.remote("echo 42")).output["content"].strip()
    moved = ray.get(sessions[0].execute_run.remote("echo 43", {"provider": "shell"}))

    shared = pid_of(runtime, "SessionServer", sessions[1].session_id)
    own = {pid_of(runtime, "SessionServer", one.session_id) for one in (shell, sessions[0])}
    assert ("43", 2) == (moved.output["content"].strip(), len(own - {shared}))
    runtime.shutdown()


def test_a_run_that_needs_its_own_server_is_refused_while_others_are_under_way(cluster: str, tmp_path: Path) -> None:
    runtime = greenroom.start(data_dir=tmp_path, sessions_per_actor=5)
    session = runtime.open_session()
    ray.get(session.submit_run.remote("x", {"provider_options": {"hang": True}}))

    with pytest.raises(greenroom.InvalidOperation):
        ray.get(session.submit_run.remote("true", {"provider": "shell"}))
    runtime.shutdown()


def test_a_retried_run_of_a_shared_server_that_died_gets_one_of_its_own(cluster: str, tmp_path: Path) -> None:
    runtime = greenroom.start(data_dir=tmp_path, sessions_per_actor=10, warm_pool=1)
    sessions = [runtime.open_session() for _ in range(3)]
    slow = {"provider_options": {"latency_s": 1.0}, "on_crash": "retry"}
    run_ids = [ray.get(session.submit_run.remote("x", slow)) for session in sessions]

    os.kill(pid_of(runtime, "SessionServer", sessions[0].session_id), signal.SIGKILL)
    results = [ray.get(session.await_run.remote(run_id, 60)) for session, run_id in zip(sessions, run_ids, strict=True)]

    assert [2, 2, 2] == [result.attempts for result in results]
    pids = [pid_of(runtime, "SessionServer", session.session_id) for session in sessions]
    assert 3 == len(set(pids))
    runtime.shutdown()


def test_sessions_beyond_the_limit_wait_until_one_is_idle(cluster: str, tmp_path: Path) -> None:
    runtime = greenroom.start(data_dir=tmp_path, max_live_actors=2, warm_pool=0, idle_after_s=3600)
    busy = runtime.open_session()
    run_id = ray.get(busy.submit_run.remote("x", {"provider_options": {"latency_s": 0.5}}))
    sessions = [runtime.open_session() for _ in range(4)]

    assert ["hello"] * 4 == [reply(session) for session in sessions]
    assert {"content": "ok"} == ray.get(busy.await_run.remote(run_id)).output
    assert 2 >= len(actor_rows(runtime, "SessionServer"))
    runtime.shutdown()


def test_sessions_beyond_the_limit_of_their_tenant_or_provider_wait_and_hold_up_nobody_else(
    cluster: str, tmp_path: Path
) -> None:
    limits = {"live_sessions_per_tenant": 1, "live_sessions_per_provider": {"shell": 1}}
    runtime = greenroom.start(data_dir=tmp_path, warm_pool=1, idle_after_s=3600, limits=limits)
    ada = runtime.open_session(metadata={"tenant": "ada"})
    hanging = ray.get(ada.submit_run.remote("x", {"provider_options": {"hang": True}}))
    shell = runtime.open_session(provider="shell")
    sleeping = ray.get(shell.submit_run.remote("sleep 8642"))
    waiting: dict[str, SessionHandle] = {}

    def open_second(name: str, **options: Any) -> threading.Thread:
        thread = threading.Thread(target=lambda: waiting.update({name: runtime.open_session(**options)}))
        thread.start()
        return thread

    threads = [open_second("ada", metadata={"tenant": "ada"}), open_second("shell", provider="shell")]
    assert "hello" == reply(runtime.open_session(metadata={"tenant": "bob"}))
    pid = pid_of(runtime, "Directory")
    os.kill(pid, signal.SIGKILL)  # it learns from the servers who counts where
    assert "hello" == reply(runtime.open_session())
    assert {} == waiting
    ray.get(ada.cancel_run.remote(hanging))
    ray.get(shell.cancel_run.remote(sleeping))
    for thread in threads:
        thread.join(60)

    assert {"ada", "shell"} == set(waiting)
    assert "hello" == reply(waiting["ada"])
    assert is_asleep(runtime, ada) or is_asleep(runtime, waiting["ada"])
    runtime.shutdown()


def test_runs_beyond_the_limit_of_the_runtime_wait_and_the_urgent_go_first(cluster: str, tmp_path: Path) -> None:
    runtime = greenroom.start(data_dir=tmp_path, max_running_runs=1, warm_pool=1)
    sessions = [runtime.open_session() for _ in range(3)]
    slow = {"provider_options": {"latency_s": 0.3}}
    first = ray.get(sessions[0].submit_run.remote("x", slow))
    wait_until(lambda: ray.get(sessions[0].status.remote()).in_flight, what="the first run holds the slot")
    later = ray.get(sessions[1].submit_run.remote("x", slow))
    urgent = ray.get(sessions[2].submit_run.remote("x", {**slow, "priority": 5}))
    for session, run_id in zip(sessions, (first, later, urgent), strict=True):
        ray.get(session.await_run.remote(run_id))

    starts = runtime.query("SELECT run_id FROM events WHERE type = 'run_started' ORDER BY timestamp")
    assert [first, urgent, later] == [row["run_id"] for row in starts]
    runtime.shutdown()


def test_slots_come_back_when_their_holder_dies(cluster: str, tmp_path: Path) -> None:
    runtime = greenroom.start(data_dir=tmp_path, max_running_runs=1, warm_pool=1)
    session, other = runtime.open_session(), runtime.open_session()
    ray.get(session.submit_run.remote("x", {"provider_options": {"hang": True}}))
    wait_until(lambda: ray.get(session.status.remote()).in_flight, what="the run holds the slot")

    os.kill(pid_of(runtime, "SessionServer", session.session_id), signal.SIGKILL)

    assert "hello" == reply(other)
    runtime.shutdown()


def test_a_pool_larger_than_memory_allows_is_refused(cluster: str, tmp_path: Path) -> None:
    with pytest.raises(greenroom.ValidationError) as refused:
        greenroom.start(data_dir=tmp_path, warm_pool=100_000)
    assert "warm_pool" == refused.value.details["field"]
    with pytest.raises(greenroom.ValidationError):
        greenroom.start(data_dir=tmp_path, warm_pool=3, max_live_actors=2)


def test_a_restarted_server_that_joins_late_keeps_what_it_has_taken_over_meanwhile(sleepy: Runtime) -> None:
    session = sleepy.open_session()
    run_id = ray.get(session.submit_run.remote("x", {"provider_options": {"latency_s": 1.0}}))
    (row,) = actor_rows(sleepy, "SessionServer", session.session_id)
    namespace = sleepy.address.namespace
    server: Any = ray.get_actor(row["name"], namespace=namespace)
    directory: Any = ray.get_actor(DIRECTORY, namespace=namespace)
    held = ray.get(server.held.remote())
    epoch = held["sessions"][session.session_id].epoch

    ray.get(directory.joined.remote(row["name"], {**held, "sessions": {}}))  # as of before it had the session

    assert row["name"] == actor_rows(sleepy, "SessionServer", session.session_id)[0]["name"]
    assert 1 == ray.get(session.await_run.remote(run_id, 30)).attempts
    assert epoch == ray.get(session.status.remote()).epoch


def test_a_restarted_server_takes_nothing_over_before_it_knows_what_was_declared_meanwhile(
    cluster: str, tmp_path: Path
) -> None:
    runtime = greenroom.start(data_dir=tmp_path, warm_pool=1)
    session, other = runtime.open_session(max_concurrent_runs=1), runtime.open_session()
    greenroom.start(data_dir=tmp_path, providers={"late": {"kind": "scripted"}})
    hanging = ray.get(session.submit_run.remote("x", {"provider": "late", "provider_options": {"hang": True}}))
    queued = ray.get(session.submit_run.remote("x", {"provider": "late"}))
    wait_until(lambda: ray.get(session.status.remote()).in_flight, what="the first run is under way")
    (row,) = actor_rows(runtime, "SessionServer", session.session_id)
    server: Any = ray.get_actor(row["name"], namespace=runtime.address.namespace)
    directory = pid_of(runtime, "Directory")

    os.kill(directory, signal.SIGSTOP)  # whatever the server asks it is answered late
    os.kill(row["pid"], signal.SIGKILL)
    bound = server.bind.remote(other.session_id, None, None, True)
    early, _ = ray.wait([bound], timeout=3)
    os.kill(directory, signal.SIGCONT)

    assert [] == early
    with pytest.raises(greenroom.RunInterrupted):
        ray.get(session.await_run.remote(hanging, 30))
    assert "late" == ray.get(session.await_run.remote(queued, 30)).provider
    runtime.shutdown()
