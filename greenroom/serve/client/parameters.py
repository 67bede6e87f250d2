"""What callers give, in the form in which an address takes it."""

from collections.abc import Sequence

from ...domain.errors import GreenroomError
from ...domain.event_log import parse_types
from ...domain.identifiers import SESSION_ID


def segment(given: str, missing: type[GreenroomError]) -> str:
    """The id as a part of a path; what can be no id is missing without being asked for."""
    if not SESSION_ID.fullmatch(given):
        raise missing
    return given


def type_names(types: Sequence[str] | str | None) -> str | None:
    """Event types with commas between them. ValidationError names one that does not exist."""
    known = parse_types(types)
    return None if known is None else ",".join(sorted(known))
