"""A store's folder on the disk: opening it, finding what was damaged, and keeping that aside."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from ...domain.errors import GreenroomError, InvalidFormat, StorageConnectionFailed, StorageError
from ..logs import get_logger
from .duckdb_files import (
    LOCK_WAIT_S,
    StoreLock,
    digest_file,
    heads_of,
    is_machine_trouble,
    remove_database,
    wal_of,
    write_whole,
)
from .head_journal import HeadJournal
from .log_file import Damage, Link, LogFile, check_log
from .manifest import MANIFEST_NAME, Manifest, PartEntry, read_manifest, write_manifest
from .part_file import PartFile
from .record_thread import RecordThread

_log = get_logger(__name__)

RECORDS_NAME = "records.duckdb"
ARTIFACTS_NAME = "artifacts"
DAMAGE_NAME = "damage.json"
_LOCK_NAME = "store.lock"


class OpenLog(NamedTuple):
    """A log file and its journal."""

    file: LogFile
    journal: HeadJournal


@dataclass(frozen=True, slots=True)
class Found:
    """What an open folder holds."""

    manifest: Manifest
    parts: tuple[PartFile, ...]
    frozen: tuple[LogFile, ...]
    """Log files that are not written to any more and wait to be sealed."""
    hot: OpenLog
    deleted: frozenset[str]
    """Ids of deleted sessions whose rows are still in log files."""


class StoreFolder:
    """Names and checks. One process at a time has it open; `open` waits for one that is just dying."""

    def __init__(self, path: Path, *, lock_wait_s: float = LOCK_WAIT_S) -> None:
        self.path = path
        self._forgotten: set[str] = set()
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = StoreLock(path / _LOCK_NAME, wait_s=lock_wait_s)
        except OSError as exc:
            raise StorageConnectionFailed(
                f"The event store's folder {path} cannot be used: {exc.strerror}.", details={"path": str(path)}
            ) from exc

    def release(self) -> None:
        """Give the folder up."""
        self._lock.release()

    def log_path(self, number: int) -> Path:
        return self.path / f"log-{number:06}.duckdb"

    def journal_path(self, number: int) -> Path:
        return heads_of(self.log_path(number))

    def part_path(self, number: int) -> Path:
        return self.path / f"part-{number:06}.duckdb"

    @property
    def artifacts_path(self) -> Path:
        return self.path / ARTIFACTS_NAME

    @contextlib.contextmanager
    def workspace(self) -> Generator[Path]:
        """A folder for what the maintenance process is given; removed afterwards, or at the next opening."""
        path = Path(tempfile.mkdtemp(prefix="work-", dir=self.path))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    @property
    def records_path(self) -> Path:
        return self.path / RECORDS_NAME

    def write_manifest(self, manifest: Manifest) -> None:
        """From now on these files are the log."""
        write_manifest(self.path, manifest)

    def open(self) -> Found:
        """Everything, compared with what was acknowledged. StorageError that names what is damaged, and where a copy of
        it was kept; then nothing in the folder was changed. OSError for trouble of the machine, which says
        nothing of the files."""
        self._refuse_known_damage()
        manifest = self._manifest()
        parts = tuple(self._part(entry) for entry in manifest.parts)
        logs: list[LogFile] = []
        for number in manifest.logs[:-1]:
            logs.append(self._log_file(number, _end_in(logs, parts), manifest.deleted, writable=False))
        hot_file = self._log_file(manifest.logs[-1], _end_in(logs, parts), manifest.deleted, writable=True)
        hot = OpenLog(hot_file, HeadJournal(self.journal_path(hot_file.number)))
        self._sweep(manifest)
        return Found(self._recorded(manifest), parts, tuple(logs), hot, frozenset(self._forgotten))

    def _manifest(self) -> Manifest:
        try:
            manifest = read_manifest(self.path)
        except StorageError as exc:
            raise self._keep_aside([self.path / MANIFEST_NAME], [str(exc)]) from exc
        if manifest is not None:
            return manifest
        others = [*self.path.glob("log-*.duckdb"), *self.path.glob("part-*.duckdb")]
        if any(path.stat().st_size for path in others if path.name != self.log_path(1).name):
            raise self._keep_aside([], [f"{self.path / MANIFEST_NAME} is missing"])
        remove_database(self.log_path(1))
        LogFile.create(self.log_path(1), 1).close()
        HeadJournal(self.journal_path(1)).close()
        manifest = Manifest(next_number=2, logs=(1,))
        self.write_manifest(manifest)
        return manifest

    def _part(self, entry: PartEntry) -> PartFile:
        path = self.part_path(entry.number)
        problem = part_problem(path, entry)
        if problem:
            raise self._keep_aside([path, heads_of(path)], [problem])
        try:
            return PartFile(path, entry.number)
        except StorageError as exc:
            raise self._keep_aside([path, heads_of(path)], [str(exc)]) from exc

    def _log_file(
        self, number: int, earlier: Callable[[int], Link | None], deleted: Sequence[int], *, writable: bool
    ) -> LogFile:
        path, journal = self.log_path(number), self.journal_path(number)
        try:
            checked = check_log(path, journal, earlier, deleted)
        except OSError as exc:
            if is_machine_trouble(exc):
                raise
            raise self._keep_aside([path, wal_of(path), journal], [str(exc)]) from exc
        except (StorageError, InvalidFormat) as exc:
            raise self._keep_aside([path, wal_of(path), journal], [str(exc)]) from exc
        if checked.damage:
            raise self._keep_aside([path, wal_of(path), journal], _problems(path, checked.damage))
        for session_key in deleted:
            if session_key in checked.contents.session_ids:
                self._forgotten.add(checked.contents.session_ids[session_key])
            checked.contents.forget(session_key)
        if checked.unrecorded:
            _log.info("unacknowledged_batches_kept", path=str(path), bytes=len(checked.unrecorded))
            recorder = HeadJournal(journal)
            recorder.append(checked.unrecorded)
            recorder.close()
        return LogFile.open(path, number, checked.contents, writable=writable)

    def open_records(
        self, opening: Callable[[Path], RecordThread], manifest: Manifest, newest_batch: int
    ) -> RecordThread:
        """The records, which must hold everything that was sealed, as they cannot follow what is not in log files, and
        nothing that is not in the log."""
        if manifest.sealed_batch and not self.records_path.exists():
            raise self._keep_aside([], [f"{self.records_path} is missing"])
        try:
            records = opening(self.records_path)
        except StorageError as exc:
            raise self._keep_aside([self.records_path, wal_of(self.records_path)], [str(exc)]) from exc
        watermark = records.tables.watermark
        if not manifest.sealed_batch <= watermark <= newest_batch:
            problem = (
                f"{self.records_path} ends at batch {watermark}, and the log was sealed up to {manifest.sealed_batch}"
                f" and ends at {newest_batch}"
            )
            records.tables.close()
            raise self._keep_aside([self.records_path, wal_of(self.records_path)], [problem])
        return records

    def new_log(self, number: int) -> OpenLog:
        """An empty log file and its journal; it counts once the manifest names it."""
        remove_database(self.log_path(number))
        return OpenLog(LogFile.create(self.log_path(number), number), HeadJournal(self.journal_path(number)))

    def remove_log(self, number: int) -> None:
        """Remove the files of a log that the manifest does not name any more."""
        remove_database(self.log_path(number))

    def remove_part(self, number: int) -> None:
        """Remove the files of a part that the manifest does not name any more."""
        remove_database(self.part_path(number))

    def _sweep(self, manifest: Manifest) -> None:
        """Remove what a crash left half made: files whose numbers the manifest has not given out, or has taken back."""
        wanted = {self.log_path(number).stem for number in manifest.logs}
        wanted |= {self.part_path(entry.number).stem for entry in manifest.parts}
        for path in (*self.path.glob("log-*"), *self.path.glob("part-*")):
            if path.name.partition(".")[0] not in wanted:
                path.unlink()
        for path in self.path.glob("*.new*"):
            path.unlink()
        for path in self.path.glob("work-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _recorded(self, manifest: Manifest) -> Manifest:
        """The manifest with the times of the parts as they are now that their digests were seen to hold."""
        parts = tuple(
            entry if (mtime := self.part_path(entry.number).stat().st_mtime_ns) == entry.mtime_ns else
            replace(entry, mtime_ns=mtime)
            for entry in manifest.parts
        )  # fmt: skip
        if parts == manifest.parts:
            return manifest
        manifest = manifest.changed(parts=parts)
        self.write_manifest(manifest)
        return manifest

    def _refuse_known_damage(self) -> None:
        """Once damage was found, nothing opens the folder but repair: opening may change what can still be read."""
        try:
            known: dict[str, Any] = json.loads((self.path / DAMAGE_NAME).read_text())
        except FileNotFoundError:
            return
        except ValueError:
            known = {"kept": str(self.path), "problems": ["it was found damaged before"]}
        raise _damage_error(self.path, known.get("kept", str(self.path)), known.get("problems") or ["it was damaged"])

    def _keep_aside(self, paths: Sequence[Path], problems: Sequence[str]) -> GreenroomError:
        """Copies of the damaged files under a dated name; the error that says so. The files stay where they are."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        kept = self.path / f"damaged-{stamp}"
        kept.mkdir(mode=0o700)
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                shutil.copy2(path, kept / path.name)
        found: dict[str, Any] = {"kept": str(kept), "problems": list(problems)[:100]}
        write_whole(self.path / DAMAGE_NAME, json.dumps(found, indent=1).encode())
        _log.error("event_store_damaged", **found)
        return _damage_error(self.path, str(kept), problems)


