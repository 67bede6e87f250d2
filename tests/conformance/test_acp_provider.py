"""The ACP provider: what it makes of an agent that does whatever the protocol allows, and of one that does not."""

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from greenroom.adapters.providers.acp.modes import Choice, mode_id
from greenroom.adapters.providers.acp.options import check_acp_options
from greenroom.adapters.providers.acp.presets import PRESETS
from greenroom.adapters.providers.acp.provider import AcpProvider
from greenroom.adapters.providers.acp.replay import replay
from greenroom.adapters.providers.agents.process import AgentProcess
from greenroom.domain.errors import (
    Cancelled,
    CapabilityNotSupported,
    ProviderAuthenticationFailed,
    ProviderError,
    ProviderInvalidRequest,
    ProviderRateLimited,
    ProviderUnavailable,
    ValidationError,
)
from greenroom.domain.event import EventType
from greenroom.domain.permission_mode import PermissionMode
from greenroom.domain.policy import OnViolation, Policy
from greenroom.domain.provider import ProviderConversation, ProviderEvent, ProviderOutcome, ProviderRequest
from greenroom.domain.run_input import Message, Role
from greenroom.domain.tool import NoTools, ToolOutcome, ToolResult

AGENT = Path(__file__).with_name("acp_agent_program.py")

CODEX = "@agentclientprotocol/codex-acp"

DENIED = ToolResult(output="No.", outcome=ToolOutcome.DENIED)

Step = dict[str, Any]


class Toolbox(NoTools):
    """Answers as it is told, and remembers what it was asked."""

    def __init__(self, answer: ToolResult | None = None) -> None:
        self.answer = answer
        self.asked: list[tuple[str, bool]] = []
        self.has_been_asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def permit(
        self, name: str, arguments: dict[str, Any], call_id: str, *, asks: bool = False
    ) -> ToolResult | None:
        self.asked.append((call_id, asks))
        self.has_been_asked.set()
        await self.may_answer.wait()
        return self.answer


@dataclass
class Told:
    """What one attempt gave."""

    events: list[ProviderEvent] = field(default_factory=list[ProviderEvent])
    handle: dict[str, str] | None = None
    outcome: ProviderOutcome | None = None

    @property
    def content(self) -> str:
        assert self.outcome is not None
        return self.outcome.content

    def of(self, type: EventType) -> list[dict[str, Any]]:
        return [event.data for event in self.events if event.type is type]


class Session:
    """A provider, and runs in it."""

    def __init__(self, folder: Path) -> None:
        self.provider = AcpProvider("acp")
        self.folder = folder
        self.tools = Toolbox()
        self.abilities: dict[str, Any] = {}
        self._runs = 0
        (folder / "home").mkdir()

    def request(self, *steps: Step, **changes: Any) -> ProviderRequest:
        self._runs += 1
        options = {"command": self.command, "cwd": str(self.folder), **changes.pop("options", {})}
        request = ProviderRequest(
            session_id="ses_1",
            run_id=f"run_{self._runs}",
            attempt=1,
            run_number=self._runs,
            messages=(Message(Role.USER, json.dumps(steps)),),
            system_prompt=None,
            model=None,
            max_turns=None,
            options=options,
            tools=self.tools,
            continues=True,
            home=str(self.folder / "home"),
        )
        return replace(request, **changes)

    @property
    def command(self) -> list[str]:
        return [sys.executable, str(AGENT), json.dumps(self.abilities)]

    async def run(self, *steps: Step, told: Told | None = None, **changes: Any) -> Told:
        return await self.carry_out(self.request(*steps, **changes), told)

    async def carry_out(self, request: ProviderRequest, told: Told | None = None) -> Told:
        told = told or Told()
        async with aclosing(self.provider.execute(request)) as items:
            async for item in items:
                if isinstance(item, ProviderEvent):
                    told.events.append(item)
                elif isinstance(item, ProviderConversation):
                    told.handle = item.handle
                else:
                    told.outcome = item
        return told

    def pids(self) -> list[int]:
        """Of agents that are there."""
        return [
            process.pid for process in psutil.Process().children(recursive=True) if self.command[1] in cmdline(process)
        ]


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()[1:2]
    except psutil.Error:
        return []


