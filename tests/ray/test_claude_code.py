"""A real Claude Code under the whole runtime: files, approvals from elsewhere, hibernation, no secret left lying."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

import greenroom
from greenroom import EventType, Runtime
from greenroom.testing import MessagesServer, answers
from tests.conftest import API_KEY
from tests.waiting import wait_until

from .processes import actor_rows

IDENTITY = ("-c", "user.name=t", "-c", "user.email=t@t")

DECIDE = """
import sys
import ray
import greenroom

runtime = greenroom.start(data_dir=sys.argv[1])
session = runtime.get_session(sys.argv[2])
ray.get(session.decide_approval.remote(sys.argv[3], "approve", "looks harmless"))
"""


@pytest.fixture
def messages_server() -> Iterator[MessagesServer]:
    with MessagesServer() as server:
        yield server


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with one file."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "greeting.txt").write_text("Hello.\n")
    for command in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "one"],
    ):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    return folder


@pytest.fixture(scope="module")
def sleepy(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """A runtime whose sessions leave their servers soon."""
    runtime = greenroom.start(data_dir=tmp_path_factory.mktemp("sleepy"), idle_after_s=0.3, warm_pool=1)
    yield runtime
    runtime.shutdown()


@pytest.fixture
def coder(sleepy: Runtime, messages_server: MessagesServer, repository: Path) -> Runtime:
    """The runtime, with Claude Code as provider `coder` in the repository."""
    env = {"ANTHROPIC_BASE_URL": messages_server.url, "ANTHROPIC_API_KEY": API_KEY}
    declared = {"coder": {"kind": "claude-code", "cwd": str(repository), "env": env}}
    return greenroom.start(data_dir=sleepy.data_dir, providers=declared)


def test_it_edits_a_file_asks_before_a_command_sleeps_and_goes_on_natively(
    coder: Runtime, messages_server: MessagesServer, repository: Path
) -> None:
    greeting = repository / "greeting.txt"
    messages_server.answers += [
        answers.tool_use("Read", {"file_path": str(greeting)}),
        answers.tool_use("Edit", {"file_path": str(greeting), "old_string": "Hello.", "new_string": "Good day."}),
        answers.tool_use("Bash", {"command": f"git {' '.join(IDENTITY)} commit -qam politer && git log"}),
        answers.text("It is politer now."),
    ]
    session = coder.open_session(
        provider="coder", run_defaults={"continuation": "native", "permission_mode": "accept_edits"}
    )

    run_id = ray.get(session.submit_run.remote("Make the greeting politer."))
    (asked,) = wait_until(
        lambda: ray.get(session.status.remote()).pending_approvals, what="it asks before the command", patience_s=60
    )
    assert greeting.read_text() == "Good day.\n"
    assert asked["tool_name"] == "Bash"
    subprocess.run(
        [sys.executable, "-c", DECIDE, coder.data_dir, session.session_id, asked["id"]], check=True, timeout=60
    )
    result = ray.get(session.await_run.remote(run_id, timeout_s=60))

    assert result.output["content"] == "It is politer now."
    log = subprocess.run(["git", "-C", str(repository), "log", "--oneline"], check=True, capture_output=True, text=True)
    assert len(log.stdout.splitlines()) == 2
    wait_until(
        lambda: not actor_rows(coder, "SessionServer", session.session_id), what="the session has left its server"
    )

    messages_server.answers.append(answers.text("I made it politer."))
    later = ray.get(session.execute_run.remote("What did you do?"))

    assert later.output["content"] == "I made it politer."
    said = str(messages_server.requests[-1].body["messages"])
    assert "Make the greeting politer." in said
    assert "What was said in this session before" not in said
    assert ray.get(session.status.remote()).epoch > 1
    types = [event.type for event in session.follow(run_id=run_id)]
    assert types.count(EventType.TOOL_APPROVAL_GRANTED) == 1
    assert (types.count(EventType.TOOL_CALL_STARTED), types.count(EventType.TOOL_CALL_COMPLETED)) == (3, 3)


def test_a_deleted_session_leaves_no_home_and_no_secret_is_in_any_file(
    coder: Runtime, messages_server: MessagesServer
) -> None:
    messages_server.answers.append(answers.text("Hello."))
    session = coder.open_session(provider="coder")
    ray.get(session.execute_run.remote("Hi"))
    home = Path(coder.data_dir) / "homes" / session.session_id
    assert home.is_dir()
    events = str(list(session.follow(follow=False)))

    coder.delete_session(session.session_id)

    assert not home.exists()
    assert API_KEY not in events
    assert API_KEY not in repr(coder.providers())


def test_a_session_tells_its_transcript(coder: Runtime, messages_server: MessagesServer) -> None:
    messages_server.answers.append(answers.text("Hello."))
    session = coder.open_session(provider="coder")
    ray.get(session.execute_run.remote("Hi"))

    transcript = ray.get(session.transcript.remote())

    assert [(message["role"], message["content"]) for message in transcript] == [
        ("user", "Hi"),
        ("assistant", "Hello."),
    ]
