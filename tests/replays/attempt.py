"""What a mapping makes of one turn of a recording."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from greenroom.adapters.providers.wire_mapping import WireMapping
from greenroom.domain.errors import GreenroomError
from greenroom.domain.provider import ProviderEvent, ProviderOutcome

Line = tuple[str, Any]
"""Direction and content of a line of a recording: in and out with a message, err with text, exit with a number."""


@dataclass
class Attempt:
    """One turn: the mapping, and the events that it gave."""

    mapping: WireMapping
    events: list[ProviderEvent] = field(default_factory=list[ProviderEvent])

    def end(self) -> ProviderOutcome | GreenroomError:
        try:
            return self.mapping.outcome()
        except GreenroomError as exc:
            return exc

    def to_golden(self) -> dict[str, Any]:
        end = self.end()
        if isinstance(end, ProviderOutcome):
            ended: dict[str, Any] = {
                "content": end.content,
                "stop_reason": end.stop_reason,
                "token_usage": end.token_usage.to_dict(),
                "cost_usd": None if end.cost_usd is None else round(end.cost_usd, 9),
                "model": end.model,
                "turn_count": end.turn_count,
            }
        else:
            ended = {"error": end.code, "message": end.message, "details": end.details}
        return {"events": list(_golden_events(self.events)), "end": ended, "handle": self.mapping.handle}


def _golden_events(events: list[ProviderEvent]) -> Iterator[list[Any]]:
    """Type, data and metadata; pieces of one message on one line."""
    pieces: list[Any] | None = None
    for event in events:
        data = {**event.data, **({"metadata": event.metadata} if event.metadata else {})}
        if event.type.value != "message_streamed":
            if pieces:
                yield pieces
            pieces = None
            yield [event.type.value, data]
        elif pieces and pieces[2]["kind"] == event.data["kind"]:
            pieces[1] += 1
            pieces[2] = {**pieces[2], "content": pieces[2]["content"] + event.data["content"]}
        else:
            if pieces:
                yield pieces
            pieces = [event.type.value, 1, data]
    if pieces:
        yield pieces
