"""The one way to the service: requests that are tried again, and streams of messages."""

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, asynccontextmanager
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Literal, cast
from uuid import uuid4

import httpx2

from ...domain.errors import GreenroomError, InvalidFormat, InvalidOperation, Timeout, ValidationError
from ...domain.json_values import check_json_safe
from .access import is_header_value, is_loopback
from .backoff import Backoff
from .failures import error_of_answer, translated
from .records import json_object

DEFAULT_TIMEOUT_S = 60.0

MAX_TRIES = 5
"""How often a request is sent before its failure is told. Waits and streams go on until their time is over."""

SILENCE_S = 45.0
"""A stream that brings no byte for so long is dead: the service sends a heartbeat every 15 s."""

MAX_CONNECTIONS = 1_000
MAX_ANSWER_BYTES = 256 * 1024 * 1024
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""What one event may have, all that its tool gave included."""

MAX_IDEMPOTENCY_KEY = 200

_CONNECT_S = 10.0
_ANSWER_S = 30.0
"""How long one try may go without a byte, beyond the wait that the request asks the service for."""

Params = Mapping[str, str | int | float | None]


class Connection:
    """An address, a key, and the connections there. Belongs to the event loop that it is first used in.

    `timeout_s` bounds each request with all its tries, beyond the wait that it asks for, and how long a stream that
    cannot get through tries again.
    """

    def __init__(
        self, url: httpx2.URL, key: str, *, timeout_s: float, transport: httpx2.AsyncBaseTransport | None
    ) -> None:
        if not 0 < timeout_s < math.inf:
            raise ValidationError(
                f"timeout_s is {timeout_s}; it must be a positive, finite number of seconds.",
                details={"field": "timeout_s"},
            )
        self.url = str(url)
        self.timeout_s = timeout_s
        self._http = httpx2.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {key}", "User-Agent": f"greenroom/{version('greenroom')}"},
            limits=httpx2.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=20),
            verify=httpx2.create_ssl_context() if url.scheme == "https" else False,  # it takes 50 ms to make one
            transport=transport,
            trust_env=not is_loopback(url),  # its proxies; certificates are the environment's anyway
        )

    async def get(
        self,
        path: str,
        params: Params | None = None,
        *,
        wait_s: float = 0.0,
        limit_s: float = math.inf,
        is_patient: bool = False,
    ) -> dict[str, Any]:
        """The answer to a GET, which may take `wait_s` longer than others, and beyond that no longer than `limit_s`. A
        patient one is tried until its time is over, however often that is."""
        return await self._ask(
            "GET",
            path,
            params=params,
            wait_s=wait_s,
            limit_s=min(limit_s, self.timeout_s),
            backoff=Backoff(max_tries=None if is_patient else MAX_TRIES),
        )

    async def post(
        self, path: str, body: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None
    ) -> dict[str, Any]:
        """The answer to a POST, which has its effect once, however often it had to be sent. ValidationError for a body
        that JSON cannot hold."""
        key = uuid4().hex if idempotency_key is None else idempotency_key
        if not is_header_value(key) or len(key) > MAX_IDEMPOTENCY_KEY:
            raise ValidationError(
                f"idempotency_key must be up to {MAX_IDEMPOTENCY_KEY} characters of printable ASCII.",
                details={"field": "idempotency_key"},
            )
        return await self._ask(
            "POST",
            path,
            body=None if body is None else _encoded(body),
            headers={"Idempotency-Key": key},
            limit_s=self.timeout_s,
            backoff=Backoff(max_tries=MAX_TRIES),
        )

    async def delete(self, path: str) -> None:
        """Sent once: had an earlier try done it, a later one would find nothing."""
        await self._ask("DELETE", path, limit_s=self.timeout_s, backoff=Backoff(max_tries=1))

    @asynccontextmanager
    async def messages(
        self, path: str, params: Params, last_event_id: str | None
    ) -> AsyncGenerator[AsyncGenerator[httpx2.ServerSentEvent]]:
        """The messages of one connection; raises when it is refused, breaks or falls silent."""
        self._require_open()
        headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
        with translated(self.url):
            async with self._http.sse(
                path,
                params=_given(params),
                headers=headers,
                timeout=_timeouts(SILENCE_S),
                max_event_size=MAX_MESSAGE_BYTES,
            ) as source:
                if source.response.status_code != HTTPStatus.OK:
                    raise await _refusal(source.response)
                async with aclosing(cast("AsyncGenerator[httpx2.ServerSentEvent]", aiter(source))) as messages:
                    yield messages

    async def aclose(self) -> None:
        """Close all connections. Nothing can be asked any more."""
        await self._http.aclose()

    async def _ask(
        self,
        method: Literal["GET", "POST", "DELETE"],
        path: str,
        *,
        limit_s: float,
        backoff: Backoff,
        params: Params | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        wait_s: float = 0.0,
    ) -> dict[str, Any]:
        self._require_open()
        request = self._http.build_request(
            method,
            path,
            params=_given(params or {}),
            content=body,
            headers={**(headers or {}), **({} if body is None else {"Content-Type": "application/json"})},
            timeout=_timeouts(_ANSWER_S + wait_s),
        )
        try:
            async with asyncio.timeout(limit_s + wait_s) as limit:
                return await self._ask_until(limit, request, backoff)
        except TimeoutError as exc:
            raise Timeout(
                f"The service at {self.url} did not answer within {limit_s + wait_s:g} s. Try again."
            ) from exc

    async def _ask_until(self, limit: asyncio.Timeout, request: httpx2.Request, backoff: Backoff) -> dict[str, Any]:
        while True:
            try:
                return await self._try(request)
            except GreenroomError as exc:
                ends_at = limit.when()
                assert ends_at is not None, "it was given one"
                pause_s = backoff.pause_s(exc, ends_at - asyncio.get_running_loop().time())
                if pause_s is None:
                    raise
            await asyncio.sleep(pause_s)

    async def _try(self, request: httpx2.Request) -> dict[str, Any]:
        with translated(self.url):
            response = await self._http.send(request, stream=True)
            try:
                if not response.is_success:
                    raise await _refusal(response)
                body = await _body_of(response)
            finally:
                await response.aclose()
        return {} if response.status_code == HTTPStatus.NO_CONTENT else json_object(body)

    def _require_open(self) -> None:
        if self._http.is_closed:
            raise InvalidOperation("This client is closed; make a new one.")


async def _refusal(response: httpx2.Response) -> GreenroomError:
    return error_of_answer(response.status_code, response.headers, await _body_of(response))


async def _body_of(response: httpx2.Response) -> bytes:
    """The whole body. InvalidFormat for one that is too large to be meant."""
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise InvalidFormat(f"The answer has more than {MAX_ANSWER_BYTES} bytes; ask for less at once.")
    return bytes(body)


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        check_json_safe(body)
    except ValueError as exc:
        raise ValidationError(f"The request cannot be sent as JSON: {exc}.") from exc
    return json.dumps(body).encode()


def _given(params: Params) -> dict[str, str | int | float]:
    """Without those that are None: the service has defaults of its own."""
    return {name: value for name, value in params.items() if value is not None}


def _timeouts(silence_s: float) -> httpx2.Timeout:
    return httpx2.Timeout(connect=_CONNECT_S, read=silence_s, write=_ANSWER_S, pool=_CONNECT_S)