def _damage_error(folder: Path, kept: str, problems: Sequence[str]) -> GreenroomError:
    more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
    return StorageError(
        f"The event store in {folder} is damaged: {problems[0]}{more}. The damaged files were kept in {kept}, and"
        " nothing was deleted. `greenroom doctor --repair` recovers what can be proven intact; or restore a backup.",
        details={"path": str(folder), "kept": kept, "problems": list(problems)[:10]},
    )


def part_problem(path: Path, entry: PartEntry, *, believe_time: bool = True) -> str | None:
    """Why this is not the part that was sealed; the whole file is read only if it was touched since the last time, or
    when its time is not believed."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return f"{path} is missing"
    if stat.st_size != entry.size:
        return f"{path} has {stat.st_size} bytes instead of {entry.size}"
    touched = stat.st_mtime_ns != entry.mtime_ns or not believe_time
    if touched and digest_file(path) != entry.sha256:
        return f"{path} was changed since it was sealed"
    heads = heads_of(path)
    if not heads.exists() or digest_file(heads) != entry.heads_sha256:
        return f"{heads} was changed since it was written"
    return None


def _problems(path: Path, damage: Sequence[Damage]) -> list[str]:
    return [f"{path.name}: session {found.session_key}: {found.problem}" for found in damage]


def _end_in(logs: Sequence[LogFile], parts: Sequence[PartFile]) -> Callable[[int], Link | None]:
    """Where the log of a session ends in these files."""

    def end(session_key: int) -> Link | None:
        for log in reversed(logs):
            span = log.contents.spans.get(session_key)
            if span is not None:
                return span.last_seq, span.digest
        for part in reversed(parts):
            span = part.span(session_key)
            if span is not None:
                return span.last_seq, span.digest
        return None

    return end
