"""A run for a person: what the agent says on stdout as it comes, what goes on beside it on stderr."""

from typing import TextIO

from ..adapters.rendering.event_text import one_line, printable
from ..adapters.rendering.paint import Paint
from ..domain.event import Event, EventType

_NOTE_CHARACTERS = 200


class RunOutput:
    """Shows the events of one run. On a terminal control characters are left out; a pipe gets the text as it is."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out = out
        self._err = err
        self._paint = Paint.for_stream(err)
        self._streamed = False
        self._at_line_start = True

    def show(self, event: Event) -> None:
        data = event.data
        if event.type is EventType.MESSAGE_STREAMED:
            self._show_chunk(data.get("kind"), data.get("stream"), str(data["content"]))
        elif event.type is EventType.MESSAGE_RECEIVED:
            self._show_message(data.get("kind"), str(data["content"]))
        elif event.type is EventType.RUN_QUEUED and (event.attempt or 1) > 1:
            self.note(f"The session's process died; attempt {event.attempt} begins.")
        elif event.type is EventType.TOOL_CALL_STARTED:
            self.note(f"tool {data['tool_name']} {one_line(data['tool_input'], _NOTE_CHARACTERS)}")
        elif event.type is EventType.TOOL_CALL_FAILED:
            self.note(f"tool {data['tool_name']}: {data['outcome']}")

    def note(self, text: str) -> None:
        """Something for whoever watches; in a pipe stderr has errors only."""
        if self._err.isatty():
            self.end_line()
            self._err.write(self._paint(text, "dim") + "\n")
            self._err.flush()

    def end_line(self) -> None:
        """End the line that the text has left open."""
        if not self._at_line_start:
            self._say("\n")

    def _show_chunk(self, kind: str | None, stream: str | None, text: str) -> None:
        if stream == "stderr":
            self._err.write(printable(text) if self._err.isatty() else text)
            self._err.flush()
        elif kind == "text":
            self._streamed = True
            self._say(text)

    def _show_message(self, kind: str | None, text: str) -> None:
        """A whole message: shown unless it came in pieces before."""
        if kind == "text" and not self._streamed:
            self._say(text)
        self._streamed = False

    def _say(self, text: str) -> None:
        shown = printable(text) if self._out.isatty() else text
        if shown:
            self._at_line_start = shown.endswith("\n")
            self._out.write(shown)
            self._out.flush()
