"""The promises of the contract that kills put to the test, each by its number. Real processes, real kill -9."""

import threading
from pathlib import Path

import pytest
import ray

import greenroom
from greenroom import EventType, Runtime, SessionHandle
from greenroom.domain.event import RUN_ENDINGS
from tests.ray.processes import actor_rows, kill_9, pid_of
from tests.waiting import wait_until

STORE_KILLS = 20


def all_events(session: SessionHandle) -> list[greenroom.Event]:
    return list(session.follow(follow=False))


class Load:
    """Submits runs from a few threads until it is stopped; keeps what was acknowledged and what was raised."""

    def __init__(self, session: SessionHandle, threads: int) -> None:
        self.acknowledged: list[str] = []
        self.errors: list[BaseException] = []
        self._session = session
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._submit) for _ in range(threads)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _submit(self) -> None:
        while not self._stopped.is_set():
            try:
                self.acknowledged.append(ray.get(self._session.submit_run.remote("x")))
            except Exception as exc:  # noqa: BLE001  the test looks at them
                self.errors.append(exc)
                return


@pytest.mark.timeout(300)
def test_promise_1_acknowledged_means_committed_through_twenty_kills_of_the_store(runtime: Runtime) -> None:
    session = runtime.open_session(max_concurrent_runs=4, max_queued_runs=1_000_000)

    with Load(session, threads=3) as load:
        for _ in range(STORE_KILLS):
            killed = kill_9(runtime, "EventStore")
            seen = len(load.acknowledged)
            wait_until(lambda seen=seen: load.errors or len(load.acknowledged) > seen + 5, what="submits go on")
            assert pid_of(runtime, "EventStore") != killed
    results = ray.get(session.await_runs.remote(load.acknowledged, 60))
    events = all_events(session)

    assert load.errors == []
    assert all(isinstance(result, greenroom.RunResult) for result in results)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    queued = [str(event.run_id) for event in events if event.type is EventType.RUN_QUEUED]
    assert sorted(queued) == sorted(load.acknowledged)
    assert len({event.id for event in events}) == len(events)


def test_promise_2_a_stream_has_no_gap_and_no_repeat_while_both_processes_are_killed(runtime: Runtime) -> None:
    session = runtime.open_session()
    options = {"provider_options": {"chunks": 200, "chunk_delay_s": 0.02, "reply": "x" * 200}, "on_crash": "retry"}
    run_id = ray.get(session.submit_run.remote("x", options))
    seen: list[greenroom.Event] = []

    for event in session.follow(run_id=None):
        seen.append(event)
        if len(seen) == 30:
            kill_9(runtime, "EventStore")
        if len(seen) == 60:
            kill_9(runtime, "SessionServer", session.session_id)
        if event.run_id == run_id and event.type is EventType.RUN_COMPLETED:
            break

    assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
    assert seen[-1].attempt == 2


def test_promise_3_a_run_ends_exactly_once_however_it_is_stopped(runtime: Runtime) -> None:
    session = runtime.open_session(max_concurrent_runs=8)
    run_ids = ray.get(session.submit_runs.remote(["x"] * 8, {"provider_options": {"hang": True}, "deadline_s": 0.3}))

    stopped = ray.get([session.cancel_run.remote(run_id) for run_id in run_ids for _ in range(3)])
    ray.get(session.await_runs.remote(run_ids, 30))
    ends = [event.run_id for event in all_events(session) if event.type in RUN_ENDINGS]

    assert sorted(str(run_id) for run_id in ends) == sorted(run_ids)
    assert sum(stopped) <= len(run_ids)


