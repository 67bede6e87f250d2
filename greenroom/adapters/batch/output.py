"""Where the rows of a batch go: a directory of Parquet files, or one file of JSON Lines; there when it is whole."""

import json
import math
import shutil
from array import array
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from ...domain.batch_row import RESULT_COLUMNS
from ...domain.errors import ValidationError
from .arrow import arrow, extra_module
from .own_columns import ROW_NUMBER, Columns, values_of

SUMMARY_NAME = "_summary.json"

MIN_ROWS_PER_FILE = 10_000


class Output:
    """Belongs to one job. It is written beside its place, and put there with one rename when all of it is written; what
    an earlier run of the same job left there is replaced, and nobody else's files ever are."""

    def __init__(self, given: str | Path, job: str) -> None:
        """ValidationError if something is there that this job did not write."""
        self.path = Path(given).expanduser().resolve()
        self.is_jsonl = self.path.suffix == ".jsonl"
        self.job = job
        self._partial = self.path.with_name(f".{self.path.name}.partial-{job}")
        self.summary_path = (
            self.path.with_name(self.path.name + ".summary.json") if self.is_jsonl else self.path / SUMMARY_NAME
        )
        self._refuse_foreign()

    def _refuse_foreign(self) -> None:
        if not self.path.exists() or (self.path.is_dir() and not self.is_jsonl and not any(self.path.iterdir())):
            return
        if self.path.is_dir() == self.is_jsonl:
            raise _refusal(f"{self.path} is {'a directory' if self.is_jsonl else 'no directory'}")
        try:
            summary: Any = json.loads(self.summary_path.read_text("utf-8"))
            owner = summary["job"]
        except (OSError, ValueError, KeyError, TypeError):
            raise _refusal(
                f"{self.path} is there already, and was not written by a batch; choose another output"
            ) from None
        strange = [] if self.is_jsonl else [path.name for path in self.path.iterdir() if not _is_written_by_us(path)]
        if strange:
            raise _refusal(
                f"{self.path} has files beside those of a batch ({strange[0]}); move them, or choose another"
            )
        if owner != self.job:
            raise _refusal(
                f"{self.path} is the output of job {owner!r}; choose another output, or go on with that job by its name"
            )

    def begin(self) -> Path:
        """Where to write; what a run that was killed left there is gone."""
        self._drop(self._partial)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.is_jsonl:
            self._partial.mkdir()
        return self._partial

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Put it in its place."""
        text = json.dumps(summary, indent=1) + "\n"
        self._refuse_foreign()  # something may have been put there meanwhile
        if self.is_jsonl:
            fresh = self._partial.with_name(self._partial.name + ".summary")
            fresh.write_text(text, "utf-8")
            fresh.replace(self.summary_path)  # first: without it nobody knows whose the output is
            self._partial.replace(self.path)
            return
        (self._partial / SUMMARY_NAME).write_text(text, "utf-8")
        old = self.path.with_name(f".{self.path.name}.old-{self.job}")
        self._drop(old)
        if self.path.exists():
            self.path.rename(old)
        self._partial.rename(self.path)
        self._drop(old)

    def give_up(self) -> None:
        """Leave nothing of what was written."""
        self._drop(self._partial)

    def _drop(self, path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_jsonl(
    tables: Iterable[Any], path: Path, *, columns: Columns | None, prefix: str, see: Callable[[Mapping[str, Any]], None]
) -> None:
    """Write the rows, in the order of the source where it has one; `see` gets the columns of results of each.

    They come in any order, so they are written as they come, and then once more in order.
    """
    numbers, offsets = array("q"), array("q")
    position = 0
    with path.open("wb") as file:
        for table in tables:
            for row in cast("list[dict[str, Any]]", table.to_pylist()):
                number = row.pop(ROW_NUMBER, None)
                results = {prefix + name: row.pop(prefix + name) for name in RESULT_COLUMNS}
                see({name: results[prefix + name] for name in RESULT_COLUMNS})
                line = _as_json({**values_of(row, columns), **results})
                numbers.append(len(numbers) if number is None else number)
                offsets.append(position)
                position += file.write(line.encode("utf-8", "replace") + b"\n")
    if any(numbers[place] > numbers[place + 1] for place in range(len(numbers) - 1)):
        _put_in_order(path, numbers, offsets)


def _as_json(row: Mapping[str, Any]) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:  # of a Dataset: NaN is no JSON
        return json.dumps(_finite(row), ensure_ascii=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in cast("Mapping[str, Any]", value).items()}
    return [_finite(one) for one in cast("list[Any]", value)] if isinstance(value, list) else value


def _put_in_order(path: Path, numbers: "array[int]", offsets: "array[int]") -> None:
    ordered = path.with_name(path.name + ".ordered")
    with path.open("rb") as source, ordered.open("wb") as target:
        for place in sorted(range(len(numbers)), key=numbers.__getitem__):
            source.seek(offsets[place])
            target.write(source.readline())
    ordered.replace(path)


def results_in(path: Path, *, prefix: str, see: Callable[[Mapping[str, Any]], None]) -> None:
    """Look at the columns of results of all rows in a directory of Parquet files."""
    arrow()
    if not any(path.glob("*.parquet")):
        return
    wanted = [prefix + name for name in RESULT_COLUMNS if name not in ("output", "turn_outputs", "error_message")]
    dataset: Any = extra_module("pyarrow.dataset").dataset(path, format="parquet", exclude_invalid_files=False)
    for batch in dataset.to_batches(columns=wanted):
        for row in cast("list[dict[str, Any]]", batch.to_pylist()):
            see({name.removeprefix(prefix): value for name, value in row.items()})


def _is_written_by_us(path: Path) -> bool:
    return path.name == SUMMARY_NAME or (path.suffix == ".parquet" and path.is_file())


def _refusal(text: str) -> ValidationError:
    return ValidationError(f"{text}.", details={"field": "output"})
