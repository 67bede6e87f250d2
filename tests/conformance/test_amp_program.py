"""The stand-in for `amp`: the lines it writes, what its tools do and may do, and how it ends."""

import json
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from greenroom.adapters.providers.amp.mapping import AmpMapping
from greenroom.domain.errors import (
    GreenroomError,
    ProviderAuthenticationFailed,
    ProviderInvalidRequest,
    ProviderOverloaded,
    ProviderQuotaExceeded,
    ProviderRateLimited,
)
from greenroom.testing import AmpProgram, Answer, MessagesServer, answers

from ..waiting import wait_until

TIMEOUT_S = 20.0
ALLOW_ALL = "--dangerously-allow-all"


@dataclass(frozen=True, slots=True)
class Ended:
    """What a run of the program left."""

    status: int
    lines: list[dict[str, Any]]
    stderr: str

    @property
    def result(self) -> dict[str, Any]:
        return self.lines[-1]

    @property
    def tool_results(self) -> list[tuple[str, bool]]:
        blocks = [block for line in self.lines if line["type"] == "user" for block in line["message"]["content"]]
        return [(block["content"], block["is_error"]) for block in blocks if block["type"] == "tool_result"]

    @property
    def kinds(self) -> list[str]:
        return [line["type"] for line in self.lines]


class Amp:
    """Starts the program in a folder of its own."""

    def __init__(self, folder: Path, server: MessagesServer) -> None:
        self.cwd = folder / "cwd"
        self.home = folder / "home"
        self.cwd.mkdir()
        self.home.mkdir()
        self.program = AmpProgram(folder)
        self.environment = {"AMP_URL": server.url, "AMP_API_KEY": "sk-amp", "HOME": str(self.home)}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.program.path, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.cwd,
            env=self.environment,
        )

    def run(self, prompt: str, *arguments: str, mode: tuple[str, ...] = ("--execute", "--stream-json")) -> Ended:
        with self.start(*arguments, *mode) as process:
            stdout, stderr = process.communicate(prompt + "\n", TIMEOUT_S)
        return Ended(process.returncode, [json.loads(line) for line in stdout.splitlines()], stderr)

    def with_settings(self, prompt: str, **settings: Any) -> Ended:
        path = self.home / "settings.json"
        path.write_text(json.dumps({f"amp.{name}": value for name, value in settings.items()}))
        return self.run(prompt, "--settings-file", str(path))


@pytest.fixture
def server() -> Iterator[MessagesServer]:
    with MessagesServer() as running:
        yield running


@pytest.fixture
def amp(tmp_path: Path, server: MessagesServer) -> Amp:
    return Amp(tmp_path, server)


def bash(command: str) -> Answer:
    return answers.tool_use("Bash", {"cmd": command})


def messages(server: MessagesServer, request: int) -> list[dict[str, Any]]:
    return server.requests[request].body["messages"]


