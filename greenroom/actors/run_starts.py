"""The events that say that an attempt of a run begins, and why at this provider."""

from ..domain.event import EventType, NewEvent
from .live_run import LiveRun
from .session_writer import SessionWriter


def start_events(writer: SessionWriter, run: LiveRun) -> list[NewEvent]:
    """run_started, and what led to it where there was something to decide. The start is the run's `started_at_us`."""
    route = run.route
    events = [writer.event(EventType.RUN_STARTED, run, {"model": run.options.model}, at_us=run.started_at_us)]
    if route.failed_over is not None:
        events.append(writer.event(EventType.PROVIDER_FAILED_OVER, run, {**route.failed_over, "to": run.provider}))
        route.failed_over = None
    if route.router is not None:
        selected = {
            "provider": run.provider,
            "attempt": run.attempt,
            "candidates": list(route.candidates),
            "router": route.router,
            "waited_s": round(route.waited_s, 3),
        }
        events.append(writer.event(EventType.PROVIDER_SELECTED, run, selected))
    return events
