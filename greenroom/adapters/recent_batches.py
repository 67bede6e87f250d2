"""The newest events of every session, kept in memory up to a number of bytes."""

from bisect import bisect_right
from collections import deque

from .event_selection import StoredBatch


class RecentBatches:
    """Forgets the oldest batch, of whatever session, when it is full: a reader that finds a gap goes to the file."""

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._by_age: deque[tuple[str, int]] = deque()
        self._by_session: dict[str, deque[StoredBatch]] = {}

    def add(self, session_id: str, batch: StoredBatch) -> None:
        """Keep a batch that follows the session's last one."""
        size = len(batch.payload)
        self._by_session.setdefault(session_id, deque()).append(batch)
        self._by_age.append((session_id, size))
        self._bytes += size
        while self._bytes > self._max_bytes:
            self._forget_oldest()

    def after(self, session_id: str, seq: int) -> list[StoredBatch] | None:
        """All batches with events past seq; None if some of them may have been forgotten or never were here."""
        batches = self._by_session.get(session_id)
        if not batches or batches[0].first_seq > seq + 1:
            return None
        if seq >= batches[-1].first_seq - 1:  # the usual case: a reader at the end
            return [batches[-1]]
        kept = list(batches)
        return kept[bisect_right(kept, seq, key=lambda batch: batch.last_seq) :]

    def forget(self, session_id: str) -> None:
        """Nothing of the session is kept; what it took is given back when its turn to be forgotten comes."""
        if session_id in self._by_session:
            self._by_session[session_id].clear()

    def _forget_oldest(self) -> None:
        session_id, size = self._by_age.popleft()
        self._bytes -= size
        batches = self._by_session.get(session_id)
        if batches:
            batches.popleft()
        if not batches:
            self._by_session.pop(session_id, None)
