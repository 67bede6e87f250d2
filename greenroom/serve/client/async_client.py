"""The client of the HTTP service, for event loops. The plain one runs these same coroutines."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx2

from ...domain.errors import SessionNotFound
from ...domain.session import (
    DEFAULT_MAX_CONCURRENT_RUNS,
    DEFAULT_MAX_QUEUED_RUNS,
    Session,
    SessionState,
)
from .access import service_key, service_url
from .async_session import AsyncClientSession
from .connection import DEFAULT_TIMEOUT_S, Connection
from .event_streams import AsyncFeed
from .parameters import segment, type_names
from .records import items, parsed
from .streams import PAGE_ITEMS, AsyncPages


class AsyncClient:
    """A client of the HTTP service, for one event loop.

    `url` and `key` are by default those of the environment: GREENROOM_URL (or http://127.0.0.1:8000) and GREENROOM_KEY.
    `timeout_s` bounds each call with all its tries, beyond the wait that it asks for, and how long a stream that
    cannot get through tries again. `transport` is another way to the service than the network, as a test may want.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._connection = Connection(service_url(url), service_key(key), timeout_s=timeout_s, transport=transport)

    @property
    def url(self) -> str:
        """Where the service is."""
        return self._connection.url

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    async def open_session(
        self,
        *,
        agent_id: str = "agent",
        provider: str | None = None,
        context: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        parent_session_id: str | None = None,
        tools: Sequence[str] = (),
        max_concurrent_runs: int = DEFAULT_MAX_CONCURRENT_RUNS,
        max_queued_runs: int = DEFAULT_MAX_QUEUED_RUNS,
        run_defaults: Mapping[str, Any] | None = None,
        budget: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> AsyncClientSession:
        """Open a session; its tenant is the key's. `tools` are `package.module:function` each.

        A repeated idempotency key gives the session that the first call opened. ValidationError names the argument;
        nothing is stored then.
        """
        body = {
            "agent_id": agent_id,
            "provider": provider,
            "context": dict(context or {}),
            "metadata": dict(metadata or {}),
            "tags": list(tags),
            "parent_session_id": parent_session_id,
            "tools": list(tools),
            "max_concurrent_runs": max_concurrent_runs,
            "max_queued_runs": max_queued_runs,
            "run_defaults": dict(run_defaults or {}),
            "budget": None if budget is None else dict(budget),
        }
        answer = await self._connection.post("/v1/sessions", body, idempotency_key=idempotency_key)
        return self.session(parsed(Session, answer).id)

    def session(self, session_id: str) -> AsyncClientSession:
        """A session by its id, whether or not it exists: its calls say so. Asks nobody."""
        return AsyncClientSession(self._connection, session_id)

    def list_sessions(
        self,
        *,
        status: SessionState | str | None = None,
        agent_id: str | None = None,
        tag: str | None = None,
        newest_first: bool = False,
        page_size: int = PAGE_ITEMS,
    ) -> AsyncPages[Session]:
        """Sessions of the key's tenant, by when they were made; pages are fetched as they are needed."""
        order = "desc" if newest_first else None
        params = {"status": status, "agent_id": agent_id, "tag": tag, "order": order, "limit": page_size}
        return AsyncPages(self._connection, "/v1/sessions", params, Session)

    async def delete_session(self, session_id: str) -> None:
        """Cancel the session's runs and delete every trace of it. Needs an admin key. SessionNotFound.

        Not tried again by itself: after an error that leaves it open, SessionNotFound says that it was done.
        """
        await self._connection.delete(f"/v1/sessions/{segment(session_id, SessionNotFound)}")

    async def providers(self) -> list[dict[str, Any]]:
        """The providers that runs may name: name, kind and account of each."""
        return items(await self._connection.get("/v1/providers"))

    async def approvals(self) -> list[dict[str, Any]]:
        """The tool calls that wait for a person, in all sessions of the tenant, the oldest first: id, session_id,
        run_id, tool_name, input and expires_at of each."""
        return items(await self._connection.get("/v1/approvals"))

    def follow(self, after: str | None = None, types: Sequence[str] | str | None = None) -> AsyncFeed:
        """What happens in all sessions of the tenant, past a cursor, or from now on. Sends nothing before the first
        event is asked for."""
        return AsyncFeed(self._connection, after=after, types=type_names(types))

    async def aclose(self) -> None:
        """Close all connections. Every later call raises InvalidOperation."""
        await self._connection.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
