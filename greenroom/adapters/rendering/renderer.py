"""What a renderer is: events in, text out."""

from typing import Protocol

from ...domain.event import Event


class Renderer(Protocol):
    """Turns events into text, one after the other. For one stream; it may remember what it has shown."""

    def render(self, event: Event) -> str:
        """The text to show now; it may be empty or leave a line open. Raises for no event, whatever its data hold."""
        ...

    def finish(self) -> str:
        """What is left to show when the stream has ended."""
        ...
