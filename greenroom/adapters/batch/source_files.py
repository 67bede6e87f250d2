"""The files of a source, cut into chunks of some rows, so that each can be read by itself and anywhere."""

import codecs
import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from ...domain.errors import ValidationError

MAX_LINE_BYTES = 64 * 1024 * 1024
"""A longer line is no row."""

_IGNORED_NAMES = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
"""What stands beside the data in a directory as Hugging Face's tools write it."""


class Format(StrEnum):
    """How a file holds rows."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"
    TEXT = "text"
    """The whole file is one row: its name without the ending as `id`, its text as `prompt`."""


_FORMATS = {
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".json": Format.JSONL,
    ".csv": Format.CSV,
    ".parquet": Format.PARQUET,
    ".txt": Format.TEXT,
}
_PACKED = frozenset({".gz", ".zst", ".bz2", ".xz", ".zip"})


class Chunk(NamedTuple):
    """Some rows of a file that follow each other."""

    path: str
    format: Format
    first_row: int
    """Which row of the source its first one is, from 0."""
    rows: int
    offset: int = 0
    """Where in the file it begins, in bytes."""
    length: int = 0
    header: tuple[str, ...] = ()
    """Of a CSV file: the names of its columns. Of a text file: its id."""


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """The data files of a path, all of one format, in the order of their names."""

    root: Path
    paths: tuple[Path, ...]
    format: Format


def find_files(given: str | Path, *, split: str | None = None) -> SourceFiles:
    """The files of a source: a file, or a directory with files of one format, at whatever depth.

    In a directory as Hugging Face's tools write it (`train-00000-of-00002.parquet`, or a folder for each split),
    `split` picks one. ValidationError that says what is wrong with the path.
    """
    root = Path(given).expanduser()
    if not root.exists():
        raise _refusal(f"{given} does not exist")
    if root.is_file():
        return SourceFiles(root.parent, (root,), _format_of(root))
    paths = sorted(path for path in root.rglob("*") if _is_data(path, root))
    if not paths:
        raise _refusal(f"{given} has no files that end in {', '.join(_FORMATS)}")
    formats = {_format_of(path) for path in paths}
    if len(formats) > 1:
        raise _refusal(f"{given} has files of several formats ({', '.join(sorted(formats))}); keep them apart")
    (only,) = formats
    return SourceFiles(root, tuple(_of_split(paths, root, split) if only is not Format.TEXT else paths), only)


def _is_data(path: Path, root: Path) -> bool:
    parts = path.relative_to(root).parts
    if any(part.startswith((".", "_")) for part in parts) or not path.is_file() or path.name in _IGNORED_NAMES:
        return False
    return path.suffix.lower() in _FORMATS or path.suffix.lower() in _PACKED


def _format_of(path: Path) -> Format:
    suffix = path.suffix.lower()
    if suffix in _PACKED:
        raise _refusal(f"{path} is compressed; unpack it first")
    if suffix not in _FORMATS:
        raise _refusal(f"{path} ends in none of {', '.join(_FORMATS)}")
    return _FORMATS[suffix]


def _of_split(paths: list[Path], root: Path, split: str | None) -> list[Path]:
    """Those of the split; where none is asked for, all, if there is no more than one."""
    splits: dict[str, list[Path]] = {}
    for path in paths:
        splits.setdefault(_split_of(path, root), []).append(path)
    if split is not None:
        if split not in splits:
            raise _refusal(f"there is no split {split!r}; there are: {', '.join(sorted(splits))}", field="split")
        return splits[split]
    named = {name for name in splits if name}
    if len(named) > 1:
        raise _refusal(f"{root} has several splits ({', '.join(sorted(named))}); say which with split", field="split")
    return paths


def _split_of(path: Path, root: Path) -> str:
    """`train` of `train-00000-of-00002.parquet`, `data/train.jsonl` or `train/part-0.parquet`; else nothing."""
    known = ("train", "test", "validation", "valid", "dev", "eval")
    first = path.relative_to(root).parts[0]
    for name in (path.stem.split("-")[0].split("_")[0], first):
        if name in known:
            return name
    return ""


def chunks_of(files: SourceFiles, *, rows: int, limit: int | None = None) -> list[Chunk]:
    """All rows of JSONL, CSV and text files in chunks of `rows`, at most `limit` rows of them. Reads the files through
    once, keeping nothing. ValidationError for a file that is not in its format at all, OSError for one that cannot be
    read."""
    found: list[Chunk] = []
    first = 0
    for path in files.paths:
        for chunk in _chunks_of_file(path, files, first, rows):
            left = None if limit is None else limit - first
            if left is not None and left <= 0:
                return found
            found.append(chunk if left is None or chunk.rows <= left else chunk._replace(rows=left))
            first += found[-1].rows
    return found


def _chunks_of_file(path: Path, files: SourceFiles, first: int, rows: int) -> Iterator[Chunk]:
    kind, name = files.format, str(path.resolve())
    if kind is Format.TEXT:
        yield Chunk(name, kind, first, 1, header=(path.relative_to(files.root).with_suffix("").as_posix(),))
        return
    header, records = _csv_records(path) if kind is Format.CSV else ((), _lines(path))
    count, begin, end = 0, None, 0
    for offset, length in records:
        begin = offset if begin is None else begin
        end = offset + length
        count += 1
        if count == rows:
            yield Chunk(name, kind, first, count, begin, end - begin, header)
            first, count, begin = first + count, 0, None
    if count and begin is not None:
        yield Chunk(name, kind, first, count, begin, end - begin, header)


def _lines(path: Path) -> Iterator[tuple[int, int]]:
    """Where lines that say something begin, and how long they are. The first one tells whether it is JSON Lines."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            text = line.strip()
            if not offset and text.startswith(b"["):
                raise _refusal(f"{path} is one JSON list; write each of its items on a line of its own (JSON Lines)")
            if text:
                yield offset, len(line)
            offset += len(line)


