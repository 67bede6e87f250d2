"""What is special to Codex: its hooks and its sandbox, one client for many turns, forks, and its fallback `exec`.

All against the real program, behind a loopback Responses API.
"""

import asyncio
import json
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest

from greenroom.adapters.providers.agents.options import AgentSurroundings
from greenroom.adapters.providers.agents.process import AgentProcess
from greenroom.adapters.providers.codex.gate import CodexGate
from greenroom.adapters.providers.codex.mapping import CodexMapping
from greenroom.adapters.providers.codex.provider import CodexProvider
from greenroom.adapters.providers.codex.server import CodexServer
from greenroom.adapters.providers.codex.turn import CodexTurn
from greenroom.domain.errors import (
    Cancelled,
    CapabilityNotSupported,
    ProviderContentRefused,
    ProviderError,
    ProviderInvalidRequest,
    ProviderUnavailable,
    ValidationError,
)
from greenroom.domain.event import EventType
from greenroom.domain.permission_mode import PermissionMode
from greenroom.domain.policy import OnViolation, Policy
from greenroom.domain.provider import ProviderConversation, ProviderEvent, ProviderOutcome, ProviderRequest
from greenroom.domain.run_input import Message, Role
from greenroom.domain.tool import NoTools, ToolOutcome, ToolResult
from greenroom.testing import Answer, ResponsesServer, answers

pytest.importorskip("codex_cli_bin")

KEY = "sk-loopback-4711"
HANGS = answers.tool_use("exec_command", {"cmd": "tail -f /dev/null", "yield_time_ms": 30_000})

Say = Callable[[str, bool], Awaitable[ToolResult | None]]


async def yes(name: str, asks: bool) -> ToolResult | None:
    return None


async def no(name: str, asks: bool) -> ToolResult | None:
    return ToolResult(output="That is not allowed here.", outcome=ToolOutcome.DENIED)


async def no_when_asked(name: str, asks: bool) -> ToolResult | None:
    return await no(name, asks) if asks else None


@dataclass
class Tools(NoTools):
    """Permits as `say` does; `asked` has the tools that somebody had to agree to."""

    say: Say = yes
    asked: list[str] = field(default_factory=list[str])

    async def permit(
        self, name: str, arguments: dict[str, Any], call_id: str, *, asks: bool = False
    ) -> ToolResult | None:
        if asks:
            self.asked.append(name)
        return await self.say(name, asks)


@dataclass
class Played:
    """Everything that one attempt gave."""

    events: list[ProviderEvent] = field(default_factory=list[ProviderEvent])
    handle: dict[str, str] | None = None
    outcome: ProviderOutcome | None = None
    called: asyncio.Event = field(default_factory=asyncio.Event)

    def ends(self) -> list[dict[str, Any]]:
        wanted = (EventType.TOOL_CALL_COMPLETED, EventType.TOOL_CALL_FAILED)
        return [event.data for event in self.events if event.type in wanted]


