"""The shell provider: what it streams, how it ends, and that nothing of it is left behind."""

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from greenroom.adapters.providers.shell import ShellProvider
from greenroom.domain.errors import (
    CapabilityNotSupported,
    ProviderError,
    ProviderInvalidRequest,
    RunNotFound,
    ValidationError,
)
from greenroom.domain.event import EventType
from greenroom.domain.provider import ProviderEvent, ProviderOutcome, ProviderRequest
from greenroom.domain.run_input import Message, Role
from greenroom.domain.tool import ToolResult, ToolSpec

RUN_ID = "run_1"
GONE_WITHIN_S = 5.0

DAEMONS = """
tail -f /dev/null & echo $!
setsid tail -f /dev/null & echo $!
nohup setsid sh -c 'trap "" TERM HUP; while :; do tail -f /dev/null; done' & echo $!
setsid sh -c '(setsid tail -f /dev/null & echo $!)'
"""
"""Prints the pids of four background processes, each further out of reach."""


class NoTools:
    def specs(self) -> tuple[ToolSpec, ...]:
        return ()

    async def permit(
        self, name: str, arguments: dict[str, Any], call_id: str, *, asks: bool = False
    ) -> ToolResult | None:
        return None

    async def invoke(self, name: str, arguments: dict[str, Any], call_id: str) -> ToolResult:
        raise NotImplementedError


class Recording:
    """Everything that one attempt gave."""

    def __init__(self) -> None:
        self.events: list[ProviderEvent] = []
        self.outcome: ProviderOutcome | None = None

    def streamed(self, stream: str) -> list[str]:
        return [
            event.data["content"]
            for event in self.events
            if event.type is EventType.MESSAGE_STREAMED and event.data["stream"] == stream
        ]

    @property
    def message(self) -> dict[str, Any]:
        (message,) = [event.data for event in self.events if event.type is EventType.MESSAGE_RECEIVED]
        return message

    @property
    def pids(self) -> list[int]:
        """The pids that the command has printed, a line each."""
        printed = "".join(self.streamed("stdout"))
        return [int(line) for line in printed.split("\n")[:-1] if line.isdigit()]

    async def play(self, provider: ShellProvider, command: str, options: Mapping[str, Any] | None = None) -> None:
        async with contextlib.aclosing(provider.execute(request(command, options))) as attempt:
            async for item in attempt:
                if isinstance(item, ProviderOutcome):
                    self.outcome = item
                else:
                    self.events.append(item)


def request(command: str, options: Mapping[str, Any] | None = None) -> ProviderRequest:
    return ProviderRequest(
        session_id="ses_1",
        run_id=RUN_ID,
        attempt=1,
        run_number=1,
        messages=(Message(Role.USER, "not this one"), Message(Role.USER, command)),
        system_prompt=None,
        model=None,
        max_turns=None,
        options=options or {},
        tools=NoTools(),
    )


async def run(command: str, options: Mapping[str, Any] | None = None) -> Recording:
    recording = Recording()
    await recording.play(ShellProvider("shell"), command, options)
    return recording


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def started(
    command: str, options: Mapping[str, Any] | None = None, *, pids: int = 1
) -> tuple[ShellProvider, Recording, "asyncio.Task[None]"]:
    """A command under way that has printed that many pids."""
    provider, recording = ShellProvider("shell"), Recording()
    task = asyncio.create_task(recording.play(provider, command, options))
    await until(lambda: len(recording.pids) >= pids or task.done())
    return provider, recording, task


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if is_alive(pid)]


async def test_stdout_and_stderr_are_streamed_in_order_and_repeated_whole_at_the_end() -> None:
    recording = await run("echo one; echo oops >&2; echo two; echo again >&2")

    assert "".join(recording.streamed("stdout")) == "one\ntwo\n"
    assert "".join(recording.streamed("stderr")) == "oops\nagain\n"
    assert recording.events[-1].data == {
        "role": "assistant",
        "content": "one\ntwo\n",
        "kind": "text",
        "stderr": "oops\nagain\n",
        "exit_status": 0,
        "truncated": False,
        "dropped_bytes": 0,
    }
    assert recording.outcome is not None
    assert recording.outcome.content == "one\ntwo\n"
    assert recording.outcome.stop_reason == "exit_0"
    assert recording.outcome.metadata["exit_status"] == 0