def runs(process: psutil.Process) -> bool:
    """Who waits for it is the machine's first process: until that has, it is a zombie."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def failure(ended: Ended) -> GreenroomError:
    """What Greenroom makes of it."""
    mapping = AmpMapping()
    for line in ended.lines:
        mapping.take(line)
    mapping.ended(ended.status, ended.stderr)
    with pytest.raises(GreenroomError) as caught:
        mapping.outcome()
    return caught.value


def test_a_text_is_told_line_by_line(amp: Amp, server: MessagesServer) -> None:
    server.answers.append(answers.text("Hello."))

    ended = amp.run(
        "Hi", "--mode", "low", "--label", "x", "--title", "t", "--visibility", "private", "--effort", "high"
    )

    assert (ended.status, ended.stderr, ended.kinds) == (0, "", ["system", "user", "assistant", "result"])
    init, prompt, message, result = ended.lines
    assert (init["subtype"], init["cwd"], init["tools"]) == ("init", str(amp.cwd), ["Bash", "Read", "create_file"])
    assert prompt["message"]["content"] == [{"type": "text", "text": "Hi"}]
    assert message["message"]["content"] == [{"type": "text", "text": "Hello."}]
    assert (message["message"]["model"], message["message"]["usage"]["output_tokens"]) == ("amp-low", 12)
    assert (result["subtype"], result["result"], result["num_turns"]) == ("success", "Hello.", 1)
    assert len({line["session_id"] for line in ended.lines}) == 1
    assert server.requests[0].headers["x-api-key"] == "***"


def test_tools_really_run_where_the_program_runs(amp: Amp, server: MessagesServer) -> None:
    write = answers.tool_use("create_file", {"path": "notes/a.txt", "content": "made"})
    server.answers += [write + bash("cat notes/a.txt") + answers.tool_use("Read", {"path": "notes/a.txt"})]
    server.answers += [answers.text("Done.")]

    ended = amp.run("Hi", ALLOW_ALL)

    assert (amp.cwd / "notes" / "a.txt").read_text() == "made"
    assert ended.tool_results[1:] == [(json.dumps({"output": "made", "exitCode": 0}), False), ("made", False)]
    assert ended.kinds == ["system", "user", "assistant", "user", "assistant", "result"]
    assert (ended.result["result"], ended.result["usage"]["output_tokens"]) == ("Done.", 24)
    assert [block["type"] for block in messages(server, 1)[-1]["content"]] == ["tool_result"] * 3


def test_a_tool_that_fails_gives_a_result_that_is_an_error(amp: Amp, server: MessagesServer) -> None:
    server.answers += [bash("echo oops >&2; exit 3") + answers.tool_use("Read", {}) + answers.tool_use("fly", {})]

    ended = amp.run("Hi", ALLOW_ALL)

    assert ended.tool_results == [
        (json.dumps({"output": "oops\n", "exitCode": 3}), True),
        ("Tool Read needs path.", True),
        ("There is no tool fly.", True),
    ]
    assert ended.status == 0


def test_the_first_rule_that_fits_decides(amp: Amp, server: MessagesServer) -> None:
    server.answers += [bash("echo yes") + bash("rm x") + answers.tool_use("create_file", {"path": "x", "content": ""})]
    rules = [
        {"tool": "Bash", "action": "allow", "matches": {"cmd": ["/^ls/", "echo *"]}},
        {"tool": "Bash", "action": "reject"},
        {"tool": "*", "action": "ask"},
    ]

    ended = amp.with_settings("Hi", permissions=rules, dangerouslyAllowAll=False)

    allowed, rejected, asked = ended.tool_results
    assert allowed == (json.dumps({"output": "yes\n", "exitCode": 0}), False)
    assert rejected == ("Tool Bash was rejected by permission rules", True)
    assert asked == ("Tool create_file was rejected by permission rules: there is nobody to ask for approval", True)
    assert ended.result["permission_denials"] == [rejected[0], asked[0]]


def test_a_program_can_decide(amp: Amp, server: MessagesServer) -> None:
    server.answers += [bash("echo yes") + bash("echo no")]
    helper = amp.home / "helper"
    helper.write_text(
        '#!/bin/sh\nread call\necho "$AGENT_TOOL_NAME $call"\ncase $call in *yes*) exit 0;; esac\nexit 2\n'
    )
    helper.chmod(0o755)

    ended = amp.with_settings("Hi", permissions=[{"tool": "Bash", "action": "delegate", "to": str(helper)}])

    assert [is_error for _, is_error in ended.tool_results] == [False, True]
    assert ended.tool_results[1][0].endswith('rejected by permission rules: Bash {"cmd": "echo no"}')


def test_without_a_rule_it_may_only_read(amp: Amp, server: MessagesServer) -> None:
    (amp.cwd / "a.txt").write_text("read")
    server.answers += [answers.tool_use("Read", {"path": "a.txt"}) + bash("touch made")]

    ended = amp.run("Hi")

    assert [is_error for _, is_error in ended.tool_results] == [False, True]
    assert not (amp.cwd / "made").exists()


def test_only_enabled_tools_are_there(amp: Amp, server: MessagesServer) -> None:
    server.answers += [bash("echo made")]

    ended = amp.with_settings("Hi", **{"tools.enable": ["Re*"]}, dangerouslyAllowAll=True)

    assert ended.lines[0]["tools"] == ["Read"]
    assert ended.tool_results == [("There is no tool Bash.", True)]
    assert [tool["name"] for tool in server.requests[0].body["tools"]] == ["Read"]


@pytest.mark.parametrize(
    ("answer", "error_class"),
    [
        (answers.error(400), ProviderInvalidRequest),
        (answers.error(401), ProviderAuthenticationFailed),
        (answers.error(402), ProviderQuotaExceeded),
        (answers.error(429), ProviderRateLimited),
        (answers.error(529), ProviderOverloaded),
        (answers.midstream_error("overloaded_error"), ProviderOverloaded),
    ],
)
def test_an_error_of_the_api_is_the_result(
    amp: Amp, server: MessagesServer, answer: Answer, error_class: type[GreenroomError]
) -> None:
    server.answers.append(answer)

    ended = amp.run("Hi")

    assert (ended.status, ended.result["subtype"]) == (1, "error_during_execution")
    assert ended.result["is_error"]
    assert type(failure(ended)) is error_class
    assert len(server.requests) == 1


def test_a_cut_connection_is_the_result(amp: Amp, server: MessagesServer) -> None:
    server.answers.append(answers.cut())

    ended = amp.run("Hi")

    assert (ended.status, ended.kinds) == (1, ["system", "user", "result"])
    assert "connection" in ended.result["error"]


def test_too_many_turns_are_the_result(amp: Amp, server: MessagesServer) -> None:
    amp.program = AmpProgram(amp.home, max_turns=2)
    server.default = bash("true")

    ended = amp.run("Hi", ALLOW_ALL)

    assert (ended.status, ended.result["subtype"], ended.result["num_turns"]) == (1, "error_max_turns", 2)


def test_thinking_is_told_only_on_request(amp: Amp, server: MessagesServer) -> None:
    server.answers += [answers.thinking("Hm.") + answers.text("Hello.")] * 2

    shown = amp.run("Hi", mode=("--execute", "--stream-json-thinking"))
    hidden = amp.run("Hi")

    assert shown.lines[2]["message"]["content"][0] == {"type": "thinking", "thinking": "Hm."}
    assert [block["type"] for block in hidden.lines[2]["message"]["content"]] == ["text"]


def test_a_thread_is_continued_with_all_of_its_history(amp: Amp, server: MessagesServer) -> None:
    server.answers += [bash("echo made"), answers.text("Done.")]
    first = amp.run("Hi", ALLOW_ALL)
    amp.run("Something else")

    second = amp.run("Again", "threads", "continue", first.result["session_id"])
    third = amp.run("And again", "threads", "continue")

    assert {second.result["session_id"], third.result["session_id"]} == {first.result["session_id"]}
    sent = [message["content"][0]["type"] for message in messages(server, 3)]
    assert sent == ["text", "tool_use", "tool_result", "text", "text"]
    assert messages(server, 4)[:5] == messages(server, 3)
    assert third.result["num_turns"] == 4


def test_an_unknown_thread_is_said_on_stderr_alone(amp: Amp, server: MessagesServer) -> None:
    ended = amp.run("Hi", "threads", "continue", "T-missing")

    assert (ended.status, ended.lines, ended.stderr) == (1, [], "Error: thread not found\n")
    assert failure(ended).details["field"] == "continuation"
    assert server.requests == []


def test_several_prompts_are_answered_one_after_the_other(amp: Amp, server: MessagesServer) -> None:
    prompts = [{"type": "user", "message": {"content": [{"type": "text", "text": text}]}} for text in ("One", "Two")]

    ended = amp.run("\n".join(map(json.dumps, prompts)), "--stream-json-input")

    assert ended.kinds == ["system", "user", "assistant", "user", "assistant", "result"]
    assert ended.result["result"] == "Two"
    assert [len(messages(server, number)) for number in (0, 1)] == [1, 3]


@pytest.mark.parametrize("missing", ["AMP_API_KEY", "AMP_URL"])
def test_without_a_key_or_an_api_it_does_not_start(amp: Amp, missing: str) -> None:
    del amp.environment[missing]

    ended = amp.run("Hi")

    assert (ended.status, ended.lines) == (1, [])
    assert missing in ended.stderr


def test_an_option_that_amp_has_not_is_refused(amp: Amp) -> None:
    ended = amp.run("Hi", "--orb-execute")

    assert (ended.status, ended.stderr) == (1, "error: unknown option '--orb-execute'\n")
    assert isinstance(failure(ended), ProviderInvalidRequest)


def test_told_to_end_while_the_model_answers_it_ends_at_once(amp: Amp, server: MessagesServer) -> None:
    server.answers.append(answers.stall())

    with amp.start("--execute", "--stream-json") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("Hi\n")
        process.stdin.close()
        while json.loads(process.stdout.readline())["type"] != "user":
            pass
        process.send_signal(signal.SIGTERM)

        assert process.wait(TIMEOUT_S) == 143


def test_told_to_end_while_a_tool_runs_it_takes_all_of_the_tool_with_it(amp: Amp, server: MessagesServer) -> None:
    server.answers += [bash("mkfifo told"), bash("tail -f /dev/null & echo $$ $! > told; wait")]

    with amp.start("--execute", "--stream-json", ALLOW_ALL) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("Hi\n")
        process.stdin.close()
        while '"tool_result"' not in process.stdout.readline():
            pass
        processes = [psutil.Process(int(number)) for number in (amp.cwd / "told").read_text().split()]
        process.send_signal(signal.SIGTERM)

        assert process.wait(TIMEOUT_S) == 143
    assert len(processes) == 2
    wait_until(lambda: not any(map(runs, processes)), what="all of the tool has ended")
