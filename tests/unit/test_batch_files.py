"""Files of batches: cut into chunks, read, and written, and no row lost or twice."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from greenroom.adapters.batch.output import Output, write_jsonl
from greenroom.adapters.batch.own_columns import ROW_ERROR, ROW_NUMBER, Kind, columns_of, table_of, values_of
from greenroom.adapters.batch.source_files import Chunk, SourceRow, chunks_of, find_files, read_chunk
from greenroom.domain.batch_row import RESULT_COLUMNS, result_columns
from greenroom.domain.errors import ValidationError

TEXTS = st.text()
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
ROWS = st.lists(st.dictionaries(st.text(min_size=1, max_size=4), JSON_VALUES, max_size=4), min_size=1, max_size=20)
CELLS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=8)
FILES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)


def read_all(chunks: list[Chunk]) -> list[SourceRow]:
    return [row for chunk in chunks for row in read_chunk(chunk)]


@FILES
@given(rows=ROWS, size=st.integers(1, 7), blank=st.booleans())
def test_every_row_of_json_lines_is_read_once_in_order_however_it_is_cut(
    tmp_path: Path, rows: list[dict[str, Any]], size: int, blank: bool
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(("\n\n" if blank else "\n").join(json.dumps(row) for row in rows))

    chunks = chunks_of(find_files(path), rows=size)

    assert math.ceil(len(rows) / size) == len(chunks)
    assert [SourceRow(number, row) for number, row in enumerate(rows)] == read_all(chunks)


@FILES
@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=20), size=st.integers(1, 7))
def test_every_row_of_csv_is_read_once_in_order_whatever_its_fields_hold(
    tmp_path: Path, rows: list[tuple[str, str]], size: int
) -> None:
    path = tmp_path / "in.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["a", "b"])
        writer.writerows(rows)

    found = read_all(chunks_of(find_files(path), rows=size))

    assert [SourceRow(number, {"a": a, "b": b}) for number, (a, b) in enumerate(rows)] == found


@FILES
@given(rows=ROWS)
def test_own_columns_come_out_of_a_table_as_they_were(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    chunks = chunks_of(find_files(path), rows=100)
    columns = columns_of(chunks)

    table = table_of(read_all(chunks), columns).to_pylist()

    for row, out in zip(rows, table, strict=True):
        values = values_of(out, columns)
        assert {name: value for name, value in values.items() if value is not None} == {
            name: value for name, value in row.items() if value is not None
        }


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": ', "is not JSON"),
        (b"[1, 2]", "is a JSON list"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b"\xff\xfe{}", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_a_line_that_is_no_row_is_a_row_with_an_error(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"id": 1}\n' + line + b'\n{"id": 2}\n')

    rows = read_all(chunks_of(find_files(path), rows=10))

    assert [0, 1, 2] == [row.number for row in rows]
    assert reason in (rows[1].error or "")
    assert [None, None] == [rows[0].error, rows[2].error]


def test_columns_that_hold_now_this_and_now_that_are_kept_as_json(tmp_path: Path) -> None:
    rows = [{"a": 1, "b": 1, "c": "x"}, {"a": "x", "b": 2.5}, {"a": [1], "big": 2**80, "half": "\ud800"}]
    read = [SourceRow(number, row) for number, row in enumerate(rows)]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    columns = columns_of(chunks_of(find_files(path), rows=2))

    table = table_of(read, columns)

    assert {"a": Kind.JSON, "b": Kind.NUMBER, "c": Kind.TEXT, "big": Kind.JSON, "half": Kind.TEXT} == columns
    assert [1, "x", [1]] == [values_of(row, columns)["a"] for row in table.to_pylist()]
    assert "[1, 2.5, None]" == str([values_of(row, columns)["b"] for row in table.to_pylist()])
    assert {*columns, ROW_NUMBER, ROW_ERROR} == set(table.column_names)


def test_a_limit_takes_the_first_rows(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jsonl").write_text('{"id": 1}\n' * 10)

    chunks = chunks_of(find_files(tmp_path), rows=4, limit=17)

    assert [4, 4, 2, 4, 3] == [chunk.rows for chunk in chunks]
    assert list(range(17)) == [row.number for row in read_all(chunks)]


def test_a_directory_as_hugging_face_writes_it_is_read_by_its_splits(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        path = tmp_path / "data" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"id": 1}\n')
    (tmp_path / "README.md").write_text("# A dataset")
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.jsonl").write_text("{}")

    assert 2 == len(find_files(tmp_path, split="train").paths)
    with pytest.raises(ValidationError, match="several splits"):
        find_files(tmp_path)
    with pytest.raises(ValidationError, match="no split 'dev'"):
        find_files(tmp_path, split="dev")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("in.jsonl.gz", "x", "is compressed"),
        ("in.docx", "x", "ends in none of"),
        ("in.json", "[\n{}\n]", "one JSON list"),
        ("in.csv", "", "is empty"),
        ("in.csv", "a,a\n1,2\n", "two of the same name"),
        ("in.csv", "a,\n1,2\n", "columns without names"),
    ],
)
def test_a_file_that_cannot_be_a_source_is_refused_with_the_remedy(
    tmp_path: Path, name: str, content: str, reason: str
) -> None:
    (tmp_path / name).write_text(content)

    with pytest.raises(ValidationError, match=reason):
        chunks_of(find_files(tmp_path / name), rows=10)


def test_files_of_several_formats_or_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="does not exist"):
        find_files(tmp_path / "nothing")
    with pytest.raises(ValidationError, match="has no files"):
        find_files(tmp_path)
    (tmp_path / "a.csv").write_text("a\n")
    (tmp_path / "b.jsonl").write_text("{}\n")
    with pytest.raises(ValidationError, match="several formats"):
        find_files(tmp_path)


# Output


def tables(*numbers: list[int]) -> list[Any]:
    import pyarrow

    made: Any = pyarrow
    results = result_columns("ses_1", [ValidationError("x")])
    return [
        made.Table.from_pylist([{"id": number, ROW_NUMBER: number, **results} for number in group]) for group in numbers
    ]


@FILES
@given(st.permutations(list(range(12))), st.integers(1, 5))
def test_json_lines_are_written_in_the_order_of_the_source(tmp_path: Path, order: list[int], size: int) -> None:
    path = tmp_path / "out.jsonl"
    seen: list[Any] = []
    groups = [list(order[start : start + size]) for start in range(0, 12, size)]

    write_jsonl(tables(*groups), path, columns=None, prefix="", see=seen.append)

    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert list(range(12)) == [row["id"] for row in rows]
    assert (12, ["id", *RESULT_COLUMNS]) == (len(seen), list(rows[0]))
    assert not list(tmp_path.glob("*.ordered"))


@pytest.mark.parametrize("name", ["out", "out.jsonl"])
def test_an_output_is_there_when_it_is_whole_and_replaces_only_its_own(tmp_path: Path, name: str) -> None:
    for number in (1, 2):
        output = Output(tmp_path / name, "job")
        path = output.begin()
        (path if output.is_jsonl else path / f"part-{number}.parquet").write_text(str(number))
        assert (tmp_path / name).exists() == (number == 2)
        output.finish({"job": "job", "n": number})

    assert json.loads(output.summary_path.read_text())["n"] == 2
    found = (tmp_path / name).read_text() if output.is_jsonl else [one.name for one in (tmp_path / name).glob("part-*")]
    assert found == ("2" if output.is_jsonl else ["part-2.parquet"])
    assert not [one.name for one in tmp_path.iterdir() if one.name.startswith(".")]
    with pytest.raises(ValidationError, match="is the output of job 'job'"):
        Output(tmp_path / name, "another")


def test_what_utf_8_and_json_cannot_hold_does_not_keep_an_output_from_being_written(tmp_path: Path) -> None:
    import pyarrow

    made: Any = pyarrow
    results = result_columns("ses_1", [ValidationError("x")])
    table = made.Table.from_pylist([{"n": math.nan, "m": json.dumps({"x": "\ud800"}), **results}])

    path = tmp_path / "out.jsonl"
    write_jsonl([table], path, columns={"n": Kind.FLOAT, "m": Kind.JSON}, prefix="", see=lambda _: None)

    (row,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert (None, {"x": "?"}) == (row["n"], row["m"])


def test_csv_with_a_mark_at_its_beginning_and_with_long_fields_is_read(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text('\ufeff"id","prompt"\n1,' + "x" * 200_000 + "\n", "utf-8")
    (chunk,) = chunks_of(find_files(path), rows=10)
    csv.field_size_limit(131_072)  # as in a process that has not cut the file

    (row,) = read_chunk(chunk)

    assert ({"id": "1", "prompt": "x" * 200_000}, None) == (row.values, row.error)


def test_nothing_is_replaced_that_was_put_there_meanwhile(tmp_path: Path) -> None:
    output = Output(tmp_path / "out.jsonl", "job")
    output.begin().write_text("rows")
    (tmp_path / "out.jsonl").write_text("thesis")

    with pytest.raises(ValidationError, match="was not written by a batch"):
        output.finish({"job": "job"})

    assert (tmp_path / "out.jsonl").read_text() == "thesis"


def test_a_directory_with_something_else_in_it_is_not_replaced(tmp_path: Path) -> None:
    output = Output(tmp_path / "out", "job")
    (output.begin() / "part-1.parquet").write_text("rows")
    output.finish({"job": "job"})
    Output(tmp_path / "out", "job")
    (tmp_path / "out" / "notes.txt").write_text("mine")

    with pytest.raises(ValidationError, match=r"notes\.txt"):
        Output(tmp_path / "out", "job")