async def test_output_arrives_while_the_command_is_still_running() -> None:
    _, recording, task = await started("echo $$; exec tail -f /dev/null")

    assert is_alive(recording.pids[0])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_chatty_command_gives_few_events() -> None:
    recording = await run("i=0; while [ $i -lt 3000 ]; do echo line; i=$((i+1)); done")

    assert recording.message["content"] == "line\n" * 3000
    assert len(recording.events) < 300


async def test_another_exit_status_is_a_provider_error_that_names_it_and_the_last_line_of_stderr() -> None:
    recording = Recording()

    with pytest.raises(ProviderError) as caught:
        await recording.play(ShellProvider("shell"), "echo part; echo first >&2; echo broken pipework >&2; exit 3")

    assert caught.value.details["exit_status"] == 3
    assert "exit status 3" in caught.value.message
    assert caught.value.message.endswith("broken pipework")
    assert recording.message["exit_status"] == 3
    assert recording.message["content"] == "part\n"
    assert recording.outcome is None


async def test_a_command_killed_by_a_signal_is_a_provider_error_that_names_the_signal() -> None:
    with pytest.raises(ProviderError) as caught:
        await run("kill -SEGV $$")

    assert caught.value.details["exit_status"] == -signal.SIGSEGV
    assert caught.value.details["signal"] == "SIGSEGV"


async def test_cancelling_kills_the_whole_tree_daemons_too() -> None:
    _, recording, task = await started(f"{DAEMONS}\necho $$; exec tail -f /dev/null", pids=5)
    assert alive(recording.pids) == recording.pids

    begun = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert time.monotonic() - begun < GONE_WITHIN_S
    assert alive(recording.pids) == []


async def test_cancelling_twice_leaves_no_orphans() -> None:
    stubborn = "trap '' TERM; echo $$; while :; do tail -f /dev/null; done"
    _, recording, task = await started(stubborn)

    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    async with asyncio.timeout(GONE_WITHIN_S):
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))  # the end goes on by itself
    assert alive(recording.pids) == []


async def test_cancelling_while_the_command_is_being_started_leaves_nothing() -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    for turns in range(12):
        task = asyncio.create_task(Recording().play(ShellProvider("shell"), "exec tail -f /dev/null"))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert {child.pid for child in psutil.Process().children(recursive=True)} == before


async def test_closing_the_iterator_early_kills_the_tree() -> None:
    attempt = ShellProvider("shell").execute(request("echo $$; exec tail -f /dev/null"))
    first = await anext(attempt)
    assert isinstance(first, ProviderEvent)

    await attempt.aclose()

    assert not is_alive(int(first.data["content"]))


async def test_background_processes_end_with_the_command() -> None:
    recording = await run(DAEMONS)

    assert len(recording.pids) == 4
    assert alive(recording.pids) == []


@pytest.mark.parametrize("signal_name", ["KILL", "STOP"])
async def test_a_command_that_attacks_its_supervisor_leaves_nothing_either(signal_name: str) -> None:
    provider, recording, task = await started(
        f"trap 'kill -{signal_name} $PPID; echo $$' INT; setsid tail -f /dev/null & echo $!\n"
        "while :; do sleep 0.05; done"
    )
    await provider.interrupt(RUN_ID)
    await until(lambda: len(recording.pids) == 2 or task.done())

    begun = time.monotonic()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, ProviderError):
        await task

    assert time.monotonic() - begun < GONE_WITHIN_S
    assert alive(recording.pids) == []


async def test_the_environment_is_scrubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    monkeypatch.setenv("RAY_ADDRESS", "ray-secret")

    recording = await run("env; tr '\\0' '\\n' < /proc/$PPID/environ", {"env": {"GREETING": "grüß dich"}})

    assert "secret" not in recording.message["content"]
    assert "GREETING=grüß dich\n" in recording.message["content"]
    assert "PATH=" in recording.message["content"]


async def test_output_beyond_the_cap_is_dropped_and_counted_while_the_command_goes_on() -> None:
    recording = await run("head -c 3000000 /dev/zero | tr '\\0' a; echo end >&2", {"max_output_bytes": 1000})

    assert recording.message["content"] == "a" * 1000
    assert recording.message["stderr"] == "end\n"
    assert recording.message["truncated"] is True
    assert recording.message["dropped_bytes"] == 2_999_000
    assert "".join(recording.streamed("stdout")) == "a" * 1000


