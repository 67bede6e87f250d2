"""What a mapping makes of one turn of a recording."""

from dataclasses import dataclass, field
from typing import Any

from ....domain.errors import GreenroomError
from ....domain.provider import ProviderEvent, ProviderOutcome
from .wire_mapping import WireMapping

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
