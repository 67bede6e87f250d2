"""The columns that rows have of their own: found out for all rows of a source, and kept through a batch.

A column of a table has one type, and rows of JSON Lines may hold anything: what is nested, or now this and now that, is
kept as JSON text.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, cast

from .arrow import arrow
from .source_files import Chunk, SourceRow, read_chunk

ROW_NUMBER = "__greenroom_row__"
"""Which row of the source it is, from 0; None where the source has no order."""

ROW_ERROR = "__greenroom_error__"
"""Why it is no row."""

_EXACT = range(-(2**53), 2**53 + 1)
"""Whole numbers that a float holds too; others are kept as JSON."""


class Kind(StrEnum):
    """What a column holds, beside nulls."""

    NULL = "null"
    BOOL = "bool"
    INT = "int"
    FLOAT = "float"
    NUMBER = "number"
    """Whole ones and others: kept as floats, and whole again where they are."""
    TEXT = "text"
    JSON = "json"


Columns = dict[str, Kind]


def columns_of(chunks: Iterable[Chunk]) -> Columns:
    """The columns of all rows. Reads everything through once."""
    columns: Columns = {}
    for chunk in chunks:
        join_columns(columns, read_chunk(chunk))
    return columns


def join_columns(columns: Columns, rows: Iterable[SourceRow]) -> None:
    """Make the columns those of the rows too."""
    for row in rows:
        for name, value in row.values.items():
            columns[name] = _joined(columns.get(name, Kind.NULL), _kind_of(value))


def _kind_of(value: object) -> Kind:
    match value:
        case None:
            return Kind.NULL
        case bool():
            return Kind.BOOL
        case int():
            return Kind.INT if value in _EXACT else Kind.JSON
        case float():
            return Kind.FLOAT
        case str():
            return Kind.TEXT
        case _:
            return Kind.JSON


def _joined(one: Kind, other: Kind) -> Kind:
    if one is other or other is Kind.NULL:
        return one
    if one is Kind.NULL:
        return other
    return Kind.NUMBER if {one, other} <= {Kind.INT, Kind.FLOAT, Kind.NUMBER} else Kind.JSON


def table_of(rows: Sequence[SourceRow], columns: Columns) -> Any:
    """The rows as a table with these columns, and what they are numbered and wrong with."""
    pa = arrow()
    types = {
        Kind.NULL: pa.string(),
        Kind.BOOL: pa.bool_(),
        Kind.INT: pa.int64(),
        Kind.FLOAT: pa.float64(),
        Kind.NUMBER: pa.float64(),
        Kind.TEXT: pa.string(),
        Kind.JSON: pa.string(),
    }
    arrays = {
        name: pa.array([_cell(row.values.get(name), kind) for row in rows], types[kind])
        for name, kind in columns.items()
    }
    arrays[ROW_NUMBER] = pa.array([row.number for row in rows], pa.int64())
    arrays[ROW_ERROR] = pa.array([row.error for row in rows], pa.string())
    return pa.table(arrays)


def _cell(value: Any, kind: Kind) -> Any:
    if value is None:
        return None
    if kind is Kind.JSON:
        return json.dumps(value, default=str)
    if kind in (Kind.FLOAT, Kind.NUMBER):
        return float(value)
    return _storable(value) if kind is Kind.TEXT else value


def _storable(text: str) -> str:
    """Text without halves of characters, which JSON can escape and nothing can store."""
    return text.encode("utf-8", "replace").decode()


def values_of(row: Mapping[str, Any], columns: Columns | None) -> dict[str, Any]:
    """The row's own values, as they were; `columns` None: it comes from a table whose values are what they are."""
    values = {name: value for name, value in row.items() if name not in (ROW_NUMBER, ROW_ERROR)}
    if columns is None:
        return {name: _plain(value) for name, value in values.items()}
    return {name: _restored(value, columns.get(name)) for name, value in values.items()}


def _restored(value: Any, kind: Kind | None) -> Any:
    if value is None:
        return None
    if kind is Kind.JSON:
        return json.loads(value)
    return int(value) if kind is Kind.NUMBER and value.is_integer() else value


def _plain(value: Any) -> Any:
    """Without the nulls that a table puts where one mapping of a list has a key and another has not."""
    if isinstance(value, dict):
        known = cast("dict[str, Any]", value)
        return {name: _plain(one) for name, one in known.items() if one is not None}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in cast("Sequence[Any]", value)]
    return value