@pytest.fixture
async def session(tmp_path: Path) -> AsyncIterator[Session]:
    session = Session(tmp_path)
    yield session
    await session.provider.aclose()


def policy(kind: str, *names: str, on_violation: OnViolation = OnViolation.WARN) -> Policy:
    return Policy(name="house", tool_rules=((kind, names),), on_violation=on_violation)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_lines_and_updates_that_make_no_sense_are_left_out(session: Session) -> None:
    told = await session.run(
        {"line": "Starting up..."},
        {"line": '{"jsonrpc": "2.0", "method": "session/update", "params": 7}'},
        {"line": '{"jsonrpc": "2.0", "id": [], "method": "session/request_permission"}'},
        {"update": {"sessionUpdate": "tool_call", "toolCallId": "x", "content": 7, "rawInput": {"a": 1}}},
        {"update": {"sessionUpdate": "of_next_year"}},
        {"say": "Still here."},
    )

    assert "Still here." == told.content


async def test_what_the_agent_asks_beyond_permissions_is_refused(session: Session) -> None:
    told = await session.run(
        {"line": '{"jsonrpc": "2.0", "id": "read", "method": "fs/read_text_file", "params": {"path": "/etc/shadow"}}'},
        {"ask": "call_1"},
    )

    assert {"outcome": "selected", "optionId": "fine"} == json.loads(told.content)


async def test_a_permission_is_given_for_this_once_and_the_call_is_told_before_it_is_asked_for(
    session: Session,
) -> None:
    told = await session.run({"ask": "call_1"})

    assert [("call_1", True)] == session.tools.asked
    assert {"outcome": "selected", "optionId": "fine"} == json.loads(told.content)
    assert EventType.TOOL_CALL_STARTED is told.events[0].type


async def test_a_denied_call_fails_as_denied_though_the_agent_says_no_more_of_it(session: Session) -> None:
    session.tools.answer = DENIED

    told = await session.run({"ask": "call_1"})

    assert {"outcome": "selected", "optionId": "no"} == json.loads(told.content)
    assert ["denied"] == [call["outcome"] for call in told.of(EventType.TOOL_CALL_FAILED)]


async def test_in_plan_mode_nobody_is_asked_and_everything_is_denied(session: Session) -> None:
    session.abilities = {"modes": ["default", "plan"], "initial": "default"}

    told = await session.run({"ask": "call_1"}, permission_mode=PermissionMode.PLAN)

    assert [] == session.tools.asked
    assert {"outcome": "selected", "optionId": "no"} == json.loads(told.content)


async def test_in_full_auto_no_person_is_asked(session: Session) -> None:
    await session.run({"ask": "call_1"}, permission_mode=PermissionMode.FULL_AUTO)

    assert [("call_1", False)] == session.tools.asked


async def test_a_question_about_a_call_that_has_no_name_is_denied(session: Session) -> None:
    told = await session.run({"ask": 7})

    assert [] == session.tools.asked
    assert {"outcome": "selected", "optionId": "no"} == json.loads(told.content)


async def test_an_interrupt_is_heard_while_a_person_is_asked(session: Session) -> None:
    session.tools.may_answer.clear()
    told = Told()
    run = asyncio.create_task(session.run({"ask": "call_1"}, told=told))
    await session.tools.has_been_asked.wait()

    await session.provider.interrupt("run_1")

    with pytest.raises(Cancelled):
        await run
    assert ['{"outcome": "cancelled"}'] == [message["content"] for message in told.of(EventType.MESSAGE_RECEIVED)]


async def test_a_question_that_the_agent_takes_back_is_answered_no_more(session: Session) -> None:
    session.tools.may_answer.clear()
    take_back = '{"jsonrpc": "2.0", "method": "$/cancel_request", "params": {"requestId": "q"}}'
    begun = await session.run({"say": "Hi."})
    assert begun.handle is not None
    call = {"toolCallId": "call_1", "rawInput": {"command": "ls"}}
    ask: dict[str, Any] = {"sessionId": begun.handle["session_id"], "toolCall": call, "options": []}
    question = json.dumps({"jsonrpc": "2.0", "id": "q", "method": "session/request_permission", "params": ask})

    told = await session.run({"line": question}, {"line": take_back}, {"say": "Done."}, conversation=begun.handle)

    assert "Done." == told.content


