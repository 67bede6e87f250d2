"""The thread that writes and the thread that says so: what arrives is committed in groups, then recorded, then told."""

import queue
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from ...domain.errors import GreenroomError, InvalidOperation, SessionNotFound, StorageFull
from ...domain.event_log import Ownership
from ...domain.hash_chain import chain_next, chain_start
from ...domain.log_head import REMEMBERED_BATCHES, Fenced, LogHead, OutOfOrder, Placed, Repeated
from ..append_frames import AppendAnswer, AppendEntry, AppendStatus
from ..clock import now_us
from ..event_selection import StoredBatch
from ..logs import get_logger
from ..room_watch import Room, RoomWatch
from .head_journal import HeadJournal, deleted_head, grant_head
from .log_file import Grant
from .log_rows import header_of, row_of, stamped_row
from .log_sources import CurrentSources
from .store_folder import OpenLog

_log = get_logger(__name__)

MAX_GROUP_BYTES = 8 * 1024 * 1024
"""A group commits when it has this much, though more waits: bounds memory and the time of one commit."""

MAX_UNRECORDED_GROUPS = 8
"""Groups that may be committed and not yet recorded; then the writer waits for the disk."""

MAX_HEADS = 100_000
"""Ends of logs that are kept in memory; the least recently written is read from the files again when needed."""

LOG_BYTES = 32 * 1024 * 1024
LOG_BATCHES = 100_000
"""A log file is frozen when it has this many bytes or batches: what opening has to read, and what sealing works on."""

_PREPARE_AT = 0.5
"""How full a log file is when the next one is asked for."""

_SWITCH_INTERVAL_S = 0.0005  # at the default of 5 ms a commit waits that long for the loop to give up the GIL

ResultT = TypeVar("ResultT")

AnswerFrame = Callable[[list[AppendAnswer]], None]


class CommittedBatch(NamedTuple):
    """A batch that is durable now."""

    batch_id: int
    session_id: str
    session_key: int
    batch: StoredBatch


class CommittedGroup(NamedTuple):
    """One commit: what it stored, and whom to tell."""

    batches: list[CommittedBatch]
    answers: list[tuple[AnswerFrame, list[AppendAnswer]]]


@dataclass(slots=True)
class _Session:
    """The head of a session's log, and who owns it."""

    head: LogHead
    grant: Grant


@dataclass(slots=True)
class _Append:
    entries: Sequence[AppendEntry]
    answer: AnswerFrame


@dataclass(slots=True)
class _Grant:
    session_id: str
    owner: str
    must_exist: bool
    granted: "Future[Ownership]"


@dataclass(slots=True)
class _NewGrants:
    session_ids: Sequence[str]
    owner: str
    granted: "Future[list[Ownership | None]]"


@dataclass(slots=True)
class _Call:
    work: Callable[[], Any]
    done: "Future[Any]"


_Item = _Append | _Grant | _NewGrants | _Call | None


class SealedOwners(Protocol):
    """Who owned the sessions when they were last sealed: what the log files know no more."""

    def find_grant(self, session_id: str) -> Grant | None: ...

    def known(self, session_ids: Sequence[str]) -> set[str]: ...


