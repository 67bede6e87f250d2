"""Copies of a whole store: made while it serves, by the maintenance process, and put in its place again."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...domain.errors import InvalidOperation, StorageFull, StorageReadFailed, StorageWriteFailed
from ...domain.sharding import MAX_SHARDS
from ..artifact_folder import ArtifactFolder
from ..data_dir import record_shards, recorded_shards, store_folder
from .duckdb_files import digest_file, heads_of, sync_directory
from .head_journal import HeadJournal
from .log_file import LogFile
from .manifest import Manifest, PartEntry, read_manifest, write_manifest
from .part_file import PartFile
from .record_tables import RecordTables
from .store_folder import ARTIFACTS_NAME, RECORDS_NAME, StoreFolder

_COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupOrder:
    """What to copy. The files are links that nobody else removes."""

    target: str
    """The folder of the store's copy; it must not exist."""
    parts: Sequence[tuple[str, dict[str, Any]]]
    """Path and manifest entry of each part."""
    records: str
    owners_up_to: int
    """The newest batch that had been sealed when the records were copied: they know the owners of what was."""
    next_number: int
    sealed_batch: int
    next_session_key: int
    deleted: Sequence[int]
    artifacts: str


def back_up(order: BackupOrder) -> dict[str, Any]:
    """Make the copy, under another name until it is complete; every part is compared with its digest on the way."""
    target = Path(order.target)
    scratch = target.with_name(target.name + ".partial")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True, mode=0o700)
        copied = _copy_store(order, scratch)
        scratch.rename(target)
        sync_directory(target.absolute().parent)
    except OSError as exc:
        shutil.rmtree(scratch, ignore_errors=True)
        error = StorageFull if exc.errno == 28 else StorageWriteFailed  # noqa: PLR2004  ENOSPC
        raise error(f"{target} cannot be written: {exc.strerror}.", details={"path": str(target)}) from exc
    return {"bytes": copied}


def _copy_store(order: BackupOrder, target: Path) -> int:
    entries: list[PartEntry] = []
    copied = 0
    for path, fields in order.parts:
        entry = PartEntry(**fields)
        copy = target / f"part-{entry.number:06}.duckdb"
        _copy_checked(Path(path), copy, entry.sha256)
        _copy_file(heads_of(Path(path)), heads_of(copy))
        entries.append(replace(entry, mtime_ns=copy.stat().st_mtime_ns))
        copied += entry.size
    _bring_up_to_date(Path(order.records), order)
    _copy_file(Path(order.records), target / RECORDS_NAME)
    _copy_artifacts(Path(order.artifacts), target / ARTIFACTS_NAME)
    number = order.next_number
    LogFile.create(target / f"log-{number:06}.duckdb", number).close()
    HeadJournal(target / f"log-{number:06}.heads").close()
    manifest = Manifest(
        next_number=number + 1,
        logs=(number,),
        parts=tuple(entries),
        sealed_batch=order.sealed_batch,
        next_session_key=order.next_session_key,
        deleted=tuple(order.deleted),
    )
    write_manifest(target, manifest)
    return copied + (target / RECORDS_NAME).stat().st_size


def _bring_up_to_date(records: Path, order: BackupOrder) -> None:
    """Fold the sessions of which something was sealed since the records were copied anew, whole: of what came from
    elsewhere, numbers do not tell whether the records have it."""
    tables = RecordTables(records)
    since = min(tables.watermark, order.owners_up_to)
    parts = [PartFile(Path(path), 0) for path, _ in order.parts]
    touched = {
        grant.session_key: grant
        for part, (_, fields) in zip(parts, order.parts, strict=True)
        if PartEntry(**fields).last_batch > since
        for grant in part.grants()
    }
    for grant in touched.values():
        if grant.session_key not in order.deleted:
            tables.take_in(grant, (batch for part in parts for batch in part.session_batches(grant.session_key)))
    tables.set_watermark(order.sealed_batch)
    tables.close()


def _copy_checked(source: Path, target: Path, sha256: str) -> None:
    if _copy_file(source, target) != sha256:
        raise StorageReadFailed(
            f"{source} is not what was sealed: a backup of it would be worth nothing. Run `greenroom verify`.",
            details={"path": str(source)},
        )


def _copy_file(source: Path, target: Path) -> str:
    """Copy to last; returns the digest of what was written."""
    digest = hashlib.sha256()
    with source.open("rb") as reading, target.open("xb") as writing:
        while chunk := reading.read(_COPY_BYTES):
            digest.update(chunk)
            writing.write(chunk)
        writing.flush()
        os.fsync(writing.fileno())
    return digest.hexdigest()


def _copy_artifacts(source: Path, target: Path) -> None:
    if not source.exists():
        return
    reading, writing = ArtifactFolder(source), ArtifactFolder(target)
    for owner in reading.owners():
        for reference in reading.references(owner):
            writing.put(owner, reading.get(owner, reference))


def restore_data_dir(backup: Path, data_dir: Path) -> None:
    """Put every shard of a backup in its place. InvalidOperation if the data_dir holds a store already."""
    shards = recorded_shards(backup)
    for shard in range(MAX_SHARDS):
        _refuse_existing(store_folder(data_dir, shard))
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    record_shards(data_dir, shards)
    for shard in reversed(range(shards)):  # the first shard last: without it there is no store to open
        restore_store(store_folder(backup, shard), store_folder(data_dir, shard))


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise InvalidOperation(
            f"{target} exists; restore into a data_dir that holds no store, or move this one away first.",
            details={"path": str(target)},
        )


def restore_store(backup: Path, target: Path) -> None:
    """Put the copy of a store at `target`, which must not exist yet. Nothing is there before all of it is there."""
    _refuse_existing(target)
    manifest = read_manifest(backup)
    if manifest is None:
        raise StorageReadFailed(f"{backup} holds no copy of an event store.", details={"path": str(backup)})
    for entry in manifest.parts:
        path = backup / f"part-{entry.number:06}.duckdb"
        if not path.exists() or digest_file(path) != entry.sha256:
            raise StorageReadFailed(f"{path} is not what was backed up.", details={"path": str(path)})
    scratch = target.with_name(target.name + ".partial")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        _copy_proven(backup, scratch)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    scratch.rename(target)
    sync_directory(target.absolute().parent)


def _copy_proven(backup: Path, scratch: Path) -> None:
    """Copy it, and open the copy to see that it does."""
    scratch.mkdir(parents=True, mode=0o700)
    for path in sorted(backup.iterdir()):
        if path.is_file():
            _copy_file(path, scratch / path.name)
    _copy_artifacts(backup / ARTIFACTS_NAME, scratch / ARTIFACTS_NAME)
    folder = StoreFolder(scratch)
    try:
        opened = folder.open()
        for file in (*opened.parts, *opened.frozen, opened.hot.file):
            file.close()
        opened.hot.journal.close()
        tables = RecordTables(folder.records_path)
        tables.close()
        if tables.watermark != opened.manifest.sealed_batch:
            raise StorageReadFailed(
                f"{backup / RECORDS_NAME} is not what was backed up.", details={"path": str(backup)}
            )
    finally:
        folder.release()