async def test_a_character_that_the_cap_would_cut_is_dropped_whole() -> None:
    recording = await run("printf 'aé'; printf 'é'", {"max_output_bytes": 2})

    assert recording.message["content"] == "a"
    assert recording.message["dropped_bytes"] == 4


async def test_characters_split_across_reads_survive_and_invalid_bytes_are_replaced() -> None:
    recording = await run(r"printf '\303'; sleep 0.1; printf '\251 \377 \342\202'")

    assert recording.message["content"] == "é \ufffd \ufffd"
    assert "".join(recording.streamed("stdout")) == "é \ufffd \ufffd"


async def test_a_consumer_that_does_not_read_makes_the_command_wait(tmp_path: Path) -> None:
    count = tmp_path / "count"
    command = f"i=0; while :; do head -c 65536 /dev/zero; i=$((i+1)); echo $i > {count}; done"
    attempt = ShellProvider("shell").execute(request(command, {"max_output_bytes": 100_000_000}))
    await anext(attempt)

    written = -1
    async with asyncio.timeout(10):
        while written != (written := int((count.read_text() if count.exists() else "") or 0)) or written == 0:
            await asyncio.sleep(0.2)
    await attempt.aclose()

    assert written * 65536 < 1_000_000


async def test_interrupting_sends_sigint_to_the_group() -> None:
    provider, recording, task = await started("trap 'echo stopping; exit 7' INT; echo $$; while :; do sleep 0.05; done")

    await provider.interrupt(RUN_ID)
    with pytest.raises(ProviderError) as caught:
        await task

    assert caught.value.details["exit_status"] == 7
    assert recording.message["content"].endswith("stopping\n")


async def test_interrupting_before_the_command_runs_is_not_lost() -> None:
    provider = ShellProvider("shell")
    task = asyncio.create_task(Recording().play(provider, "exec tail -f /dev/null"))
    await asyncio.sleep(0)

    await provider.interrupt(RUN_ID)
    with pytest.raises(ProviderError) as caught:
        await task

    assert caught.value.details["signal"] == "SIGINT"


async def test_interrupting_a_run_that_is_not_there_and_steering_are_refused() -> None:
    provider = ShellProvider("shell")

    with pytest.raises(RunNotFound):
        await provider.interrupt("run_unknown")
    with pytest.raises(CapabilityNotSupported):
        await provider.steer(RUN_ID, "left")


@pytest.mark.parametrize(
    ("command", "options", "at_fault"),
    [
        ("true", {"cwd": "/no/such/directory"}, "cwd"),
        ("true", {"shell": "/no/such/shell"}, "shell"),
        ("true " + "x" * 200_000, {}, "input"),
        ("echo \0", {}, "input"),
    ],
)
async def test_a_command_that_cannot_start_names_the_field(
    command: str, options: dict[str, Any], at_fault: str
) -> None:
    with pytest.raises(ProviderInvalidRequest) as caught:
        await run(command, options)

    assert caught.value.details["field"] == at_fault


@pytest.mark.parametrize(
    ("options", "at_fault"),
    [
        ({"max_output_bytes": -1}, "providers.sh.max_output_bytes"),
        ({"env": {"A=B": "c"}}, "providers.sh.env"),
        ({"shell": ""}, "providers.sh.shell"),
        ({"cwd": ""}, "providers.sh.cwd"),
        ({"directory": "/"}, "providers.sh.directory"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], at_fault: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ShellProvider.check_options(options, field="providers.sh")

    assert caught.value.details["field"] == at_fault


async def test_shell_and_working_directory_can_be_chosen(tmp_path: Path) -> None:
    recording = await run("pwd; echo $BASH", {"cwd": str(tmp_path), "shell": "/bin/bash"})

    assert recording.message["content"] == f"{tmp_path}\n/bin/bash\n"


async def test_many_commands_run_at_once() -> None:
    recordings = await asyncio.gather(*(run(f"echo {number}; cat") for number in range(20)))

    assert [recording.message["content"] for recording in recordings] == [f"{number}\n" for number in range(20)]


@pytest.mark.parametrize("new_event_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_any_event_loop_in_any_thread_will_do(new_event_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    results: list[Any] = []

    async def play() -> None:
        results.append((await run("seq 1 20000; echo err >&2")).message["content"].count("\n"))
        _, recording, task = await started(f"{DAEMONS}\nexec tail -f /dev/null", pids=4)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        results.append(alive(recording.pids))

    def in_thread() -> None:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(play())

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join(30)

    assert results == [20000, []]
