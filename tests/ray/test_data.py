"""The whole life of a session's data, through the runtime: query, verify, export, delete, compact, backup, shards."""

import subprocess
import threading
from pathlib import Path

import pytest
import ray

import greenroom
from greenroom import Runtime
from greenroom.adapters.duckdb.backup import restore_data_dir
from tests.waiting import wait_until


def test_a_query_sees_everything_that_was_acknowledged(runtime: Runtime) -> None:
    session = runtime.open_session(agent_id="queried", tags=["sql"])
    result = ray.get(
        session.execute_run.remote("x", {"provider_options": {"reply": "found by SQL", "usage": {"input_tokens": 7}}})
    )

    rows = runtime.query(
        "SELECT r.status, r.output->>'content' AS content, s.agent_id FROM runs r JOIN sessions s USING (session_id)"
        " WHERE run_id = ?",
        [result.run_id],
    )
    events = runtime.query("SELECT count(*) AS n FROM events WHERE session_id = $id", {"id": session.session_id})
    usage = runtime.query("SELECT input_tokens FROM usage WHERE run_id = ?", [result.run_id])

    assert [{"status": "completed", "content": "found by SQL", "agent_id": "queried"}] == rows
    assert [{"n": result.last_seq}] == events
    assert [{"input_tokens": 7}] == usage


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM events",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT 1; SELECT 2",
        "ATTACH '/tmp/x.db' AS x",
        "PRAGMA database_list",
        "SET threads = 4",
        "COPY events TO '/tmp/x.csv'",
    ],
)
def test_what_is_no_select_over_the_views_is_refused(runtime: Runtime, sql: str) -> None:
    with pytest.raises(greenroom.ValidationError) as refused:
        runtime.query(sql)

    assert "sql" == refused.value.details["field"]


def test_a_session_goes_out_and_comes_back_whole(runtime: Runtime, tmp_path: Path) -> None:
    session = runtime.open_session(agent_id="traveller")
    result = ray.get(session.execute_run.remote("x", {"provider_options": {"reply": "y" * 200_000}}))
    before = list(session.follow(follow=False))
    assert runtime.verify_session(session.session_id).ok

    path = runtime.export_session(session.session_id, tmp_path / "session.archive")
    runtime.delete_session(session.session_id)
    with pytest.raises(greenroom.SessionNotFound):
        runtime.session(session.session_id)
    with pytest.raises(greenroom.SessionNotFound):
        ray.get(session.status.remote())
    assert [] == runtime.query("SELECT 1 AS one FROM sessions WHERE session_id = ?", [session.session_id])
    again = runtime.import_session(path)

    assert session.session_id == again.session_id
    assert before == list(again.follow(follow=False))
    assert {"content": "y" * 200_000} == runtime.get_run(result.run_id).output
    assert runtime.verify_session(session.session_id).ok
    assert [{"one": 1}] == runtime.query("SELECT 1 AS one FROM sessions WHERE session_id = ?", [session.session_id])
    assert {"content": "ok"} == ray.get(again.execute_run.remote("and on")).output


def test_deleting_a_session_cancels_what_runs_and_leaves_no_trace(runtime: Runtime) -> None:
    session = runtime.open_session(session_id="ses_to_be_deleted", context={"system_prompt": "unheard-of words"})
    ray.get(session.execute_run.remote("x", {"provider_options": {"reply": "unheard-of reply"}}))
    ray.get(session.submit_run.remote("x", {"provider_options": {"hang": True}}))

    runtime.delete_session(session.session_id)
    runtime.compact()

    found = subprocess.run(
        ["grep", "-rlaE", "ses_to_be_deleted|unheard-of", runtime.data_dir], capture_output=True, text=True, check=False
    )
    assert "" == found.stdout
    assert "ses_to_be_deleted" not in [session.id for session in runtime.list_sessions(limit=10_000)]
    fresh = runtime.open_session(session_id="ses_to_be_deleted")
    assert {"content": "ok"} == ray.get(fresh.execute_run.remote("x")).output
    runtime.delete_session(fresh.session_id)


def test_a_backup_of_a_runtime_under_load_holds_what_was_acknowledged_before_it(
    runtime: Runtime, tmp_path: Path
) -> None:
    session = runtime.open_session(agent_id="backed-up")
    before = [ray.get(session.execute_run.remote(str(number))).run_id for number in range(5)]
    ended = threading.Event()

    def load() -> None:
        while not ended.is_set():
            ray.get(session.execute_run.remote("more"))

    loader = threading.Thread(target=load)
    loader.start()
    try:
        runtime.backup(tmp_path / "backup")
    finally:
        ended.set()
        loader.join()

    with pytest.raises(greenroom.InvalidOperation):
        runtime.backup(tmp_path / "backup")
    restore_data_dir(tmp_path / "backup", tmp_path / "restored")
    restored = greenroom.start(data_dir=tmp_path / "restored")
    assert set(before) <= {run.id for run in restored.list_runs(session_id=session.session_id, limit=10_000)}
    assert restored.verify_session(session.session_id).ok
    restored.shutdown()


def wait_until_ended(runtime: Runtime, run_ids: list[str]) -> None:
    wait_until(
        lambda: all(runtime.get_run(run_id).status.is_terminal for run_id in run_ids),
        what="what was under way when the number of shards changed has ended",
    )


def test_sessions_move_between_shards_under_load_and_stay_whole(cluster: str, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    truth: dict[str, list[str]] = {}
    for shards in (1, 2, 1):
        runtime = greenroom.start(data_dir=data_dir, event_store={"shards": shards})
        for session_id, run_ids in truth.items():
            wait_until_ended(runtime, run_ids)
            assert [run.id for run in runtime.list_runs(session_id=session_id, limit=1_000)] == sorted(run_ids)
            assert runtime.verify_session(session_id).ok
        handles = [runtime.open_session(f"ses_{number}") for number in range(6)]
        for handle in handles:
            run_ids = truth.setdefault(handle.session_id, [])
            run_ids.append(ray.get(handle.execute_run.remote("x")).run_id)
            run_ids += ray.get(handle.submit_runs.remote(["a", "b"], {"provider_options": {"latency_s": 0.3}}))
        assert 6 == runtime.stats().sessions
        assert [{"n": 6}] == runtime.query("SELECT count(*) AS n FROM sessions")
        stores = [actor for actor in runtime.stats().actors if actor["kind"] == "EventStore"]
        assert shards == len(stores)
        runtime.shutdown()


def test_sessions_that_ended_long_enough_ago_are_deleted(cluster: str, tmp_path: Path) -> None:
    runtime = greenroom.start(data_dir=tmp_path, event_store={"retention": {"ended_after_s": 0.2}})
    ended, still_open = runtime.open_session(), runtime.open_session()
    ray.get(ended.complete.remote())

    wait_until(
        lambda: [still_open.session_id] == [session.id for session in runtime.list_sessions()],
        what="the session that ended is gone",
    )
    runtime.shutdown()
