"""The HTTP service over a real runtime, on a port of the loopback."""

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

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
    provider_options=("chunks", "chunk_delay_s", "hang", "latency_s", "tool_calls", "fail_with"),
    tenants={"trusted": HttpGrant(providers=("shell",))},
)


@pytest.fixture(scope="module")
def runtime(cluster: str, data_dir: Path) -> Iterator[greenroom.Runtime]:
    runtime = greenroom.start(data_dir=data_dir, warm_pool=2)
    yield runtime
    runtime.shutdown()


@pytest.fixture(scope="module")
def address(runtime: greenroom.Runtime) -> Iterator[str]:
    """Where the service listens."""
    data_dir = Path(runtime.data_dir)
    app = create_app(runtime, KeyFile(data_dir), AuditLog(data_dir), SETTINGS)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    wait_until(lambda: server.started, what="the service listens")
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(30)
    listener.close()


@pytest.fixture
def clients(address: str, runtime: greenroom.Runtime) -> Iterator[Clients]:
    """Makes clients with a new key of a tenant."""
    made: list[httpx2.Client] = []

    def client(tenant: str = "acme", scope: Scope = Scope.RUN) -> httpx2.Client:
        _, token = KeyFile(Path(runtime.data_dir)).create(tenant, scope)
        made.append(httpx2.Client(base_url=address, headers={"Authorization": f"Bearer {token}"}, timeout=60))
        return made[-1]

    yield client
    for one in made:
        one.close()
