"""A service that answers as a test wants, and what a client sent to it."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import httpx2

from greenroom.domain.event import Event, EventType
from greenroom.domain.run import Run, RunStatus
from greenroom.domain.session import Session, SessionState
from greenroom.serve.client import AsyncClient

KEY = "gk_0123_not-to-be-seen"
URL = "http://service.example"
SESSION = "ses_1"
RUN = "run_1"
MOMENT = datetime(2026, 11, 26, 12, 0, 0, 123_456, tzinfo=UTC)

Answer = httpx2.Response | Exception | Callable[[httpx2.Request], httpx2.Response]


class Body(httpx2.AsyncByteStream):
    """A body that comes in pieces, and may break or stay open after them."""

    def __init__(self, chunks: Sequence[bytes], *, fault: Exception | None = None, stays_open: bool = False) -> None:
        self._chunks = chunks
        self._fault = fault
        self._stays_open = stays_open
        self.closed = asyncio.Event()

    @property
    def is_closed(self) -> bool:
        return self.closed.is_set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk
        if self._fault is not None:
            raise self._fault
        if self._stays_open:
            await asyncio.Event().wait()

    async def aclose(self) -> None:
        self.closed.set()


class FakeService:
    """Answers one request after the other as it was told."""

    def __init__(self, *answers: Answer) -> None:
        self.requests: list[httpx2.Request] = []
        self._answers = list(answers)

    def client(self, timeout_s: float = 60.0) -> AsyncClient:
        return AsyncClient(URL, key=KEY, timeout_s=timeout_s, transport=self.transport())

    def transport(self) -> httpx2.MockTransport:
        return httpx2.MockTransport(self._answer)

    @property
    def paths(self) -> list[str]:
        """Method and path of each request."""
        return [f"{request.method} {request.url.path}" for request in self.requests]

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(request.content) if request.content else None for request in self.requests]

    def sent(self, header: str) -> list[str | None]:
        """The header of each request."""
        return [request.headers.get(header) for request in self.requests]

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx2.Response) else answer(request)


def problem(status: int, code: str, *, headers: dict[str, str] | None = None, **more: Any) -> httpx2.Response:
    """An error as the service tells it."""
    body = {"type": "about:blank", "title": "x", "status": status, "code": code, "detail": f"It is {code}.", **more}
    kind = {"Content-Type": "application/problem+json"}
    return httpx2.Response(status, content=json.dumps(body), headers={**kind, **(headers or {})})


def stream_of(body: Body | bytes) -> httpx2.Response:
    headers = {"Content-Type": "text/event-stream; charset=utf-8"}
    return httpx2.Response(200, headers=headers, stream=body if isinstance(body, Body) else Body([body]))


def event(seq: int, type: EventType = EventType.MESSAGE_STREAMED, *, run_id: str | None = RUN) -> Event:
    return Event(
        seq=seq,
        id=f"evt_{seq}",
        session_id=SESSION,
        run_id=run_id,
        attempt=1,
        type=type,
        timestamp=MOMENT,
        recorded_at=MOMENT,
        provider="scripted",
        data={"content": f"é {seq}\r\n\u2028"},
        metadata={},
    )


def message(one: Event, *, id: str | None = None, end: str = "\r\n") -> bytes:
    """An event as the service writes it."""
    lines = [f"id: {id or one.seq}", f"event: {one.type.value}", f"data: {json.dumps(one.to_dict())}", "", ""]
    return end.join(lines).encode()


def session_record(status: SessionState = SessionState.ACTIVE, *, id: str = SESSION) -> Session:
    return Session(
        id=id,
        agent_id="agent",
        status=status,
        parent_session_id=None,
        metadata={"tenant": "acme"},
        context={},
        tags=["a"],
        created_at=MOMENT,
        updated_at=MOMENT,
        epoch=1,
        provider="scripted",
        max_concurrent_runs=1,
        max_queued_runs=100,
        run_defaults={},
        error=None,
        idempotency_key=None,
    )


def run_record(status: RunStatus = RunStatus.COMPLETED, *, id: str = RUN, **changes: Any) -> Run:
    values: dict[str, Any] = {
        "id": id,
        "session_id": SESSION,
        "status": status,
        "input": {"messages": [{"role": "user", "content": "Hello!"}]},
        "options": {},
        "output": {"content": "ok"},
        "error": None,
        "metadata": {},
        "attempt": 1,
        "turn_count": 1,
        "token_usage": {"input_tokens": 1},
        "cost_usd": None,
        "created_at": MOMENT,
        "queued_at": MOMENT,
        "started_at": MOMENT,
        "ended_at": MOMENT,
        "provider": "scripted",
        "model": None,
        "stop_reason": None,
        "queued_seq": 1,
        "first_started_at": MOMENT,
        "last_seq": 9,
        "idempotency_key": None,
        "call_id": None,
    }
    return Run(**{**values, **changes})


def answered(record: Session | Run, status: int = 200) -> httpx2.Response:
    return httpx2.Response(status, json=record.to_dict())
