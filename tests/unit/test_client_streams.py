"""Streams of the client: each event once, whatever becomes of the connections."""

import asyncio
import gc
from collections.abc import Iterator, Sequence

import httpx2
import pytest
from hypothesis import given, settings, strategies as st

import greenroom
from greenroom.domain.event import Event, EventType
from greenroom.domain.run import RunStatus
from greenroom.domain.session import SessionState
from greenroom.serve.client import AsyncClient, AsyncStream, FeedEvent

from .client_world import (
    KEY,
    RUN,
    SESSION,
    URL,
    Body,
    FakeService,
    answered,
    event,
    message,
    problem,
    run_record,
    session_record,
    stream_of,
)

LOG = [*(event(seq) for seq in range(1, 6)), event(6, EventType.SESSION_COMPLETED, run_id=None)]
HEARTBEAT = b": ping - 2026-11-26\r\n\r\n"
BROKEN = httpx2.ReadError("broke off")


class LogService:
    """Serves a log as the service does, and cuts its streams after so many bytes each, in good order or not."""

    def __init__(self, log: Sequence[Event], cuts: Sequence[int], *, in_order: bool, chunk: int = 1_000) -> None:
        self._log = log
        self._cuts = list(cuts)
        self._in_order = in_order
        self._chunk = chunk
        self.streams = 0

    def client(self) -> AsyncClient:
        return AsyncClient(URL, key=KEY, transport=httpx2.MockTransport(self._answer))

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        after = int(request.headers.get("Last-Event-ID") or request.url.params.get("after") or 0)
        rest = [one for one in self._log if one.seq > after]
        if request.url.path.endswith("/events"):
            return httpx2.Response(200, json={"events": [one.to_dict() for one in rest[:1]], "next_after": after})
        if not request.url.path.endswith("/stream"):
            return answered(session_record(SessionState.COMPLETED))
        self.streams += 1
        content = HEARTBEAT.join([b"", *(message(one) for one in rest)])
        if not self._cuts:
            return stream_of(Body(pieces(content, self._chunk)))
        content = content[: self._cuts.pop(0)]
        return stream_of(Body(pieces(content, self._chunk), fault=None if self._in_order else BROKEN))


def pieces(content: bytes, size: int) -> list[bytes]:
    return [content[start : start + size] for start in range(0, len(content), size)]


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    """Where hypothesis runs its examples."""
    with asyncio.Runner() as runner:
        yield runner


async def all_of(stream: AsyncStream[Event]) -> list[Event]:
    return [one async for one in stream]


@given(chunk=st.integers(1, 400), end=st.sampled_from(["\r\n", "\n", "\r"]))
@settings(deadline=None, max_examples=30)
def test_any_chunking_gives_the_same_events(loop: asyncio.Runner, chunk: int, end: str) -> None:
    content = HEARTBEAT.join(message(one, end=end) for one in LOG)
    service = FakeService(stream_of(Body(pieces(content, chunk))))

    async def followed() -> list[Event]:
        async with service.client() as client:
            return await all_of(client.session(SESSION).follow())

    assert LOG == loop.run(followed())


@given(cut=st.integers(0, sum(len(message(one)) + len(HEARTBEAT) for one in LOG)), in_order=st.booleans())
@settings(deadline=None, max_examples=12)
def test_a_stream_that_is_cut_anywhere_neither_skips_nor_repeats(
    loop: asyncio.Runner, cut: int, in_order: bool
) -> None:
    service = LogService(LOG, [cut], in_order=in_order)

    async def followed() -> list[Event]:
        async with service.client() as client:
            return await all_of(client.session(SESSION).follow())

    assert LOG == loop.run(followed())


async def test_a_stream_goes_on_with_its_last_event_id() -> None:
    service = FakeService(
        stream_of(Body([message(LOG[2]), message(LOG[3])[:40]], fault=BROKEN)),
        httpx2.ConnectError("refused"),
        problem(503, "runtime_gone", headers={"Retry-After": "0"}),
        stream_of(b"".join(message(one) for one in LOG[3:])),
    )

    async with service.client() as client:
        stream = client.session(SESSION).follow(from_seq=2, types=list(EventType))
        found = await all_of(stream)

    assert LOG[2:] == found
    assert 6 == stream.seq
    assert [None, "3", "3", "3"] == service.sent("Last-Event-ID")
    assert {"2"} == {request.url.params["after"] for request in service.requests}


async def test_a_stream_ends_with_the_end_of_its_run_and_closes_its_connection() -> None:
    body = Body([message(event(1)), message(event(2, EventType.RUN_COMPLETED))], stays_open=True)
    service = FakeService(stream_of(body))

    async with service.client() as client:
        found = await all_of(client.session(SESSION).follow(run_id=RUN))

    assert [1, 2] == [one.seq for one in found]
    assert body.is_closed
    assert RUN == service.requests[0].url.params["run_id"]


async def test_the_end_of_a_run_is_not_that_of_its_session() -> None:
    log = [event(1, EventType.RUN_COMPLETED), event(2, EventType.SESSION_CANCELLED, run_id=None)]
    service = FakeService(stream_of(b"".join(message(one) for one in log)))

    async with service.client() as client:
        assert log == await all_of(client.session(SESSION).follow())


async def test_a_service_that_stops_in_good_order_does_not_end_a_stream() -> None:
    service = FakeService(
        stream_of(message(LOG[0])),
        answered(session_record()),
        stream_of(b"".join(message(one) for one in LOG[1:])),
    )

    async with service.client() as client:
        assert LOG == await all_of(client.session(SESSION).follow())