async def test_a_steering_message_is_the_next_prompt_of_the_same_run(session: Session) -> None:
    session.tools.may_answer.clear()
    run = asyncio.create_task(session.run({"ask": "call_1"}))
    await session.tools.has_been_asked.wait()

    is_delivered = await session.provider.steer("run_1", json.dumps([{"settings": True}]))
    session.tools.may_answer.set()

    told = await run
    assert not is_delivered
    assert 2 == json.loads(told.content)["prompts"]
    assert told.outcome is not None
    assert 10 == told.outcome.token_usage.total_tokens


async def test_a_run_that_goes_on_uses_the_session_that_the_agent_has(session: Session) -> None:
    begun = await session.run({"say": "Hi."})

    told = await session.run({"settings": True}, conversation=begun.handle)

    assert 2 == json.loads(told.content)["prompts"]
    assert begun.handle == told.handle


async def test_what_the_agent_tells_of_the_past_of_a_loaded_session_is_not_told_again(session: Session) -> None:
    told = await session.run({"say": "Now."}, conversation={"session_id": "known"})

    assert ["Now."] == [message["content"] for message in told.of(EventType.MESSAGE_RECEIVED)]


@pytest.mark.parametrize(
    ("loads", "handle"), [(True, {"session_id": "lost"}), (False, {"session_id": "known"}), (True, {"thread_id": "x"})]
)
async def test_a_conversation_that_is_not_there_is_refused_before_any_event(
    session: Session, loads: bool, handle: dict[str, str]
) -> None:
    session.abilities = {"loads": loads}
    told = Told()

    with pytest.raises(ProviderInvalidRequest) as refused:
        await session.run({"say": "Now."}, conversation=handle, told=told)

    assert "continuation" == refused.value.details["field"]
    assert [] == told.events


async def test_two_runs_in_one_conversation_come_one_after_the_other(session: Session) -> None:
    begun = await session.run({"say": "Hi."})
    session.tools.may_answer.clear()
    first = asyncio.create_task(session.run({"ask": "call_1"}, {"settings": True}, conversation=begun.handle))
    await session.tools.has_been_asked.wait()
    second = asyncio.create_task(session.run({"settings": True}, conversation=begun.handle))
    session.tools.may_answer.set()

    prompts = [json.loads(told.content[told.content.rindex("{") :])["prompts"] for told in (await first, await second)]

    assert [2, 3] == prompts


async def test_the_mode_of_a_session_is_set_anew_for_each_run(session: Session) -> None:
    session.abilities = {"name": CODEX, "modes": ["read-only", "agent", "agent-full-access"], "initial": "agent"}
    skips = PermissionMode.DANGEROUSLY_SKIP_PERMISSIONS

    first = await session.run({"settings": True}, permission_mode=skips)
    second = await session.run({"settings": True}, conversation=first.handle)

    assert ["agent-full-access", "read-only"] == [json.loads(told.content)["mode"] for told in (first, second)]


async def test_a_mode_that_the_agent_does_not_offer_is_refused(session: Session) -> None:
    session.abilities = {"modes": ["default", "yolo"], "initial": "default"}

    with pytest.raises(CapabilityNotSupported, match="default, yolo"):
        await session.run({"say": "Hi."}, permission_mode=PermissionMode.PLAN)


def test_an_agent_that_is_not_known_keeps_the_mode_that_it_began_in() -> None:
    choice = Choice("code", frozenset({"architect", "code"}), None)

    def name(mode: PermissionMode, given: dict[PermissionMode, str]) -> str | None:
        return mode_id(mode, choice, agent="some", given=given, initial="code")

    assert "code" == name(PermissionMode.DEFAULT, {})
    assert "architect" == name(PermissionMode.PLAN, {PermissionMode.PLAN: "architect"})
    with pytest.raises(CapabilityNotSupported):
        name(PermissionMode.PLAN, {})