class Stage:
    """A provider, the API behind it, and the directories of its session."""

    def __init__(self, folder: Path, server: ResponsesServer) -> None:
        self.server = server
        self.work, self.home = folder / "work", folder / "home"
        self.work.mkdir()
        self.provider = CodexProvider("codex")

    def script(self, *scripted: Answer) -> None:
        self.server.answers.clear()
        self.server.answers.extend(scripted)

    def request(self, number: int = 1, say: Say = yes, **given: Any) -> ProviderRequest:
        options = {
            "cwd": str(self.work),
            "model": "gpt-6-sol",
            "env": {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": f"{self.server.url}/v1"},
            **given.pop("options", {}),
        }
        return ProviderRequest(
            session_id="ses_1",
            run_id=f"run_{number}",
            attempt=1,
            run_number=number,
            messages=(Message(Role.USER, f"Message {number}."),),
            system_prompt=given.pop("system_prompt", None),
            model=None,
            max_turns=given.pop("max_turns", None),
            options=options,
            tools=Tools(say),
            home=str(self.home),
            continues=True,
            permission_mode=given.pop("mode", PermissionMode.FULL_AUTO),
            **given,
        )

    async def play(self, request: ProviderRequest, played: Played | None = None) -> Played:
        played = played or Played()
        async for item in self.provider.execute(request):
            if isinstance(item, ProviderConversation):
                played.handle = item.handle
            elif isinstance(item, ProviderOutcome):
                played.outcome = item
            else:
                played.events.append(item)
                if item.type is EventType.TOOL_CALL_STARTED:
                    played.called.set()
        return played

    def told(self) -> str:
        """What the model was told last."""
        return json.dumps(self.server.requests[-1].body["input"])


@pytest.fixture
def server() -> Iterator[ResponsesServer]:
    with ResponsesServer() as running:
        yield running


@pytest.fixture
async def stage(tmp_path: Path, server: ResponsesServer) -> AsyncIterator[Stage]:
    made = Stage(tmp_path, server)
    yield made
    await made.provider.aclose()


def hanging(folder: Path) -> list[psutil.Process]:
    """The hanging commands that were started in the directory."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.name() == "tail" and process.cwd() == str(folder):
                found.append(process)
        except psutil.Error:
            continue
    return found


async def begun(folder: Path) -> None:
    """Wait until a hanging command is there."""
    async with asyncio.timeout(10):
        while not hanging(folder):
            await asyncio.sleep(0.02)


async def gone(folder: Path) -> None:
    """Wait until no hanging command is there."""
    async with asyncio.timeout(10):
        while hanging(folder):
            await asyncio.sleep(0.02)


def escalated(path: Path) -> Answer:
    command = {"cmd": f"echo out > {path}", "sandbox_permissions": "require_escalated", "justification": "I must."}
    return answers.tool_use("exec_command", command)


def patch(name: str) -> Answer:
    text = f"*** Begin Patch\n*** Add File: {name}\n+made\n*** End Patch"
    return answers.tool_use("exec_command", {"cmd": f"apply_patch <<'EOF'\n{text}\nEOF\n"})


@pytest.mark.parametrize("mode", list(PermissionMode))
async def test_no_call_is_made_against_a_policy_in_any_mode(stage: Stage, mode: PermissionMode) -> None:
    stage.script(answers.tool_use("exec_command", {"cmd": "touch made"}), patch("patched"), answers.text("Done."))
    played = await stage.play(stage.request(say=no, mode=mode))
    assert [end["outcome"] for end in played.ends()] == ["denied", "denied"]
    assert [end["tool_name"] for end in played.ends()] == ["command_execution", "file_change"]
    assert list(stage.work.iterdir()) == []
    assert ("not allowed here" in stage.told()) or mode is PermissionMode.PLAN


async def test_a_call_is_recorded_before_it_is_made(stage: Stage) -> None:
    release = asyncio.Event()

    async def later(name: str, asks: bool) -> ToolResult | None:
        await release.wait()
        return None

    stage.script(answers.tool_use("exec_command", {"cmd": "touch made"}), answers.text("Done."))
    played = Played()
    run = asyncio.create_task(stage.play(stage.request(say=later), played))
    await played.called.wait()
    assert not (stage.work / "made").exists()
    release.set()
    await run
    assert (stage.work / "made").exists()


@pytest.mark.parametrize("say", [yes, no_when_asked])
async def test_a_person_is_asked_for_what_leaves_the_sandbox(stage: Stage, say: Say, tmp_path: Path) -> None:
    outside = stage.work.parent.parent / f"outside-{tmp_path.name}"
    options = {
        "extra": {"config": {"sandbox_workspace_write": {"exclude_slash_tmp": True, "exclude_tmpdir_env_var": True}}}
    }
    request = stage.request(say=say, mode=PermissionMode.DEFAULT, options=options)
    stage.script(escalated(outside), answers.text("Done."))
    played = await stage.play(request)
    assert isinstance(request.tools, Tools)
    assert request.tools.asked == ["command_execution"]
    assert outside.exists() is (say is yes)
    assert played.ends()[0].get("outcome") == (None if say is yes else "denied")


async def test_an_interruption_answers_what_a_person_was_asked(stage: Stage) -> None:
    asking = asyncio.Event()

    async def never(name: str, asks: bool) -> ToolResult | None:
        if asks:
            asking.set()
            await asyncio.Event().wait()
        return None

    stage.script(escalated(stage.work / "out"), answers.text("Never said."))
    played = Played()
    run = asyncio.create_task(stage.play(stage.request(say=never, mode=PermissionMode.DEFAULT), played))
    await asking.wait()
    await stage.provider.interrupt("run_1")
    with pytest.raises(Cancelled):
        await run
    stage.script(answers.text("Goes on."))
    after = await stage.play(stage.request(2, conversation=played.handle))
    assert after.outcome is not None
    assert after.outcome.content == "Goes on."


async def test_a_command_that_the_sandbox_stops_is_a_call_that_failed(stage: Stage) -> None:
    stage.script(answers.tool_use("exec_command", {"cmd": "echo x > made"}), answers.text("Done."))
    played = await stage.play(stage.request(mode=PermissionMode.PLAN))
    (end,) = played.ends()
    assert end["outcome"] == "error"
    assert "Read-only file system" in end["tool_output"]


async def test_a_cancelled_command_is_gone_and_the_client_stays(stage: Stage) -> None:
    stage.script(HANGS)
    run = asyncio.create_task(stage.play(stage.request()))
    await begun(stage.work)
    (client,) = {process["pid"] for process in stage.provider.processes("run_1")}
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await stage.provider.turns_given_up()
    await gone(stage.work)  # by the client that stays: the turn has ended by its word before the command is dead
    assert psutil.pid_exists(client)


async def test_what_an_unconfined_command_leaves_behind_ends_with_the_run(stage: Stage) -> None:
    command = {"cmd": "setsid tail -f /dev/null >/dev/null 2>&1 & sleep 0.2"}
    stage.script(answers.tool_use("exec_command", command), answers.text("Done."))
    await stage.play(stage.request(mode=PermissionMode.DANGEROUSLY_SKIP_PERMISSIONS))
    assert hanging(stage.work) == []


async def test_the_later_of_two_runs_that_go_on_at_once_forks_the_conversation(stage: Stage) -> None:
    stage.script(answers.text("First."))
    first = await stage.play(stage.request())
    stage.script(*[answers.text("Slowly said.", chunks=4, chunk_delay_s=0.1)] * 2)
    both = await asyncio.gather(*(stage.play(stage.request(n, conversation=first.handle)) for n in (2, 3)))
    threads = [played.handle["thread_id"] for played in both if played.handle]
    assert len(set(threads)) == 2
    assert all("Message 1." in json.dumps(request.body) for request in stage.server.requests[-2:])


async def test_a_conversation_goes_on_in_any_mode_and_through_exec(stage: Stage) -> None:
    stage.script(*[answers.text("Said.")] * 4)
    played = await stage.play(stage.request())
    modes = (PermissionMode.DANGEROUSLY_SKIP_PERMISSIONS, PermissionMode.PLAN)
    for number, mode in enumerate(modes, start=2):
        played = await stage.play(stage.request(number, mode=mode, conversation=played.handle))
        assert f"Message {number - 1}." in stage.told()
    await stage.play(stage.request(4, options={"interface": "exec"}, conversation=played.handle))
    assert all(f"Message {number}." in stage.told() for number in range(1, 5))


async def test_a_conversation_is_told_of_another_system_prompt(stage: Stage) -> None:
    stage.script(*[answers.text("Said.")] * 3)
    first = await stage.play(stage.request(system_prompt="Be red."))
    second = await stage.play(stage.request(2, system_prompt="Be blue.", conversation=first.handle))
    assert "Be blue." in stage.told()
    await stage.play(stage.request(3, system_prompt="Be blue.", conversation=second.handle))
    assert stage.told().count("Be blue.") == 1


async def test_the_key_is_neither_on_a_command_line_nor_in_a_file(stage: Stage) -> None:
    stage.script(HANGS)
    run = asyncio.create_task(stage.play(stage.request(options={"record": str(stage.work / "record")})))
    await begun(stage.work)
    command_lines = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    run.cancel()
    await asyncio.wait((run,))
    assert KEY not in " ".join(command_lines)
    assert not (stage.home / ".codex" / "auth.json").exists()
    assert all(KEY.encode() not in path.read_bytes() for path in (stage.work / "record").iterdir())


async def test_hooks_that_nobody_trusts_are_not_run(stage: Stage) -> None:
    folder = stage.home / ".codex"
    folder.mkdir(parents=True)
    hook = {"hooks": [{"type": "command", "command": f"touch {stage.work}/untrusted"}]}
    (folder / "hooks.json").write_text(json.dumps({"hooks": {"PreToolUse": [hook]}}))
    stage.script(answers.tool_use("exec_command", {"cmd": "touch made"}), answers.text("Done."))
    await stage.play(stage.request())
    assert [path.name for path in stage.work.iterdir()] == ["made"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_turns": 3}, CapabilityNotSupported),
        ({"tools": []}, CapabilityNotSupported),
        ({"mcp_servers": {"x": {"type": "sse", "url": "http://127.0.0.1:9"}}}, CapabilityNotSupported),
        ({"interface": "exec", "extra": {"personality": "none"}}, CapabilityNotSupported),
        ({"extra": {"approvalPolicy": "never"}}, ValidationError),
        ({"extra": {"config": {"hooks": {"PreToolUse": []}}}}, ValidationError),
        ({"extra": {"config": {"features": {"hooks": False}}}}, ValidationError),
        ({"extra": {"base_instructions": "x"}}, ValidationError),
        ({"extra": {"config": {"projects": {"/": {"trust_level": "trusted"}}}}}, ValidationError),
        ({"extra": {"config": {"profile": "mine"}}}, ValidationError),
    ],
)
def test_options_that_codex_has_nothing_for_are_refused(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        CodexProvider.check_options(options, field="options")


async def test_a_count_of_turns_is_refused(stage: Stage) -> None:
    with pytest.raises(CapabilityNotSupported):
        await stage.play(stage.request(max_turns=2))


async def test_exec_goes_on_with_its_conversation(stage: Stage) -> None:
    exec_options = {"interface": "exec"}
    stage.script(answers.tool_use("exec_command", {"cmd": "touch made"}), answers.text("Done."), answers.text("More."))
    first = await stage.play(stage.request(options=exec_options))
    assert (stage.work / "made").exists()
    second = await stage.play(stage.request(2, options=exec_options, conversation=first.handle))
    assert second.outcome is not None
    assert second.outcome.content == "More."
    assert "Message 1." in stage.told()
    gone = {"thread_id": "01a20f45-9f9e-7352-a656-2665375b0a38"}
    with pytest.raises(ProviderInvalidRequest) as caught:
        await stage.play(stage.request(3, options=exec_options, conversation=gone))
    assert caught.value.details["field"] == "continuation"


async def test_exec_refuses_what_it_cannot_keep(stage: Stage) -> None:
    policy = Policy(name="p", tool_rules=(("deny", ("file_change",)),), on_violation=OnViolation.WARN)
    request = stage.request(options={"interface": "exec"})
    with pytest.raises(CapabilityNotSupported):
        await stage.play(replace(request, policies=(policy,)))


@pytest.mark.parametrize("interface", ["app-server", "exec"])
async def test_settings_of_the_working_directory_start_nothing(stage: Stage, interface: str) -> None:
    (stage.work / ".git").mkdir()
    (stage.work / ".codex").mkdir()
    server = f'[mcp_servers.planted]\ncommand = "touch"\nargs = ["{stage.work}/started"]\n'
    (stage.work / ".codex" / "config.toml").write_text(server)
    stage.script(*[answers.tool_use("exec_command", {"cmd": "true"}), answers.text("Done.")] * 2)
    for number in (1, 2):
        await stage.play(stage.request(number, options={"interface": interface}))
    assert not (stage.work / "started").exists()


@pytest.mark.parametrize("interfaces", [("exec", "exec"), ("exec", "app-server"), ("app-server", "exec")])
async def test_a_run_waits_for_the_other_where_one_of_two_that_go_on_at_once_is_an_exec(
    stage: Stage, interfaces: tuple[str, str]
) -> None:
    stage.script(answers.text("First."), *[answers.text("Slowly said.", chunks=4, chunk_delay_s=0.1)] * 2)
    first = await stage.play(stage.request(options={"interface": "exec"}))
    requests = [
        stage.request(number, options={"interface": interface}, conversation=first.handle)
        for number, interface in enumerate(interfaces, start=2)
    ]
    both = await asyncio.gather(*map(stage.play, requests))
    assert {played.handle["thread_id"] for played in both if played.handle} == {(first.handle or {})["thread_id"]}
    assert all(f"Message {number}." in stage.told() for number in (1, 2, 3))


@pytest.mark.parametrize(
    "options",
    [
        {"mcp_servers": {"one": {"command": "true", "env": {"DATABASE": "postgres://u:p@h"}}}},
        {"mcp_servers": {"one": {"type": "http", "url": "http://127.0.0.1:9", "headers": {"X": "y"}}}},
        {"extra": {"config": {"model_providers": {"x": {"base_url": "u", "http_headers": {"X": "y"}}}}}},
        {"extra": {"config": {"model_providers": {"x": {"base_url": "u", "experimental_bearer_token": "y"}}}}},
        {"mcp_servers": {"one": {"command": "serve", "args": [KEY]}}},
    ],
)
async def test_exec_puts_no_secret_on_its_command_line(stage: Stage, options: dict[str, Any]) -> None:
    with pytest.raises(CapabilityNotSupported, match="command line"):
        await stage.play(stage.request(options={"interface": "exec", **options}))


async def test_a_client_that_dies_before_the_model_has_answered_leaves_no_conversation(stage: Stage) -> None:
    stage.script(answers.stall(""))
    played = Played()
    run = asyncio.create_task(stage.play(stage.request(), played))
    async with asyncio.timeout(20):
        while not stage.server.requests:
            await asyncio.sleep(0.02)
    (client,) = {process["pid"] for process in stage.provider.processes("run_1")}
    os.kill(client, signal.SIGKILL)
    with pytest.raises(ProviderUnavailable):
        await run
    assert played.handle is None


def test_the_conversation_is_told_of_when_the_model_has_begun_to_answer() -> None:
    mapping = CodexMapping("t")
    told: list[bool] = []
    for method, more in (
        ("turn/started", {"turn": {"id": "1"}}),
        ("item/started", {"turnId": "1", "item": {"type": "userMessage", "id": "i"}}),
        ("item/agentMessage/delta", {"turnId": "1", "delta": "Hi"}),
    ):
        mapping.take({"method": method, "params": {"threadId": "t", **more}})
        told.append(mapping.handle is not None)
    assert told == [False, False, True]


@pytest.mark.parametrize("interface", ["app-server", "exec"])
async def test_a_reader_that_fails_ends_the_run(stage: Stage, interface: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = AgentProcess.lines

    async def broken(self: AgentProcess) -> AsyncGenerator[Any]:
        async for line in whole(self):
            if "turn" in str(line) and "started" in str(line):
                raise OSError("The pipe is broken.")
            yield line

    monkeypatch.setattr(AgentProcess, "lines", broken)
    stage.script(answers.text("Never heard."))
    with pytest.raises(ProviderError, match="The pipe is broken"):
        async with asyncio.timeout(20):
            await stage.play(stage.request(options={"interface": interface}))


class Client:
    """A connection whose client answers nothing that makes sense."""

    def __init__(self) -> None:
        where = AgentSurroundings("/", "/", {}, ())
        self.process = SimpleNamespace(pid=1, where=where, redacted=where.redacted)
        self.answered: asyncio.Queue[Any] = asyncio.Queue()

    async def request(self, method: str, parameters: Any) -> Any:
        return {}

    async def answer(self, number: object, result: Any) -> None:
        await self.answered.put(result)


async def released(turn: CodexTurn) -> None:
    pass


async def test_what_codex_says_in_an_unknown_shape_neither_hangs_it_nor_the_run(stage: Stage) -> None:
    client = Client()
    turn = CodexTurn(stage.request(), CodexMapping("t"), cast("Any", client), "t", released)
    turn.asked({"id": 1, "method": "item/commandExecution/requestApproval", "params": {}})
    async with asyncio.timeout(10):
        assert await client.answered.get() == {"decision": "decline"}
        turn.begin("Hi.", None)
        with pytest.raises(ProviderError, match="cannot be read"):
            async for _ in turn.items():
                pass


async def test_a_hook_that_says_nothing_that_makes_sense_is_refused(stage: Stage) -> None:
    failures: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))

    async def ask(said: Any) -> str | None:
        return said["tool_use_id"]

    gate = await CodexGate.open(ask)
    reader, writer = await asyncio.open_unix_connection(f"\0{gate.command.rpartition(' ')[2]}")
    writer.write(b"{}")
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    await gate.aclose()
    assert failures == []


@pytest.mark.parametrize("interface", ["app-server", "exec"])
async def test_an_answer_that_is_too_long_completes_the_run_and_a_filtered_one_is_refused(
    stage: Stage, interface: str
) -> None:
    options = {"interface": interface}
    stage.script(replace(answers.text("Half of it"), stop_reason="max_tokens"))
    outcome = (await stage.play(stage.request(options=options))).outcome
    assert outcome is not None
    assert (outcome.content, outcome.stop_reason) == ("Half of it", "max_tokens")
    stage.script(*[replace(answers.text("Half of it"), stop_reason="refusal")] * 3)
    with pytest.raises(ProviderContentRefused):
        await stage.play(stage.request(2, options=options))


async def test_a_fork_of_what_another_client_has_just_written_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = ["t already has an active writer", "projection for t is behind durable rollout"]
    forked = {"thread": {"id": "new"}, "model": "m"}

    async def request(method: str, parameters: Any) -> Any:
        if refusals:
            raise ProviderError(refusals.pop(0))
        return forked

    server = CodexServer(cast("Any", None))
    monkeypatch.setattr(server, "_started", SimpleNamespace(request=request))
    assert await server._continue("thread/resume", {"threadId": "t"}) == forked  # pyright: ignore[reportPrivateUsage]
