"""Putting a damaged store in order: everything that can be proven intact, and a report of what cannot."""

import contextlib
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path

from ...domain.errors import GreenroomError, StorageError
from ..logs import get_logger
from .chunks import SealedBatch, lost_batch
from .duckdb_files import heads_of, remove_database, sync_directory, wal_of
from .log_file import Grant, Link, SessionSpan, check_log
from .manifest import MANIFEST_NAME, PREVIOUS_NAME, Manifest, PartEntry, read_manifest
from .part_file import PartFile
from .record_tables import RecordTables, read_tools
from .salvage import Salvage, SalvagedSession, salvage_log, salvage_part
from .sealing import Row, Spans, write_part
from .store_folder import DAMAGE_NAME, StoreFolder, part_problem

_log = get_logger(__name__)


@dataclass(slots=True)
class SessionReport:
    """What repair did for one session that had something in a damaged file."""

    session_id: str
    recovered_events: int = 0
    lost: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """First and last seq of acknowledged events that could not be recovered."""


@dataclass(slots=True, kw_only=True)
class RepairReport:
    """What was found, and where the files that could not be used are kept."""

    kept: str | None
    damaged_files: list[str]
    sessions: list[SessionReport]

    @property
    def lost_events(self) -> int:
        return sum(last - first + 1 for session in self.sessions for first, last in session.lost)


def repair_store(path: Path) -> RepairReport:
    """Make the store open again, on what can be proven intact. Nothing is deleted: what is replaced is kept aside.

    StorageConnectionFailed while a runtime has the store open.
    """
    folder = StoreFolder(path)
    try:
        return _Repair(folder).run()
    finally:
        folder.release()


