"""Batches of rows through agents, on a real cluster: what comes out, what is done again, and what is not."""

import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.data as ray_data

import greenroom
from greenroom import EventType
from greenroom.actors.batch_job import find_job
from greenroom.domain.batch_progress import Progress, Stop
from greenroom.domain.errors import AlreadyExists, ValidationError
from greenroom.serve.batch.looking import job_state, stop_job
from greenroom.testing import Answer, MessagesServer, answers
from tests.conftest import API_KEY_VARIABLE
from tests.ray.batches import jsonl, rows_of
from tests.ray.conftest import Starts
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray Data warns of settings of its own
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # and leaves loops open
]


DATA: Any = ray_data


def prompts(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"id": f"r{number}", "prompt": f"Say {number}", **more} for number in range(count)]


def echoing(**options: Any) -> dict[str, Any]:
    return {"provider_options": {"echo": True}, **options}


def test_every_row_comes_out_once_in_order_with_its_own_columns_and_its_result(
    runtime: greenroom.Runtime, tmp_path: Path
) -> None:
    source = jsonl(tmp_path / "in.jsonl", prompts(100, tags=["a", {"b": 1}]))

    summary = greenroom.batch(source, tmp_path / "out.jsonl", runtime=runtime, options=echoing())

    rows = rows_of(tmp_path / "out.jsonl")
    assert [f"r{number}" for number in range(100)] == [row["id"] for row in rows]
    assert [f"Say {number}" for number in range(100)] == [row["output"] for row in rows]
    assert {"completed"} == {row["status"] for row in rows}
    assert {json.dumps(["a", {"b": 1}])} == {json.dumps(row["tags"]) for row in rows}
    assert (100, 0, True) == (summary.statuses["completed"], summary.failed, summary.is_complete)
    assert json.loads((tmp_path / "out.jsonl.summary.json").read_text())["ended"] == 100
    session = runtime.session(rows[7]["session_id"])
    assert ("completed", ["r7"]) == (session.status, session.metadata["greenroom.row"]["keys"])
    assert runtime.get_run(rows[7]["run_id"]).output == {"content": "Say 7"}
    assert runtime.verify_session(rows[7]["session_id"]).ok


def test_a_finished_job_does_nothing_again_and_only_changed_rows_are_done(
    runtime: greenroom.Runtime, tmp_path: Path
) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out"
    with MessagesServer() as server:
        runtime.declare(*_declared(server))
        jsonl(source, prompts(20))
        first = greenroom.batch(source, output, runtime=runtime, provider="loop", job="again")
        jsonl(source, [*prompts(20)[1:], {"id": "r0", "prompt": "Something else"}])
        second = greenroom.batch(source, output, runtime=runtime, provider="loop", job="again")
        said = Counter(request.body["messages"][-1]["content"] for request in server.requests)
        changed: dict[str, Any] = {"system_prompt": "Be brief."}
        third = greenroom.batch(source, output, runtime=runtime, provider="loop", job="again", **changed)
        anew = greenroom.batch(source, output, runtime=runtime, provider="loop", job="again", resume=False)
        requests = len(server.requests)

    assert (0, 19, 0, 0) == (first.found, second.found, third.found, anew.found)
    assert set(said.values()) == {1}
    assert 21 + 20 + 20 == requests
    assert sorted(row["id"] for row in rows_of(output)) == sorted(row["id"] for row in prompts(20))


