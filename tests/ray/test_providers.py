"""Real providers through real sessions: the anthropic SDK against a loopback Messages API, and local commands."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import ray

import greenroom
from greenroom import EventType, Runtime
from greenroom.testing import MessagesServer, answers
from tests.conftest import API_KEY, API_KEY_VARIABLE
from tests.ray.processes import kill_9
from tests.waiting import wait_until


@pytest.fixture
def messages_server() -> Iterator[MessagesServer]:
    with MessagesServer() as server:
        yield server


@pytest.fixture
def claude(runtime: Runtime, messages_server: MessagesServer) -> Runtime:
    """The runtime, with `claude` pointed at the loopback server."""
    declared = {"claude": {"kind": "anthropic", "base_url": messages_server.url, "api_key_env": API_KEY_VARIABLE}}
    return greenroom.start(data_dir=runtime.data_dir, providers=declared)


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def test_the_ten_lines_of_the_contract_work_with_claude(claude: Runtime, messages_server: MessagesServer) -> None:
    messages_server.answers.append(answers.text("Hello yourself."))
    session = claude.open_session(
        agent_id="reviewer", provider="claude", context={"system_prompt": "You are terse."}, max_concurrent_runs=2
    )
    run_id = ray.get(session.submit_run.remote({"messages": [{"role": "user", "content": "Hello!"}]}))

    result = ray.get(session.await_run.remote(run_id, timeout_s=120))

    assert result.output["content"] == "Hello yourself."
    assert result.token_usage["output_tokens"] > 0
    (request,) = messages_server.requests
    assert request.body["messages"][-1]["role"] == "user"
    assert "You are terse." in str(request.body["system"])


def test_tools_that_a_user_registers_are_called_in_the_loop(claude: Runtime, messages_server: MessagesServer) -> None:
    messages_server.answers += [answers.tool_use("add", {"a": 2, "b": 3}), answers.text("It is 5.")]
    session = claude.open_session(provider="claude", tools=[add])

    result = ray.get(session.execute_run.remote("2 + 3?"))
    calls = list(session.follow(run_id=result.run_id, types=["tool_call_started", "tool_call_completed"]))

    assert result.output["content"] == "It is 5."
    assert [call.data["tool_name"] for call in calls] == ["add", "add"]
    assert calls[1].data["tool_output"] == 5


def test_a_provider_error_is_typed_and_says_when_to_come_back(claude: Runtime, messages_server: MessagesServer) -> None:
    messages_server.answers.append(answers.error(429, "rate_limit_error", "slow down", retry_after=3))
    session = claude.open_session(provider="claude")

    with pytest.raises(greenroom.ProviderRateLimited) as caught:
        ray.get(session.execute_run.remote("x"))

    assert caught.value.details["retry_after_s"] == 3


def test_no_secret_reaches_events_errors_or_the_files(claude: Runtime, messages_server: MessagesServer) -> None:
    messages_server.answers.append(answers.error(401, "authentication_error", f"invalid x-api-key {API_KEY}"))
    session = claude.open_session(provider="claude")

    with pytest.raises(greenroom.ProviderAuthenticationFailed) as caught:
        ray.get(session.execute_run.remote("x"))
    events = list(session.follow(follow=False))

    assert API_KEY not in str(caught.value)
    assert API_KEY not in repr(caught.value.provider_error)
    assert API_KEY not in repr(events)
    for path in Path(claude.data_dir).iterdir():
        if path.is_file():
            assert API_KEY.encode() not in path.read_bytes()


def test_a_missing_key_names_the_variable(runtime: Runtime) -> None:
    declared = {"keyless": {"kind": "anthropic", "api_key_env": "NO_SUCH_VARIABLE_HERE"}}
    session = greenroom.start(data_dir=runtime.data_dir, providers=declared).open_session(provider="keyless")

    with pytest.raises(greenroom.ProviderAuthenticationFailed, match="NO_SUCH_VARIABLE_HERE"):
        ray.get(session.execute_run.remote("x"))


def test_an_unknown_kind_is_refused_when_it_is_declared(runtime: Runtime) -> None:
    with pytest.raises(greenroom.ValidationError, match="did you mean 'shell'"):
        greenroom.start(data_dir=runtime.data_dir, providers={"x": {"kind": "shel"}})


def test_a_command_streams_and_its_exit_status_decides(runtime: Runtime) -> None:
    session = runtime.open_session(provider="shell")
    good = ray.get(session.execute_run.remote("echo one; echo two"))

    with pytest.raises(greenroom.ProviderError) as caught:
        ray.get(session.execute_run.remote("echo three; exit 3"))

    assert good.output["content"] == "one\ntwo\n"
    assert caught.value.details["exit_status"] == 3
    streamed = [event.data["content"] for event in session.follow(types=["message_streamed"], follow=False)]
    assert "".join(streamed) == "one\ntwo\nthree\n"


def test_a_cancelled_command_leaves_no_process(runtime: Runtime, tmp_path: Path) -> None:
    session = runtime.open_session(provider="shell")
    marker = tmp_path / "pid"
    run_id = ray.get(session.submit_run.remote(f"echo $$ > {marker}; tail -f /dev/null"))
    pid = int(wait_until(lambda: marker.exists() and marker.read_text().strip(), what="the command runs"))

    assert ray.get(session.cancel_run.remote(run_id))

    wait_until(lambda: not psutil.pid_exists(pid), what="the process is gone", patience_s=15)
    ended = [event.type for event in session.follow(run_id=run_id, types=["run_cancelled", "run_failed"])]
    assert ended == [EventType.RUN_CANCELLED]


def tool_call_of(session: greenroom.SessionHandle, tool: str, **arguments: object) -> greenroom.Event:
    """The event that ends a call of the tool, made by a script."""
    options = {"provider_options": {"tool_calls": [{"name": tool, "input": arguments}]}}
    result = ray.get(session.execute_run.remote("x", options))
    (call,) = session.follow(run_id=result.run_id, types=["tool_call_completed", "tool_call_failed"])
    return call


def test_tools_are_there_again_after_the_session_has_moved_to_another_process(runtime: Runtime) -> None:
    session = runtime.open_session(tools=["tests.ray.test_providers:add", lambda_tool()])
    kill_9(runtime, "SessionServer", session.session_id)

    assert tool_call_of(session, "add", a=1, b=2).data["tool_output"] == 3
    assert tool_call_of(session, "greet", name="you").data["tool_output"] == "hello you"


def lambda_tool() -> Callable[[str], str]:
    """A tool that no import finds: it travels by pickle."""
    greeting = "hello"

    def greet(name: str) -> str:
        """Greet somebody."""
        return f"{greeting} {name}"

    return greet


def test_a_tool_that_cannot_be_restored_answers_tool_not_found(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tools_of_this_process_only.py").write_text('def lost(x: int) -> int:\n    """Lost."""\n    return x\n')
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    session = runtime.open_session(tools=["tools_of_this_process_only:lost"])

    call = tool_call_of(session, "lost", x=1)

    assert call.type is EventType.TOOL_CALL_FAILED
    assert call.data["error"]["code"] == "tool_not_found"
