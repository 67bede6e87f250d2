"""The one thread that writes: takes whatever has arrived, commits it at once, and only then says so."""

import queue
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...domain.errors import StorageError
from ...domain.event_log import Ownership
from ...domain.log_head import Fenced, LogHead, OutOfOrder, Placed, Repeated
from ..append_frames import AppendAnswer, AppendEntry, AppendStatus
from ..clock import now_us
from ..event_selection import StoredBatch
from ..logs import get_logger
from .event_database import EventDatabase
from .record_tables import RecordTables

_log = get_logger(__name__)

MAX_GROUP_BYTES = 8 * 1024 * 1024
"""A group commits when it has this much, though more waits: bounds memory and the time of one commit."""

MAX_HEADS = 100_000
"""Ends of logs that are kept in memory; the least recently written is read from the file again when needed."""

IDLE_S = 0.25
"""How long nothing must arrive before the writer turns to projections and checkpoints: not in the middle of a burst."""

MAX_BEHIND = 50_000
"""Batches that the projections may lag behind; past that, each commit is followed by a step of theirs."""

CHECKPOINT_WAL_BYTES = 32 * 1024 * 1024
_SWITCH_INTERVAL_S = 0.0005  # at the default of 5 ms a commit waits that long for the loop to give up the GIL

AnswerFrame = Callable[[list[AppendAnswer]], None]


class CommittedBatch(NamedTuple):
    """A batch that is durable now."""

    session_id: str
    session_key: int
    batch: StoredBatch


class CommittedGroup(NamedTuple):
    """One commit: what it stored, and whom to tell."""

    batches: list[CommittedBatch]
    answers: list[tuple[AnswerFrame, list[AppendAnswer]]]


@dataclass(slots=True)
class _Append:
    entries: Sequence[AppendEntry]
    answer: AnswerFrame


@dataclass(slots=True)
class _Grant:
    session_id: str
    owner: str
    granted: "Future[Ownership]"


@dataclass(slots=True)
class _Job:
    read: Callable[[RecordTables], Any]
    done: "Future[Any]"
    after: int | None = None
    """The batch that the tables must hold before it runs: the newest one when it came."""


_Item = _Append | _Grant | _Job | None


