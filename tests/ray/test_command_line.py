"""The command line as a user has it: processes, pipes, signals, exit codes."""

import getpass
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from greenroom.testing import MessagesServer, answers
from tests.waiting import wait_until

TIMEOUT_S = 60.0
SLOW_COMMAND = "for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do echo $n; sleep 0.2; done"

pytestmark = pytest.mark.timeout(180)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "greenroom", *arguments]


class CommandLine:
    """`greenroom` on one data_dir."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.env = {**os.environ, "GREENROOM_DATA_DIR": str(data_dir)}

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command(*arguments), env=self.env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """In a process group of its own, as a shell would start it."""
        return subprocess.Popen(
            command(*arguments),
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def pid_of(self, kind: str, session_id: str) -> int:
        """Process of the actor of that class that has to do with the session."""
        program = (
            "import sys, greenroom; kind, session_id = sys.argv[1:]\n"
            "for actor in greenroom.start().stats().actors:\n"
            "    if actor['kind'] == kind and (kind == 'EventStore' or session_id in actor['session_ids']):\n"
            "        print(actor['pid'])"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, kind, session_id],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        )
        return int(done.stdout)


@pytest.fixture(scope="module")
def greenroom(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A runtime in the background, so that the commands are quick."""
    line = CommandLine(tmp_path_factory.mktemp("cli") / "data")
    up = line.run("up")
    assert up.returncode == 0, up.stderr
    yield line
    assert line.run("down").returncode == 0


@pytest.fixture
def running(greenroom: CommandLine) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts commands; those that a test leaves behind are killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> "subprocess.Popen[str]":
        started.append(greenroom.start(*arguments))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def parsed(text: str) -> list[dict[str, Any]]:
    """Every line as the event that it is."""
    return [json.loads(line) for line in text.splitlines()]


def read_until(process: "subprocess.Popen[str]", event_type: str, *, count: int = 1) -> list[dict[str, Any]]:
    """Events from the process's stdout, up to so many of the type."""
    assert process.stdout is not None
    events: list[dict[str, Any]] = []
    for line in process.stdout:
        events.append(json.loads(line))
        if sum(event["type"] == event_type for event in events) == count:
            return events
    pytest.fail(f"no {event_type}: {process.communicate()}")


def assert_contiguous(events: list[dict[str, Any]]) -> None:
    first = events[0]["seq"]
    assert [event["seq"] for event in events] == list(range(first, first + len(events)))


