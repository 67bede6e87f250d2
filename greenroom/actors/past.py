"""What a session's runs have said, read from its log and kept up to date."""

import asyncio

from ..domain.event_log import EventLog, EventQuery
from ..domain.transcript import TRANSCRIPT_TYPES, Transcript

_PAGE = 1_000


class SessionPast:
    """Belongs to one live session. Each event is read once, when somebody first asks for what lies behind it."""

    def __init__(self, session_id: str, log: EventLog) -> None:
        self._session_id = session_id
        self._log = log
        self._transcript: Transcript | None = None
        self._read_to = 0
        self._reading = asyncio.Lock()

    async def transcript(self) -> Transcript:
        """Everything up to now that the bounds of a transcript let it keep."""
        async with self._reading:
            if self._transcript is None:
                self._transcript = Transcript()
            while page := await self._log.read(
                self._session_id, EventQuery(after=self._read_to, types=TRANSCRIPT_TYPES, limit=_PAGE)
            ):
                for event in page:
                    self._transcript.add(event)
                self._read_to = page[-1].seq
        return self._transcript