class GroupCommitThread:
    """Owns the database. Appends, grants and reads of records go through its inbox, in order.

    `on_commit` is called in this thread after each commit; `on_fatal` once, when a write failed and the state in memory
    can no longer be trusted: whoever runs it should end the process and start anew from the file.
    """

    def __init__(
        self, path: str, *, on_commit: Callable[[CommittedGroup], None], on_fatal: Callable[[Exception], None]
    ) -> None:
        self._path = path
        self._on_commit = on_commit
        self._on_fatal = on_fatal
        self._inbox: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._heads: OrderedDict[str, LogHead] = OrderedDict()
        self._opened: Future[EventDatabase] = Future()
        self._thread = threading.Thread(target=self._main, name="greenroom-group-commit", daemon=True)

    def start(self) -> "Future[EventDatabase]":
        """Begin; the future holds the open database, or the typed error why it does not open."""
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        self._thread.start()
        return self._opened

    def append(self, entries: Sequence[AppendEntry], answer: AnswerFrame) -> None:
        """Store the entries with the next group; `answer` is handed to on_commit."""
        self._inbox.put(_Append(entries, answer))

    def grant(self, session_id: str, owner: str) -> "Future[Ownership]":
        """Make a new owner of the session."""
        granted: Future[Ownership] = Future()
        self._inbox.put(_Grant(session_id, owner, granted))
        return granted

    def read_records(self, read: Callable[[RecordTables], Any]) -> "Future[Any]":
        """Run the read when the tables hold everything that was committed before."""
        done: Future[Any] = Future()
        self._inbox.put(_Job(read, done))
        return done

    def stop(self) -> None:
        """Finish what has arrived, close the file, end the thread."""
        self._inbox.put(None)
        self._thread.join()

    def _main(self) -> None:
        try:
            self._database = EventDatabase(self._path)
            self._tables = RecordTables(self._database.connection.cursor())
        except Exception as exc:  # noqa: BLE001  handed on: the opener gets it
            self._opened.set_exception(exc)
            return
        self._opened.set_result(self._database)
        try:
            self._serve()
        except Exception as exc:  # noqa: BLE001  handed on: the process ends and starts anew
            _log.exception("event_store_writer_failed", path=self._path)
            self._on_fatal(exc)
        finally:
            self._database.close()

    def _serve(self) -> None:
        behind = True
        while True:
            group = self._take(wait_s=IDLE_S if behind else None)
            if not group:
                behind = self._tidy()
                continue
            behind = True
            self._commit(
                [item for item in group if isinstance(item, _Grant)],
                [item for item in group if isinstance(item, _Append)],
            )
            for job in group:
                if isinstance(job, _Job):
                    self._run_job(job)
            if self._database.newest_batch - self._tables.watermark > MAX_BEHIND:
                self._tables.step()
            if None in group:
                return

    def _take(self, wait_s: float | None) -> list[_Item]:
        """Everything that waits, up to the size of a group; waits for the first item."""
        try:
            group: list[_Item] = [self._inbox.get(timeout=wait_s)]
        except queue.Empty:
            return []
        size = _size(group[0])
        while size < MAX_GROUP_BYTES:
            try:
                item = self._inbox.get_nowait()
            except queue.Empty:
                break
            group.append(item)
            size += _size(item)
        return group

    def _tidy(self) -> bool:
        """One small step of what can wait; True if there is more of it."""
        if self._tables.step():
            return True
        self._database.checkpoint_if_larger(CHECKPOINT_WAL_BYTES)
        return False

    def _commit(self, grants: Sequence[_Grant], appends: Sequence[_Append]) -> None:
        recorded_at_us = now_us()
        owned = [self._place_grant(grant, recorded_at_us) for grant in grants]
        stored: list[CommittedBatch] = []
        answers = [
            (append.answer, [self._place(entry, recorded_at_us, stored) for entry in append.entries])
            for append in appends
        ]
        self._database.flush(grants=bool(grants), batches=bool(stored))
        for grant, ownership in zip(grants, owned, strict=True):
            grant.granted.set_result(ownership)
        if answers:
            self._on_commit(CommittedGroup(stored, answers))

    def _place_grant(self, grant: _Grant, now: int) -> Ownership:
        head = self._head(grant.session_id)
        if head is None:
            head = self._database.new_head()
            self._keep(grant.session_id, head)
        head.grant()
        self._database.append_grant(grant.session_id, head, grant.owner, now)
        return Ownership(epoch=head.epoch, last_seq=head.last_seq)

    def _place(self, entry: AppendEntry, recorded_at_us: int, stored: list[CommittedBatch]) -> AppendAnswer:
        head = self._head(entry.session_id)
        if head is None:
            return AppendAnswer(AppendStatus.FENCED, 0, 0)
        match head.judge(epoch=entry.epoch, batch_number=entry.batch_number):
            case Placed(first_seq):
                batch = entry.batch
                self._database.append_batch(head, entry.batch_number, first_seq, recorded_at_us, batch)
                head.advance(batch_number=entry.batch_number, count=batch.event_count, recorded_at_us=recorded_at_us)
                kept = StoredBatch(first_seq, head.last_seq, recorded_at_us, batch.types, batch.payload)
                stored.append(CommittedBatch(entry.session_id, head.session_key, kept))
                return AppendAnswer(AppendStatus.STORED, first_seq, recorded_at_us)
            case Repeated(first_seq, at_us):
                return AppendAnswer(AppendStatus.STORED, first_seq, at_us)
            case Fenced(epoch):
                return AppendAnswer(AppendStatus.FENCED, epoch, 0)
            case OutOfOrder(expected):
                return AppendAnswer(AppendStatus.OUT_OF_ORDER, expected, 0)

    def _head(self, session_id: str) -> LogHead | None:
        head = self._heads.get(session_id)
        if head is None:
            head = self._database.head(session_id)
            if head is None:
                return None
            self._keep(session_id, head)
        self._heads.move_to_end(session_id)
        return head

    def _keep(self, session_id: str, head: LogHead) -> None:
        self._heads[session_id] = head
        if len(self._heads) > MAX_HEADS:
            self._heads.popitem(last=False)

    def _run_job(self, job: _Job) -> None:
        if job.done.cancelled():
            return
        try:
            if job.after is None:
                job.after = self._database.newest_batch
            if self._tables.watermark < job.after:
                self._tables.step()
                self._inbox.put(job)  # behind the appends that came meanwhile
                return
            job.done.set_result(job.read(self._tables))
        except Exception as exc:  # noqa: BLE001  handed on: the asker gets it
            job.done.set_exception(exc if isinstance(exc, StorageError) else StorageError(str(exc)))


def _size(item: _Item) -> int:
    return sum(len(entry.batch.payload) for entry in item.entries) if isinstance(item, _Append) else 0
