"""What is special to kind `amp`: rules that it is started with, one process a run, and what Amp has no setting for."""

import asyncio
import json
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from greenroom.adapters.providers.amp.folder import RunFolder
from greenroom.adapters.providers.amp.mapping import AmpMapping
from greenroom.adapters.providers.amp.options import AmpLaunch, check_amp_options
from greenroom.adapters.providers.amp.provider import AmpProvider
from greenroom.adapters.providers.amp.rules import permission_rules
from greenroom.domain.errors import (
    Cancelled,
    CapabilityNotSupported,
    GreenroomError,
    ProviderAuthenticationFailed,
    ProviderInvalidRequest,
    ValidationError,
)
from greenroom.domain.event import EventType
from greenroom.domain.permission_mode import PermissionMode
from greenroom.domain.policy import Policy, parse_policy
from greenroom.domain.provider import ProviderConversation, ProviderEvent, ProviderOutcome, ProviderRequest
from greenroom.domain.run_input import Message, Role
from greenroom.domain.tool import NoTools, ToolResult
from greenroom.testing import AmpProgram, Answer, MessagesServer, answers

KEY = "sk-amp-0123456789"
TOKEN = "2131e3936478bcc609d7639a0e10df4d"


class Permitting(NoTools):
    """Permits everything, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def permit(
        self, name: str, arguments: dict[str, Any], call_id: str, *, asks: bool = False
    ) -> ToolResult | None:
        self.asked.append(name)
        return None


class Attempt:
    """Everything that one attempt gave."""

    def __init__(self) -> None:
        self.events: list[ProviderEvent] = []
        self.handle: dict[str, str] | None = None
        self.outcome: ProviderOutcome | None = None

    def data(self, *types: EventType) -> list[dict[str, Any]]:
        return [event.data for event in self.events if event.type in types]

    @property
    def texts(self) -> list[str]:
        return [said["content"] for said in self.data(EventType.MESSAGE_RECEIVED)]

    @property
    def ends_of_calls(self) -> list[tuple[str, str | None]]:
        """Tool and outcome of each call, None for one that completed."""
        ends = self.data(EventType.TOOL_CALL_COMPLETED, EventType.TOOL_CALL_FAILED)
        return [(end["tool_name"], end.get("outcome")) for end in ends]


class Amp:
    """A provider over the stand-in, in a folder of its own."""

    def __init__(self, folder: Path, server: MessagesServer) -> None:
        self.provider = AmpProvider("amp")
        self.tools = Permitting()
        self.cwd, self.home = folder / "cwd", folder / "home"
        self.cwd.mkdir()
        self._options = {
            "command": str(AmpProgram(folder).path),
            "cwd": str(self.cwd),
            "env": {"AMP_URL": server.url, "AMP_API_KEY": KEY},
        }
        self._runs = 0

    def request(
        self,
        *,
        mode: PermissionMode = PermissionMode.FULL_AUTO,
        policies: tuple[Policy, ...] = (),
        conversation: Mapping[str, str] | None = None,
        **options: Any,
    ) -> ProviderRequest:
        self._runs += 1
        return ProviderRequest(
            session_id="ses_1",
            run_id=f"run_{self._runs}",
            attempt=1,
            run_number=self._runs,
            messages=(Message(Role.USER, "Do it."),),
            system_prompt=None,
            model=None,
            max_turns=None,
            options={**self._options, **options},
            tools=self.tools,
            policies=policies,
            permission_mode=mode,
            conversation=conversation,
            home=str(self.home),
        )

    async def run(self, request: ProviderRequest, on: Callable[[ProviderEvent], None] | None = None) -> Attempt:
        attempt = Attempt()
        async with aclosing(self.provider.execute(request)) as items:
            async for item in items:
                if isinstance(item, ProviderConversation):
                    attempt.handle = item.handle
                elif isinstance(item, ProviderOutcome):
                    attempt.outcome = item
                else:
                    attempt.events.append(item)
                    if on is not None:
                        on(item)
        return attempt


@pytest.fixture
def server() -> Iterator[MessagesServer]:
    with MessagesServer() as running:
        yield running


@pytest.fixture
def amp(tmp_path: Path, server: MessagesServer) -> Amp:
    return Amp(tmp_path, server)


def policies(*rules: dict[str, list[str]]) -> tuple[Policy, ...]:
    """One policy for each."""
    return tuple(parse_policy({"tool_rules": [rule], "on_violation": "warn"}, field="policy") for rule in rules)


def bash(command: str) -> Answer:
    return answers.tool_use("Bash", {"cmd": command})


CREATE = answers.tool_use("create_file", {"path": "made", "content": "x"})
DONE = answers.text("Done.")


@pytest.mark.parametrize(
    ("mode", "created", "ran"),
    [
        (PermissionMode.DEFAULT, "denied", "denied"),
        (PermissionMode.ACCEPT_EDITS, None, "denied"),
        (PermissionMode.PLAN, "denied", "denied"),
        (PermissionMode.FULL_AUTO, None, None),
        (PermissionMode.DANGEROUSLY_SKIP_PERMISSIONS, None, None),
    ],
)
async def test_each_permission_mode_lets_the_agent_do_what_it_says(
    amp: Amp, server: MessagesServer, mode: PermissionMode, created: str | None, ran: str | None
) -> None:
    server.answers += [CREATE + bash("touch ran"), DONE]

    attempt = await amp.run(amp.request(mode=mode))

    assert attempt.ends_of_calls == [("create_file", created), ("Bash", ran)]
    assert (amp.cwd / "made").exists() == (created is None)
    assert (amp.cwd / "ran").exists() == (ran is None)


async def test_a_denied_tool_never_runs_and_is_reported_after_the_fact(amp: Amp, server: MessagesServer) -> None:
    server.answers += [bash("touch ran"), DONE]

    attempt = await amp.run(amp.request(policies=policies({"deny": ["Ba*"]})))

    assert (attempt.ends_of_calls, amp.tools.asked) == ([("Bash", "denied")], ["Bash"])
    assert not (amp.cwd / "ran").exists()


async def test_what_a_policy_wants_asked_is_rejected_and_nobody_is_asked(amp: Amp, server: MessagesServer) -> None:
    server.answers += [bash("touch ran"), DONE]

    attempt = await amp.run(amp.request(policies=policies({"ask": ["Bash"]})))

    assert (attempt.ends_of_calls, amp.tools.asked) == ([("Bash", "denied")], [])


async def test_only_what_all_allow_lists_name_may_run(amp: Amp, server: MessagesServer) -> None:
    server.answers += [CREATE + bash("true"), DONE]

    attempt = await amp.run(
        amp.request(policies=policies({"allow": ["create_file", "Read"]}, {"allow": ["c*", "Ba*"]}))
    )

    assert attempt.ends_of_calls == [("create_file", None), ("Bash", "denied")]


def test_rules_of_the_user_tighten_an_allow_list_and_never_widen_it() -> None:
    own = [{"tool": "Grep", "action": "allow"}, {"tool": "Read", "action": "reject", "matches": {"path": "*.env"}}]

    rules = permission_rules(policies({"allow": ["Bash", "Read"]}), PermissionMode.FULL_AUTO, tools=None, own=own)

    names = [(rule["tool"], rule["action"]) for rule in rules]
    assert names == [("Read", "reject"), ("[B]ash", "allow"), ("Read", "allow"), ("*", "reject")]


@pytest.mark.parametrize(
    ("rules", "mode", "own"),
    [
        ([{"deny": ["{Bash,Read}"]}], PermissionMode.FULL_AUTO, []),
        ([{"deny": ["[!B]*"]}], PermissionMode.FULL_AUTO, []),
        ([{"allow": ["a*z"]}, {"allow": ["?bc*"]}], PermissionMode.FULL_AUTO, []),
        ([{"deny": ["Bash"]}], PermissionMode.DANGEROUSLY_SKIP_PERMISSIONS, []),
        ([{"allow": ["Bash"]}], PermissionMode.DEFAULT, [{"tool": "*", "action": "delegate", "to": "helper"}]),
    ],
)
def test_what_amps_rules_cannot_say_is_refused(
    rules: list[dict[str, list[str]]], mode: PermissionMode, own: list[dict[str, Any]]
) -> None:
    with pytest.raises(CapabilityNotSupported):
        permission_rules(policies(*rules), mode, tools=None, own=own)


async def test_a_workspace_with_rules_of_its_own_is_refused_where_policies_hold(
    amp: Amp, server: MessagesServer
) -> None:
    (amp.cwd / ".amp").mkdir()
    (amp.cwd / ".amp" / "settings.json").write_text('{"amp.dangerouslyAllowAll": true}')
    server.answers.append(DONE)

    assert (await amp.run(amp.request())).texts == ["Done."]
    with pytest.raises(ProviderInvalidRequest, match=r"settings\.json") as caught:
        await amp.run(amp.request(policies=policies({"deny": ["Bash"]})))

    assert caught.value.details["field"] == "cwd"


def test_settings_and_servers_are_files_for_this_user_alone(amp: Amp) -> None:
    settings = amp.home / ".config" / "amp" / "settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"amp.network.timeout": 7, "amp.permissions": [{"tool": "Read", "action": "reject"}]}')
    servers = {"one": {"type": "sse", "url": "http://127.0.0.1:9", "headers": {"Authorization": KEY}}}
    request = amp.request(tools=["Bash"], mcp_servers=servers, extra={"title": "T", "mode": "high"})

    launch = AmpLaunch.of(request, check_amp_options(request.options, field="options"))
    folder = launch.write_files().path

    command = launch.command(folder)
    written = json.loads((folder / "settings.json").read_text())
    assert (written["amp.network.timeout"], written["amp.tools.enable"]) == (7, ["Bash"])
    assert written["amp.permissions"] == [{"tool": "Read", "action": "reject"}, {"tool": "*", "action": "allow"}]
    assert json.loads((folder / "mcp.json").read_text())["one"]["transport"] == "sse"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder / "settings.json", folder / "mcp.json")] == [
        0o600
    ] * 2
    assert command[command.index("--visibility") + 1] == "private"
    assert KEY not in " ".join(command)


async def test_nothing_of_a_run_is_left_in_the_home_but_its_thread(amp: Amp, server: MessagesServer) -> None:
    server.answers.append(answers.thinking("Hm.") + DONE)

    attempt = await amp.run(amp.request())

    assert attempt.texts == ["Hm.", "Done."]
    assert [path.name for path in amp.home.iterdir()] == [".local"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"model": "opus"}, CapabilityNotSupported),
        ({"max_turns": 3}, CapabilityNotSupported),
        ({"system_prompt": "Be brief."}, CapabilityNotSupported),
        ({"extra": {"executor": "orb"}}, CapabilityNotSupported),
        ({"extra": {"continue_thread": True}}, ValidationError),
        ({"extra": {"labels": ["-not-a-label"]}}, ValidationError),
    ],
)
def test_what_amp_has_no_setting_for_is_refused(options: dict[str, Any], error: type[GreenroomError]) -> None:
    with pytest.raises(error):
        AmpProvider.check_options(options, field="options")


async def test_a_message_for_a_run_under_way_is_answered_when_the_turn_has_ended(
    amp: Amp, server: MessagesServer
) -> None:
    server.answers += [bash("true"), answers.text("First."), answers.text("Second.")]
    request = amp.request()
    steering: list[asyncio.Task[bool]] = []

    def steer(event: ProviderEvent) -> None:
        if event.type is EventType.TOOL_CALL_STARTED:
            steering.append(asyncio.create_task(amp.provider.steer(request.run_id, "And this.")))

    attempt = await amp.run(request, steer)

    assert [await task for task in steering] == [False]
    assert attempt.texts == ["First.", "Second."]


async def test_runs_that_go_on_with_one_thread_go_one_after_the_other(amp: Amp, server: MessagesServer) -> None:
    server.answers += [answers.text(name) for name in ("One.", "Two.", "Three.")]
    handle = (await amp.run(amp.request())).handle

    await asyncio.gather(*(amp.run(amp.request(conversation=handle)) for _ in range(2)))

    assert [len(asked.body["messages"]) for asked in server.requests] == [1, 3, 5]


async def test_an_interrupted_run_ends_cancelled_and_its_thread_goes_on(amp: Amp, server: MessagesServer) -> None:
    server.answers += [DONE, bash("tail -f /dev/null"), answers.text("Again.")]
    handle = (await amp.run(amp.request())).handle
    request = amp.request(conversation=handle)
    interrupting: list[asyncio.Task[None]] = []

    def interrupt(event: ProviderEvent) -> None:
        if event.type is EventType.TOOL_CALL_STARTED:
            interrupting.append(asyncio.create_task(amp.provider.interrupt(request.run_id)))

    with pytest.raises(Cancelled):
        await amp.run(request, interrupt)

    assert (await amp.run(amp.request(conversation=handle))).texts == ["Again."]


async def test_where_to_log_in_is_told_without_the_token(amp: Amp, tmp_path: Path) -> None:
    program = tmp_path / "no-key"
    url = f"http://127.0.0.1:9/auth/cli-login?authToken={TOKEN}"
    program.write_text(f"#!/bin/sh\necho 'No API key found. Starting login flow...'\necho {url}\nread line\nexit 1\n")
    program.chmod(0o755)

    with pytest.raises(ProviderAuthenticationFailed, match="AMP_API_KEY") as caught:
        await amp.run(amp.request(command=str(program)))

    assert TOKEN not in str(caught.value)
    assert "/auth/cli-login" in str(caught.value)


async def test_a_program_that_is_nowhere_is_named(amp: Amp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(amp.cwd))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("AMP_CLI_PATH", raising=False)

    with pytest.raises(ProviderInvalidRequest, match="AMP_CLI_PATH") as caught:
        await amp.run(amp.request(command=None))

    assert caught.value.details["field"] == "command"


async def test_what_a_killed_process_has_left_in_the_home_is_removed_by_the_next_run(
    amp: Amp, server: MessagesServer
) -> None:
    left = amp.home / "greenroom-amp-left"
    left.mkdir(parents=True)
    (left / "mcp.json").write_text(KEY)
    used = RunFolder.make(str(amp.home))
    server.answers.append(DONE)

    await amp.run(amp.request())

    assert (left.exists(), used.path.exists()) == (False, True)
    used.remove()
    assert not used.path.exists()


def test_a_thread_is_told_of_when_there_is_something_to_go_on_with() -> None:
    init = {"type": "system", "subtype": "init", "session_id": "T-1"}
    said = {"type": "assistant", "session_id": "T-1", "message": {"content": [{"type": "text", "text": "Hi."}]}}
    gone = {"type": "result", "session_id": "T-1", "is_error": True, "error": "Thread not found"}
    handles: list[dict[str, str] | None] = []
    for last in (init, said, gone):
        mapping = AmpMapping()
        for line in (init, last):
            mapping.take(line)
        assert mapping.thread_id == "T-1"
        handles.append(mapping.handle)

    assert handles == [None, {"thread_id": "T-1"}, None]


async def test_a_client_that_was_told_to_stop_has_had_its_time_and_is_ended(amp: Amp, tmp_path: Path) -> None:
    program = tmp_path / "stays"
    result = json.dumps({"type": "result", "subtype": "success", "is_error": False, "result": "x", "session_id": "T-1"})
    init = json.dumps(
        {"type": "assistant", "session_id": "T-1", "message": {"content": [{"type": "text", "text": "A"}]}}
    )
    program.write_text(
        f"#!/bin/sh\ntrap 'echo {json.dumps(result)}; trap \"\" TERM; sleep 60 & wait; sleep 60' TERM\n"
        f"echo {json.dumps(init)}\nwhile true; do sleep 0.05; done\n"
    )
    program.chmod(0o755)
    request = amp.request(command=str(program))
    began: list[float] = []
    interrupting: list[asyncio.Task[None]] = []

    def interrupt(event: ProviderEvent) -> None:
        began.append(time.monotonic())
        interrupting.append(asyncio.create_task(amp.provider.interrupt(request.run_id)))

    await amp.run(request, interrupt)

    assert time.monotonic() - began[0] < 2.5
