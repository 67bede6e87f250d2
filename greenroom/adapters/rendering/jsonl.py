"""One JSON object per line: for programs."""

import json

from ...domain.event import Event


class JsonLinesRenderer:
    """Every event as its `to_dict()`, on a line of its own, in ASCII: whole in every pipe and locale."""

    def render(self, event: Event) -> str:
        return json.dumps(event.to_dict(), default=repr) + "\n"

    def finish(self) -> str:
        return ""
