"""`query`: one SELECT over what the store holds."""

import sys
from enum import StrEnum
from typing import Annotated

import typer

from ..adapters.rendering.event_text import as_json, printable
from .cli_errors import OK
from .cli_options import DataDir, Debug, invocation_of
from .cli_runtime import opened_runtime
from .plain_table import table

_LIMIT = 1_000


class RowFormat(StrEnum):
    """How rows are written."""

    TABLE = "table"
    JSONL = "jsonl"


def query(
    context: typer.Context,
    sql: Annotated[str, typer.Argument(metavar="SQL", help="One SELECT over the views.")],
    *,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="At most so many rows.")] = _LIMIT,
    row_format: Annotated[RowFormat, typer.Option("--format", help="In what form.")] = RowFormat.TABLE,
    data_dir: DataDir = None,
    debug: Debug = False,
) -> int:
    """Run one SELECT over the views sessions, runs, events, tool_calls and usage; nothing can be changed by it."""
    with opened_runtime(invocation_of(context)) as runtime:
        rows = runtime.query(sql, limit=limit)
    if row_format is RowFormat.JSONL:
        sys.stdout.write("".join(f"{as_json(row)}\n" for row in rows))
    elif rows:
        sys.stdout.write(table(tuple(rows[0]), [[_cell(value) for value in row.values()] for row in rows]))
    return OK


def _cell(value: object) -> str:
    return "" if value is None else printable(value if isinstance(value, str) else as_json(value))
