"""Sources and outputs of batches, for tests."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from pyarrow import parquet


def jsonl(path: Path, rows: Iterable[Mapping[str, Any] | str]) -> Path:
    """A file of JSON Lines; text is written as it is."""
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of an output, in its order."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    table: Any = cast("Any", parquet).read_table(path)
    return table.to_pylist()
