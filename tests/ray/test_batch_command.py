"""`greenroom batch` as a user has it, and the examples of batches."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ray.batches import jsonl, rows_of
from tests.ray.test_command_line import CommandLine, assert_one_error
from tests.waiting import wait_until

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("batch_*.py"))

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A runtime in the background, which the commands join."""
    made = CommandLine(tmp_path_factory.mktemp("batch") / "data")
    up = made.run("up")
    assert up.returncode == 0, up.stderr
    yield made
    assert made.run("down").returncode == 0


def source(folder: Path, count: int = 40, **more: Any) -> str:
    rows = [{"id": n, "prompt": f"Say {n}", **more} for n in range(count)]
    return str(jsonl(folder / "in.jsonl", rows))


def test_a_batch_writes_its_rows_and_says_what_came_of_them(line: CommandLine, tmp_path: Path) -> None:
    done = line.run("batch", source(tmp_path), "--output", str(tmp_path / "out"), "--concurrency", "8", "--json")
    again = line.run("batch", source(tmp_path), "--output", str(tmp_path / "out"), "--job", "", "--json")
    dry = line.run("batch", source(tmp_path), "--dry-run")
    status = line.run("batch", "status", json.loads(done.stdout)["job"])

    summary = json.loads(done.stdout)
    assert (done.returncode, 40, True, 0) == (0, summary["ended"], summary["complete"], summary["failed"])
    assert "40 of 40 rows" in done.stderr
    assert 40 == len(rows_of(tmp_path / "out"))
    assert 2 == again.returncode
    assert_one_error(again.stderr, "validation_error")
    assert (0, "") == (dry.returncode, dry.stderr)
    assert "40 rows, 40 runs; 0 rows would fail at once" in dry.stdout
    assert "40 completed" in status.stdout


def test_failed_rows_end_a_batch_with_1_only_when_it_is_strict(line: CommandLine, tmp_path: Path) -> None:
    path = str(jsonl(tmp_path / "in.jsonl", [{"id": 1, "prompt": "x"}, {"id": 2}, "nonsense"]))
    plain = line.run("batch", path, "-o", str(tmp_path / "out.jsonl"))
    strict = line.run("batch", path, "-o", str(tmp_path / "out.jsonl"), "--strict")

    assert (0, 1) == (plain.returncode, strict.returncode)
    assert "1 completed, 2 failed (validation_error 2)" in plain.stderr
    assert ["completed", "failed", "failed"] == [row["status"] for row in rows_of(tmp_path / "out.jsonl")]


def test_ctrl_c_lets_rows_end_that_are_under_way_and_says_how_to_go_on(line: CommandLine, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    arguments = ["batch", source(tmp_path, 300), "-o", str(output), "--job", "night", "--concurrency", "10"]
    arguments += ["--options", '{"provider_options": {"latency_s": 0.5}}']
    process = line.start(*arguments)
    try:
        wait_until(lambda: ended_rows(line, "night") > 10, what="some rows have ended")
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()

    done = len(rows_of(output))
    assert (130, True) == (process.returncode, "--job night" in err)
    assert 10 < done < 300
    again = line.run(*arguments, "--json")
    summary = json.loads(again.stdout)
    assert (0, 300, done) == (again.returncode, summary["ended"], summary["found"])
    assert list(range(300)) == [row["id"] for row in rows_of(output)]


def ended_rows(line: CommandLine, job: str) -> int:
    found = line.run("batch", "status", job, "--json")
    if found.returncode != 0:
        return 0
    progress = json.loads(found.stdout)["progress"]
    return sum(progress["counts"]["statuses"].values()) if progress else 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["in.jsonl"], "usage"),
        (["nothing.jsonl", "-o", "out"], "validation_error"),
        (["in.jsonl", "-o", "out", "--options", "{"], "validation_error"),
        (["in.jsonl", "-o", "out", "--provider", "nobody"], "validation_error"),
        (["status", "nothing"], "not_found"),
        (["cancel", "nothing"], "not_found"),
    ],
)
def test_a_wrong_call_is_one_line_and_does_nothing(
    line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: str
) -> None:
    source(tmp_path, 1)
    monkeypatch.chdir(tmp_path)

    done = line.run("batch", *arguments)

    assert done.returncode == (1 if code == "not_found" else 2)
    assert_one_error(done.stderr, code)
    assert ["in.jsonl"] == [path.name for path in tmp_path.iterdir()]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_run(line: CommandLine, example: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(example)], env=line.env, capture_output=True, text=True, timeout=120, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout
