"""What an agent says, piece by piece and as a whole, as messages of the Agent User Interaction Protocol (AG-UI)."""

from collections.abc import Iterator
from typing import NamedTuple

from ag_ui.core import (
    BaseEvent,
    ReasoningEndEvent,
    ReasoningMessageContentEvent,
    ReasoningMessageEndEvent,
    ReasoningMessageStartEvent,
    ReasoningStartEvent,
    TextMessageContentEvent,
    TextMessageEndEvent,
    TextMessageStartEvent,
)

TEXT, THINKING = "text", "thinking"
"""The kinds of message."""


class _OpenMessage(NamedTuple):
    kind: str
    id: str


class Speech:
    """One message after the other, of which the last may be open.

    A whole message follows its pieces, though not at once: a model's thinking and its text are both streamed before
    either is received. So what was streamed is kept until it has come as a whole.
    """

    def __init__(self) -> None:
        self._open: _OpenMessage | None = None
        self._pieces: dict[str, list[str]] = {}
        """By kind: what was streamed and not received yet."""
        self._doubtful: dict[str, str] = {}
        """By kind: such pieces from before an error, which the agent has given up or goes on from."""

    def stream(self, kind: str, text: str, message_id: str) -> Iterator[BaseEvent]:
        """A piece: of the open message if that is of its kind, else of a new one with this id."""
        if not text:  # clients before 1.0 refuse an empty piece
            return
        if self._open is None or self._open.kind != kind:
            yield from self._begin(kind, message_id)
        self._pieces.setdefault(kind, []).append(text)
        yield self._piece(text)

    def receive(self, kind: str, text: str, message_id: str) -> Iterator[BaseEvent]:
        """A whole message, of which only what was not streamed is told. It is the truth and its pieces are not: where
        those are of another answer, which was given up, it is told as a message of its own."""
        if not text:
            return
        streamed = "".join(self._pieces.pop(kind, ()))
        beyond = _beyond(self._doubtful.pop(kind, ""), streamed, text)
        is_open = self._open is not None and self._open.kind == kind
        if beyond:
            self._pieces[kind] = [beyond]
        elif beyond is not None:
            yield from self.end() if is_open else ()
        elif is_open and text.startswith(streamed):
            yield self._piece(text.removeprefix(streamed))
            yield from self.end()
        else:
            yield from self._begin(kind, message_id)
            yield self._piece(text)
            yield from self.end()

    def end(self) -> Iterator[BaseEvent]:
        """Close the message that is open, if one is."""
        if self._open is None:
            return
        kind, message_id = self._open
        self._open = None
        if kind == THINKING:
            yield ReasoningMessageEndEvent(message_id=message_id)
            yield ReasoningEndEvent(message_id=message_id)
        else:
            yield TextMessageEndEvent(message_id=message_id)

    def interrupt(self) -> Iterator[BaseEvent]:
        """Close what is open after an error: mostly the agent says it all anew."""
        for kind, pieces in self._pieces.items():
            self._doubtful[kind] = self._doubtful.get(kind, "") + "".join(pieces)
        self._pieces.clear()
        yield from self.end()

    def give_up(self) -> Iterator[BaseEvent]:
        """Close what is open; nothing that was streamed will be received any more."""
        self._pieces.clear()
        self._doubtful.clear()
        yield from self.end()

    def _begin(self, kind: str, message_id: str) -> Iterator[BaseEvent]:
        yield from self.end()
        self._open = _OpenMessage(kind, message_id)
        if kind == THINKING:
            yield ReasoningStartEvent(message_id=message_id)
            yield ReasoningMessageStartEvent(message_id=message_id)
        else:
            yield TextMessageStartEvent(message_id=message_id, role="assistant")

    def _piece(self, text: str) -> BaseEvent:
        assert self._open is not None, "a piece is of the open message"
        kind, message_id = self._open
        if kind == THINKING:
            return ReasoningMessageContentEvent(message_id=message_id, delta=text)
        return TextMessageContentEvent(message_id=message_id, delta=text)


def _beyond(doubtful: str, streamed: str, received: str) -> str | None:
    """What was streamed beyond the message that was received now, of others that will be; None where this one was not
    streamed, or not to its end."""
    everything = doubtful + streamed
    if everything and _squeezed(everything) == _squeezed(received):
        return ""
    if streamed.startswith(received):
        rest = streamed.removeprefix(received)
        return rest if rest.strip() else ""
    return "" if streamed.endswith(received) else None


def _squeezed(text: str) -> str:
    """Without white space: some agents trim a message when it is complete."""
    return "".join(text.split())
