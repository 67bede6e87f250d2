"""Renderers by name."""

from enum import StrEnum

from .compact import CompactRenderer
from .jsonl import JsonLinesRenderer
from .paint import PLAIN, Paint
from .renderer import Renderer
from .verbose import VerboseRenderer


class EventFormat(StrEnum):
    """In what form events are shown."""

    COMPACT = "compact"
    VERBOSE = "verbose"
    JSONL = "jsonl"


def new_renderer(event_format: EventFormat, *, paint: Paint = PLAIN) -> Renderer:
    """A renderer for one stream."""
    if event_format is EventFormat.JSONL:
        return JsonLinesRenderer()
    return CompactRenderer(paint) if event_format is EventFormat.COMPACT else VerboseRenderer(paint)
