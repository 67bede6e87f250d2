"""Batches while their processes are killed: every row comes out once, and no finished row is done again."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

import greenroom
from greenroom.actors.batch_job import find_job
from greenroom.testing import Answer, MessagesServer, answers
from tests.conftest import API_KEY_VARIABLE
from tests.ray.batches import jsonl, rows_of
from tests.recovery.test_two_nodes import second_node
from tests.waiting import wait_until

ROWS = 600

DRIVER = """
import sys, greenroom
source, output, data_dir = sys.argv[1:]
runtime = greenroom.start(data_dir=data_dir)
summary = greenroom.batch(source, output, runtime=runtime, provider="loop", concurrency=32, job="killed")
assert summary.is_complete, summary
"""

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def drive(source: Path, output: Path, data_dir: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(source), str(output), str(data_dir)], stderr=subprocess.PIPE, text=True
    )


def ended_rows(runtime: greenroom.Runtime) -> int:
    counts = runtime.wait(runtime.arow_counts("batch:killed"))
    return sum(count for status, count in counts.items() if status != "active")


def kill_when_so_much_is_done(driver: "subprocess.Popen[str]", runtime: greenroom.Runtime, share: float) -> None:
    wait_until(
        lambda: driver.poll() is not None or ended_rows(runtime) > share * ROWS,
        what=f"{share:.0%} of the rows have ended",
        patience_s=120,
    )
    assert driver.poll() is None, driver.communicate()
    driver.kill()
    driver.communicate()


class Killer(threading.Thread):
    """Kills an actor of the runtime, or a process of the pipeline, every few seconds."""

    def __init__(self, runtime: greenroom.Runtime, seed: int) -> None:
        super().__init__(daemon=True)
        self.killed: Counter[str] = Counter()
        self.over = threading.Event()
        self._runtime = runtime
        self._random = random.Random(seed)

    def run(self) -> None:
        while not self.over.wait(self._random.uniform(2.0, 4.0)):
            kind = self._random.choice(["SessionServer", "SessionServer", "EventStore", "Directory", "MapWorker"])
            pids = [process.pid for process in psutil.process_iter(["cmdline"]) if _is(process, kind)]
            if pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._random.choice(pids), signal.SIGKILL)
                    self.killed[kind] += 1


def _is(process: psutil.Process, kind: str) -> bool:
    line = " ".join(process.info["cmdline"] or [])
    return line.startswith(f"ray::{kind}")


def test_every_row_comes_out_once_though_drivers_and_actors_are_killed_and_no_finished_row_is_done_again(
    cluster: str, tmp_path: Path
) -> None:
    requests: Counter[str] = Counter()

    def answer(request: dict[str, Any]) -> Answer:
        requests[request["messages"][-1]["content"]] += 1
        return answers.text("done", chunks=3, chunk_delay_s=0.05)

    source = jsonl(tmp_path / "in.jsonl", [{"id": n, "prompt": f"row {n}"} for n in range(ROWS)])
    output, data_dir = tmp_path / "out.jsonl", tmp_path / "data"
    with MessagesServer(default=answer) as server:
        options = {"kind": "anthropic", "base_url": server.url, "api_key_env": API_KEY_VARIABLE}
        runtime = greenroom.start(data_dir=data_dir, lease_s=3.0, providers={"loop": options})
        killer = Killer(runtime, seed=8)
        try:
            killer.start()
            for share in (0.3, 0.6):
                kill_when_so_much_is_done(drive(source, output, data_dir), runtime, share)
            driver = drive(source, output, data_dir)
            _, err = driver.communicate(timeout=240)
            killer.over.set()
            assert driver.returncode == 0, err
            rows = rows_of(output)
            runs = Counter(row["session_id"] for row in runtime.query("SELECT session_id FROM runs", limit=10 * ROWS))
        finally:
            killer.over.set()
            killer.join()
            runtime.shutdown()

    assert list(range(ROWS)) == [row["id"] for row in rows]
    assert {"completed"} == {row["status"] for row in rows}
    assert {1} == set(runs.values())
    assert all(1 <= requests[row["prompt"]] <= row["attempts"] for row in rows)
    assert killer.killed["SessionServer"] > 0
    assert json.loads(output.with_name("out.jsonl.summary.json").read_text())["found"] > 0.5 * ROWS


def test_rows_run_on_both_nodes_and_a_job_ends_complete_though_one_of_them_is_killed(
    cluster: str, tmp_path: Path
) -> None:
    with second_node(cluster) as second:
        runtime = greenroom.start(data_dir=tmp_path / "data", lease_s=3.0)
        slow = {"provider_options": {"chunks": 20, "chunk_delay_s": 0.02, "reply": "x" * 20}}
        ended: list[Any] = []

        def drive_here() -> None:
            rows = [{"id": n, "prompt": "x"} for n in range(600)]
            ended.append(greenroom.batch(rows, tmp_path / "out.jsonl", runtime=runtime, options=slow, job="two"))

        driver = threading.Thread(target=drive_here)
        driver.start()
        try:
            job = wait_until(lambda: find_job(runtime.address, "two"), what="the job is under way")
            nodes = wait_until(lambda: nodes_with_rows(runtime, 2), what="rows run on both nodes")
            assert second.node_id in nodes
            wait_until(lambda: ray.get(job.progress.remote()).counts.ended > 100, what="some rows have ended")
            second.kill()
            driver.join(180)
            assert not driver.is_alive()
            rows = rows_of(tmp_path / "out.jsonl")
        finally:
            runtime.shutdown()

    assert ended[0].is_complete
    assert list(range(600)) == [row["id"] for row in rows]
    assert {"completed"} == {row["status"] for row in rows}


def nodes_with_rows(runtime: greenroom.Runtime, least: int) -> set[str]:
    actors = runtime.stats().actors
    nodes = {one["node_id"] for one in actors if one["kind"] == "SessionServer" and len(one["session_ids"]) > 1}
    return nodes if len(nodes) >= least else set()
