"""Colours for a terminal that wants them; plain text for everything else."""

from typing import TextIO

from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style


class Paint:
    """Puts a style such as "bold red" on a text."""

    def __init__(self, *, colored: bool) -> None:
        self.colored = colored

    @classmethod
    def for_stream(cls, stream: TextIO) -> "Paint":
        """Colours if the stream is a terminal that has them and NO_COLOR is not set."""
        console = Console(file=stream)
        return cls(colored=console.color_system is not None and not console.no_color)

    def __call__(self, text: str, style: str) -> str:
        if not self.colored or not style or not text:
            return text
        return Style.parse(style).render(text, color_system=ColorSystem.STANDARD)


PLAIN = Paint(colored=False)
