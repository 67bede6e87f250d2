"""Following a live session: what there is, then what comes, each event once, whatever the reader's pace."""

from collections.abc import AsyncGenerator, Awaitable, Callable

from ..domain.event import Event
from ..domain.event_log import EventLog, EventQuery
from .event_feed import EventFeed


async def follow_events(
    session_id: str,
    query: EventQuery,
    *,
    feed: EventFeed,
    log: EventLog,
    end_seq: Callable[[], Awaitable[int | None]],
) -> AsyncGenerator[list[Event]]:
    """Batches of the events that match, past `query.after`, in order; ends with the seq that `end_seq` gives.

    `end_seq` gives None while the end is open. A reader that falls behind the feed's memory is served from the log.
    """
    cursor = query.after
    while True:
        last = await end_seq()
        if last is not None and cursor >= last:
            return
        if cursor >= feed.last_seq:
            await feed.wait(cursor)
            continue
        page = feed.page(cursor)
        if page is None:
            found, cursor = await _page_from_log(session_id, query, cursor, feed.last_seq, log)
        else:
            cursor = page[-1].seq
            found = [event for event in page if query.matches(event)] if query.is_filtered else page
        if last is not None:
            found = [event for event in found if event.seq <= last]
        if found:
            yield found


async def _page_from_log(
    session_id: str, query: EventQuery, cursor: int, end: int, log: EventLog
) -> tuple[list[Event], int]:
    """Matching events past the cursor and up to `end`, and the cursor after them."""
    page = EventQuery(after=cursor, before=end + 1, limit=query.limit, run_id=query.run_id, types=query.types)
    found = await log.read(session_id, page)
    return found, found[-1].seq if len(found) == query.limit else end
