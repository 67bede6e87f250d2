"""The app on Ray Serve's own proxy, where there is no HAProxy: deployed, replaced while it is used, and taken down."""

import importlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

import greenroom
from greenroom.domain.api_key import Scope
from greenroom.serve.app import NAME, build
from tests.http.conftest import new_key
from tests.waiting import wait_until

pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments:DeprecationWarning")  # ray.serve's own

OPTIONS = ("chunks", "chunk_delay_s", "latency_s", "hang")


def deployed(runtime: greenroom.Runtime, serve: Any, **http: Any) -> None:
    settings = {"data_dir": runtime.data_dir, "http": {"provider_options": OPTIONS, **http}, "local": True}
    serve.run(build(settings), name=NAME, route_prefix="/")


@pytest.fixture(scope="module")
def serve(cluster: str) -> Iterator[Any]:
    serve: Any = importlib.import_module("ray.serve")
    yield serve
    serve.shutdown()


@pytest.fixture(scope="module")
def url(runtime: greenroom.Runtime, serve: Any) -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    deployed(runtime, serve)
    return f"http://127.0.0.1:{port}"


class Caller:
    """Submits runs one after another until it is told to stop; what fails is kept."""

    def __init__(self, url: str, key: str) -> None:
        self.accepted: list[str] = []
        self.failures: list[Exception] = []
        self._stop = threading.Event()
        self._client = greenroom.Client(url, key=key)
        self.session = self._client.open_session(max_queued_runs=10_000)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            try:
                self.accepted.append(self.session.submit_run("Hello!"))
            except Exception as exc:  # noqa: BLE001  kept, and looked at by the test
                self.failures.append(exc)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)

    def close(self) -> None:
        self._client.close()


@pytest.mark.timeout(240)
def test_a_redeploy_loses_no_accepted_run_and_fails_no_call(url: str, runtime: greenroom.Runtime, serve: Any) -> None:
    caller = Caller(url, new_key(runtime, scope=Scope.RUN))
    try:
        with greenroom.Client(url, key=new_key(runtime)) as client:
            seen: list[int] = []
            follower = threading.Thread(target=lambda: seen.extend(_seqs(client, caller.session.session_id)))
            follower.start()
            wait_until(lambda: len(caller.accepted) > 10, what="it is used")
            deployed(runtime, serve, max_streams=500)
            before = len(caller.accepted)
            wait_until(lambda: len(caller.accepted) > before + 10, what="it is used after the redeploy")
            caller.stop()
            assert [] == caller.failures
            for run_id in caller.accepted:
                assert "completed" == caller.session.await_run(run_id, timeout_s=60).status
            caller.session.complete()
            follower.join(60)
            assert list(range(1, len(seen) + 1)) == seen
            assert len(seen) == len(caller.session.read_events(limit=10_000))
    finally:
        caller.stop()
        caller.close()


def _seqs(client: greenroom.Client, session_id: str) -> list[int]:
    return [event.seq for event in client.session(session_id).follow()]


def test_the_page_and_the_routes_are_there(url: str, runtime: greenroom.Runtime) -> None:
    headers = {"Authorization": f"Bearer {new_key(runtime)}"}
    assert 200 == httpx2.get(url + "/").status_code
    assert 200 == httpx2.get(url + "/readyz").status_code
    assert {"items", "next_cursor"} == set(httpx2.get(url + "/v1/sessions", headers=headers).json())


def test_settings_that_are_none_are_refused_where_it_is_built(tmp_path: Path) -> None:
    with pytest.raises(greenroom.ValidationError) as refused:
        build({"data_dir": str(tmp_path), "http": {"prot": 80}})
    assert "http.prot" == refused.value.details["field"]