async def test_a_model_is_chosen_where_the_agent_lets_one_choose(session: Session) -> None:
    with pytest.raises(CapabilityNotSupported):
        await session.run({"say": "Hi."}, model="large")
    session.abilities = {"models": True}

    told = await session.run({"settings": True}, model="large")

    assert "large" == json.loads(told.content)["model"]


async def test_mcp_servers_go_in_the_form_of_the_protocol_and_only_over_what_the_agent_takes(session: Session) -> None:
    servers = {
        "files": {"command": "mcp-files", "args": ["/"], "env": {"A": "b"}},
        "web": {"type": "http", "url": "http://127.0.0.1:1/", "headers": {"X": "y"}},
    }

    told = await session.run({"settings": True}, options={"mcp_servers": servers})

    assert [
        {"name": "files", "command": "mcp-files", "args": ["/"], "env": [{"name": "A", "value": "b"}]},
        {"type": "http", "name": "web", "url": "http://127.0.0.1:1/", "headers": [{"name": "X", "value": "y"}]},
    ] == json.loads(told.content)["mcp"]
    with pytest.raises(CapabilityNotSupported, match="sse"):
        await session.run(options={"mcp_servers": {"old": {"type": "sse", "url": "http://127.0.0.1:1/"}}})


async def test_a_denied_call_that_the_agent_made_without_asking_is_judged_after_the_fact(session: Session) -> None:
    session.tools.answer = DENIED

    await session.run({"call": "call_1"}, {"done": "call_1"}, policies=(policy("deny", "execute"),))

    assert [("call_1", False)] == session.tools.asked


async def test_a_call_that_a_policy_denies_is_judged_once_though_the_agent_asks_later(session: Session) -> None:
    session.tools.answer = DENIED

    told = await session.run({"call": "call_1"}, {"ask": "call_1"}, policies=(policy("deny", "execute"),))

    assert [("call_1", False)] == session.tools.asked
    assert {"outcome": "selected", "optionId": "no"} == json.loads(told.content)


async def test_a_call_that_wanted_a_person_asked_and_was_just_made_is_told_as_an_error(session: Session) -> None:
    told = await session.run({"call": "call_1"}, {"done": "call_1"}, policies=(policy("ask", "execute"),))

    assert ["policy_violation"] == [error["error_code"] for error in told.of(EventType.ERROR_OCCURRED)]
    assert [] == session.tools.asked


async def test_an_agent_that_wants_a_key_is_told_which_variable_has_it(session: Session) -> None:
    session.abilities = {"wants_key": True}

    with pytest.raises(ProviderAuthenticationFailed, match="Set AGENT_KEY"):
        await session.run({"say": "Hi."})
    told = await session.run({"say": "Hi."}, options={"env": {"AGENT_KEY": "sk-123456"}})

    assert "Hi." == told.content


async def test_secrets_are_left_out_of_what_the_agent_says_went_wrong(session: Session) -> None:
    error = {"code": -32603, "message": "status 429 for key sk-123456"}

    with pytest.raises(ProviderRateLimited) as failed:
        await session.run({"fail": error}, options={"env": {"AGENT_KEY": "sk-123456"}})

    assert "sk-123456" not in str(failed.value)


async def test_an_agent_of_another_version_of_the_protocol_is_refused(session: Session) -> None:
    session.abilities = {"version": 9}

    with pytest.raises(CapabilityNotSupported, match="version 9"):
        await session.run({"say": "Hi."})
    assert [] == session.pids()


async def test_an_agent_that_dies_fails_its_run_and_is_replaced(session: Session) -> None:
    with pytest.raises(ProviderUnavailable):
        await session.run({"say": "Hi."}, {"exit": 3})

    told = await session.run({"say": "Back."})

    assert "Back." == told.content


