"""What a caller holds of a session: an id, and a way there that is found again whenever it is lost."""

import secrets
from collections.abc import Callable
from typing import Any

import ray

from ..domain.errors import RuntimeGone
from ..domain.event_log import EventQuery
from ..domain.session import Session
from ..domain.sharding import shard_of
from .address import DIRECTORY, RuntimeAddress, event_store_name
from .event_stream import EventStream
from .whereabouts import Whereabouts

_CALL_ID_BYTES = 12


class RemoteMethod:
    """One method of a session; `.remote(...)` sends the call and returns at once."""

    __slots__ = ("_call_id", "_name", "_send")

    def __init__(
        self, send: Callable[[str, str, tuple[Any, ...], dict[str, Any]], Any], name: str, call_id: str | None = None
    ) -> None:
        self._send = send
        self._name = name
        self._call_id = call_id

    def options(self, *, call_id: str | None) -> "RemoteMethod":
        """The method with a call id of the caller's choice: what is sent again with the same one has its effect once,
        and gets the first answer. None: each call is one of its own."""
        return RemoteMethod(self._send, self._name, call_id)

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """A Ray ObjectRef of the result, for `ray.get` or to be awaited; for `subscribe` an ObjectRefGenerator.

        Give a generator up with `ray.cancel`: dropping it does not stop its sender.
        """
        return self._send(self._name, self._call_id or secrets.token_hex(_CALL_ID_BYTES), args, kwargs)


class SessionHandle:
    """A session, from any process of its Ray cluster.

    Cheap, and never stale: it works for as long as the session exists, whatever happened to the actor behind it. A
    call that was under way when the actor died is sent again by Ray, and has its effect once. Pickles to the session's
    id and the runtime's address.
    """

    def __init__(self, session_id: str, address: RuntimeAddress, actor: Any = None) -> None:
        self.session_id = session_id
        self.opened_as: Session | None = None
        """The record as it was when `open_session` gave this handle, where that brought the session to a server; does
        not travel."""
        self._address = address
        self._directory: Any = None
        self._store: Any = None
        self._whereabouts = Whereabouts(session_id, self.directory, actor)
        self.submit_run = RemoteMethod(self._call, "submit_run")
        self.submit_runs = RemoteMethod(self._call, "submit_runs")
        self.await_run = RemoteMethod(self._call, "await_run")
        self.await_runs = RemoteMethod(self._call, "await_runs")
        self.execute_run = RemoteMethod(self._call, "execute_run")
        self.cancel_run = RemoteMethod(self._call, "cancel_run")
        self.cancel_all = RemoteMethod(self._call, "cancel_all")
        self.interrupt_run = RemoteMethod(self._call, "interrupt_run")
        self.steer_run = RemoteMethod(self._call, "steer_run")
        self.pause = RemoteMethod(self._call, "pause")
        self.resume = RemoteMethod(self._call, "resume")
        self.decide_approval = RemoteMethod(self._call, "decide_approval")
        self.status = RemoteMethod(self._call, "status")
        self.drain = RemoteMethod(self._call, "drain")
        self.complete = RemoteMethod(self._call, "complete")
        self.fail = RemoteMethod(self._call, "fail")
        self.cancel = RemoteMethod(self._call, "cancel")
        self.read_events = RemoteMethod(self._call, "read_events")
        self.transcript = RemoteMethod(self._call, "transcript")
        self.subscribe = RemoteMethod(self._stream, "subscribe")

    def follow(
        self,
        from_seq: int = 0,
        run_id: str | None = None,
        types: Any = None,
        follow: bool = True,
    ) -> EventStream:
        """Single events, as a plain and as an async iterator; reconnects by itself, misses nothing, and does not keep
        the session awake."""
        return EventStream(
            self.session_id, _Sources(self), from_seq=from_seq, run_id=run_id, types=types, follow=follow
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return (SessionHandle, (self.session_id, self._address))

    def __repr__(self) -> str:
        return f"SessionHandle({self.session_id!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SessionHandle) and (self.session_id, self._address) == (
            other.session_id,
            other._address,
        )

    def __hash__(self) -> int:
        return hash((self.session_id, self._address))

    def _call(self, method: str, call_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not ray.is_initialized():
            raise RuntimeGone
        actor = self._whereabouts.known()
        if actor is not None:
            return getattr(actor, method).remote(self.session_id, call_id, *args, **kwargs)
        return self.directory().forward.remote(self.session_id, method, (call_id, *args), kwargs)

    def _stream(self, method: str, call_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not ray.is_initialized():
            raise RuntimeGone
        actor = self._whereabouts.found()
        return getattr(actor, method).remote(self.session_id, call_id, *args, **kwargs)

    def directory(self) -> Any:
        """The runtime's Directory. RuntimeGone."""
        if self._directory is None:
            try:
                self._directory = ray.get_actor(DIRECTORY, namespace=self._address.namespace)
            except ValueError as exc:
                raise RuntimeGone from exc
        return self._directory

    def store(self) -> Any:
        """The event store's actor that has the session. RuntimeGone."""
        if self._store is None:
            name = event_store_name(shard_of(self.session_id, self._address.shards))
            try:
                self._store = ray.get_actor(name, namespace=self._address.namespace)
            except ValueError as exc:
                raise RuntimeGone from exc
        return self._store


class _Sources:
    """Where the events of a handle's session come from."""

    def __init__(self, handle: SessionHandle) -> None:
        self._handle = handle

    def whereabouts(self) -> Any:
        if not ray.is_initialized():
            raise RuntimeGone
        return self._handle.directory().whereabouts.remote(self._handle.session_id)

    def subscribe(self, actor: Any, **query: Any) -> Any:
        return actor.subscribe.remote(self._handle.session_id, secrets.token_hex(_CALL_ID_BYTES), **query)

    def end_of(self, run_id: str | None) -> Any:
        return self._handle.store().end_of.remote(self._handle.session_id, run_id)

    def read(self, query: EventQuery, wait_s: float) -> Any:
        return self._handle.store().read.remote(self._handle.session_id, query, wait_s)

    def artifact(self, reference: str) -> Any:
        return self._handle.store().artifact.remote(self._handle.session_id, reference)
