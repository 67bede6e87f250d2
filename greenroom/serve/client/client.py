"""The client of the HTTP service, for plain code: the verbs of the async one, waited for."""

from collections.abc import Callable, Coroutine
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self

import httpx2

from .async_client import AsyncClient
from .async_session import AsyncClientSession
from .connection import DEFAULT_TIMEOUT_S
from .own_loop import OwnLoop
from .plain import Plain, iterates, waits

P = ParamSpec("P")


class ClientSession(Plain[AsyncClientSession]):
    """A session of the service, by its id: cheap, and never stale. Its calls say so when it does not exist.

    They raise the errors that the calls of a SessionHandle do, and RuntimeGone when the service cannot be reached.
    Ctrl-C gives up the request under way; runs go on.
    """

    @property
    def session_id(self) -> str:
        """Which session it is."""
        return self._behind.session_id

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.session_id!r})"

    record = waits(AsyncClientSession.record)
    status = waits(AsyncClientSession.status)
    submit_run = waits(AsyncClientSession.submit_run)
    await_run = waits(AsyncClientSession.await_run)
    execute_run = waits(AsyncClientSession.execute_run)
    get_run = waits(AsyncClientSession.get_run)
    list_runs = iterates(AsyncClientSession.list_runs)
    cancel_run = waits(AsyncClientSession.cancel_run)
    interrupt_run = waits(AsyncClientSession.interrupt_run)
    steer_run = waits(AsyncClientSession.steer_run)
    pause = waits(AsyncClientSession.pause)
    resume = waits(AsyncClientSession.resume)
    complete = waits(AsyncClientSession.complete)
    cancel = waits(AsyncClientSession.cancel)
    decide_approval = waits(AsyncClientSession.decide_approval)
    transcript = waits(AsyncClientSession.transcript)
    read_events = waits(AsyncClientSession.read_events)
    follow = iterates(AsyncClientSession.follow)


def _opens(
    verb: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, AsyncClientSession]],
) -> Callable[Concatenate["Client", P], ClientSession]:
    """The verb as a plain method of the same arguments, that gives a plain session."""

    @wraps(verb)
    def method(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> ClientSession:
        behind, loop = self._behind, self._loop  # pyright: ignore[reportPrivateUsage]  it is a method of the class
        return ClientSession(loop.wait(verb(behind, *args, **kwargs)), loop)

    return method


class Client(Plain[AsyncClient]):
    """A client of the HTTP service, for any number of threads. Close it, or use it in a `with` block.

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
        super().__init__(AsyncClient(url, key=key, timeout_s=timeout_s, transport=transport), OwnLoop())

    @property
    def url(self) -> str:
        """Where the service is."""
        return self._behind.url

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def session(self, session_id: str) -> ClientSession:
        """A session by its id, whether or not it exists: its calls say so. Asks nobody."""
        return ClientSession(self._behind.session(session_id), self._loop)

    open_session = _opens(AsyncClient.open_session)
    list_sessions = iterates(AsyncClient.list_sessions)
    delete_session = waits(AsyncClient.delete_session)
    providers = waits(AsyncClient.providers)
    approvals = waits(AsyncClient.approvals)
    follow = iterates(AsyncClient.follow)

    def close(self) -> None:
        """Close all connections, and end what waits for them. Every later call raises InvalidOperation."""
        self._loop.stop(self._behind.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
