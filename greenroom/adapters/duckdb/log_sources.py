"""All files of a log at one moment: parts, frozen log files and the one that is written to, read as one."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ..event_selection import StoredBatch
from .chunks import SealedBatch
from .log_file import Grant, Link, LogFile, SessionSpan
from .part_file import PartFile


@dataclass(frozen=True, slots=True)
class LogSources:
    """A snapshot: files of an older one stay readable for whoever still holds it."""

    parts: tuple[PartFile, ...]
    """Oldest first, and all older than the logs."""
    frozen: tuple[LogFile, ...]
    hot: LogFile

    @property
    def logs(self) -> tuple[LogFile, ...]:
        return (*self.frozen, self.hot)

    def grant(self, session_id: str) -> Grant | None:
        """The newest grant in the log files; older ones are in the records."""
        for log in reversed(self.logs):
            grant = log.contents.grants.get(session_id)
            if grant is not None:
                return grant
        return None

    def granted(self) -> set[str]:
        """Sessions with a grant or a batch in the log files."""
        return {session_id for log in self.logs for session_id in list(log.contents.grants)}

    def end(self, session_key: int) -> Link | None:
        """The session's last seq and the digest there; None if it has no events."""
        for log in reversed(self.logs):
            span = log.contents.spans.get(session_key)
            if span is not None:
                return span.last_seq, span.digest
        for part in reversed(self.parts):
            found = part.span(session_key)
            if found is not None:
                return found.last_seq, found.digest
        return None

    def last_seq(self, session_key: int) -> int:
        """Where the session ends, from memory; 0 if it has no events."""
        for log in reversed(self.logs):
            span = log.contents.spans.get(session_key)
            if span is not None:
                return span.last_seq
        for part in reversed(self.parts):
            bounds = part.bounds(session_key)
            if bounds is not None:
                return bounds[1]
        return 0

    def batches(self, session_key: int, *, after: int, types: int) -> Iterator[StoredBatch]:
        """Batches with events past `after`, in order, read while they are consumed."""
        for part in self.parts:
            bounds = part.bounds(session_key)
            if bounds is not None and bounds[1] > after:
                yield from part.batches(session_key, after=after, types=types)
        for log in self.logs:
            span = log.contents.spans.get(session_key)
            if span is not None and span.last_seq > after:
                yield from log.batches(session_key, after=after)

    def spans(self, session_key: int) -> list[tuple[LogFile, SessionSpan]]:
        """What the log files have of the session; true of what is committed when it is asked between two groups."""
        found = [(log, log.span(session_key)) for log in self.logs]
        return [(log, span) for log, span in found if span is not None]

    def newest_batches(self, session_key: int, limit: int) -> list[SealedBatch]:
        """The newest batches of the session, the newest first."""
        found: list[SealedBatch] = []
        for source in (*reversed(self.logs), *reversed(self.parts)):
            if len(found) >= limit:
                break
            found += source.newest_batches(session_key, limit - len(found))
        return found

    def batches_from(self, batch_id: int, limit: int) -> list[tuple[str | None, SealedBatch]]:
        """Session and batch of the batches from that number on that are still in log files, in the order of commits."""
        found: list[tuple[str | None, SealedBatch]] = []
        for log in self.logs:
            if log.contents.batch_count and log.last_batch >= batch_id and len(found) < limit:
                found += log.batches_from(batch_id, limit - len(found))
        return found


class CurrentSources:
    """The sources as of now: replaced by the writer when it turns to a new file, and when files were sealed."""

    def __init__(self, sources: LogSources) -> None:
        self._sources = sources
        self._lock = threading.Lock()

    def __call__(self) -> LogSources:
        return self._sources

    def rotate(self, hot: LogFile) -> None:
        """Freeze the file that was written to; `hot` follows it."""
        self.change(lambda now: replace(now, frozen=(*now.frozen, now.hot), hot=hot))

    def change(self, change: Callable[[LogSources], LogSources]) -> None:
        with self._lock:
            self._sources = change(self._sources)