async def test_an_agent_that_does_not_stop_is_ended(session: Session) -> None:
    told = Told()
    run = asyncio.create_task(session.run({"say": "Hi."}, {"deaf": True}, told=told))
    await until(lambda: bool(told.events))

    run.cancel()
    async with asyncio.timeout(5):
        await asyncio.wait((run,))

    assert [] == session.pids()


async def test_an_agent_that_stops_when_it_is_told_to_stays(session: Session) -> None:
    told = Told()
    run = asyncio.create_task(session.run({"say": "Hi."}, {"hold": True}, told=told))
    await until(lambda: bool(told.events))

    run.cancel()
    await asyncio.wait((run,))

    after = await session.run({"settings": True}, conversation=told.handle)
    assert 2 == json.loads(after.content)["prompts"]


async def test_an_agent_stays_for_runs_that_go_on_and_for_no_others(session: Session) -> None:
    begun = await session.run({"say": "Hi."})
    kept = session.pids()

    await session.run({"say": "Hi."}, conversation=begun.handle, continues=False)

    assert 1 == len(kept)
    assert [] == session.pids()


async def test_a_conversation_keeps_the_system_prompt_that_it_began_with(session: Session) -> None:
    with pytest.raises(ProviderInvalidRequest) as refused:
        await session.run({"say": "Hi."}, conversation={"session_id": "known"}, system_prompt="Be terse.")

    assert "continuation" == refused.value.details["field"]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({}, "p.command"),
        ({"preset": "codex-acp", "config_options": {"mode": "agent"}}, "p.config_options.mode"),
        ({"preset": "gemini", "modes": {"full_auto": "yolo"}}, "p.modes.full_auto"),
        ({"command": "x", "mcp_servers": {"a": {"type": "http"}}}, "p.mcp_servers.a.url"),
        (
            {"command": "x", "meta": {"claudeCode": {"options": {"allowedTools": ["Bash"]}}}},
            "p.meta.claudeCode.options.allowedTools",
        ),
        ({"command": "x", "meta": {"claudeCode": {"options": 7}}}, "p.meta"),
    ],
)
def test_options_that_are_wrong_are_named(options: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        check_acp_options(options, field="p")

    assert field == refused.value.details["field"]


@pytest.mark.parametrize("options", [{"max_turns": 3}, {"tools": ["Bash"]}, {"extra": {"a": 1}}])
def test_options_that_the_protocol_has_nothing_for_are_not_supported(options: dict[str, Any]) -> None:
    with pytest.raises(CapabilityNotSupported):
        check_acp_options({"command": "x", **options}, field="p")


async def test_a_preset_whose_program_is_missing_names_the_command_that_installs_it(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(ProviderInvalidRequest, match="npm install -g @google/gemini-cli@") as refused:
        await session.run(options={"command": None, "preset": "gemini"})

    assert "command" == refused.value.details["field"]


async def test_an_agent_that_works_on_after_its_run_is_ended(session: Session) -> None:
    await session.run({"say": "Done."}, {"later": "And in the background..."})

    await until(lambda: session.pids() == [])


@pytest.mark.parametrize("question", [{}, {"toolCall": 7}, {"toolCall": {}}])
async def test_a_question_that_makes_no_sense_gets_an_answer(session: Session, question: dict[str, Any]) -> None:
    told = await session.run({"request": question})

    assert -32602 == json.loads(told.content)["error"]["code"]


async def test_an_answer_to_the_prompt_that_makes_no_sense_ends_the_run(session: Session) -> None:
    nonsense = {"stopReason": "end_turn", "usage": {"inputTokens": "many", "outputTokens": 1}}

    with pytest.raises(ProviderError, match="cannot be read"):
        async with asyncio.timeout(20):
            await session.run({"say": "Hi."}, {"answer": nonsense})


async def test_a_reader_that_fails_ends_the_run(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = AgentProcess.lines

    async def broken(self: AgentProcess) -> AsyncGenerator[Any]:
        async for line in whole(self):
            if "update" in str(line):
                raise OSError("The pipe is broken.")
            yield line

    monkeypatch.setattr(AgentProcess, "lines", broken)
    with pytest.raises(ProviderError, match="The pipe is broken"):
        async with asyncio.timeout(20):
            await session.run({"say": "Hi."})


@pytest.mark.parametrize("step", [{"exit": 3}, {"fail": {"code": -32002, "message": "Resource not found"}}])
async def test_a_conversation_that_nothing_was_said_in_is_not_kept(session: Session, step: Step) -> None:
    told = Told()

    with pytest.raises((ProviderUnavailable, ProviderInvalidRequest)):
        await session.run(step, told=told)

    assert told.handle is None


async def test_no_setting_of_the_agent_chooses_another_mode_than_the_run(session: Session) -> None:
    mood = {"id": "mood", "type": "select", "currentValue": "default", "options": [{"value": "yolo"}]}
    session.abilities = {"modes": ["default", "yolo"], "initial": "default", "options": [mood]}

    told = await session.run({"settings": True}, options={"config_options": {"mood": "yolo"}})

    assert "default" == json.loads(told.content)["mode"]
    session.abilities = {"options": [{**mood, "category": "mode"}]}
    with pytest.raises(CapabilityNotSupported, match="permission_mode"):
        await session.run({"say": "Hi."}, options={"config_options": {"mood": "yolo"}})


def test_no_mode_is_given_the_name_of_one_that_asks_for_nothing() -> None:
    choice = Choice("default", frozenset({"default", "bypassPermissions"}), None)
    given = {PermissionMode.PLAN: "bypassPermissions"}

    with pytest.raises(CapabilityNotSupported, match="asks for nothing"):
        mode_id(PermissionMode.PLAN, choice, agent="some", given=given, initial="default")


async def test_claude_and_opencode_leave_the_settings_of_the_working_directory_alone(session: Session) -> None:
    session.abilities = {"name": "@agentclientprotocol/claude-agent-acp", "modes": ["default"], "initial": "default"}
    meta = {"claudeCode": {"options": {"maxTurns": 3}}}

    told = await session.run({"settings": True}, options={"meta": meta})

    options = json.loads(told.content)["meta"]["claudeCode"]["options"]
    assert {"settingSources": ["user"], "maxTurns": 3} == options
    assert "1" == PRESETS["opencode"].environment["OPENCODE_DISABLE_PROJECT_CONFIG"]


@pytest.mark.parametrize("where", ["", ".."])
async def test_an_agent_that_reads_settings_where_it_works_is_refused_where_policies_hold(
    session: Session, where: str
) -> None:
    session.abilities = {"name": CODEX, "modes": ["read-only"], "initial": "read-only"}
    work = session.folder / "work"
    (work / where / ".codex").mkdir(parents=True)
    (work / where / ".codex" / "config.toml").touch()
    (work / where / ".git").mkdir()
    work.mkdir(exist_ok=True)
    options = {"cwd": str(work)}

    with pytest.raises(CapabilityNotSupported, match=r"config\.toml"):
        await session.run({"say": "Hi."}, options=options, policies=(policy("deny", "execute"),))
    with pytest.raises(CapabilityNotSupported, match=r"config\.toml"):
        await session.run({"say": "Hi."}, options=options, permission_mode=PermissionMode.PLAN)
    assert "Hi." == (await session.run({"say": "Hi."}, options=options)).content


def test_what_a_recording_says_of_a_session_belongs_to_the_prompt_of_that_session() -> None:
    def prompt(number: int, session_id: str) -> tuple[str, Any]:
        return "in", {"id": number, "method": "session/prompt", "params": {"sessionId": session_id}}

    def chunk(session_id: str, text: str) -> tuple[str, Any]:
        said = {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": text}}
        return "out", {"method": "session/update", "params": {"sessionId": session_id, "update": said}}

    end = {"result": {"stopReason": "end_turn"}}
    lines = [prompt(1, "a"), prompt(2, "b"), chunk("a", "Of a."), chunk("b", "Of b.")]
    lines += [("out", {"id": 1, **end}), ("out", {"id": 2, **end})]

    outcomes = [attempt.end() for attempt in replay(lines)]

    assert ["Of a.", "Of b."] == [end.content for end in outcomes if isinstance(end, ProviderOutcome)]
