"""The HTTP service over a real runtime, on a port of the loopback."""

import socket
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn

import greenroom
from greenroom.adapters.audit_log import AuditLog
from greenroom.adapters.http_settings import HttpGrant, HttpSettings
from greenroom.adapters.key_file import KeyFile
from greenroom.domain.api_key import Scope
from greenroom.serve.http.api import create_app
from tests.waiting import wait_until

Clients = Callable[..., httpx2.Client]

SETTINGS = HttpSettings(
    max_body_bytes=10_000,
    tools=("tests.http.tools:*",),
    provider_options=("reply", "usage", "chunks", "chunk_delay_s", "hang", "latency_s", "tool_calls", "fail_with"),
    tenants={"trusted": HttpGrant(providers=("shell",))},
)


@pytest.fixture(scope="module")
def runtime(cluster: str, data_dir: Path) -> Iterator[greenroom.Runtime]:
    runtime = greenroom.start(data_dir=data_dir, warm_pool=2)
    yield runtime
    runtime.shutdown()


@contextmanager
def serving(runtime: greenroom.Runtime, settings: HttpSettings, *, is_local: bool = True) -> Generator[str]:
    """The service with these settings; gives its address."""
    data_dir = Path(runtime.data_dir)
    app = create_app(runtime, KeyFile(data_dir), AuditLog(data_dir), settings, is_local=is_local)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on", ws="websockets-sansio"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    wait_until(lambda: server.started, what="the service listens")
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()


@pytest.fixture(scope="module")
def address(runtime: greenroom.Runtime) -> Iterator[str]:
    """Where the service listens."""
    with serving(runtime, SETTINGS) as url:
        yield url


def new_key(runtime: greenroom.Runtime, tenant: str = "acme", scope: Scope = Scope.RUN) -> str:
    """A new key of the tenant."""
    _, token = KeyFile(Path(runtime.data_dir)).create(tenant, scope)
    return token


@pytest.fixture
def clients(address: str, runtime: greenroom.Runtime) -> Iterator[Clients]:
    """Makes clients with a new key of a tenant."""
    made: list[httpx2.Client] = []

    def client(tenant: str = "acme", scope: Scope = Scope.RUN, *, url: str = address) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {new_key(runtime, tenant, scope)}"}
        made.append(httpx2.Client(base_url=url, headers=headers, timeout=60))
        return made[-1]

    yield client
    for one in made:
        one.close()


def opened(client: httpx2.Client, **body: Any) -> str:
    """The id of a new session."""
    answer = client.post("/v1/sessions", json=body)
    assert 201 == answer.status_code, answer.text
    assert answer.headers["location"] == f"/v1/sessions/{answer.json()['id']}"
    return answer.json()["id"]


def submitted(client: httpx2.Client, session_id: str, input: Any = "Hello!", **options: Any) -> str:
    """The id of a new run."""
    answer = client.post(f"/v1/sessions/{session_id}/runs", json={"input": input, "options": options})
    assert 202 == answer.status_code, answer.text
    return answer.json()["run_id"]


def problem_of(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """The problem that it must be."""
    assert (status, code) == (answer.status_code, answer.json()["code"]), answer.text
    assert "application/problem+json" == answer.headers["content-type"]
    return answer.json()


def frames(answer: httpx2.Response) -> Iterator[dict[str, str]]:
    """The messages of a stream, as they come."""
    message: dict[str, str] = {}
    for line in answer.iter_lines():
        if not line:
            if message:
                yield message
            message = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            message[name] = value.strip()
