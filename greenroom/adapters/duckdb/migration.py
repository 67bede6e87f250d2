"""Upgrading a data_dir that an earlier version wrote. The old files are kept as they were, under another name."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import msgpack

from ...domain.errors import InvalidFormat
from ...domain.hash_chain import chain_next, chain_start
from ..data_dir import store_folder
from ..logs import get_logger
from .chunks import SealedBatch
from .duckdb_files import connect, first_row, storage_error, sync_directory, wal_of
from .log_file import Grant, SessionSpan
from .log_rows import RowHeader, pack_row
from .manifest import Manifest, PartEntry
from .part_file import PartFile
from .record_tables import RecordTables
from .sealing import Row, Spans, write_part
from .store_folder import StoreFolder

_log = get_logger(__name__)

LAYOUT_1_NAME = "events.duckdb"
KEPT_NAME = "events.layout-1.duckdb"

_GRANTS = """
    SELECT session_key, arg_max(session_id, epoch), max(epoch), arg_max(owner, epoch), arg_max(granted_at_us, epoch)
    FROM epochs GROUP BY session_key
"""
_BATCHES = "SELECT session_key, batch_id, last_seq, batch FROM batches ORDER BY session_key, last_seq"


def upgrade(data_dir: Path) -> None:
    """Bring the data_dir to the present layout, if it has an older one. InvalidFormat, and nothing changed, if it has
    a newer one."""
    old, target = data_dir / LAYOUT_1_NAME, store_folder(data_dir, 0)
    if not old.exists():
        return
    if not target.exists():
        scratch = target.with_name(target.name + ".upgrading")
        shutil.rmtree(scratch, ignore_errors=True)
        folder = StoreFolder(scratch)
        try:
            _convert(old, folder)
        finally:
            folder.release()
        scratch.rename(target)
        sync_directory(data_dir)
        _log.info("data_dir_upgraded", path=str(data_dir), kept=str(data_dir / KEPT_NAME))
    kept = data_dir / KEPT_NAME
    if wal_of(old).exists():
        wal_of(old).rename(wal_of(kept))
    old.rename(kept)


def _convert(old: Path, folder: StoreFolder) -> None:
    connection = connect(old, read_only=True)
    try:
        _check_version(connection, old)
        spans = _spans(connection)
        part = write_part(folder.part_path(1), _rows(connection), spans)
        tools: list[tuple[str, bytes]] = connection.execute("SELECT session_id, tools FROM session_tools").fetchall()
    except duckdb.Error as exc:
        raise storage_error(exc, old) from exc
    finally:
        connection.close()
    entry = PartEntry(number=1, **part._asdict()) if part else None
    _write_records(folder, spans, tools, entry)
    log = folder.new_log(2)
    log.file.close()
    log.journal.close()
    folder.write_manifest(
        Manifest(
            next_number=3,
            logs=(2,),
            parts=(entry,) if entry else (),
            sealed_batch=entry.last_batch if entry else 0,
            next_session_key=max(spans.grants, default=0) + 1,
        )
    )


def _check_version(connection: duckdb.DuckDBPyConnection, old: Path) -> None:
    tables = {name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    found = first_row(connection, "SELECT value FROM meta WHERE name = 'file_version'") if "meta" in tables else None
    if found is None or int(found[0]) != 1:
        version = found[0] if found else "none"
        raise InvalidFormat(
            f"{old} has layout {version}; this version of Greenroom upgrades layout 1, and has changed nothing. Use the"
            " version that wrote it, or a newer one.",
            details={"path": str(old), "schema_version": int(found[0]) if found else None},
        )


def _spans(connection: duckdb.DuckDBPyConnection) -> Spans:
    """The chains of all sessions, made now: layout 1 had none."""
    spans = Spans()
    for row in connection.execute(_GRANTS).fetchall():
        spans.grants[row[0]] = Grant(*row)
    for session_key, first_seq, batch in _rows(connection):
        known = spans.found.get(session_key)
        previous = known.digest if known else chain_start(spans.grants[session_key].session_id)
        digest = chain_next(previous, batch.row)
        spans.add(session_key, SessionSpan(first_seq, batch.header.last_seq, previous, digest))
    return spans


def _rows(connection: duckdb.DuckDBPyConnection) -> Iterator[Row]:
    result = connection.execute(_BATCHES)
    while rows := result.fetchmany(256):
        for session_key, batch_id, last_seq, stored in rows:
            yield _row(session_key, batch_id, last_seq, stored)


def _row(session_key: int, batch_id: int, last_seq: int, stored: bytes) -> Row:
    unpacker = msgpack.Unpacker(use_list=False, strict_map_key=False)
    unpacker.feed(stored)
    fields: tuple[Any, ...] = next(unpacker)
    epoch, batch_number, first_seq, recorded_at_us, types, records = fields
    header = RowHeader(epoch, batch_number, first_seq, last_seq - first_seq + 1, recorded_at_us, types, records)
    return session_key, first_seq, SealedBatch(batch_id, pack_row(header, stored[unpacker.tell() :]))


def _write_records(folder: StoreFolder, spans: Spans, tools: list[tuple[str, bytes]], entry: PartEntry | None) -> None:
    tables = RecordTables(folder.records_path)
    tables.keep_owners(list(spans.grants.values()))
    if entry is not None:
        part = PartFile(folder.part_path(1), 1)
        for grant in part.grants():
            tables.take_in(grant, part.session_batches(grant.session_key))
        part.close()
        tables.set_watermark(entry.last_batch)
    for session_id, packed in tools:
        tables.save_tools(session_id, packed)
    tables.close()