class _Counted:
    """Lines of a file, and how many bytes of it they were."""

    def __init__(self, file: Iterable[bytes]) -> None:
        self._file = file
        self.bytes = 0

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            text = line if self.bytes else line.removeprefix(codecs.BOM_UTF8)
            self.bytes += len(line)
            yield text.decode("utf-8", "replace")


def _csv_records(path: Path) -> tuple[tuple[str, ...], Iterator[tuple[int, int]]]:
    csv.field_size_limit(MAX_LINE_BYTES)
    try:
        with path.open("rb") as file:
            header = next(csv.reader(_Counted(file)), None)
    except csv.Error as exc:
        raise _refusal(f"{path} is not CSV: {exc}") from exc
    if not header:
        raise _refusal(f"{path} is empty; a CSV file begins with the names of its columns")
    names = tuple(name.strip() for name in header)
    if len(set(names)) < len(names) or not all(names):
        raise _refusal(f"{path} has columns without names, or two of the same name: {', '.join(names)}")
    return names, _csv_spans(path)


def _csv_spans(path: Path) -> Iterator[tuple[int, int]]:
    with path.open("rb") as file:
        lines = _Counted(file)
        reader = csv.reader(lines)
        next(reader)
        before = lines.bytes
        try:
            for record in reader:
                if record:
                    yield before, lines.bytes - before
                before = lines.bytes
        except csv.Error as exc:
            raise _refusal(f"{path} is not CSV past byte {before}: {exc}") from exc


# Rows


class SourceRow(NamedTuple):
    """A row as it is in its file, or why it is none."""

    number: int
    values: dict[str, Any]
    error: str | None = None


def read_chunk(chunk: Chunk) -> list[SourceRow]:
    """Its rows, in order. What cannot be read is a row with an error: every one of them is accounted for."""
    if chunk.format is Format.TEXT:
        return [_text_row(chunk)]
    with Path(chunk.path).open("rb") as file:
        file.seek(chunk.offset)
        content = file.read(chunk.length)
    rows = _csv_rows(chunk, content) if chunk.format is Format.CSV else _json_rows(chunk, content)
    return rows[: chunk.rows]


def _text_row(chunk: Chunk) -> SourceRow:
    path = Path(chunk.path)
    try:
        return SourceRow(chunk.first_row, {"id": chunk.header[0], "prompt": path.read_text("utf-8")})
    except UnicodeDecodeError as exc:
        return SourceRow(chunk.first_row, {"id": chunk.header[0]}, f"is not UTF-8: {exc.reason} at byte {exc.start}")


def _json_rows(chunk: Chunk, content: bytes) -> list[SourceRow]:
    lines = [line for line in content.split(b"\n") if line.strip()]
    return [_json_row(chunk.first_row + place, line) for place, line in enumerate(lines)]


def _json_row(number: int, line: bytes) -> SourceRow:
    try:
        values: Any = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:  # UnicodeDecodeError is one too
        reason = exc.msg if isinstance(exc, json.JSONDecodeError) else str(exc)
        return SourceRow(number, {}, f"is not JSON: {reason}")
    if not isinstance(values, dict):
        return SourceRow(number, {}, f"is a JSON {type(values).__name__}, not an object with columns")
    return SourceRow(number, values)  # pyright: ignore[reportUnknownArgumentType]  whatever the file holds


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _csv_rows(chunk: Chunk, content: bytes) -> list[SourceRow]:
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(io.StringIO(content.decode("utf-8", "replace"), newline=""))
    rows: list[SourceRow] = []
    for record in reader:
        if not record:
            continue
        number = chunk.first_row + len(rows)
        values = dict(zip(chunk.header, record, strict=False))
        if len(record) != len(chunk.header):
            rows.append(SourceRow(number, values, f"has {len(record)} fields, and the header {len(chunk.header)}"))
        elif any("\ufffd" in text for text in record):
            rows.append(SourceRow(number, values, "is not UTF-8"))
        else:
            rows.append(SourceRow(number, values))
    return rows


def _refusal(text: str, *, field: str = "source") -> ValidationError:
    return ValidationError(f"{text[0].upper()}{text[1:]}.", details={"field": field})