def test_promise_4_runs_start_in_the_order_of_their_acknowledged_submits(runtime: Runtime) -> None:
    session = runtime.open_session(max_concurrent_runs=2, max_queued_runs=100)
    run_ids = [ray.get(session.submit_run.remote("x", {"provider_options": {"latency_s": 0.01}})) for _ in range(20)]

    ray.get(session.await_runs.remote(run_ids, 30))
    running: set[str] = set()
    most = 0
    started: list[str] = []
    for event in all_events(session):
        if event.type is EventType.RUN_STARTED:
            started.append(str(event.run_id))
            running.add(str(event.run_id))
        elif event.type is EventType.RUN_COMPLETED:
            running.discard(str(event.run_id))
        most = max(most, len(running))

    assert started == run_ids
    assert most == 2


def test_promise_5_a_call_that_ray_repeats_after_a_kill_has_its_effect_once(runtime: Runtime) -> None:
    session = runtime.open_session(max_queued_runs=1_000)
    calls = [session.submit_run.remote(f"run {number}") for number in range(200)]
    kill_9(runtime, "SessionServer", session.session_id)

    run_ids = ray.get(calls)
    queued = [str(event.run_id) for event in session.follow(types=["run_queued"], follow=False) if event.attempt == 1]

    assert sorted(queued) == sorted(run_ids)
    assert len(set(run_ids)) == 200


def test_promise_6_an_old_writer_is_fenced_and_stops(runtime: Runtime) -> None:
    session = runtime.open_session()
    run_id = ray.get(session.submit_run.remote("x", {"provider_options": {"hang": True}}))
    store = ray.get_actor("event-store", namespace=runtime.record().namespace)

    ray.get(store.take_over.remote(session.session_id, "someone-else", True))
    cancelled = ray.get(session.cancel_run.remote(run_id))

    # The old owner's write was refused and it stopped; the next owner (the third epoch) had ended the run before the
    # call reached it.
    assert cancelled is False
    assert ray.get(session.status.remote()).epoch == 3
    types = [event.type for event in read_all(runtime, session.session_id)]
    assert EventType.RUN_CANCELLED not in types
    assert types[-1] is EventType.RUN_FAILED


def read_all(runtime: Runtime, session_id: str) -> list[greenroom.Event]:
    """A session's events from the store itself, whoever owns the session."""
    from greenroom.adapters.event_codec import decode_slab
    from greenroom.domain.event_log import EventQuery

    store = ray.get_actor("event-store", namespace=runtime.record().namespace)
    slabs = ray.get(store.read.remote(session_id, EventQuery(limit=1000)))
    return [event for slab in slabs for event in decode_slab(session_id, slab)]


@pytest.mark.parametrize("on_crash", ["fail", "retry"])
def test_promise_7_after_a_crash_every_run_is_accounted_for(runtime: Runtime, on_crash: str) -> None:
    session = runtime.open_session()
    follow = session.follow()
    in_flight = ray.get(session.submit_run.remote("x", {"provider_options": {"latency_s": 1.5}, "on_crash": on_crash}))
    queued = ray.get(session.submit_runs.remote(["a", "b", "c", "d", "e"]))
    seen = [next(follow)]
    while seen[-1].type is not EventType.RUN_STARTED:
        seen.append(next(follow))

    kill_9(runtime, "SessionServer", session.session_id)
    outcomes = ray.get(session.await_runs.remote([in_flight, *queued], 60))
    ray.get(session.complete.remote())
    seen += follow

    assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
    starts = [event.run_id for event in seen if event.type is EventType.RUN_STARTED]
    first = outcomes[0]
    if on_crash == "fail":
        assert isinstance(first, greenroom.RunInterrupted)
        assert starts == [in_flight, *queued]
    else:
        assert isinstance(first, greenroom.RunResult)
        assert first.attempts == 2
        assert starts == [in_flight, in_flight, *queued]
    assert all(isinstance(outcome, greenroom.RunResult) for outcome in outcomes[1:])
    assert {run.status.is_terminal for run in runtime.list_runs(session_id=session.session_id)} == {True}


