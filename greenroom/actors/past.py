"""What a session's earlier runs said, read from its log."""

from ..domain.event_log import MAX_READ_LIMIT, EventLog, EventQuery
from ..domain.transcript import TRANSCRIPT_TYPES, Transcript


async def read_transcript(session_id: str, log: EventLog) -> Transcript:
    """Everything that was said up to now."""
    transcript = Transcript()
    after = 0
    while page := await log.read(session_id, EventQuery(after=after, types=TRANSCRIPT_TYPES, limit=MAX_READ_LIMIT)):
        for event in page:
            transcript.add(event)
        after = page[-1].seq
    return transcript
