"""`greenroom serve` as users run it, under load, while processes of it are killed."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

import greenroom
from greenroom.adapters.key_file import KeyFile
from greenroom.domain.api_key import Scope
from tests.waiting import wait_until

CLIENTS, SESSIONS, CHUNKS = 50, 200, 20
START_S = 90.0

CONFIG = """
warm_pool = 2
sessions_per_actor = 25
lease_s = 3
[http]
provider_options = ["chunks", "chunk_delay_s", "reply"]
drain_s = 5
"""

STREAMED = {
    "on_crash": "retry",
    "max_attempts": 10,
    "provider_options": {"chunks": CHUNKS, "chunk_delay_s": 0.01, "reply": "x" * 200},
}


def folders_of_ingress() -> set[Path]:
    return set(Path("/tmp").glob("gr-*"))


class Service:
    """A `greenroom serve` of a folder."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.folders_before = folders_of_ingress()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.key = KeyFile(self._data_dir()).create("acme", Scope.ADMIN)[1]
        (folder / "greenroom.toml").write_text(CONFIG)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "greenroom", "serve", "--port", str(self.port), *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _data_dir(self) -> Path:
        data_dir = self.folder / ".greenroom"
        data_dir.mkdir(mode=0o700, exist_ok=True)
        return data_dir

    def await_start(self) -> None:
        def is_up() -> bool:
            assert self.process.poll() is None, self.process.communicate()
            try:
                return httpx2.get(f"{self.url}/readyz").is_success
            except httpx2.HTTPError:
                return False

        wait_until(is_up, what="the service is ready", patience_s=START_S)
        assert self.process.stdout is not None
        assert f"Greenroom serves {self._data_dir()} on {self.url}\n" == self.process.stdout.readline()

    def tree(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def processes(self, title: str) -> list[psutil.Process]:
        """Those of Ray whose title begins so."""
        found: list[psutil.Process] = []
        for process in self.tree():
            try:
                if (process.cmdline() or [""])[0].startswith(title):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def kill(self, title: str) -> None:
        """kill -9 one of them, which is there by then."""
        victims = wait_until(lambda: self.processes(title), what=f"there is a {title}")
        victims[0].kill()


@contextmanager
def serving(folder: Path, *arguments: str) -> Generator[Service]:
    service = Service(folder, *arguments)
    try:
        service.await_start()
        yield service
    finally:
        if service.process.poll() is None:
            tree = service.tree()
            service.process.terminate()
            try:
                service.process.wait(60)
            except subprocess.TimeoutExpired:
                service.process.kill()
            for process in psutil.wait_procs(tree, timeout=20)[1]:
                process.kill()
        for pipe in (service.process.stdout, service.process.stderr):
            assert pipe is not None
            pipe.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Generator[Service]:
    """One with two replicas, for the tests of the module; the last of them ends it."""
    with serving(tmp_path_factory.mktemp("service"), "--replicas", "2") as service:
        yield service


async def one_client(service: Service, sessions: "asyncio.Queue[int]", logs: dict[str, list[int]]) -> None:
    """Opens sessions, streams a run of each to its end, and keeps which events it saw."""
    async with greenroom.AsyncClient(service.url, key=service.key, timeout_s=120) as client:
        while not sessions.empty():
            sessions.get_nowait()
            session = await client.open_session()
            run_id = await session.submit_run("Hello!", STREAMED)
            async with session.follow() as events:
                async for event in events:
                    logs.setdefault(session.session_id, []).append(event.seq)
                    if event.run_id == run_id and event.type is greenroom.EventType.RUN_COMPLETED:
                        break


async def loaded(service: Service) -> dict[str, list[int]]:
    """What fifty clients saw of two hundred sessions, while a replica, the store and a session's process are killed."""
    sessions: asyncio.Queue[int] = asyncio.Queue()
    for number in range(SESSIONS):
        sessions.put_nowait(number)
    logs: dict[str, list[int]] = {}
    clients = asyncio.gather(*(one_client(service, sessions, logs) for _ in range(CLIENTS)))
    for done, title in ((40, "ray::ServeReplica"), (80, "ray::EventStore"), (120, "ray::SessionServer")):
        while SESSIONS - sessions.qsize() < done and not clients.done():
            await asyncio.sleep(0.02)
        await asyncio.to_thread(service.kill, title)
    await clients
    return logs


@pytest.mark.timeout(400)
def test_under_load_with_processes_killed_no_call_fails_and_no_event_is_lost_or_seen_twice(service: Service) -> None:
    logs = asyncio.run(loaded(service))

    assert SESSIONS == len(logs)
    with greenroom.Client(service.url, key=service.key) as client:
        for session_id, seqs in logs.items():
            assert list(range(1, len(seqs) + 1)) == seqs, session_id
            committed = client.session(session_id).read_events(limit=10_000)
            assert len(seqs) == len(committed), session_id


def listeners(tree: list[psutil.Process]) -> set[str]:
    """Addresses on which they listen."""
    found: set[str] = set()
    for process in tree:
        try:
            connections = process.net_connections(kind="tcp")
        except psutil.NoSuchProcess:
            continue
        found |= {one.laddr.ip.removeprefix("::ffff:") for one in connections if one.status == psutil.CONN_LISTEN}
    return found


def test_a_service_listens_on_the_loopback_alone_lets_runs_end_and_leaves_nothing_behind(service: Service) -> None:
    tree = service.tree()
    assert {"127.0.0.1"} == listeners(tree)
    with greenroom.Client(service.url, key=service.key) as client:
        session, other = client.open_session(), client.open_session()
        run_id = session.submit_run("Hello!", {"provider_options": {"chunks": 4_000, "chunk_delay_s": 0.05}})
        short_id = other.submit_run("Hello!", {"provider_options": {"chunks": 10, "chunk_delay_s": 0.1}})
        for run in (session.follow(run_id=run_id), other.follow(run_id=short_id)):
            next(event for event in run if event.type is greenroom.EventType.RUN_STARTED)
        service.process.send_signal(signal.SIGTERM)
        assert 130 == service.process.wait(60)
    assert ("", "") == service.process.communicate()
    assert [] == psutil.wait_procs(tree, timeout=20)[1], "none of its processes is left"
    assert service.folders_before == folders_of_ingress()

    with serving(service.folder) as again, greenroom.Client(again.url, key=service.key) as client:
        ended = client.session(other.session_id).get_run(short_id)
        assert "completed" == ended.status, "it was given the time that it needed"
        run = client.session(session.session_id)
        with pytest.raises(greenroom.RunInterrupted):  # it was under way, and is accounted for
            run.await_run(run_id, timeout_s=60)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--host", "0.0.0.0"], "greenroom keys create"), (["--data-dir", ":memory:"], "data_dir")],
)
def test_a_service_that_would_be_open_to_everybody_does_not_start(
    tmp_path: Path, arguments: list[str], told: str
) -> None:
    began = time.monotonic()
    done: Any = subprocess.run(
        [sys.executable, "-m", "greenroom", "serve", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert 2 == done.returncode
    assert told in done.stderr
    assert time.monotonic() - began < START_S


def readme_commands() -> str:
    """The lines of the README that serve and ask."""
    text = (Path(__file__).parents[2] / "README.md").read_text()
    return text.split("## Over HTTP", 1)[1].split("```sh\n", 1)[1].split("```", 1)[0]


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.skipif(not port_is_free(8000), reason="PORT 8000 IS TAKEN: the lines of the README were NOT run")
def test_the_lines_of_the_readme_run_as_written(tmp_path: Path) -> None:
    bin_folder = Path(sys.executable).parent
    script = f"set -euo pipefail\n{readme_commands()}\nkill $!\nwait $! || true\n"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert 0 == done.returncode, done.stderr + done.stdout
    assert '"content":"ok"' in done.stdout
    streamed = re.findall(r"id: (\d+)\s+event: ", done.stdout)
    assert ["3", "4", "5", "6", "7", "8", "9", "6", "7", "8", "9", "10"] == streamed
