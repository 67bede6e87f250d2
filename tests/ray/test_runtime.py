"""The runtime as a Python user meets it."""

import asyncio
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import ray

import greenroom
from greenroom import Runtime
from tests.waiting import wait_until


def test_the_ten_lines_of_the_contract_work(runtime: Runtime) -> None:
    session = runtime.open_session(
        agent_id="reviewer",
        provider="scripted",
        context={"system_prompt": "You are terse."},
        max_concurrent_runs=2,
    )
    run_id = ray.get(session.submit_run.remote({"messages": [{"role": "user", "content": "Hello!"}]}))

    result = ray.get(session.await_run.remote(run_id, timeout_s=120))

    assert result.output["content"] == "ok"
    assert {"input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "total_tokens"} == set(
        result.token_usage
    )
    assert result.status is greenroom.RunStatus.COMPLETED
    assert result.attempts == 1


def test_starting_again_gives_the_same_runtime(runtime: Runtime) -> None:
    assert greenroom.start(data_dir=runtime.data_dir) is runtime


def test_a_second_process_joins_the_runtime_that_lives_there(runtime: Runtime, no_config_file: Path) -> None:
    session = runtime.open_session(agent_id="shared")
    script = f"""
import ray, greenroom
runtime = greenroom.start(data_dir={runtime.data_dir!r})
session = runtime.get_session({session.session_id!r})
print(ray.get(session.execute_run.remote("from elsewhere", {{"provider_options": {{"echo": True}}}})).output["content"])
"""

    joined = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=90)

    assert joined.stdout == "from elsewhere\n", joined.stderr
    assert joined.stderr == ""
    (run,) = runtime.list_runs(session_id=session.session_id)
    assert run.status is greenroom.RunStatus.COMPLETED


def test_an_error_is_caught_by_its_class_around_ray_get(runtime: Runtime) -> None:
    session = runtime.open_session(max_queued_runs=0)
    blocking = ray.get(session.submit_run.remote("x", {"provider_options": {"hang": True}}))

    with pytest.raises(greenroom.QueueFull) as caught:
        ray.get(session.submit_run.remote("y"))

    assert caught.value.code == "queue_full"
    assert caught.value.details["max_queued_runs"] == 0
    assert "max_queued_runs" in caught.value.message
    assert [run.id for run in runtime.list_runs(session_id=session.session_id)] == [blocking]
    assert ray.get(session.cancel_run.remote(blocking))