def test_promise_7_holds_when_nobody_calls_after_the_crash(runtime: Runtime) -> None:
    session = runtime.open_session()
    run_ids = ray.get(session.submit_runs.remote(["x", "y"], {"provider_options": {"latency_s": 0.5}}))
    wait_until(lambda: runtime.get_run(run_ids[0]).status is greenroom.RunStatus.RUNNING, what="the first run runs")

    kill_9(runtime, "SessionServer", session.session_id)

    wait_until(lambda: runtime.get_run(run_ids[1]).status is greenroom.RunStatus.COMPLETED, what="the queue goes on")
    assert runtime.get_run(run_ids[0]).error is not None
    assert runtime.get_run(run_ids[0]).status is greenroom.RunStatus.FAILED


def test_promise_8_a_silent_run_ends_at_its_deadline(runtime: Runtime) -> None:
    session = runtime.open_session()

    with pytest.raises(greenroom.DeadlineExceeded) as caught:
        ray.get(session.execute_run.remote("x", {"provider_options": {"hang": True}, "deadline_s": 0.2}))

    assert runtime.get_run(caught.value.details["run_id"]).status is greenroom.RunStatus.TIMEOUT


def test_promise_9_a_subscriber_that_reconnects_misses_nothing_and_gets_nothing_twice(runtime: Runtime) -> None:
    session = runtime.open_session()
    options = {"provider_options": {"chunks": 300, "reply": "x" * 300}}
    run_id = ray.get(session.submit_run.remote("x", options))
    seen: list[int] = []

    while not seen or seen[-1] < ray.get(session.await_run.remote(run_id)).last_seq:
        stream = session.follow(from_seq=seen[-1] if seen else 0, run_id=None)
        for count, event in enumerate(stream, start=1):
            seen.append(event.seq)
            if count == 7 or event.type is EventType.RUN_COMPLETED:
                break
        stream.close()

    assert seen == list(range(1, len(seen) + 1))


def test_promise_10_a_handle_works_whatever_happened_to_its_actor(runtime: Runtime) -> None:
    session = runtime.open_session()
    ray.get(session.execute_run.remote("one"))
    (row,) = actor_rows(runtime, "SessionServer", session.session_id)

    ray.kill(ray.get_actor(row["name"], namespace=runtime.record().namespace))
    kill_9(runtime, "Directory")
    result = wait_until(lambda: _executed(session), what="a run through the old handle")

    assert result is not None
    assert result.output["content"] == "ok"
    assert ray.get(session.status.remote()).epoch == 2


def _executed(session: SessionHandle) -> greenroom.RunResult | None:
    """The result; None while Ray has not yet told this process that the actor is gone for good."""
    try:
        result: greenroom.RunResult = ray.get(session.execute_run.remote("two"))
    except ray.exceptions.ActorDiedError:
        return None
    return result


def test_promise_11_a_killed_session_leaves_no_process_of_its_provider(runtime: Runtime, tmp_path: Path) -> None:
    import psutil

    session = runtime.open_session(provider="shell")
    marker = tmp_path / "pids"
    command = f"setsid tail -f /dev/null & echo $! >> {marker}; echo $$ >> {marker}; tail -f /dev/null"
    ray.get(session.submit_run.remote(command))
    pids = wait_until(lambda: _numbers(marker, 2), what="the command runs")

    kill_9(runtime, "SessionServer", session.session_id)

    wait_until(
        lambda: not any(psutil.pid_exists(pid) for pid in pids), what="the whole process tree is gone", patience_s=15
    )


def _numbers(path: Path, count: int) -> list[int]:
    lines = path.read_text().split() if path.exists() else []
    return [int(line) for line in lines] if len(lines) == count else []


def test_the_directory_can_die_at_any_time(runtime: Runtime) -> None:
    session = runtime.open_session()
    kill_9(runtime, "Directory")

    assert ray.get(runtime.get_session(session.session_id).execute_run.remote("x")).output["content"] == "ok"
    assert ray.get(runtime.open_session().execute_run.remote("x")).output["content"] == "ok"
    assert session.session_id in {
        session_id for row in actor_rows(runtime, "SessionServer") for session_id in row["session_ids"]
    }
