"""Values of events as text that can be shown on a line: short, and harmless to a terminal."""

import json

_UNPRINTABLE = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)))
"""Control characters but tab and line feed: what an agent prints must not steer the user's terminal."""


def printable(text: str) -> str:
    """The text without control characters, its lines kept."""
    return text.translate(_UNPRINTABLE)


def one_line(value: object, limit: int) -> str:
    """The value on one line; a longer one is cut and ends in dots."""
    text = value if isinstance(value, str) else as_json(value)
    line = " ".join(printable(text[: 4 * limit]).split())
    return line if len(line) <= limit and len(text) <= 4 * limit else line[:limit] + "..."


def as_json(value: object) -> str:
    """The value as JSON; what JSON does not know is shown as Python does."""
    return json.dumps(value, ensure_ascii=False, default=repr)


def short_model(model: str) -> str:
    """The name of a model without its maker, three parts of it."""
    name = model.removeprefix("anthropic.").removeprefix("claude-").removeprefix("anthropic.")
    return "-".join(name.split("-")[:3])


def short_id(identifier: str) -> str:
    """The end of an id: enough to tell apart what is seen on one screen."""
    return identifier[-4:]