def assert_soon(condition: Callable[[], bool]) -> None:
    """Promise 11 gives what a run started five seconds to be gone."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def no_process_has(marker: str) -> bool:
    return not any(marker in " ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))


def assert_one_error(stderr: str, code: str) -> None:
    assert stderr.startswith("greenroom: ")
    assert stderr.endswith(f"[{code}]\n")
    assert stderr.count("\n") == 1


def test_up_is_idempotent(greenroom: CommandLine) -> None:
    again = greenroom.run("up")

    assert (again.returncode, again.stderr) == (0, "")
    assert str(greenroom.data_dir) in again.stdout


def test_run_prints_what_the_agent_says_and_nothing_else(greenroom: CommandLine) -> None:
    done = greenroom.run("run", "Hello!")

    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


def test_run_json_prints_the_run_as_events_and_its_end_last(greenroom: CommandLine) -> None:
    done = greenroom.run("run", "--json", "Hello!")

    events = parsed(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert [events[0]["type"], events[-1]["type"]] == ["run_queued", "run_completed"]
    assert_contiguous(events)


def test_a_command_that_ends_with_3_streams_its_output_and_fails_the_run(greenroom: CommandLine) -> None:
    done = greenroom.run("run", "--provider", "shell", "echo hi; exit 3")

    assert (done.returncode, done.stdout) == (1, "hi\n")
    assert "exit status 3" in done.stderr
    assert_one_error(done.stderr, "provider_error")


def test_what_a_command_prints_on_stderr_goes_to_stderr(greenroom: CommandLine) -> None:
    done = greenroom.run("run", "--provider", "shell", "echo out; echo err >&2")

    assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "err\n")


def test_every_line_still_parses_when_the_sessions_process_is_killed(
    greenroom: CommandLine, running: Callable[..., "subprocess.Popen[str]"]
) -> None:
    process = running("run", "--json", "--provider", "shell", SLOW_COMMAND)
    seen = read_until(process, "message_streamed")

    os.kill(greenroom.pid_of("SessionServer", seen[0]["session_id"]), signal.SIGKILL)
    out, err = process.communicate(timeout=TIMEOUT_S)

    events = seen + parsed(out)
    assert process.returncode == 1
    assert events[-1]["type"] == "run_failed"
    assert_contiguous(events)
    assert_one_error(err, "run_interrupted")


def test_follow_goes_on_when_the_session_and_the_store_are_killed(
    greenroom: CommandLine, running: Callable[..., "subprocess.Popen[str]"]
) -> None:
    session_id = parsed(greenroom.run("run", "--json", "first").stdout)[0]["session_id"]
    following = running("events", session_id, "--follow", "--format", "jsonl")
    events = read_until(following, "run_completed")

    for number, kind in enumerate(["SessionServer", "EventStore"], start=1):
        os.kill(greenroom.pid_of(kind, session_id), signal.SIGKILL)
        again = greenroom.run("run", "--session", session_id, f"again {number}")
        assert (again.returncode, again.stdout, again.stderr) == (0, "ok\n", "")
        events += read_until(following, "run_completed")

    assert events[0]["seq"] == 1
    assert_contiguous(events)
    following.send_signal(signal.SIGINT)
    assert (following.communicate(timeout=TIMEOUT_S), following.returncode) == (("", ""), 130)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_cancels_the_run_and_leaves_no_process(
    running: Callable[..., "subprocess.Popen[str]"], number: signal.Signals
) -> None:
    marker = f"sleep 86{os.getpid()}"
    process = running("run", "--json", "--provider", "shell", f"echo begun; {marker}; echo")
    seen = read_until(process, "message_streamed")

    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=TIMEOUT_S)

    events = seen + parsed(out)
    assert (process.returncode, err) == (130, "")
    assert events[-1]["type"] == "run_cancelled"
    assert_contiguous(events)
    assert_soon(lambda: no_process_has(marker))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_without_a_runtime_in_the_background_leaves_no_process_at_all(
    tmp_path: Path, number: signal.Signals
) -> None:
    """SIGTERM to the whole group, as `timeout` and service managers send it, hits Ray's processes too."""
    process = CommandLine(tmp_path / "own").start("run", "--json", "--provider", "shell", "echo begun; sleep 8642")
    try:
        read_until(process, "message_streamed")
        below = psutil.Process(process.pid).children(recursive=True)

        os.killpg(process.pid, number)
        process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
        process.communicate()

    assert process.returncode == 130
    assert len(below) > 2
    assert [child for child in below if child.is_running()] == []


def test_ctrl_c_while_the_runtime_starts_leaves_no_process(tmp_path: Path) -> None:
    process = CommandLine(tmp_path / "own").start("run", "Hello!")
    try:
        root = psutil.Process(process.pid)
        while not (below := root.children(recursive=True)):
            assert process.poll() is None

        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
        process.communicate()

    assert (process.returncode, out, err) == (130, "", "")
    assert [child for child in below if child.is_running()] == []