class _Repair:
    def __init__(self, folder: StoreFolder) -> None:
        self._folder = folder
        self._damaged: list[str] = []
        self._kept: Path | None = None
        self._reports: dict[str, SessionReport] = {}
        self._number = 0
        self._replaced: list[Path] = []
        """Files that are moved away once the manifest names what takes their place."""
        self._grants: dict[int, Grant] = {}

    def run(self) -> RepairReport:
        if not (self._folder.path / DAMAGE_NAME).exists():
            with contextlib.suppress(StorageError):
                _close(self._folder)
                return RepairReport(kept=None, damaged_files=[], sessions=[])
        manifest = self._manifest()
        self._number = manifest.next_number
        entries = [self._part(entry, set(manifest.deleted)) for entry in manifest.parts]
        self._note_damaged_logs(manifest)
        ends = _ends([PartFile(self._folder.part_path(entry.number), entry.number) for entry in entries if entry])
        salvaged = self._salvaged_logs(manifest, dict(ends))
        deleted = {*manifest.deleted, *(key for one in salvaged for key in one.deleted)}
        from_logs = self._write_salvage(salvaged, ends, deleted)
        parts = tuple(entry for entry in (*entries, from_logs) if entry is not None)
        self._finish(manifest, parts, deleted)
        return RepairReport(
            kept=str(self._kept) if self._kept else None,
            damaged_files=self._damaged,
            sessions=list(self._reports.values()),
        )

    # What there is

    def _manifest(self) -> Manifest:
        for name in (MANIFEST_NAME, PREVIOUS_NAME):
            try:
                manifest = read_manifest(self._folder.path, name)
            except StorageError:
                self._damaged.append(name)
                self._copy_aside(self._folder.path / name)
                continue
            if manifest is not None and name == MANIFEST_NAME:
                return manifest
            if manifest is not None:
                return self._with_files_since(manifest)
        return self._with_files_since(Manifest())

    def _with_files_since(self, manifest: Manifest) -> Manifest:
        """An older manifest, and every file that it does not know, in the order of what they hold."""
        logs = sorted(_number(path) for path in self._folder.path.glob("log-*.duckdb"))
        known = {entry.number: entry for entry in manifest.parts}
        numbers = [_number(path) for path in self._folder.path.glob("part-*.duckdb")]
        parts = [known.get(number) or self._unknown_part(number) for number in numbers]
        newest = max([manifest.next_number - 1, *logs, *numbers])
        return manifest.changed(logs=tuple(logs), parts=tuple(_without_covered(parts)), next_number=newest + 1)

    def _unknown_part(self, number: int) -> PartEntry:
        """What a part says of itself; what it does not say is read anew, as if it were damaged."""
        first, last = 0, 0
        with contextlib.suppress(GreenroomError, ValueError):
            part = PartFile(self._folder.part_path(number), number)
            first, last = part.batch_numbers
            part.close()
        return PartEntry(
            number=number, first_batch=first, last_batch=last, events=0, size=0, sha256="", heads_sha256="", mtime_ns=0
        )

    def _note_damaged_logs(self, manifest: Manifest) -> None:
        for number in manifest.logs:
            path = self._folder.log_path(number)
            try:
                damaged = bool(check_log(path, heads_of(path), None).damage)
            except (GreenroomError, OSError, AssertionError):
                damaged = True
            if damaged:
                self._damaged.append(path.name)

    def _salvaged_logs(self, manifest: Manifest, ends: dict[int, Link]) -> list[Salvage]:
        salvaged: list[Salvage] = []
        for number in manifest.logs:
            salvaged.append(salvage_log(self._folder.log_path(number), ends))
            for session_key, session in salvaged[-1].sessions.items():
                ends[session_key] = session.span.last_seq, session.span.digest
        return salvaged

    def _part(self, entry: PartEntry, deleted: set[int]) -> PartEntry | None:
        """The part, or another one in its place with what is left of it."""
        path = self._folder.part_path(entry.number)
        if part_problem(path, entry, believe_time=False) is None:
            return entry
        salvage = salvage_part(path)
        written = self._write_salvage([salvage], {}, deleted)
        self._damaged.append(path.name)
        self._replaced += [path, wal_of(path), heads_of(path)]
        return written

    def _place_aside(self, path: Path) -> Path:
        if self._kept is None:
            self._kept = self._folder.path / f"damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
            self._kept.mkdir(mode=0o700)
        return self._kept / path.name

    def _keep(self, path: Path) -> None:
        """Move a file that is not used any more to the place where such files are kept."""
        if path.exists():
            path.rename(self._place_aside(path))

    def _copy_aside(self, path: Path) -> None:
        """Keep a copy of a file that will be written over."""
        shutil.copy2(path, self._place_aside(path))

    # What is made of it

    def _write_salvage(self, salvaged: Iterable[Salvage], ends: dict[int, Link], deleted: set[int]) -> PartEntry | None:
        """One part of what was salvaged from these files, behind what ends where `ends` say."""
        spans = Spans()
        rows: list[Row] = []
        for salvage in salvaged:
            spans.grants.update(salvage.grants)
            self._grants.update(salvage.grants)
            for session_key, session in salvage.sessions.items():
                if session_key in deleted:
                    continue
                grant = spans.grants.setdefault(session_key, Grant(session_key, f"unknown:{session_key}", 1, "", 0))
                report = self._reports.setdefault(grant.session_id, SessionReport(grant.session_id))
                rows += self._placed(spans, ends.get(session_key, (0, b""))[0], report, session_key, session)
        rows.sort(key=itemgetter(0, 1))
        path = self._folder.part_path(self._number)
        sealed = write_part(path, rows, spans)
        if sealed is None:
            return None
        self._number += 1
        return PartEntry(number=self._number - 1, **sealed._asdict())

    def _placed(
        self, spans: Spans, earlier_end: int, report: SessionReport, session_key: int, session: SalvagedSession
    ) -> Iterator[Row]:
        """The batches behind what there is of the session; what lies between is reported as lost."""
        previous = session.span.previous
        for batch in session.batches:
            header = batch.header
            digest = batch.next_digest(previous)
            known = spans.found.get(session_key)
            end = known.last_seq if known else earlier_end
            if header.first_seq > end + 1 and (known or earlier_end):
                filler = lost_batch(batch.batch_id, end + 1, header.first_seq - 1, previous)
                yield self._take(spans, report, session_key, filler, previous, previous)
            if header.first_seq > end:
                yield self._take(spans, report, session_key, batch, previous, digest)
            previous = digest

    def _take(
        self, spans: Spans, report: SessionReport, session_key: int, batch: SealedBatch, previous: bytes, digest: bytes
    ) -> Row:
        header = batch.header
        if batch.is_lost:
            report.lost.append((header.first_seq, header.last_seq))
        else:
            report.recovered_events += len(batch.seqs)
        spans.add(session_key, SessionSpan(header.first_seq, header.last_seq, previous, digest))
        return session_key, header.first_seq, batch

    def _finish(self, manifest: Manifest, parts: tuple[PartEntry, ...], deleted: set[int]) -> None:
        """What is new first, then the manifest that names it, then the rest: cut short, it can be begun again."""
        number = self._number
        hot = self._folder.new_log(number)
        hot.file.close()
        hot.journal.close()
        newest = max([manifest.sealed_batch, *(entry.last_batch for entry in parts)])
        fresh = self._rebuild_records(parts, newest, deleted)
        keys = {key for entry in parts for key in PartFile(self._folder.part_path(entry.number), 0).session_keys}
        newest_key = max([manifest.next_session_key - 1, *keys, *deleted, *self._grants])
        self._folder.write_manifest(
            manifest.changed(
                logs=(number,),
                parts=parts,
                next_number=number + 1,
                sealed_batch=newest,
                next_session_key=newest_key + 1,
                deleted=tuple(sorted(deleted)),
            )
        )
        records = self._folder.records_path
        for path in (records, wal_of(records)):
            self._keep(path)
        fresh.rename(records)
        sync_directory(self._folder.path)
        for log in manifest.logs:
            path = self._folder.log_path(log)
            self._replaced += [path, wal_of(path), heads_of(path)]
        for path in self._replaced:
            self._keep(path)
        (self._folder.path / DAMAGE_NAME).unlink(missing_ok=True)

    def _rebuild_records(self, parts: tuple[PartEntry, ...], watermark: int, deleted: set[int]) -> Path:
        """Records folded anew from the log, in a file beside the old ones; tools are kept when they can be read."""
        tools: list[tuple[str, bytes]] = []
        try:
            tools = read_tools(self._folder.records_path)
        except GreenroomError:
            self._damaged.append(self._folder.records_path.name)
        fresh = self._folder.path / "repaired.duckdb"
        remove_database(fresh)
        tables = RecordTables(fresh)
        files = [PartFile(self._folder.part_path(entry.number), entry.number) for entry in parts]
        grants = {**self._grants, **_newest_grants(files)}
        for session_key, grant in grants.items():
            if session_key not in deleted:
                tables.take_in(_newer(grant, self._grants.get(session_key)), _batches(files, session_key))
        for session_id, packed in tools:
            tables.save_tools(session_id, packed)
        tables.set_watermark(watermark)
        tables.close()
        return fresh


