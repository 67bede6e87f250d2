"""A few letters per event, a line per run at a time, text as it comes: for watching."""

from ...domain.event import RUN_ENDINGS, Event, EventType
from .compact_forms import FORMS
from .event_text import printable, short_id
from .paint import PLAIN, Paint

_STREAM_SIGNS = {"text": ">>", "thinking": "..", "stderr": "2>"}


class CompactRenderer:
    """Tokens of one run share a line, which begins with the end of the run's id.

    Streamed text follows `>>` (thinking `..`, what a command prints on stderr `2>`) and is shown as it is; whatever
    comes next begins a new line.
    """

    def __init__(self, paint: Paint = PLAIN) -> None:
        self._paint = paint
        self._line: str | None = None  # whose line is open: a run's id, "" for the session's own
        self._stream: str | None = None  # sign of the text stream that is open at the end of that line
        self._at_line_start = True
        self._events = 0
        self._tools = 0

    def render(self, event: Event) -> str:
        self._events += 1
        self._tools += event.type is EventType.TOOL_CALL_STARTED
        try:
            return self._render(event)
        except Exception:  # noqa: BLE001  an event that cannot be shown must not end the stream of the others
            return self._token(event, self._paint(f"?:{event.type}", "dim"))

    def finish(self) -> str:
        return self.break_line() + self._paint(f"{self._events} events, {self._tools} tools", "dim") + "\n"

    def break_line(self) -> str:
        """End the line that is open, so that something else can be shown."""
        ending = "" if self._at_line_start else "\n"
        self._line = self._stream = None
        self._at_line_start = True
        return ending

    def _render(self, event: Event) -> str:
        if event.type is EventType.MESSAGE_STREAMED:
            return self._chunk(event)
        form = FORMS[event.type]
        text = self._token(event, self._paint(form.text(event.data), form.style))
        ends_line = event.run_id is None or event.type in RUN_ENDINGS
        return text + self.break_line() if ends_line else text

    def _token(self, event: Event, token: str) -> str:
        if self._stream is not None:
            return self.break_line() + self._begin(event) + token
        return self._begin(event) + token

    def _begin(self, event: Event) -> str:
        """What stands before a token: a blank, or a new line and whose it is."""
        owner = event.run_id or ""
        if self._line == owner:
            return " "
        start = self.break_line()
        self._line = owner
        self._at_line_start = False
        return start + (self._paint(short_id(owner), "dim") + " " if owner else "")

    def _chunk(self, event: Event) -> str:
        data = event.data
        sign = _STREAM_SIGNS["stderr" if data.get("stream") == "stderr" else data.get("kind", "text")]
        text = printable(str(data.get("content") or ""))
        if self._stream == sign and self._line == event.run_id:
            shown = text
        else:
            shown = self._token(event, self._paint(sign, "magenta") + " " + text)
            self._stream = sign
        if shown:
            self._at_line_start = shown.endswith("\n")
        return shown