class _Unrecorded(NamedTuple):
    """A group that DuckDB has committed."""

    journal: HeadJournal
    records: bytes
    group: CommittedGroup
    granted: "list[tuple[Future[Any], Any]]"
    """Whom else to tell, and what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterCallbacks:
    """Whom the threads tell. Called in them."""

    committed: Callable[[CommittedGroup], None]
    """A group is durable and recorded."""
    filling: Callable[[], None]
    """The log file is half full: the next one should be prepared with `prepare`."""
    rotated: Callable[[], None]
    """A log file was frozen, and all of it recorded."""
    failed: Callable[[Exception], None]
    """A write failed, and what is in memory can no longer be trusted: end the process and start anew from the files."""


class GroupCommit:
    """Owns the end of the log. Appends and grants go through its inbox, in order, and nowhere else.

    A group is committed by the one thread and recorded in the journal of heads by the other, while the next one is
    being committed; it is told after both.
    """

    def __init__(
        self,
        hot: OpenLog,
        sources: CurrentSources,
        sealed: SealedOwners,
        *,
        next_batch: int,
        next_session_key: int,
        room_watch: RoomWatch,
        callbacks: WriterCallbacks,
    ) -> None:
        self._log = hot.file
        self._journal = hot.journal
        self._sources = sources
        self._sealed = sealed
        self._next_batch = next_batch
        if not self._log.contents.batch_count:
            self._log.contents.first_batch = next_batch
        self._next_session_key = next_session_key
        self._callbacks = callbacks
        self._inbox: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._unrecorded: queue.Queue[_Unrecorded | OpenLog | None] = queue.Queue(MAX_UNRECORDED_GROUPS)
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._leaving: set[str] = set()
        self._room_watch = room_watch
        self.room = room_watch.look()
        """What there was the last time that something came."""
        self._prepared: OpenLog | None = None
        self._asked_to_prepare = False
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=f"greenroom-{name}", daemon=True)
            for name, work in (("commit", self._write), ("record", self._record))
        ]
        self.committed_batch = next_batch - 1
        """Number of the newest batch that DuckDB has committed."""

    @property
    def next_session_key(self) -> int:
        """No session has this key or a higher one."""
        return self._next_session_key

    def start(self) -> None:
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        for thread in self._threads:
            thread.start()

    def append(self, entries: Sequence[AppendEntry], answer: AnswerFrame) -> None:
        """Store the entries with the next group; `answer` is handed to `committed`."""
        self._inbox.put(_Append(entries, answer))

    def grant(self, session_id: str, owner: str, *, must_exist: bool = False) -> "Future[Ownership]":
        """Make a new owner of the session."""
        granted: Future[Ownership] = Future()
        self._inbox.put(_Grant(session_id, owner, must_exist, granted))
        return granted

    def grant_new(self, session_ids: Sequence[str], owner: str) -> "Future[list[Ownership | None]]":
        """Make a first owner of those of the sessions that do not exist; None for the others."""
        granted: Future[list[Ownership | None]] = Future()
        self._inbox.put(_NewGrants(session_ids, owner, granted))
        return granted

    def between_groups(self, work: Callable[[], ResultT]) -> "Future[ResultT]":
        """Run the work in the writer's thread when everything that came before it has been committed."""
        done: Future[Any] = Future()
        self._inbox.put(_Call(work, done))
        return done

    def leave(self, session_id: str) -> "Future[int | None]":
        """Nobody can write the session from now on, or own it until `forgotten`; what is there of it stays. Gives its
        key, if there is such a session."""
        return self.between_groups(lambda: self._leave(session_id))

    def forget(self, session_key: int) -> "Future[None]":
        """The rows of the session in log files count no more: its deletion is durable. Done when everything that came
        before was recorded and told."""
        forgotten: Future[None] = Future()
        self.between_groups(lambda: self._forget(session_key, forgotten))
        return forgotten

    def reserve(self, session_id: str) -> "Future[bool]":
        """Keep the name for a session that comes from elsewhere, until `forgotten`; False if there is one already."""
        return self.between_groups(lambda: self._reserve(session_id))

    def forgotten(self, session_id: str) -> "Future[None]":
        """The name is free again: no trace is left that a new session could take for its own, or all is there."""
        return self.between_groups(lambda: self._leaving.discard(session_id))

    def look_for_room(self) -> Room:
        """What there is now. In the writer's thread."""
        self.room = self._room_watch.look()
        return self.room

    def set_aside(self, sessions: int, batches: int) -> "Future[tuple[int, int]]":
        """The first of so many session keys and of so many numbers of batches, for what comes from elsewhere.

        Within a file the numbers follow each other, so the writer turns to the prepared file before.
        """
        return self.between_groups(lambda: self._set_aside(sessions, batches))

    def prepare(self, log: OpenLog) -> None:
        """The file to turn to when the current one is full; the manifest names it already."""
        self._prepared = log

    @property
    def has_prepared(self) -> bool:
        """Whether there is a file to turn to."""
        return self._prepared is not None

    def rotate(self) -> "Future[bool]":
        """Turn to the prepared file now, if the current one holds anything; True if it did."""
        return self.between_groups(self._rotate)

    def stop(self) -> None:
        """Finish what has arrived, and end the threads."""
        self._inbox.put(None)
        for thread in self._threads:
            thread.join()
        self._journal.close()
        if self._prepared is not None:
            self._prepared.file.close()
            self._prepared.journal.close()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as exc:  # noqa: BLE001  handed on: the process ends and starts anew
            _log.exception("event_store_writer_failed", path=str(self._log.path))
            self._callbacks.failed(exc)

    # The thread that commits

    def _write(self) -> None:
        while True:
            group = self._take()
            self._commit(
                [item for item in group if isinstance(item, _Grant | _NewGrants)],
                [item for item in group if isinstance(item, _Append)],
            )
            for item in group:
                if isinstance(item, _Call):
                    _answer(item)
            self._rotate_when_full()
            if None in group:
                self._unrecorded.put(None)
                return

    def _take(self) -> list[_Item]:
        """Everything that waits, up to the size of a group; waits for the first item."""
        group: list[_Item] = [self._inbox.get()]
        size = _size(group[0])
        while size < MAX_GROUP_BYTES:
            try:
                item = self._inbox.get_nowait()
            except queue.Empty:
                break
            group.append(item)
            size += _size(item)
            if isinstance(item, _Call):
                break  # what comes after it must find it done
        return group

    def _commit(self, grants: Sequence[_Grant | _NewGrants], appends: Sequence[_Append]) -> None:
        if not grants and not appends:
            return
        self.room = self._room_watch.look(sum(_size(append) for append in appends))
        if self.room is Room.FULL:
            self._refuse_all(grants, appends)
            return
        recorded_at_us = now_us()
        records: list[bytes] = []
        granted: list[tuple[Future[Any], Any]] = []
        for grant in grants:
            if isinstance(grant, _NewGrants):
                granted.append((grant.granted, self._place_new(grant, recorded_at_us, records)))
            elif not self._refuse_leaving(grant) and self._is_readable(grant):
                granted.append((grant.granted, self._place_grant(grant, recorded_at_us, records)))
        named = len(self._log.contents.grants)
        stored: list[CommittedBatch] = []
        answers = [
            (append.answer, [self._place(entry, recorded_at_us, stored, records) for entry in append.entries])
            for append in appends
        ]
        self._log.flush(
            grants=bool(granted) or len(self._log.contents.grants) > named,
            batches=bool(stored),
        )
        self.committed_batch = self._next_batch - 1
        self._unrecorded.put(_Unrecorded(self._journal, b"".join(records), CommittedGroup(stored, answers), granted))

    def _refuse_all(self, grants: Sequence[_Grant | _NewGrants], appends: Sequence[_Append]) -> None:
        """Nothing was changed: whoever asked may ask again when there is room."""
        for grant in grants:
            fail(grant.granted, StorageFull())
        refusal = AppendAnswer(AppendStatus.STORAGE_FULL, 0, 0)
        answers = [(append.answer, [refusal] * len(append.entries)) for append in appends]
        self._unrecorded.put(_Unrecorded(self._journal, b"", CommittedGroup([], answers), []))

    def _refuse_leaving(self, grant: _Grant) -> bool:
        if grant.session_id in self._leaving:
            message = f"Session {grant.session_id} is being deleted or imported; try again when it is."
            fail(grant.granted, InvalidOperation(message, details={"session_id": grant.session_id}))
        return grant.session_id in self._leaving

    def _is_readable(self, grant: _Grant) -> bool:
        """Whether the end of the session's log can be read: damage to one session must not stop the others."""
        try:
            session = self._session(grant.session_id)
        except GreenroomError as exc:
            _log.exception("session_not_readable", session_id=grant.session_id)
            fail(grant.granted, exc)
            return False
        if session is None and grant.must_exist:
            fail(grant.granted, SessionNotFound(details={"session_id": grant.session_id}))
            return False
        return True

    def _place_grant(self, grant: _Grant, now: int, records: list[bytes]) -> Ownership:
        session = self._session(grant.session_id)
        head = self._new_head(grant.session_id) if session is None else session.head
        return self._own(head, grant.session_id, grant.owner, now, records)

    def _place_new(self, grants: _NewGrants, now: int, records: list[bytes]) -> list[Ownership | None]:
        """One look at the records for all of them: one each took half a millisecond."""
        sources = self._sources()
        unknown = [
            session_id
            for session_id in grants.session_ids
            if session_id not in self._sessions and session_id not in self._leaving and not sources.grant(session_id)
        ]
        new = set(unknown) - self._sealed.known(unknown)
        granted: list[Ownership | None] = []
        for session_id in grants.session_ids:
            if session_id in new:
                new.remove(session_id)
                granted.append(self._own(self._new_head(session_id), session_id, grants.owner, now, records))
            else:
                granted.append(None)
        return granted

    def _new_head(self, session_id: str) -> LogHead:
        head = LogHead(self._next_session_key, digest=chain_start(session_id))
        self._next_session_key += 1
        return head

    def _own(self, head: LogHead, session_id: str, owner: str, now: int, records: list[bytes]) -> Ownership:
        head.grant()
        owned = Grant(head.session_key, session_id, head.epoch, owner, now)
        self._keep(_Session(head, owned))
        records.append(self._log.append_grant(owned))
        records.append(grant_head(head.session_key, head.epoch, head.last_seq))
        return Ownership(epoch=head.epoch, last_seq=head.last_seq)

    def _place(
        self, entry: AppendEntry, recorded_at_us: int, stored: list[CommittedBatch], records: list[bytes]
    ) -> AppendAnswer:
        try:
            session = self._session(entry.session_id)
        except GreenroomError:  # its writer ends; whoever takes the session over is told what is wrong
            _log.exception("session_not_readable", session_id=entry.session_id)
            session = None
        if session is None:
            return AppendAnswer(AppendStatus.FENCED, 0, 0)
        head = session.head
        match head.judge(epoch=entry.epoch, batch_number=entry.batch_number):
            case Placed(first_seq):
                batch = entry.batch
                if entry.session_id not in self._log.contents.grants:
                    # So that each file can be read without the others.
                    records.append(self._log.append_grant(session.grant))
                    records.append(grant_head(head.session_key, head.epoch, head.last_seq))
                header = header_of(head.epoch, entry.batch_number, first_seq, recorded_at_us, batch)
                batch_id = self._next_batch
                row = stamped_row(batch_id, header, batch.payload)
                self._next_batch += 1
                digest = chain_next(head.digest, row_of(row))
                records.append(self._log.append_batch(head.session_key, header, row, head.digest, digest))
                head.advance(
                    batch_number=entry.batch_number,
                    count=batch.event_count,
                    recorded_at_us=recorded_at_us,
                    digest=digest,
                )
                kept = StoredBatch(first_seq, head.last_seq, recorded_at_us, batch.types, batch.payload)
                stored.append(CommittedBatch(batch_id, entry.session_id, head.session_key, kept))
                return AppendAnswer(AppendStatus.STORED, first_seq, recorded_at_us)
            case Repeated(first_seq, at_us):
                return AppendAnswer(AppendStatus.STORED, first_seq, at_us)
            case Fenced(epoch):
                return AppendAnswer(AppendStatus.FENCED, epoch, 0)
            case OutOfOrder(expected):
                return AppendAnswer(AppendStatus.OUT_OF_ORDER, expected, 0)

    def _session(self, session_id: str) -> _Session | None:
        session = self._sessions.get(session_id)
        if session is None:
            grant = self._sources().grant(session_id) or self._sealed.find_grant(session_id)
            if grant is None or session_id in self._leaving:
                return None
            session = _Session(self._head(grant), grant)
            self._keep(session)
        self._sessions.move_to_end(session_id)
        return session

    def _head(self, grant: Grant) -> LogHead:
        """The end of the session's log as it is in the files."""
        sources = self._sources()
        last_seq, digest = sources.end(grant.session_key) or (0, chain_start(grant.session_id))
        head = LogHead(grant.session_key, grant.epoch, last_seq, digest=digest)
        for batch in reversed(sources.newest_batches(grant.session_key, REMEMBERED_BATCHES)):
            header = batch.header
            if header.epoch == grant.epoch:
                head.answers[header.batch_number] = (header.first_seq, header.recorded_at_us)
                head.last_batch = header.batch_number
        return head

    def _keep(self, session: _Session) -> None:
        self._sessions[session.grant.session_id] = session
        if len(self._sessions) > MAX_HEADS:
            self._sessions.popitem(last=False)

    def _leave(self, session_id: str) -> int | None:
        session = self._session(session_id)
        if session is None:
            return None
        self._leaving.add(session_id)
        del self._sessions[session_id]
        return session.head.session_key

    def _forget(self, session_key: int, forgotten: "Future[None]") -> None:
        for log in self._sources().logs:
            log.contents.forget(session_key)
        told: list[tuple[Future[Any], Any]] = [(forgotten, None)]
        record = deleted_head(session_key)
        self._unrecorded.put(_Unrecorded(self._journal, record, CommittedGroup([], []), told))

    def _set_aside(self, sessions: int, batches: int) -> tuple[int, int]:
        contents = self._log.contents
        if contents.batch_count:
            if not self._rotate():
                raise InvalidOperation("The next log file is not prepared yet; try again.")
            contents = self._log.contents
        first_batch, session_key = self._next_batch, self._next_session_key
        self._next_batch += batches
        self._next_session_key += sessions
        contents.first_batch = self._next_batch
        return session_key, first_batch

    def _reserve(self, session_id: str) -> bool:
        if session_id in self._leaving or self._session(session_id) is not None:
            return False
        self._leaving.add(session_id)
        return True

    def _rotate_when_full(self) -> None:
        contents = self._log.contents
        fullness = max(contents.byte_count / LOG_BYTES, contents.batch_count / LOG_BATCHES)
        if fullness >= _PREPARE_AT and not self._asked_to_prepare:
            self._asked_to_prepare = True
            self._callbacks.filling()
        if fullness >= 1:
            self._rotate()

    def _rotate(self) -> bool:
        if self._prepared is None or self._log.contents.is_empty:
            return False
        self._log.is_recorded = False
        self._unrecorded.put(OpenLog(self._log, self._journal))
        (self._log, self._journal), self._prepared = self._prepared, None
        self._asked_to_prepare = False
        self._log.contents.first_batch = self._next_batch
        self._sources.rotate(self._log)
        return True

    # The thread that records

    def _record(self) -> None:
        ended = False
        while not ended:
            waiting = [self._unrecorded.get()]
            while not self._unrecorded.empty():
                waiting.append(self._unrecorded.get())
            ended = None in waiting
            self._record_all([item for item in waiting if item is not None])

    def _record_all(self, waiting: Sequence[_Unrecorded | OpenLog]) -> None:
        """One write for all that belongs to one journal; then they are told."""
        start = 0
        for end in range(1, len(waiting) + 1):
            item = waiting[end - 1]
            if isinstance(item, OpenLog):
                self._record_groups(waiting[start : end - 1])
                item.journal.close()
                item.file.is_recorded = True
                self._callbacks.rotated()
                start = end
        self._record_groups(waiting[start:])

    def _record_groups(self, groups: Sequence[_Unrecorded | OpenLog]) -> None:
        found = [group for group in groups if isinstance(group, _Unrecorded)]
        records = b"".join(group.records for group in found)
        if records:
            found[0].journal.append(records)
        for group in found:
            for granted, ownership in group.granted:
                settle(granted, ownership)
            if group.group.answers:
                self._callbacks.committed(group.group)


def _answer(call: _Call) -> None:
    if not call.done.set_running_or_notify_cancel():
        return
    try:
        call.done.set_result(call.work())
    except GreenroomError as exc:
        call.done.set_exception(exc)


def settle(future: "Future[Any]", result: Any) -> None:
    """Give the result, unless whoever asked has given up."""
    if future.set_running_or_notify_cancel():
        future.set_result(result)


def fail(future: "Future[Any]", error: Exception) -> None:
    """Give the error, unless whoever asked has given up."""
    if future.set_running_or_notify_cancel():
        future.set_exception(error)


def _size(item: _Item) -> int:
    return sum(len(entry.batch.payload) for entry in item.entries) if isinstance(item, _Append) else 0