@pytest.mark.parametrize(
    ("input", "field"),
    [
        ("", "input"),
        ({"prompt": " "}, "input.prompt"),
        ({"messages": []}, "input.messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "input.messages[0].role"),
        ({"promt": "x"}, "input.promt"),
        (7, "input"),
    ],
)
def test_bad_input_is_refused_before_anything_is_stored(runtime: Runtime, input: object, field: str) -> None:
    session = runtime.open_session()
    before = ray.get(session.status.remote()).last_seq

    with pytest.raises(greenroom.ValidationError) as caught:
        ray.get(session.submit_run.remote(input))

    assert caught.value.details["field"] == field
    assert ray.get(session.status.remote()).last_seq == before


def test_an_input_above_the_cap_is_refused(runtime: Runtime) -> None:
    session = runtime.open_session()

    with pytest.raises(greenroom.ValidationError, match="max_input_bytes"):
        ray.get(session.submit_run.remote("x" * 1_048_577))

    assert runtime.list_runs(session_id=session.session_id) == []


@pytest.mark.parametrize(
    ("options", "field", "nearest"),
    [
        ({"dead_line_s": 3}, "options.dead_line_s", ["deadline_s"]),
        ({"provider_options": {"chunk": 3}}, "options.provider_options.chunk", ["chunks"]),
    ],
)
def test_an_unknown_option_key_is_refused_with_the_nearest_right_one(
    runtime: Runtime, options: dict[str, object], field: str, nearest: list[str]
) -> None:
    session = runtime.open_session()

    with pytest.raises(greenroom.ValidationError) as caught:
        ray.get(session.submit_run.remote("x", options))

    assert caught.value.details["field"] == field
    assert caught.value.details["nearest"] == nearest


def test_unknown_ids_are_typed_errors_at_once(runtime: Runtime) -> None:
    session = runtime.open_session()

    with pytest.raises(greenroom.RunNotFound):
        ray.get(session.await_run.remote("run_none"))
    with pytest.raises(greenroom.RunNotFound):
        ray.get(session.cancel_run.remote("run_none"))
    with pytest.raises(greenroom.RunNotFound):
        runtime.get_run("run_none")
    with pytest.raises(greenroom.SessionNotFound):
        runtime.get_session("ses_none")
    with pytest.raises(greenroom.ValidationError, match="nobody"):
        runtime.open_session(provider="nobody")


def test_what_comes_later_says_so(runtime: Runtime) -> None:
    session = runtime.open_session()

    with pytest.raises(greenroom.CapabilityNotSupported):
        ray.get(session.submit_run.remote("x", {"workspace": {"path": "."}}))


def test_a_transcript_tells_what_was_said_and_is_limited(runtime: Runtime) -> None:
    session = runtime.open_session()
    ray.get(session.execute_run.remote("Hi", {"provider_options": {"reply": "Hello."}}))

    everything = ray.get(session.transcript.remote())
    newest = ray.get(session.transcript.remote(max_messages=1))

    assert [(message["role"], message["content"]) for message in everything] == [
        ("user", "Hi"),
        ("assistant", "Hello."),
    ]
    assert newest == everything[1:]
    with pytest.raises(greenroom.ValidationError):
        ray.get(session.transcript.remote(max_messages=0))


def test_an_idempotency_key_gives_the_first_answer(runtime: Runtime) -> None:
    first = runtime.open_session(idempotency_key="once")
    again = runtime.open_session(idempotency_key="once")
    runs = ray.get([first.submit_run.remote("x", None, "one") for _ in range(3)])

    assert again.session_id == first.session_id
    assert len(set(runs)) == 1
    assert len(runtime.list_runs(session_id=first.session_id)) == 1


def test_a_session_is_resumed_by_its_id(runtime: Runtime) -> None:
    session = runtime.open_session("my-session", agent_id="a", tags=["x"])
    ray.get(session.execute_run.remote("one"))

    again = runtime.open_session("my-session", agent_id="other")

    assert ray.get(again.execute_run.remote("two")).last_seq > 9
    assert runtime.session("my-session").agent_id == "a"
    assert [found.id for found in runtime.list_sessions(tag="x")] == ["my-session"]


def test_a_session_id_that_is_not_usable_is_refused(runtime: Runtime) -> None:
    with pytest.raises(greenroom.ValidationError) as caught:
        runtime.open_session("../etc/passwd")

    assert caught.value.details["field"] == "session_id"


def test_a_handle_pickles_to_its_id_and_address_and_works_elsewhere(runtime: Runtime) -> None:
    session = runtime.open_session()
    packed = pickle.dumps(session)

    @ray.remote
    def elsewhere(packed: bytes) -> str:
        handle = pickle.loads(packed)
        result: greenroom.RunResult = ray.get(handle.execute_run.remote("x"))
        return result.session_id

    assert ray.get(elsewhere.remote(packed)) == session.session_id
    assert pickle.loads(packed) == session
    assert len(packed) < 400


def test_run_once_ends_its_session(runtime: Runtime) -> None:
    result = runtime.run_once("hi", agent_id="once", provider_options={"reply": "bye"})

    assert result.output["content"] == "bye"
    assert runtime.session(result.session_id).status is greenroom.SessionState.COMPLETED


def test_run_once_raises_the_error_of_its_run_and_fails_the_session(runtime: Runtime) -> None:
    with pytest.raises(greenroom.ProviderRateLimited) as caught:
        runtime.run_once("hi", provider_options={"fail_with": "provider_rate_limited", "retry_after_s": 7})

    assert caught.value.details["retry_after_s"] == 7
    session = runtime.session(caught.value.details["session_id"])
    assert session.status is greenroom.SessionState.FAILED


def test_stream_session_ends_by_itself(runtime: Runtime) -> None:
    with runtime.stream_session("hi", provider_options={"reply": "abcdef", "chunks": 3}) as events:
        types = [event.type.value for event in events]

    assert types[0] == "run_queued"
    assert types.count("message_streamed") == 3
    assert types[-1] == "run_completed"


def test_stream_session_left_early_cancels_its_run(runtime: Runtime) -> None:
    with runtime.stream_session("hi", provider_options={"hang": True}) as events:
        run_id = next(event.run_id for event in events if event.type is greenroom.EventType.RUN_STARTED)

    assert run_id is not None
    assert runtime.get_run(run_id).status is greenroom.RunStatus.CANCELLED


async def test_every_method_has_a_twin_for_event_loops(runtime: Runtime) -> None:
    session = await runtime.aopen_session(agent_id="loop")
    result = await session.execute_run.remote("x")
    events = [event async for event in session.follow(run_id=result.run_id)]

    assert (await runtime.aget_run(result.run_id)).status is greenroom.RunStatus.COMPLETED
    assert (await runtime.asession(session.session_id)).agent_id == "loop"
    assert [event.seq for event in events] == list(range(3, result.last_seq + 1))
    assert (await runtime.astats()).sessions > 0
    assert runtime.session(session.session_id).agent_id == "loop"  # the plain twin, while a loop runs in this thread


def test_a_running_run_is_cancelled_now_and_leaves_one_terminal_event(runtime: Runtime) -> None:
    session = runtime.open_session()
    run_id = ray.get(session.submit_run.remote("x", {"provider_options": {"hang": True, "reply": "so far"}}))
    follow = session.follow(run_id=run_id)
    next(event for event in follow if event.type is greenroom.EventType.MESSAGE_STREAMED)

    assert ray.get(session.cancel_run.remote(run_id, "enough")) is True
    assert ray.get(session.cancel_run.remote(run_id)) is False
    with pytest.raises(greenroom.Cancelled) as caught:
        ray.get(session.await_run.remote(run_id))

    assert caught.value.details["output"] == {"content": "so far"}
    assert [event.type.value for event in follow] == ["run_cancelled"]
    assert runtime.get_run(run_id).status is greenroom.RunStatus.CANCELLED


def test_a_subscription_streams_batches_and_is_given_up_with_ray_cancel(runtime: Runtime) -> None:
    session = runtime.open_session()
    ray.get(session.execute_run.remote("x"))
    stream = session.subscribe.remote(from_seq=2)

    batch = ray.get(next(stream))
    ray.cancel(stream)

    assert batch
    assert batch[0].seq == 3
    wait_until(lambda: ray.get(session.status.remote()).subscribers == 0, what="the subscription has ended")


def test_reading_events_by_cursor_and_filter(runtime: Runtime) -> None:
    session = runtime.open_session()
    first = ray.get(session.execute_run.remote("x"))
    second = ray.get(session.execute_run.remote("y"))

    page = ray.get(session.read_events.remote(after=2, limit=3))
    typed = ray.get(session.read_events.remote(types=["run_completed"]))
    of_second = ray.get(session.read_events.remote(run_id=second.run_id))

    assert [event.seq for event in page] == [3, 4, 5]
    assert [event.run_id for event in typed] == [first.run_id, second.run_id]
    assert {event.run_id for event in of_second} == {second.run_id}
    with pytest.raises(greenroom.InvalidCursor) as caught:
        ray.get(session.read_events.remote(after=10_000))
    assert caught.value.details["last_seq"] == second.last_seq
    with pytest.raises(greenroom.ValidationError):
        ray.get(session.read_events.remote(after=-1))
    with pytest.raises(greenroom.ValidationError):
        ray.get(session.read_events.remote(types=["no_such_type"]))


def test_many_runs_in_one_call(runtime: Runtime) -> None:
    session = runtime.open_session(max_concurrent_runs=4, max_queued_runs=1000)

    run_ids = ray.get(session.submit_runs.remote([f"run {number}" for number in range(200)]))
    results = ray.get(session.await_runs.remote(run_ids, 60))

    assert [result.run_id for result in results] == run_ids
    started = [event.run_id for event in session.follow(types=["run_started"], follow=False)]
    assert started == run_ids


def test_a_session_in_memory_leaves_nothing_behind(cluster: str) -> None:
    runtime = greenroom.start(data_dir=":memory:")
    result = runtime.run_once("x")
    runtime.shutdown()

    assert result.output["content"] == "ok"
    assert runtime.data_dir == ":memory:"
    assert not Path(":memory:").exists()
    with pytest.raises(greenroom.RuntimeGone):
        runtime.list_sessions()


def test_the_store_is_reached_by_ray_calls_where_there_is_no_socket(runtime: Runtime) -> None:
    @ray.remote
    class Writer:
        async def write(self, store: object) -> list[int]:
            from greenroom.actors.store_access import RayStoreAccess
            from greenroom.adapters.event_log_client import EventLogClient
            from tests.event_samples import new_event

            log = EventLogClient(RayStoreAccess(store, use_socket=False))
            owned = await log.acquire("over-ray", "test", lambda batch: None)
            stored = await asyncio.gather(
                *(log.append("over-ray", owned.epoch, [new_event(), new_event()]) for _ in range(50))
            )
            await log.aclose()
            return [committed.first_seq for committed in stored]

    store = ray.get_actor("event-store", namespace=runtime.record().namespace)

    assert ray.get(Writer.remote().write.remote(store)) == list(range(1, 101, 2))
