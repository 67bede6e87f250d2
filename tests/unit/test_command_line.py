"""What the command line answers without a runtime."""

import subprocess
import sys
from pathlib import Path

import pytest

from greenroom.domain.errors import InvalidFormat, SessionNotFound, ValidationError
from greenroom.serve import cli
from greenroom.serve.cli_errors import report
from greenroom.serve.plain_table import table


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["--version"],
        ["events", "--help"],
        ["batch", "--help"],
        ["batch", "run", "--help"],
    ],
)
def test_help_answers_without_importing_ray(arguments: list[str]) -> None:
    program = (
        "import sys; from greenroom.serve.cli import run_command_line; status = run_command_line(sys.argv[1:]);"
        "print(status, *{'ray', 'duckdb', 'anthropic'} & set(sys.modules), file=sys.stderr)"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.stderr == "0\n"
    assert "greenroom" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "Missing command"),
        (["nonsense"], "nonsense"),
        (["run"], "PROMPT"),
        (["run", "hello", "--provder", "x"], "--provder"),
        (["run", "hello", "there"], "there"),
        (["events", "ses_1", "--after", "-1"], "--after"),
        (["events", "ses_1", "--after", "soon"], "--after"),
        (["events", "ses_1", "--format", "xml"], "--format"),
        (["cancel"], "RUN"),
    ],
)
def test_bad_usage_is_one_line_that_names_the_culprit(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = cli.run_command_line(arguments)

    said = capsys.readouterr()
    assert (status, said.out) == (2, "")
    assert said.err.startswith("greenroom: ")
    assert said.err.endswith(" [usage]\n")
    assert said.err.count("\n") == 1
    assert named in said.err
    assert "--help`" in said.err


def test_a_bad_setting_is_bad_usage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("GREENROOM_LIMITS__MAX_INPUT_BYTES", "none")

    status = cli.run_command_line(["providers"])

    assert status == 2
    assert capsys.readouterr().err.startswith("greenroom: limits.max_input_bytes: ")


def test_providers_are_listed_without_a_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "greenroom.toml").write_text('[providers.local]\nkind = "anthropic"\nbase_url = "http://127.0.0.1:1"\n')

    status = cli.run_command_line(["providers"])

    lines = capsys.readouterr().out.splitlines()
    assert status == 0
    assert [line.split()[:2] for line in lines[1:]] == [
        ["claude", "anthropic"],
        ["local", "anthropic"],
        ["scripted", "scripted"],
        ["shell", "shell"],
    ]


def test_doctor_says_what_is_wrong_and_goes_no_further(capsys: pytest.CaptureFixture[str]) -> None:
    status = cli.run_command_line(["doctor", "--data-dir", "/dev/null/greenroom"])

    last = capsys.readouterr().out.splitlines()[-1]
    assert status == 1
    assert last.split()[:2] == ["data_dir", "FAILED"]


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValidationError("input\nis empty."), 2), (SessionNotFound(), 1), (InvalidFormat(), 1), (OSError("disk"), 1)],
)
def test_an_error_is_one_line_and_tells_misuse_from_failure(
    error: Exception, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(error) == status

    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "Traceback" not in said


def test_debug_shows_the_trace_before_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    report(SessionNotFound(), debug=True)

    said = capsys.readouterr().err
    assert "greenroom.domain.errors.SessionNotFound" in said
    assert said.splitlines()[-1].endswith("[session_not_found]")


def test_a_table_is_as_wide_as_its_widest_values() -> None:
    assert table(("A", "B"), [("long", 1), ("x", "")]) == "A     B\nlong  1\nx\n"
