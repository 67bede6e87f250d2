"""The HTTP service beside a bare endpoint of Ray Serve: one request, one event on its way to a client, many clients."""

import asyncio
import importlib
import json
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import ray

import greenroom
from greenroom.actors import ray_cluster
from greenroom.adapters.key_file import KeyFile
from greenroom.domain.api_key import Scope
from greenroom.serve.app import NAME, build
from greenroom.serve.ingress import quick_ingress

from .measuring import Figure, median_ms, pinged, seconds, start_pinger

REQUESTS = 300
WARM_UP = 30
STREAMED_EVENTS = 300
CLIENTS, SESSIONS, CHUNKS = 50, 200, 20
SESSIONS_PER_ACTOR = 25
"""A process for each of two hundred sessions would be all that is measured."""

_PROVIDER_OPTIONS = ("chunks", "chunk_delay_s", "reply", "latency_s")


class Bare:
    """The barest endpoint there can be."""

    async def __call__(self, _: Any) -> str:
        return "ok"


@contextmanager
def _service() -> Generator[tuple[str, str]]:
    """The service, with a bare endpoint beside it; gives its address and a key."""
    serve: Any = importlib.import_module("ray.serve")
    with quick_ingress(), tempfile.TemporaryDirectory(prefix=".bench-", dir=Path.cwd()) as data_dir:
        ray_cluster.start_cluster()
        runtime = greenroom.start(data_dir=data_dir, warm_pool=2, sessions_per_actor=SESSIONS_PER_ACTOR)
        try:
            _, key = KeyFile(Path(data_dir)).create("bench", Scope.RUN)
            port = _free_port()
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            http = {"provider_options": _PROVIDER_OPTIONS}
            serve.run(build({"data_dir": data_dir, "http": http, "local": True}), name=NAME, route_prefix="/")
            serve.run(serve.deployment(Bare).bind(), name="bare", route_prefix="/bare")
            yield f"http://127.0.0.1:{port}", key
            serve.shutdown()
        finally:
            runtime.shutdown()
            ray.shutdown()


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def measure(console: Any) -> list[Figure]:
    """All of it, in one service."""
    with _service() as (url, key), httpx2.Client(base_url=url, timeout=60) as client:
        client.headers["Authorization"] = f"Bearer {key}"
        figures = [_submit(client), _event_to_client(client), asyncio.run(_many_clients(url, key, client))]
    for figure in figures:
        console.print(f"{figure.name}: {figure.value:,.2f} {figure.unit}, ratio {figure.ratio:.2f} {figure.note}")
    return figures


def _session(client: httpx2.Client, **body: Any) -> str:
    return f"/v1/sessions/{client.post('/v1/sessions', json=body).raise_for_status().json()['id']}"


def _submit(client: httpx2.Client) -> Figure:
    """POST of a run, in turns with a GET of the bare endpoint."""
    path = f"{_session(client, max_queued_runs=10_000)}/runs"
    posts: list[float] = []
    gets: list[float] = []
    for index in range(REQUESTS + WARM_UP):
        get_s = seconds(lambda: client.get("/bare").raise_for_status())
        post_s = seconds(lambda: client.post(path, json={"input": "hello"}).raise_for_status())
        if index >= WARM_UP:
            gets.append(get_s)
            posts.append(post_s)
    return Figure(
        name="POST run, p50",
        value=median_ms(posts),
        unit="ms",
        limit_name="bare Serve GET, p50",
        limit=median_ms(gets),
        bound="<= 8",
    )


def _event_to_client(client: httpx2.Client) -> Figure:
    """From the moment that an event happens at the provider until a client has it over server-sent events."""
    path = _session(client)
    options = {"provider_options": {"chunks": STREAMED_EVENTS, "chunk_delay_s": 0.004, "reply": "x" * 600}}
    pinger = start_pinger()
    run_id = (
        client.post(f"{path}/runs", json={"input": "hello", "options": options}).raise_for_status().json()["run_id"]
    )
    delays: list[float] = []
    stream = client.stream("GET", f"{path}/events/stream", params={"run_id": run_id})
    with pinged(pinger) as pings, stream as answer:
        for line in answer.iter_lines():
            if line.startswith("data: ") and '"message_streamed"' in line:
                event = greenroom.Event.from_dict(json.loads(line[6:]))
                delays.append(time.time() - event.timestamp.timestamp())
    ray.kill(pinger)
    return Figure(
        name="event to SSE client, p50",
        value=median_ms(delays),
        unit="ms",
        limit_name="bare round trip, p50",
        limit=median_ms(pings),
        bound="<= 5",
        note=f"{len(delays)} events",
    )


async def _many_clients(url: str, key: str, client: httpx2.Client) -> Figure:
    """Fifty clients with two hundred sessions, a streamed run in each, every event of it read; no bound of its own."""
    async with httpx2.AsyncClient(base_url=url, timeout=60) as bare:
        started = time.perf_counter()
        await asyncio.gather(*(_gets(bare, 2_000 // CLIENTS) for _ in range(CLIENTS)))
        gets_per_s = 2_000 / (time.perf_counter() - started)
    sessions: asyncio.Queue[int] = asyncio.Queue()
    for number in range(SESSIONS):
        sessions.put_nowait(number)
    started = time.perf_counter()
    counts = await asyncio.gather(*(_runs(url, key, sessions) for _ in range(CLIENTS)))
    taken_s = time.perf_counter() - started
    return Figure(
        name=f"{CLIENTS} clients, {SESSIONS} sessions, a run of {CHUNKS} chunks each",
        value=sum(counts) / taken_s,
        unit="events/s",
        limit_name="bare Serve GETs at once",
        limit=gets_per_s,
        bound=">= 0.5",
        note=f"{SESSIONS / taken_s:.0f} runs/s",
    )


async def _gets(client: httpx2.AsyncClient, count: int) -> None:
    for _ in range(count):
        (await client.get("/bare")).raise_for_status()


async def _runs(url: str, key: str, sessions: "asyncio.Queue[int]") -> int:
    count = 0
    async with greenroom.AsyncClient(url, key=key) as client:
        while not sessions.empty():
            sessions.get_nowait()
            session = await client.open_session()
            run_id = await session.submit_run("hello", {"provider_options": {"chunks": CHUNKS, "reply": "x" * 200}})
            async with session.follow() as events:
                async for event in events:
                    count += 1
                    assert event.seq == events.seq
                    if event.run_id == run_id and event.type is greenroom.EventType.RUN_COMPLETED:
                        break
    return count
