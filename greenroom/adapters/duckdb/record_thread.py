"""The thread that owns the records: it folds what was committed into them, and answers questions about them."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import duckdb

from ...domain.errors import GreenroomError, StorageError, StorageFull
from ..logs import get_logger
from .duckdb_files import storage_error
from .log_file import Grant
from .log_sources import CurrentSources
from .record_tables import STEP_BATCHES, RecordTables

_log = get_logger(__name__)

IDLE_S = 0.25
"""How long nothing must be committed before the records follow by themselves: not in the middle of a burst."""

MAX_BEHIND = 50_000
"""Batches that the records may lag behind; past that they follow while appends go on."""

_FULL_RETRY_S = 1.0
CHECKPOINT_WAL_BYTES = 8 * 1024 * 1024

ResultT = TypeVar("ResultT")


@dataclass(slots=True)
class _Job:
    work: Callable[[RecordTables], Any]
    done: "Future[Any]"
    after: int
    """The batch that the tables must hold before it runs."""


class RecordThread:
    """Jobs run one after another, each when the records hold everything that was committed before it was asked for."""

    def __init__(
        self,
        path: Path,
        sources: CurrentSources,
        committed_batch: Callable[[], int],
        *,
        on_failed: Callable[[Exception], None],
    ) -> None:
        """Opens the file. StorageError if it does not open."""
        self.tables = RecordTables(path)
        self._sources = sources
        self._committed_batch = committed_batch
        self._on_failed = on_failed
        self._inbox: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._committed_at = 0.0
        self._nudged = threading.Event()
        self._followed_to = 0
        self._retry_at = 0.0
        self._path = path
        self._ended = False
        self._thread = threading.Thread(target=self._main, name="greenroom-records", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def find_grant(self, session_id: str) -> Grant | None:
        """The session's newest owner as of when it was last sealed. From any thread."""
        return self.tables.grant(session_id)

    def known(self, session_ids: Sequence[str]) -> set[str]:
        """Those of the sessions that had an owner when they were last sealed. From any thread."""
        return self.tables.known(session_ids)

    def committed(self) -> None:
        """Something was committed. Cheap: called for every group."""
        self._committed_at = time.monotonic()
        if not self._nudged.is_set():
            self._nudged.set()
            self._inbox.put(None)

    def run(self, work: Callable[[RecordTables], ResultT], *, after: int | None = None) -> "Future[ResultT]":
        """Run the work when the records hold everything that was committed before, or up to the batch `after`."""
        done: Future[Any] = Future()
        if self._ended:
            done.set_exception(StorageError("The event store is closed."))
            return done
        self._inbox.put(_Job(work, done, self._committed_batch() if after is None else after))
        return done

    def stop(self) -> None:
        """Answer what was asked for, close the file, end the thread."""
        self._ended = True
        self._inbox.put(None)
        self._thread.join()

    def _main(self) -> None:
        try:
            while not self._ended or not self._inbox.empty():
                self._turn()
            self.tables.close()
        except Exception as exc:  # noqa: BLE001  handed on: the process ends and starts anew
            _log.exception("event_store_records_failed")
            self._on_failed(exc)

    def _turn(self) -> None:
        try:
            job = self._inbox.get(timeout=IDLE_S if self._is_behind else None)
        except queue.Empty:
            job = None
        if job is not None:
            self._do(job)
            return
        if not self._is_behind:
            self._nudged.clear()
            self.tables.checkpoint(if_larger=CHECKPOINT_WAL_BYTES)
            if self._is_behind:  # committed while the flag was still up
                self._nudged.set()
        elif self._may_follow():
            with contextlib.suppress(StorageFull):  # the log is what counts: the records follow when there is room
                self._step()

    @property
    def _is_behind(self) -> bool:
        return max(self.tables.watermark, self._followed_to) < self._committed_batch()

    def _may_follow(self) -> bool:
        behind = self._committed_batch() - self.tables.watermark
        now = time.monotonic()
        return now >= self._retry_at and (behind > MAX_BEHIND or now - self._committed_at >= IDLE_S)

    def _do(self, job: _Job) -> None:
        if not job.done.set_running_or_notify_cancel():
            return
        try:
            while self.tables.watermark < job.after and self._step():
                pass
        except StorageFull as exc:
            job.done.set_exception(exc)
            return
        except Exception as exc:
            job.done.set_exception(StorageError(f"The records cannot follow the log: {exc}"))
            raise
        try:
            job.done.set_result(job.work(self.tables))
        except Exception as exc:  # noqa: BLE001  handed on: the asker gets it
            job.done.set_exception(exc if isinstance(exc, GreenroomError) else StorageError(str(exc)))

    def _step(self) -> bool:
        try:
            return self._follow()
        except duckdb.Error as exc:
            error = storage_error(exc, self._path)
            if not isinstance(error, StorageFull):
                raise
            self.tables.reopen()
            self._retry_at = time.monotonic() + _FULL_RETRY_S
            raise error from exc

    def _follow(self) -> bool:
        committed = self._committed_batch()
        batches = self._sources().batches_from(self.tables.watermark + 1, STEP_BATCHES)
        if batches:
            self.tables.step(batches)
        else:
            self._followed_to = committed  # numbers set aside for what came from elsewhere have no batch in a log file
        return bool(batches)
