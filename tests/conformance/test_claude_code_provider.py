"""What is special to Claude Code: steering, modes, one client for many runs, recordings."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from greenroom.adapters.providers.claude_code.provider import ClaudeCodeProvider
from greenroom.domain.errors import CapabilityNotSupported, ProviderInvalidRequest, ValidationError
from greenroom.domain.event import EventType
from greenroom.domain.provider import ProviderDeclaration
from greenroom.testing import answers
from greenroom.testing.conformance import API_KEY, NATIVE, Stage, check_run, types_of

from .provider_rigs import ClaudeCodeRig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[ClaudeCodeRig]:
    made = ClaudeCodeRig(tmp_path)
    made.start()
    yield made
    made.stop()


@asynccontextmanager
async def staged(rig: ClaudeCodeRig, **options: Any) -> AsyncGenerator[Stage]:
    """A session on Claude Code with these options too."""
    declared = ProviderDeclaration(name="cc", kind="claude-code", options={**rig.options(), **options})
    made = await Stage.open(rig, declared=declared)
    try:
        yield made
    finally:
        await made.aclose()


@pytest.fixture
async def stage(rig: ClaudeCodeRig) -> AsyncIterator[Stage]:
    async with staged(rig) as made:
        yield made


def pid_of(stage: Stage) -> int:
    """The client that a run uses."""
    (process,) = stage.live.state().processes
    return process["pid"]


async def test_a_message_in_the_middle_of_a_turn_is_heard_in_it(stage: Stage) -> None:
    gate = stage.rig.cwd / "gate"
    run_id = await stage.submit(stage.rig.call(f"until [ -e {gate} ]; do :; done"), permission_mode="full_auto")
    await stage.seen(run_id, EventType.TOOL_CALL_STARTED)

    receipt = await stage.live.steer_run(run_id, "Say it in French.", stage.call())
    gate.touch()
    await stage.live.await_run(run_id, 60)

    assert receipt.delivered
    assert "Say it in French." in stage.rig.heard()
    assert stage.rig.request_count == 2


async def test_a_message_that_comes_too_late_for_the_turn_has_one_of_its_own(stage: Stage) -> None:
    stage.rig.answer(answers.text("A long answer, bit by bit.", chunks=10, chunk_delay_s=0.05))
    stage.rig.answer(answers.text("Et en français."))
    run_id = await stage.submit(("Say something.", {}))
    await stage.seen(run_id, EventType.MESSAGE_STREAMED)

    receipt = await stage.live.steer_run(run_id, "Say it in French.", stage.call())
    result = await stage.live.await_run(run_id, 60)

    assert receipt.delivered
    assert result.output["content"] == "Et en français."
    assert result.token_usage["output_tokens"] == 24
    check_run(await stage.events(run_id))
    assert "Say it in French." in stage.rig.heard()


async def test_runs_that_go_on_with_a_conversation_share_one_client(stage: Stage) -> None:
    pids: list[int] = []
    for text in ("one", "two", "three"):
        stage.rig.answer(answers.text(text, chunks=3, chunk_delay_s=0.1))
        run_id = await stage.submit((text, NATIVE))
        await stage.seen(run_id, EventType.MESSAGE_STREAMED)
        pids.append(pid_of(stage))
        await stage.live.await_run(run_id, 60)

    assert len(set(pids)) == 1


async def test_in_plan_mode_nothing_is_changed_and_nobody_is_asked(stage: Stage, rig: ClaudeCodeRig) -> None:
    made = rig.cwd / "made.txt"
    run_id = await stage.submit(rig.write(made, "x"), permission_mode="plan")

    await stage.live.await_run(run_id, 60)

    assert not made.exists()
    types = types_of(await stage.events(run_id))
    assert "tool_approval_requested" not in types
    (failed,) = await stage.events(run_id, EventType.TOOL_CALL_FAILED)
    assert failed.data["outcome"] == "denied"


async def test_edits_are_accepted_where_that_is_the_mode_and_commands_still_ask(
    stage: Stage, rig: ClaudeCodeRig
) -> None:
    made = rig.cwd / "made.txt"
    await stage.run(rig.write(made, "x"), permission_mode="accept_edits")
    assert made.read_text() == "x"

    run_id = await stage.submit(
        stage.rig.call(f"touch {stage.rig.cwd}/a; touch /tmp/{os.getpid()}-b"), permission_mode="accept_edits"
    )
    asked = await stage.seen(run_id, EventType.TOOL_APPROVAL_REQUESTED)
    assert asked.data["tool_name"] == "Bash"
    await stage.cancel(run_id)


@pytest.mark.parametrize("mode", ["full_auto", "dangerously_skip_permissions"])
async def test_a_policy_holds_in_the_freest_mode(rig: ClaudeCodeRig, mode: str) -> None:
    made = rig.cwd / "made.txt"
    policy = {"name": "no shell", "tool_rules": [{"deny": ["Bash"]}], "on_violation": "warn"}
    async with staged(rig, env={**rig.options()["env"], "IS_SANDBOX": "1"}) as stage:
        run_id = await stage.submit(rig.call(f"touch {made}"), permission_mode=mode, policy=policy)
        await stage.live.await_run(run_id, 60)

        assert not made.exists()
        assert "policy_violation" in types_of(await stage.events(run_id))


async def test_root_may_not_skip_permissions_and_is_told_what_to_do(stage: Stage) -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT RUN: this is about root")
    error = await stage.error(stage.rig.text("x"), permission_mode="dangerously_skip_permissions")

    assert isinstance(error, ProviderInvalidRequest)
    assert "full_auto" in error.message


async def test_a_retry_of_the_client_is_an_event_and_not_the_end(stage: Stage) -> None:
    stage.rig.answer(answers.error(529))
    run_id = await stage.submit(stage.rig.text("Got over it."))

    result = await stage.live.await_run(run_id, 60)

    assert result.output["content"] == "Got over it."
    (retried,) = await stage.events(run_id, EventType.ERROR_OCCURRED)
    assert retried.data["error_code"] == "provider_overloaded"


async def test_what_was_recorded_plays_again_without_the_client_and_holds_no_secret(
    rig: ClaudeCodeRig, tmp_path: Path
) -> None:
    folder = tmp_path / "recordings"
    async with staged(rig, record=str(folder)) as stage:
        run_id = await stage.submit(rig.call(f"echo {API_KEY}; echo seen"), permission_mode="full_auto")
        first = await stage.live.await_run(run_id, 60)
        recorded = types_of(await stage.events(run_id))

    options = {"client": "claude-code", "recording": str(folder)}
    again = await Stage.open(rig, declared=ProviderDeclaration(name="again", kind="replay", options=options))
    again_id = await again.submit(("Do something.", {}))
    second = await again.live.await_run(again_id, 60)

    assert second.output == first.output
    assert second.token_usage == first.token_usage
    assert types_of(await again.events(again_id)) == recorded
    (file,) = folder.iterdir()
    assert API_KEY not in file.read_text()
    assert str(rig.home) not in file.read_text()
    await again.aclose()


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"cwd": ""}, "options.cwd"),
        ({"env": {"A=B": "c"}}, "options.env"),
        ({"pass_env": ["A=B"]}, "options.pass_env"),
        ({"command": []}, "options.command"),
        ({"max_turns": 0}, "options.max_turns"),
        ({"extra": {"permission_mode": "plan"}}, "options.extra.permission_mode"),
        ({"extra": {"extra_args": {"permission-mode": "bypassPermissions"}}}, "options.extra.extra_args"),
        ({"extra": {"max_budget": 1}}, "options.extra.max_budget"),
        ({"extra": {"max_budget_usd": "much"}}, "options.extra.max_budget_usd"),
        ({"mcp_server": {}}, "options.mcp_server"),
    ],
)
def test_options_that_are_no_good_are_refused_by_name(options: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ClaudeCodeProvider.check_options(options, field="options")

    assert caught.value.details["field"] == field


def test_a_missing_sdk_gives_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_found(name: str) -> None:
        return None

    monkeypatch.setattr("importlib.util.find_spec", nothing_found)

    with pytest.raises(CapabilityNotSupported) as caught:
        ClaudeCodeProvider.check_options({}, field="options")

    assert "pip install 'greenroom[claude-code]'" in caught.value.message


async def test_a_program_that_is_not_there_is_named(rig: ClaudeCodeRig) -> None:
    async with staged(rig, command="/no/such/claude") as stage:
        error = await stage.error(("x", {}))

    assert "/no/such/claude" in error.message


async def test_system_prompt_model_and_tools_reach_the_model(rig: ClaudeCodeRig) -> None:
    given = {"model": "claude-haiku-5", "system_prompt": "You are a parrot.", "tools": ["Read"]}
    async with staged(rig, **given) as stage:
        result = await stage.run(rig.text("Polly."))

    assert rig.server is not None
    body = rig.server.requests[-1].body
    assert "You are a parrot." in json.dumps(body["system"])
    assert "Read" in [tool["name"] for tool in body["tools"]]
    assert "Bash" not in [tool["name"] for tool in body["tools"]]
    assert body["model"] == result.model == "claude-haiku-5"


async def test_an_environment_is_scrubbed_but_for_what_is_passed(
    rig: ClaudeCodeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_SECRET", "hidden")
    monkeypatch.setenv("RAY_SOMETHING", "hidden")
    monkeypatch.setenv("SOME_SETTING", "shown")
    async with staged(rig, pass_env=["SOME_SETTING"]) as stage:
        run_id = await stage.submit(rig.call("env"), permission_mode="full_auto")
        await stage.live.await_run(run_id, 60)
        (completed,) = await stage.events(run_id, EventType.TOOL_CALL_COMPLETED)

    assert "SOME_SETTING=shown" in completed.data["tool_output"]
    assert "SOME_SECRET" not in completed.data["tool_output"]
    assert "RAY_" not in completed.data["tool_output"]


async def test_a_client_that_died_between_runs_is_replaced(stage: Stage) -> None:
    stage.rig.answer(answers.text("one", chunks=3, chunk_delay_s=0.1))
    run_id = await stage.submit(("one", NATIVE))
    await stage.seen(run_id, EventType.MESSAGE_STREAMED)
    pid = pid_of(stage)
    await stage.live.await_run(run_id, 60)
    os.kill(pid, 9)
    async with asyncio.timeout(10):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.01)
    stage.rig.answer(answers.text("two"))

    result = await stage.run(("two", NATIVE))

    assert result.output["content"] == "two"
    assert "one" in stage.rig.heard()


async def test_what_a_subagent_does_is_over_before_the_run_is(stage: Stage, rig: ClaudeCodeRig) -> None:
    made = rig.cwd / "made.txt"
    task = {"description": "Make it", "prompt": "Make a file.", "subagent_type": "general-purpose"}
    rig.answer(answers.tool_use("Agent", task))
    rig.answer(answers.tool_use("Bash", {"command": f"touch {made}"}))
    rig.answer(answers.text("I made it."))
    rig.answer(answers.text("It is made."))

    run_id = await stage.submit(("Have it made.", {}), permission_mode="full_auto")
    result = await stage.live.await_run(run_id, 60)

    assert made.exists()
    assert result.output["content"] == "It is made."
    calls = await stage.events(run_id, EventType.TOOL_CALL_COMPLETED)
    assert [call.data["tool_name"] for call in calls] == ["Bash", "Agent"]
    assert calls[0].metadata["parent_tool_call_id"] == calls[1].data["tool_call_id"]
    assert rig.request_count == 4


async def test_a_message_that_was_not_heard_before_a_cancel_is_never_answered(stage: Stage, rig: ClaudeCodeRig) -> None:
    run_id = await stage.submit((rig.stall("Half a ")[0], NATIVE))
    await stage.seen(run_id, EventType.MESSAGE_STREAMED)
    await stage.live.steer_run(run_id, "STEERED", stage.call())
    await stage.cancel(run_id)
    rig.always(answers.text("Next."))

    next_id = await stage.submit(("Go on.", NATIVE))
    await stage.live.await_run(next_id, 60)

    received = [event.data["content"] for event in await stage.events(next_id, EventType.MESSAGE_RECEIVED)]
    assert received == ["Next."]
    assert rig.request_count == 2


async def test_what_a_command_leaves_in_the_background_ends_with_the_run(stage: Stage, rig: ClaudeCodeRig) -> None:
    pid_file = rig.cwd / "pid"
    prompt, _ = rig.call(f"tail -f /dev/null > /dev/null 2>&1 & echo $! > {pid_file}")

    await stage.run((prompt, NATIVE), permission_mode="full_auto")

    pid = int(pid_file.read_text())
    async with asyncio.timeout(5):
        while rig.is_alive(pid, pid_file):
            await asyncio.sleep(0.02)


async def test_settings_of_the_working_directory_run_nothing(stage: Stage, rig: ClaudeCodeRig) -> None:
    ran = rig.cwd / "ran.txt"
    hook = {"hooks": {"SessionStart": [{"hooks": [{"type": "command", "command": f"touch {ran}"}]}]}}
    (rig.cwd / ".claude").mkdir()
    (rig.cwd / ".claude" / "settings.json").write_text(json.dumps(hook))

    await stage.run(rig.text("Hello."))

    assert not ran.exists()


async def test_keys_of_mcp_servers_are_on_no_command_line_and_in_no_recording(
    rig: ClaudeCodeRig, tmp_path: Path
) -> None:
    key = "mcp-key-not-to-be-seen"
    server = {"type": "http", "url": "http://127.0.0.1:9/mcp", "headers": {"Authorization": key}}
    folder = tmp_path / "recordings"
    seen: list[str] = []
    async with staged(rig, mcp_servers={"a": server}, record=str(folder)) as stage:
        run_id = await stage.submit(rig.stall("Half a "))
        await stage.seen(run_id, EventType.MESSAGE_STREAMED)
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                seen += process.cmdline()
        await stage.cancel(run_id)

    assert any("--mcp-config" in argument for argument in seen)
    assert key not in "".join(seen)
    assert key not in "".join(path.read_text() for path in folder.iterdir())
    assert list((rig.home / ".greenroom-mcp").iterdir()) == []


async def test_a_key_that_a_command_prints_is_masked_in_the_events(stage: Stage, rig: ClaudeCodeRig) -> None:
    run_id = await stage.submit(rig.call("echo $ANTHROPIC_API_KEY"), permission_mode="full_auto")
    await stage.live.await_run(run_id, 60)

    (completed,) = await stage.events(run_id, EventType.TOOL_CALL_COMPLETED)
    assert completed.data["tool_output"] == "***"