async def test_a_stream_that_does_not_show_the_end_is_over_when_nothing_is_left() -> None:
    last = event(3)
    service = FakeService(
        stream_of(message(event(1))),
        answered(run_record(RunStatus.FAILED)),
        httpx2.Response(200, json={"events": [last.to_dict()], "next_after": 3}),
        stream_of(message(last)),
        answered(run_record(RunStatus.FAILED)),
        httpx2.Response(200, json={"events": [], "next_after": 3}),
    )

    async with service.client() as client:
        found = await all_of(client.session(SESSION).follow(run_id=RUN, types="message_streamed"))

    assert [1, 3] == [one.seq for one in found]
    asked = service.requests[-1].url.params
    assert ("3", "1", RUN, "message_streamed") == tuple(asked[name] for name in ("after", "limit", "run_id", "types"))


async def test_an_event_that_comes_again_is_given_once() -> None:
    service = FakeService(stream_of(b"".join(message(one) for one in [LOG[0], LOG[1], LOG[0], *LOG[1:]])))

    async with service.client() as client:
        assert LOG == await all_of(client.session(SESSION).follow())


async def test_events_that_were_deleted_are_told_of() -> None:
    told = b'event: resync_required\r\ndata: {"lowest_seq": 40}\r\n\r\n'
    service = FakeService(stream_of(told), problem(410, "resync_required", lowest_seq=40))

    async with service.client() as client:
        stream = client.session(SESSION).follow(from_seq=3)
        for _ in range(2):
            with pytest.raises(greenroom.ResyncRequired) as caught:
                await anext(stream)
            assert {"lowest_seq": 40} == caught.value.details


async def test_an_error_within_a_stream_is_raised_unless_it_may_pass() -> None:
    service = FakeService(
        stream_of(message(LOG[0]) + b'event: error\r\ndata: {"code": "runtime_gone"}\r\n\r\n'),
        stream_of(message(LOG[1]) + b'event: error\r\ndata: {"code": "session_not_found"}\r\n\r\n'),
    )

    async with service.client() as client:
        stream = client.session(SESSION).follow()
        assert LOG[:2] == [await anext(stream), await anext(stream)]
        with pytest.raises(greenroom.SessionNotFound):
            await anext(stream)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (problem(404, "run_not_found"), greenroom.RunNotFound),
        (httpx2.Response(200, text="<html>"), greenroom.InvalidFormat),
        (stream_of(b"data: {\r\n\r\n"), greenroom.InvalidFormat),
        (stream_of(message(LOG[0]).replace(b"message_streamed", b"from_the_future")), greenroom.InvalidFormat),
    ],
)
async def test_a_stream_that_cannot_be_raises(answer: httpx2.Response, kind: type[Exception]) -> None:
    service = FakeService(answer)

    async with service.client() as client:
        with pytest.raises(kind):
            await anext(client.session(SESSION).follow())

    assert 1 == len(service.requests)


async def test_a_service_that_cannot_be_reached_for_the_time_of_the_client_is_gone() -> None:
    def refuse(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused")

    async with AsyncClient(URL, key=KEY, timeout_s=0.5, transport=httpx2.MockTransport(refuse)) as client:
        with pytest.raises(greenroom.RuntimeGone, match="refused"):
            await anext(client.session(SESSION).follow())


async def test_a_wait_that_is_cancelled_loses_nothing() -> None:
    silent = Body([message(LOG[0])], stays_open=True)
    service = FakeService(stream_of(silent), stream_of(b"".join(message(one) for one in LOG[1:])))

    async with service.client() as client:
        stream = client.session(SESSION).follow()
        first = await anext(stream)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await anext(stream)

        assert silent.is_closed
        assert LOG == [first, *await all_of(stream)]

    assert [None, "1"] == service.sent("Last-Event-ID")


async def test_a_stream_that_is_left_early_closes_its_connection_and_has_ended() -> None:
    body = Body([message(one) for one in LOG], stays_open=True)
    service = FakeService(stream_of(body))

    async with service.client() as client:
        async with client.session(SESSION).follow() as stream:
            await anext(stream)

        assert body.is_closed
        assert [] == await all_of(stream)


async def test_a_stream_that_is_dropped_closes_its_connection() -> None:
    body = Body([message(one) for one in LOG], stays_open=True)
    service = FakeService(stream_of(body))

    async with service.client() as client:
        async for _ in client.session(SESSION).follow():
            break
        gc.collect()

        await asyncio.wait_for(body.closed.wait(), 30)


async def test_a_stream_falls_silent_no_longer_than_three_heartbeats() -> None:
    service = FakeService(stream_of(message(LOG[-1])))

    async with service.client() as client:
        await all_of(client.session(SESSION).follow())

    assert 45.0 == service.requests[0].extensions["timeout"]["read"]


async def test_the_feed_of_a_tenant_goes_on_with_its_cursor() -> None:
    one, two = event(9), event(2)
    service = FakeService(
        stream_of(Body([message(one, id="c.1")], fault=BROKEN)),
        stream_of(message(two, id="c.2")),
        stream_of(Body([], stays_open=True)),
    )

    async with service.client() as client, client.follow(after="c.0", types="message_streamed") as feed:
        found = [await anext(feed), await anext(feed)]

    assert [FeedEvent(event=one, cursor="c.1"), FeedEvent(event=two, cursor="c.2")] == found
    assert "c.2" == feed.cursor
    assert [None, "c.1"] == service.sent("Last-Event-ID")
    assert "after=c.0&types=message_streamed" == service.requests[0].url.query.decode()