def _declared(server: MessagesServer, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    from greenroom.adapters.settings import load_settings

    options = {"kind": "anthropic", "base_url": server.url, "api_key_env": API_KEY_VARIABLE, **more}
    settings = load_settings({"providers": {"loop": options}}, {})
    return settings.declarations(), settings.router_options()


POISON: dict[str, Any] = {
    "no prompt": {"id": "p0"},
    "a number for a prompt": {"id": "p1", "prompt": 7},
    "no JSON": '{"id": "p2", "prompt": ',
    "a message without content": {"id": "p3", "prompt": [{"role": "user"}]},
    "no turns": {"id": "p4", "turns": []},
    "too much": {"id": "p5", "prompt": "x" * 1_100_000},
    "what the provider finds wrong": {"id": "p6", "prompt": "wrong"},
    "what it will not answer": {"id": "p7", "prompt": "improper"},
    "an answer that is cut": {"id": "p8", "prompt": "cut"},
    "an answer that turns into an error": {"id": "p9", "prompt": "broken"},
}
POISONED_ANSWERS = {
    "wrong": answers.error(400),
    "improper": answers.refusal("no"),
    "cut": answers.cut(),
    "broken": answers.midstream_error("overloaded_error"),
}
ERRORS = [
    *["validation_error"] * 6,
    "provider_invalid_request",
    "provider_content_refused",
    "provider_unavailable",
    "provider_overloaded",
]


def test_one_row_in_a_hundred_is_poisoned_in_ten_ways_and_each_is_a_row_with_a_typed_error(
    runtime: greenroom.Runtime, tmp_path: Path
) -> None:
    rows: list[Any] = prompts(990)
    for place, poison in enumerate(POISON.values()):
        rows.insert(place * 100, poison)

    def answered(body: dict[str, Any]) -> Answer:
        said = body["messages"][-1]["content"]
        return POISONED_ANSWERS.get(said, answers.text(said, chunks=1))

    with MessagesServer(default=answered) as server:
        runtime.declare(*_declared(server))
        summary = greenroom.batch(
            jsonl(tmp_path / "in.jsonl", rows),
            tmp_path / "out.jsonl",
            runtime=runtime,
            provider="loop",
            options={"retry_budget_s": 0},
        )

    found = rows_of(tmp_path / "out.jsonl")
    failed = [(n, row) for n, row in enumerate(found) if row["status"] == "failed"]
    assert (990, 10, 1_000) == (summary.statuses["completed"], summary.failed, len(found))
    assert [place * 100 for place in range(10)] == [n for n, _ in failed]
    assert ERRORS == [row["error_code"] for _, row in failed]
    assert all(row["error_message"] for _, row in failed)
    assert all((row["session_id"] is None) == (row["error_code"] == "validation_error") for _, row in failed)


def test_failures_of_every_kind_stay_in_their_rows(runtime: greenroom.Runtime, tmp_path: Path) -> None:
    options = {"provider_options": {"fail_with": "provider_error"}, "retry_budget_s": 0}
    failing = greenroom.batch(prompts(3), runtime=runtime, options=options)
    hanging = greenroom.batch(
        prompts(3), runtime=runtime, options={"provider_options": {"hang": True}, "deadline_s": 0.2}
    )
    policy = {"name": "p", "limits": {"max_total_tokens": 1}}
    stopped = greenroom.batch(prompts(3), runtime=runtime, options={"policy": policy})

    assert {"provider_error": 3} == failing.errors
    assert ({"timeout": 3}, {"deadline_exceeded": 3}) == (hanging.statuses, hanging.errors)
    assert {"policy_violation": 3} == stopped.errors
    assert all(row["session_id"] and row["run_id"] for row in failing.rows or [])


def test_rows_that_failed_are_done_over_when_asked_for_and_only_those(
    runtime: greenroom.Runtime, tmp_path: Path
) -> None:
    flaky = {"provider_options": {"fail_with": "provider_error", "fail_times": 1}, "retry_budget_s": 0}
    arguments: dict[str, Any] = {"runtime": runtime, "job": "flaky", "options": flaky}
    first = greenroom.batch(prompts(4), **arguments)
    second = greenroom.batch(prompts(4), **arguments)
    third = greenroom.batch(prompts(4), **arguments, retry_failed=True)

    assert (4, 0) == (first.failed, first.found)
    assert (4, 4) == (second.failed, second.found)
    assert (4, 0) == (third.failed, third.found)  # each is a session of its own, and fails once
    ids = [{row["session_id"] for row in one.rows or []} for one in (first, second, third)]
    assert (ids[0] == ids[1], ids[0] & ids[2]) == (True, set())


def test_turns_of_a_row_follow_each_other_and_hear_what_was_said(runtime: greenroom.Runtime, tmp_path: Path) -> None:
    with MessagesServer() as server:
        runtime.declare(*_declared(server))
        rows = [{"id": "a", "turns": ["one", "two", {"messages": [{"role": "user", "content": "three"}]}]}]
        summary = greenroom.batch(rows, runtime=runtime, provider="loop")
        heard = [[message["role"] for message in request.body["messages"]] for request in server.requests]

    (row,) = summary.rows or []
    assert (["one", "two", "three"], "three") == (row["turn_outputs"], row["output"])
    assert [1, 3, 5] == [len(roles) for roles in heard]


def test_turns_after_one_that_failed_are_not_begun(runtime: greenroom.Runtime) -> None:
    script = [{"reply": "fine"}, {"fail_with": "provider_content_refused"}, {"reply": "never"}]
    options = {"provider_options": {"script": script}, "retry_budget_s": 0}

    summary = greenroom.batch([{"id": "a", "turns": ["1", "2", "3"]}], runtime=runtime, options=options)

    (row,) = summary.rows or []
    events = list(runtime.get_session(row["session_id"]).follow(follow=False))
    started = [event.run_id for event in events if event.type is EventType.RUN_STARTED]
    assert ("failed", "provider_content_refused") == (row["status"], row["error_code"])
    assert (2, EventType.SESSION_FAILED) == (len(started), events[-1].type)
    assert ["fine", None, None] == row["turn_outputs"]


def test_rows_that_share_a_session_run_in_it_in_their_order(runtime: greenroom.Runtime, tmp_path: Path) -> None:
    rows = [{"id": number, "who": f"user{number % 5}", "prompt": f"Say {number}"} for number in range(40)]

    greenroom.batch(
        jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", runtime=runtime, session="who", options=echoing()
    )

    found = rows_of(tmp_path / "out.jsonl")
    assert list(range(40)) == [row["id"] for row in found]
    assert [f"Say {number}" for number in range(40)] == [row["output"] for row in found]
    for who in range(5):
        mine = [row for row in found if row["who"] == f"user{who}"]
        (session_id,) = {row["session_id"] for row in mine}
        assert [row["run_id"] for row in mine] == [run.id for run in runtime.list_runs(session_id=session_id)]


def test_rows_of_shell_have_servers_of_their_own_and_rows_that_share_may_have_turns(runtime: greenroom.Runtime) -> None:
    commands = greenroom.batch([{"id": n, "prompt": f"echo {n}"} for n in range(3)], runtime=runtime, provider="shell")
    rows: list[dict[str, Any]] = [
        {"id": 1, "who": "a", "turns": ["x", "y"]},
        {"id": 2, "who": "a", "turns": ["z"]},
        {"id": 3, "who": None, "turns": ["alone"]},
    ]
    shared = greenroom.batch(rows, runtime=runtime, session="who", options=echoing())

    assert ["0\n", "1\n", "2\n"] == [row["output"] for row in commands.rows or []]
    found = {row["id"]: row for row in shared.rows or []}
    assert (["x", "y"], "z", "alone") == (found[1]["turn_outputs"], found[2]["output"], found[3]["output"])
    assert found[1]["session_id"] == found[2]["session_id"] != found[3]["session_id"]


def test_a_template_makes_the_input_and_a_row_without_what_it_names_fails(runtime: greenroom.Runtime) -> None:
    rows = [{"id": 1, "name": "Ada", "n": 3}, {"id": 2, "name": "Bob"}]

    summary = greenroom.batch(rows, runtime=runtime, template="{{ name | upper }} {{ n * 2 }}", options=echoing())

    first, second = summary.rows or []
    assert ("ADA 6", None) == (first["output"], first["error_code"])
    assert ("validation_error", True) == (second["error_code"], "'n'" in second["error_message"])


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def shout(text: str) -> str:
    """Say it loudly."""
    return text.upper()


def test_tools_of_the_job_are_called_and_a_row_may_have_fewer_and_no_others(runtime: greenroom.Runtime) -> None:
    rows = [
        {"id": "all", "prompt": "all"},
        {"id": "one", "prompt": "one", "tools": ["add"]},
        {"id": "foreign", "prompt": "x", "tools": ["os.system"]},
    ]
    with MessagesServer() as server:
        runtime.declare(*_declared(server))
        server.answers.append(answers.tool_use("add", {"a": 1, "b": 2}))
        arguments: dict[str, Any] = {"runtime": runtime, "provider": "loop", "concurrency": 1}
        summary = greenroom.batch(rows, tools=["tests.ray.test_batch:add", shout], **arguments)
        offered = [[tool["name"] for tool in request.body["tools"]] for request in server.requests]

    found = {row["id"]: row for row in summary.rows or []}
    assert ("3", "one", "tool_not_found") == (
        found["all"]["output"],
        found["one"]["output"],
        found["foreign"]["error_code"],
    )
    assert [["add", "shout"], ["add", "shout"], ["add"]] == offered


def test_csv_parquet_directories_and_datasets_are_sources_too(runtime: greenroom.Runtime, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text('id,prompt,n\n1,"two\nlines",3\n2,b,4\n3,too,many,fields\n')
    from_csv = greenroom.batch(tmp_path / "in.csv", tmp_path / "csv", runtime=runtime, options=echoing())
    DATA.from_items(prompts(30)).write_parquet(str(tmp_path / "data" / "train"))
    from_parquet = greenroom.batch(
        tmp_path / "data", tmp_path / "pq.jsonl", runtime=runtime, limit=25, options=echoing()
    )
    texts = tmp_path / "texts" / "deep"
    texts.mkdir(parents=True)
    (texts / "a.txt").write_text("Hello from a file")
    from_texts = greenroom.batch(tmp_path / "texts", runtime=runtime, options=echoing())
    from_dataset = greenroom.batch(DATA.range(10), runtime=runtime, key="id", template="n{{ id }}", options=echoing())

    rows = {row["id"]: row for row in rows_of(tmp_path / "csv")}
    assert (2, 1) == (from_csv.statuses["completed"], from_csv.failed)
    assert ("two\nlines", "3") == (rows["1"]["output"], rows["1"]["n"])
    assert (25, 25) == (from_parquet.statuses["completed"], len(rows_of(tmp_path / "pq.jsonl")))
    assert [("deep/a", "Hello from a file")] == [(row["id"], row["output"]) for row in from_texts.rows or []]
    assert {f"n{number}" for number in range(10)} == {row["output"] for row in from_dataset.rows or []}


def shouted(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "prompt": row["prompt"].upper()}


def test_the_runner_is_a_stage_of_anybodys_pipeline(runtime: greenroom.Runtime) -> None:
    rows = (
        DATA.from_items(prompts(50))
        .map(shouted)
        .map_batches(
            greenroom.BatchRunner,
            fn_constructor_kwargs={"options": echoing(), "data_dir": runtime.data_dir, "concurrency": 8},
            concurrency=1,
            batch_size=10,
        )
        .filter(expr="status == 'completed'")
        .take_all()
    )

    assert sorted(f"SAY {number}" for number in range(50)) == sorted(row["output"] for row in rows)


def test_a_job_that_is_plainly_broken_stops_and_goes_on_when_it_is_mended(
    runtime: greenroom.Runtime, tmp_path: Path
) -> None:
    source = jsonl(tmp_path / "in.jsonl", prompts(400))
    broken = {"provider_options": {"fail_with": "provider_authentication_failed", "latency_s": 0.05}}
    arguments: dict[str, Any] = {"runtime": runtime, "job": "broken", "concurrency": 16}

    summary = greenroom.batch(source, tmp_path / "out.jsonl", max_failures=20, options=broken, **arguments)

    assert 20 < summary.failed < 200
    assert (False, True) == (summary.is_complete, "max_failures" in (summary.stopped or ""))
    assert summary.failed == len(rows_of(tmp_path / "out.jsonl"))
    mended = greenroom.batch(source, tmp_path / "out.jsonl", **arguments)
    assert (400, 0, True) == (mended.statuses["completed"], mended.found, mended.is_complete)


def test_a_job_can_be_looked_at_and_stopped_from_elsewhere_and_goes_on_later(
    runtime: greenroom.Runtime, tmp_path: Path
) -> None:
    source = jsonl(tmp_path / "in.jsonl", prompts(300))
    slow = {"provider_options": {"latency_s": 0.3}}
    seen: list[Progress] = []
    ended: list[Any] = []
    arguments: dict[str, Any] = {"runtime": runtime, "job": "slow", "options": slow, "concurrency": 20}

    def drive() -> None:
        ended.append(greenroom.batch(source, tmp_path / "out.jsonl", progress=seen.append, **arguments))

    driver = threading.Thread(target=drive)
    driver.start()
    wait_until(lambda: seen and seen[-1].counts.ended > 20, what="some rows have ended")
    state = job_state(runtime, "slow")
    with pytest.raises(AlreadyExists):
        _impatient(source, tmp_path / "other.jsonl", **arguments)
    assert stop_job(runtime, "slow", Stop.DRAIN, "cancelled")
    driver.join(60)

    assert state.progress is not None
    assert (300, True) == (state.progress.total, state.progress.counts.running > 0)
    assert ("cancelled", False) == (ended[0].stopped, ended[0].is_complete)
    assert 20 < ended[0].ended == len(rows_of(tmp_path / "out.jsonl")) < 300
    assert find_job(runtime.address, "slow") is None
    assert not stop_job(runtime, "slow", Stop.DRAIN, "again")
    done = greenroom.batch(source, tmp_path / "out.jsonl", **arguments)
    assert (300, ended[0].ended) == (done.statuses["completed"], done.found)


def _impatient(*given: Any, **arguments: Any) -> None:
    from greenroom.serve.batch import job as driving

    before, driving._DYING_S = driving._DYING_S, 0.5  # pyright: ignore[reportPrivateUsage]
    try:
        greenroom.batch(*given, **arguments)
    finally:
        driving._DYING_S = before  # pyright: ignore[reportPrivateUsage]


def test_rows_that_are_cancelled_with_a_job_are_not_done_and_are_done_later(
    runtime: greenroom.Runtime, tmp_path: Path
) -> None:
    hanging = {"provider_options": {"hang": True}}
    ended: list[Any] = []
    arguments: dict[str, Any] = {"runtime": runtime, "job": "h"}

    def drive() -> None:
        ended.append(greenroom.batch(prompts(5), tmp_path / "o.jsonl", options=hanging, **arguments))

    driver = threading.Thread(target=drive)
    driver.start()
    wait_until(
        lambda: (job := find_job(runtime.address, "h")) and ray.get(job.progress.remote()).counts.running == 5,
        what="all rows are under way",
    )
    stop_job(runtime, "h", Stop.CANCEL, "enough")
    driver.join(60)

    assert (0, "enough") == (ended[0].ended, ended[0].stopped)
    options = {"provider_options": {"hang": False}}
    done = greenroom.batch(prompts(5), tmp_path / "o.jsonl", options=options, **arguments)
    assert (5, 0) == (done.statuses["completed"], done.found)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"concurrency": 0}, "batch.concurrency"),
        ({"concurency": 3}, "batch.concurency"),
        ({"job": "no such/name"}, "batch.job"),
        ({"template": "{{ a", "job": "t"}, "template"),
        ({"provider": "nobody"}, "provider"),
        ({"options": {"deadline": 3}}, "batch.options.deadline"),
        ({"session": "nothing"}, "batch.session"),
    ],
)
def test_a_bad_option_is_refused_before_anything_is_done(
    runtime: greenroom.Runtime, tmp_path: Path, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        greenroom.batch(prompts(1), tmp_path / "out.jsonl", runtime=runtime, **options)

    assert field == caught.value.details["field"]
    assert not (tmp_path / "out.jsonl").exists()


def test_what_somebody_else_wrote_is_never_replaced(runtime: greenroom.Runtime, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    (tmp_path / "mine.jsonl").write_text("{}\n")

    for output in ("mine", "mine.jsonl"):
        with pytest.raises(ValidationError, match="was not written by a batch"):
            greenroom.batch(prompts(1), tmp_path / output, runtime=runtime)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


def test_a_run_that_somebody_waits_for_is_not_held_up_by_a_batch(starts: Starts, tmp_path: Path) -> None:
    """Every limit is used up by the batch all the time; alone, such a run takes as long as its provider does."""
    runtime = starts(
        max_running_runs=4, providers={"busy": {"kind": "scripted", "rate": {"max_concurrent": 3}}}, warm_pool=1
    )
    options = {"provider_options": {"latency_s": 1.5}}
    waited: list[float] = []
    driver = threading.Thread(
        target=lambda: greenroom.batch(prompts(16), runtime=runtime, provider="busy", options=options, job="bulk")
    )
    driver.start()
    try:
        wait_until(
            lambda: (job := find_job(runtime.address, "bulk")) and ray.get(job.progress.remote()).counts.ended >= 2,
            what="the batch is under way",
        )
        for _ in range(3):
            session = runtime.open_session(provider="busy")
            begun = time.monotonic()
            run_id = ray.get(session.submit_run.remote("now", {"provider_options": {"latency_s": 0}}))
            result = ray.get(session.await_run.remote(run_id))
            waited.append(time.monotonic() - begun)
            assert result.status == "completed"
    finally:
        stop_job(runtime, "bulk", Stop.CANCEL, "done")
        driver.join(60)

    assert max(waited) < 1.0  # a row takes 1.5 s: none of these waited for the end of one


def test_two_thousand_rows_keep_to_the_rate_budget_of_their_account_and_none_fails_though_it_is_refused(
    starts: Starts, tmp_path: Path
) -> None:
    """The real SDK; 429s in between. 720,000 input tokens a minute are 12,000 a second: 120 rows."""
    begun: list[tuple[float, int]] = []
    per_minute = 720_000

    def answer(_: dict[str, Any]) -> Answer:
        if len(begun) % 400 == 399:
            begun.append((time.monotonic(), 0))
            return answers.error(429, retry_after=1.0)
        begun.append((time.monotonic(), 100))
        return answers.text("ok", usage=greenroom.TokenUsage(input_tokens=100, output_tokens=1))

    with MessagesServer(default=answer) as server:
        runtime = starts(
            providers={
                "loop": {
                    "kind": "anthropic",
                    "base_url": server.url,
                    "api_key_env": API_KEY_VARIABLE,
                    "rate": {"input_tokens_per_minute": per_minute},
                    "breaker": {"failure_threshold": 50},
                }
            }
        )
        rows = [{"id": number, "prompt": "x" * 400} for number in range(2_000)]
        summary = greenroom.batch(rows, runtime=runtime, provider="loop", concurrency=64)

    assert (2_000, 0) == (summary.statuses["completed"], summary.failed)
    assert sum(tokens == 0 for _, tokens in begun) == 5
    took_s = begun[-1][0] - begun[0][0]
    used = sum(tokens for _, tokens in begun)
    assert used <= 1.05 * per_minute * took_s / 60 + 0.05 * per_minute
