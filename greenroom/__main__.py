"""`greenroom` and `python -m greenroom`."""

import io
import sys


def main() -> int:
    """Carry out the command that the process was called with; returns its exit code."""
    from .serve.cli import run_command_line  # noqa: PLC0415  importing this module starts nothing

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character is no reason to fail
    return run_command_line(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