def _newer(grant: Grant, other: Grant | None) -> Grant:
    return other if other is not None and other.epoch > grant.epoch else grant


def _without_covered(parts: list[PartEntry]) -> list[PartEntry]:
    """Oldest first, and without those whose batches lie in another one: a crash leaves them beside the merged part."""
    kept: list[PartEntry] = []
    for part in sorted(parts, key=lambda part: (part.first_batch, -part.last_batch, -part.number)):
        if not kept or not part.last_batch or part.last_batch > kept[-1].last_batch:
            kept.append(part)
    return kept


def _close(folder: StoreFolder) -> None:
    """Open the folder to see that it does."""
    found = folder.open()
    for file in (*found.parts, *found.frozen, found.hot.file):
        file.close()
    found.hot.journal.close()
    tables = RecordTables(folder.records_path)
    watermark = tables.watermark
    tables.close()
    if watermark < found.manifest.sealed_batch:
        raise StorageError(f"{folder.records_path} does not hold what was sealed.")


def _number(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _ends(parts: Iterable[PartFile]) -> dict[int, Link]:
    """Where each session ends in these parts."""
    ends: dict[int, Link] = {}
    for part in parts:
        for session_key in part.session_keys:
            span = part.span(session_key)
            if span is not None:
                ends[session_key] = span.last_seq, span.digest
    return ends


def _newest_grants(parts: Iterable[PartFile]) -> dict[int, Grant]:
    return {grant.session_key: grant for part in parts for grant in part.grants()}


def _batches(parts: Iterable[PartFile], session_key: int) -> Iterator[SealedBatch]:
    for part in parts:
        yield from (batch for batch in part.session_batches(session_key) if not batch.is_lost)
