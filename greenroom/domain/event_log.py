"""The event log port: the one place where what happened is kept, and the only way to write."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from .errors import ValidationError
from .event import Event, EventType, NewEvent, to_microseconds
from .run import Run
from .session import Session

MAX_READ_LIMIT = 10_000


class Committed(NamedTuple):
    """Where a batch landed: its events have first_seq, first_seq + 1, ... in the order in which they were given."""

    first_seq: int
    recorded_at_us: int


class CommittedBatch(Protocol):
    """Consecutive events of one session that are durable now."""

    @property
    def first_seq(self) -> int: ...

    @property
    def last_seq(self) -> int: ...

    @property
    def size(self) -> int:
        """Bytes in memory, roughly."""
        ...

    def events(self) -> list[Event]:
        """The events; decoded at each call."""
        ...


CommitListener = Callable[[CommittedBatch], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventQuery:
    """Which events of a session: seq > after and seq < before, the lowest first, at most `limit` of them."""

    after: int = 0
    before: int | None = None
    limit: int = 100
    run_id: str | None = None
    types: frozenset[EventType] | None = None
    since_us: int | None = None
    """Only events whose timestamp is later than this, microseconds since 1970 UTC."""

    def __post_init__(self) -> None:
        if self.after < 0:
            raise _refusal("after", f"is {self.after}; a cursor is 0 or a seq")
        if self.before is not None and self.before < 1:
            raise _refusal("before", f"is {self.before}; it must be at least 1")
        if not 1 <= self.limit <= MAX_READ_LIMIT:
            raise _refusal("limit", f"is {self.limit}; it must be from 1 to {MAX_READ_LIMIT}")

    @property
    def is_filtered(self) -> bool:
        """Whether it looks at more than seq."""
        return self.run_id is not None or self.types is not None or self.since_us is not None

    def matches(self, event: Event) -> bool:
        """Whether the event passes the filters; the bounds of seq are not looked at."""
        return (
            (self.run_id is None or event.run_id == self.run_id)
            and (self.types is None or event.type in self.types)
            and (self.since_us is None or to_microseconds(event.timestamp) > self.since_us)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecords:
    """What an owner needs to take a session over."""

    session: Session | None
    """None: ownership was taken, but session_created never committed."""
    open_runs: tuple[Run, ...]
    """Runs that have not ended, in the order of the queue."""
    run_count: int
    recent_calls: tuple[tuple[str, str], ...]
    """Call id and run id of the newest runs, oldest first, so that a repeated call gets its first answer."""
    tools: bytes | None = None
    """The session's tools, packed."""


NO_RECORDS = SessionRecords(session=None, open_runs=(), run_count=0, recent_calls=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Ownership:
    """The right to write a session's log, until someone acquires it anew."""

    epoch: int
    last_seq: int
    records: SessionRecords = field(default=NO_RECORDS, compare=False)
    """As of when it was granted."""


class EventLog(Protocol):
    """Appends and reads.

    Guarantees: the seqs of a session are 1, 2, 3 ... without gap; a batch is stored whole or not at all; an append that
    is answered is durable; batches of one session are stored in the order in which append was called; a batch is
    stored once, however often it had to be sent. Not guaranteed: any order between sessions.
    """

    async def acquire(
        self, session_id: str, owner: str, on_commit: CommitListener, *, must_exist: bool = False
    ) -> Ownership:
        """Become the session's only writer: raises its epoch, so that every earlier owner is refused from now on.
        A session that nobody ever acquired exists from then on, or with `must_exist` is SessionNotFound.

        `on_commit` gets every batch of this epoch once it is durable, in the order of seq, before its append is
        answered.
        """
        ...

    async def acquire_new(self, listeners: Mapping[str, CommitListener], owner: str) -> list[Ownership | None]:
        """`acquire` for many sessions at once, of those among them that nobody ever acquired; None for the others, of
        which nothing changes. In the order of the ids."""
        ...

    def release(self, session_id: str, epoch: int) -> None:
        """Forget the epoch here; what was not committed is given up."""
        ...

    def append(self, session_id: str, epoch: int, events: Sequence[NewEvent]) -> "asyncio.Future[Committed]":
        """Append a batch of at least one event; its place is fixed by the order of the calls, not of the answers.

        The future fails with WriterFenced when a newer owner exists; every later append of this epoch fails too.
        """
        ...

    def record(self, session_id: str, epoch: int, events: Sequence[NewEvent]) -> None:
        """`append` for those who do not wait: a failure shows at the epoch's next append."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether `room` would return at once."""
        ...

    async def room(self) -> None:
        """Return when the log is ready to take more: the way to keep a fast provider from filling memory."""
        ...

    async def require_room(self) -> None:
        """Return at once while there is room for new work. StorageFull otherwise: refuse it before it begins."""
        ...

    async def acknowledged(self, session_id: str, committed: "asyncio.Future[Committed]") -> None:
        """Wait for an append on behalf of somebody who can be refused. Its error; StorageFull as soon as the log has no
        room for it: then it is not acknowledged, and stays under way until there is room."""
        ...

    async def read(self, session_id: str, query: EventQuery, *, wait_s: float = 0) -> list[Event]:
        """The matching events; waits up to wait_s for the first one when there is none yet.

        SessionNotFound, or InvalidCursor when `after` lies beyond the end.
        """
        ...

    async def load(self, session_id: str) -> SessionRecords:
        """The records as of everything committed so far. SessionNotFound if nobody ever acquired it."""
        ...

    async def find_run(self, run_id: str) -> Run | None:
        """The run's record, whatever session it belongs to."""
        ...

    async def find_run_by_key(self, session_id: str, idempotency_key: str) -> str | None:
        """The id of the run that was submitted with this key."""
        ...


def _refusal(field: str, reason: str) -> ValidationError:
    return ValidationError(f"{field} {reason}.", details={"field": field})


_TYPES = frozenset(EventType)  # `text in EventType` is a TypeError before Python 3.12


def parse_types(types: Sequence[str] | str | None) -> frozenset[EventType] | None:
    """Event types given by name; ValidationError names one that does not exist."""
    if types is None:
        return None
    names: Sequence[Any] = [types] if isinstance(types, str) else types
    unknown = [str(name) for name in names if name not in _TYPES]
    if unknown:
        raise _refusal("types", f"has {unknown[0]!r}, which is no event type; see greenroom.EventType")
    return frozenset(EventType(name) for name in names)