def test_an_interrupt_that_python_drops_comes_again() -> None:
    script = """
import signal
from greenroom.serve.cli_runtime import interrupt_on_signals

class InterruptedWhenFinalized:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

interrupt_on_signals()
try:
    InterruptedWhenFinalized()
    while True:
        signal.pause()
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )

    assert (done.stdout, done.stderr) == ("interrupted\n", "")


def test_a_run_is_cancelled_from_another_process(
    greenroom: CommandLine, running: Callable[..., "subprocess.Popen[str]"]
) -> None:
    process = running("run", "--json", "--provider", "shell", "echo begun; sleep 8643")
    run_id = read_until(process, "message_streamed")[0]["run_id"]

    first = greenroom.run("cancel", run_id, "--reason", "enough")
    _, err = process.communicate(timeout=TIMEOUT_S)
    second = greenroom.run("cancel", run_id)

    assert (first.returncode, first.stdout, first.stderr) == (0, f"{run_id} cancelled\n", "")
    assert process.returncode == 1
    assert "enough" in err
    assert_one_error(err, "cancelled")
    assert (second.returncode, second.stdout) == (0, f"{run_id} had ended: cancelled\n")


def test_a_run_is_interrupted_from_another_process(
    greenroom: CommandLine, running: Callable[..., "subprocess.Popen[str]"]
) -> None:
    process = running("run", "--json", "--provider", "shell", "echo begun; sleep 8644")
    seen = read_until(process, "message_streamed")

    done = greenroom.run("interrupt", seen[0]["run_id"])
    out, _ = process.communicate(timeout=TIMEOUT_S)

    assert (done.returncode, done.stdout) == (0, f"{seen[0]['run_id']} interrupted\n")
    assert parsed(out)[-1]["data"]["reason"] == "interrupted"


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        (["show", "ses_unknown"], 1, "session_not_found"),
        (["events", "ses_unknown"], 1, "session_not_found"),
        (["run", "hi", "--session", "ses_unknown"], 1, "session_not_found"),
        (["cancel", "run_unknown"], 1, "run_not_found"),
        (["run", "hi", "--provider", "unknown"], 2, "validation_error"),
        (["run", "  "], 2, "validation_error"),
    ],
)
def test_bad_input_is_one_line_on_stderr(greenroom: CommandLine, arguments: list[str], status: int, code: str) -> None:
    done = greenroom.run(*arguments)

    assert (done.returncode, done.stdout) == (status, "")
    assert_one_error(done.stderr, code)


def test_what_was_done_can_be_looked_at_again(greenroom: CommandLine) -> None:
    events = parsed(greenroom.run("run", "--json", "Look at me.").stdout)
    session_id, run_id = events[0]["session_id"], events[0]["run_id"]

    listed = greenroom.run("sessions")
    shown = greenroom.run("show", session_id)
    stored = greenroom.run("events", session_id, "--after", "2", "--format", "jsonl")
    beyond = greenroom.run("events", session_id, "--after", "1000")

    assert session_id in listed.stdout
    assert run_id in shown.stdout
    assert "Look at me." in shown.stdout
    assert parsed(stored.stdout) == events
    assert_one_error(beyond.stderr, "invalid_cursor")
    assert beyond.returncode == 2


def test_a_reader_that_leaves_early_gets_no_trace(
    greenroom: CommandLine, running: Callable[..., "subprocess.Popen[str]"]
) -> None:
    process = running("run", "--json", "--provider", "shell", SLOW_COMMAND)
    read_until(process, "message_streamed")
    assert process.stdout is not None
    assert process.stderr is not None

    process.stdout.close()
    status = process.wait(TIMEOUT_S)

    assert (status, process.stderr.read()) == (1, "")


def test_doctor_finds_everything_in_order(greenroom: CommandLine) -> None:
    done = greenroom.run("doctor")

    assert (done.returncode, done.stderr) == (0, "")
    assert "event store" in done.stdout
    assert "socket lane" in done.stdout
    assert "FAILED" not in done.stdout


def test_a_run_says_so_when_the_runtime_is_ended_under_it(tmp_path: Path) -> None:
    line = CommandLine(tmp_path / "data")
    assert line.run("up").returncode == 0
    process = line.start("run", "--json", "--provider", "shell", "echo begun; sleep 8645")
    try:
        read_until(process, "message_streamed")

        down = line.run("down")
        out, err = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
        process.communicate()

    assert (down.returncode, process.returncode) == (0, 1)
    assert parsed(out) is not None
    assert_one_error(err, "runtime_gone")


def test_the_demo_survives_its_own_kills(greenroom: CommandLine) -> None:
    done = greenroom.run("demo")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("--- kill -9") == 2
    assert "no gap, no repeat" in done.stdout


def test_down_ends_everything_that_up_started(tmp_path: Path) -> None:
    line = CommandLine(tmp_path / "data")
    assert line.run("up").returncode == 0
    holder = psutil.Process(json.loads((line.data_dir / "background.json").read_text())["pid"])
    processes = [holder, *holder.children(recursive=True)]

    down = line.run("down")

    assert (down.returncode, down.stderr) == (0, "")
    assert len(processes) > 2
    assert [process for process in processes if process.is_running()] == []
    assert "No runtime" in line.run("down").stdout


# The whole life of data


def session_of(line: CommandLine) -> str:
    """A new session with one run in it."""
    done = line.run("run", "--json", "a prompt to keep")
    assert done.returncode == 0, done.stderr
    return str(parsed(done.stdout)[0]["session_id"])


def test_a_session_goes_out_and_comes_back_on_the_command_line(greenroom: CommandLine, tmp_path: Path) -> None:
    session_id = session_of(greenroom)
    before = greenroom.run("events", session_id, "--format", "jsonl").stdout
    archive = tmp_path / "session.archive"

    exported = greenroom.run("export", session_id, str(archive))
    deleted = greenroom.run("delete", session_id)
    compacted = greenroom.run("compact")
    gone = greenroom.run("show", session_id)
    imported = greenroom.run("import", str(archive))

    assert (exported.returncode, exported.stdout) == (0, f"{archive}\n")
    assert (deleted.returncode, deleted.stdout) == (0, "")
    assert compacted.returncode == 0
    assert gone.returncode == 1
    assert "session_not_found" in gone.stderr
    assert (imported.returncode, imported.stdout) == (0, f"{session_id}\n")
    assert before == greenroom.run("events", session_id, "--format", "jsonl").stdout
    verified = greenroom.run("verify", session_id)
    assert verified.returncode == 0
    assert "intact" in verified.stdout


def test_a_file_that_is_no_archive_is_refused_on_one_line(greenroom: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "no.archive").write_text("this is no archive")

    refused = greenroom.run("import", str(tmp_path / "no.archive"))

    assert refused.returncode == 1
    assert refused.stdout == ""
    assert len(refused.stderr.splitlines()) == 1


def test_query_prints_rows_and_refuses_what_is_no_select(greenroom: CommandLine) -> None:
    session_id = session_of(greenroom)
    sql = f"SELECT status, count(*) AS n FROM runs WHERE session_id = '{session_id}' GROUP BY ALL"

    as_table = greenroom.run("query", sql)
    as_json = greenroom.run("query", sql, "--format", "jsonl")
    refused = greenroom.run("query", "DROP TABLE runs")

    assert as_table.stdout.split() == ["status", "n", "completed", "1"]
    assert parsed(as_json.stdout) == [{"status": "completed", "n": 1}]
    assert refused.returncode == 2
    assert "validation_error" in refused.stderr


def test_a_backup_is_restored_into_another_data_dir_and_never_over_one(greenroom: CommandLine, tmp_path: Path) -> None:
    session_id = session_of(greenroom)

    backed_up = greenroom.run("backup", str(tmp_path / "backup"))
    other = CommandLine(tmp_path / "restored")
    restored = other.run("restore", str(tmp_path / "backup"))
    again = other.run("restore", str(tmp_path / "backup"))

    assert backed_up.returncode == 0, backed_up.stderr
    assert (restored.returncode, restored.stdout) == (0, f"{tmp_path / 'restored'}\n")
    assert again.returncode == 1
    assert "exists" in again.stderr
    shown = other.run("verify", session_id)
    assert shown.returncode == 0, shown.stderr
    assert "intact" in shown.stdout


def test_a_damaged_store_is_named_and_doctor_repairs_it(tmp_path: Path) -> None:
    line = CommandLine(tmp_path / "data")
    session_id = session_of(line)
    heads = tmp_path / "data" / "store" / "log-000001.heads"
    content = bytearray(heads.read_bytes())
    content[200] ^= 1
    heads.write_bytes(content)

    refused = line.run("sessions")
    repaired = line.run("doctor", "--repair")
    verified = line.run("verify")

    assert refused.returncode == 1
    assert "log-000001.heads" in refused.stderr
    assert "doctor --repair" in refused.stderr
    assert repaired.returncode == 0, repaired.stderr
    assert "nothing was lost" in repaired.stdout
    assert verified.returncode == 0
    assert session_id in verified.stdout


def test_a_session_is_paused_and_resumed(greenroom: CommandLine) -> None:
    session_id = session_of(greenroom)

    paused = greenroom.run("pause", session_id)
    again = greenroom.run("pause", session_id)
    resumed = greenroom.run("resume", session_id)

    assert (paused.returncode, paused.stdout) == (0, f"{session_id} paused\n")
    assert again.returncode == 1
    assert_one_error(again.stderr, "invalid_transition")
    assert (resumed.returncode, resumed.stdout) == (0, f"{session_id} resumed\n")


def test_a_tool_call_is_approved_and_denied_from_the_command_line(greenroom: CommandLine) -> None:
    program = (
        "import ray, greenroom, sys\n"
        "runtime = greenroom.start()\n"
        "def pay(amount: int) -> str:\n    return f'paid {amount}'\n"
        "session = runtime.open_session(tools=[greenroom.tool(pay, approval='always')])\n"
        "calls = [{'name': 'pay', 'input': {'amount': amount}} for amount in (1, 2)]\n"
        "run_id = ray.get(session.submit_run.remote('x', {'provider_options': {'tool_calls': calls}}))\n"
        "print(run_id, flush=True)\n"
        "for event in session.follow(run_id=run_id, types=['tool_call_completed', 'tool_call_failed']):\n"
        "    print(event.type, event.data['tool_output'], flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=greenroom.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("run_")

        first = waiting_approval(greenroom)
        approved = greenroom.run("approve", first)
        assert "paid 1" in process.stdout.readline()
        late = greenroom.run("deny", first)
        second = waiting_approval(greenroom)
        denied = greenroom.run("deny", second, "--reason", "too much")
        said = process.stdout.readline()
        unknown = greenroom.run("approve", "apr_none")
    finally:
        process.kill()
        process.communicate()

    assert (approved.returncode, approved.stdout) == (0, f"{first} approved\n")
    who = greenroom.run("query", "--format", "jsonl", "SELECT data FROM events WHERE type = 'tool_approval_granted'")
    assert json.loads(who.stdout)["data"]["by"] == getpass.getuser()
    assert late.returncode == 1
    assert_one_error(late.stderr, "invalid_operation")
    assert (denied.returncode, denied.stdout) == (0, f"{second} denied\n")
    assert "too much" in said
    assert_one_error(unknown.stderr, "not_found")


def waiting_approval(greenroom: CommandLine) -> str:
    """The approval that `approvals` lists, once there is one."""

    def listed() -> str:
        rows = greenroom.run("approvals").stdout.splitlines()
        return rows[1].split()[0] if len(rows) > 1 else ""

    return wait_until(listed, what="an approval is listed")


def test_a_run_is_steered_from_the_command_line(
    greenroom: CommandLine, running: Callable[..., "subprocess.Popen[str]"]
) -> None:
    process = running("run", "--json", "--provider", "shell", "echo begun; sleep 8646")
    run_id = read_until(process, "message_streamed")[0]["run_id"]

    refused = greenroom.run("steer", run_id, "turn left")
    greenroom.run("cancel", run_id)

    assert refused.returncode in {1, 2}
    assert_one_error(refused.stderr, "capability_not_supported")


def test_an_agent_is_recorded_and_plays_again_without_its_client(greenroom: CommandLine, tmp_path: Path) -> None:
    recordings = tmp_path / "recordings"
    with MessagesServer() as server:
        server.answers.append(answers.text("Hello from the agent."))
        coder = {
            "kind": "claude-code",
            "cwd": str(tmp_path),
            "env": {"ANTHROPIC_BASE_URL": server.url, "ANTHROPIC_API_KEY": "sk-test-not-to-be-seen"},
        }
        again = {"kind": "replay", "client": "claude-code", "recording": str(recordings)}
        line = CommandLine(greenroom.data_dir)
        line.env["GREENROOM_PROVIDERS"] = json.dumps({"coder": coder, "again": again})

        first = line.run("run", "Hi", "--provider", "coder", "--permission-mode", "plan", "--record", str(recordings))
    second = line.run("run", "Hi", "--provider", "again")
    refused = line.run("run", "Hi", "--provider", "again", "--permission-mode", "plan")
    listed = line.run("providers")

    assert (first.returncode, first.stdout) == (0, "Hello from the agent.\n"), first.stderr
    assert (second.returncode, second.stdout) == (0, "Hello from the agent.\n"), second.stderr
    assert refused.returncode == 1
    assert "cannot honour permission_mode" in refused.stderr
    assert "sk-test-not-to-be-seen" not in listed.stdout + "".join(path.read_text() for path in recordings.iterdir())
