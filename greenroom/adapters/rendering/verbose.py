"""One line per event, with everything that it carries: for finding out what went on."""

from collections.abc import Iterator
from typing import Any

from ...domain.event import Event, EventType
from .event_text import as_json, one_line, short_id
from .paint import PLAIN, Paint

_VALUE_CHARACTERS = 200
_STYLES = {"failed": "red", "timeout": "red", "denied": "red", "violation": "red", "error_occurred": "red"}


class VerboseRenderer:
    """`seq time run [type] name=value ...`; values are JSON, long ones cut."""

    def __init__(self, paint: Paint = PLAIN) -> None:
        self._paint = paint
        self._events = 0
        self._tools = 0

    def render(self, event: Event) -> str:
        self._events += 1
        self._tools += event.type is EventType.TOOL_CALL_STARTED
        try:
            values = " ".join(_values(event))
        except Exception as exc:  # noqa: BLE001  an event that cannot be shown must not end the stream of the others
            values = f"cannot be shown: {type(exc).__name__}"
        run = short_id(event.run_id) if event.run_id else "-"
        head = self._paint(f"{event.seq:>5} {event.timestamp:%H:%M:%S.%f} {run:<4}", "dim")
        return f"{head} {self._paint(f'[{event.type}]', _style(event.type))} {values}".rstrip() + "\n"

    def finish(self) -> str:
        return self._paint(f"--- {self._events} events, {self._tools} tools ---", "dim") + "\n"


def _style(event_type: EventType) -> str:
    return next((style for part, style in _STYLES.items() if part in event_type), "blue")


def _values(event: Event) -> Iterator[str]:
    if event.type is EventType.RUN_QUEUED:
        yield f"run_id={event.run_id}"
    if event.attempt is not None and event.attempt > 1:
        yield f"attempt={event.attempt}"
    for name, value in {**event.data, **event.metadata}.items():
        if value not in (None, {}, [], ""):
            yield f"{name}={_value(value)}"


def _value(value: Any) -> str:
    return one_line(as_json(value), _VALUE_CHARACTERS)
