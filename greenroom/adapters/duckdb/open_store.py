"""A store that is open: its files, and the threads that write and keep them."""

from dataclasses import dataclass
from pathlib import Path

from ..artifact_folder import ArtifactFolder
from ..room_watch import RoomWatch
from ..store_options import StoreOptions
from .duckdb_files import storage_error
from .group_commit import GroupCommit, WriterCallbacks
from .log_file import Grant, LogFile
from .log_keeper import LogKeeper
from .log_sources import CurrentSources, LogSources
from .manifest import Manifest
from .record_thread import RecordThread
from .store_folder import Found, StoreFolder


@dataclass(frozen=True, slots=True)
class OpenStore:
    """The parts of an open store, wired."""

    folder: StoreFolder
    sources: CurrentSources
    writer: GroupCommit
    records: RecordThread
    keeper: LogKeeper
    artifacts: ArtifactFolder
    deleted: frozenset[str]
    """Sessions whose rows are in log files, and do not count."""

    def grant(self, session_id: str) -> Grant | None:
        """The session's newest owner; None if nobody ever owned it."""
        return self.sources().grant(session_id) or self.records.find_grant(session_id)

    def locate(self, session_id: str) -> tuple[int, int] | None:
        """Key and last seq of the session; None if nobody ever owned it."""
        grant = self.grant(session_id)
        if grant is None:
            return None
        return grant.session_key, self.sources().last_seq(grant.session_key)

    def event_count(self) -> int:
        """Events in all the files."""
        logs = sum(log.contents.event_count for log in self.sources().logs)
        return logs + sum(entry.events for entry in self.keeper.manifest.parts)

    def close(self) -> None:
        """Finish what has arrived, and close the files."""
        self.writer.stop()
        self.records.stop()
        sources = self.sources()
        for file in (*sources.parts, *sources.logs):
            file.close()
        self.folder.release()


def open_store(path: Path, options: StoreOptions, callbacks: WriterCallbacks) -> OpenStore:
    """Open the folder and start the threads. Call it in a thread; the typed error says why it does not open."""
    folder = StoreFolder(path)
    try:
        return _wire(folder, folder.open(), options, callbacks)
    except OSError as exc:  # trouble of the machine, which says nothing of the files
        folder.release()
        raise storage_error(exc, path) from exc
    except BaseException:
        folder.release()
        raise


def _wire(folder: StoreFolder, found: Found, options: StoreOptions, callbacks: WriterCallbacks) -> OpenStore:
    sources = CurrentSources(LogSources(found.parts, found.frozen, found.hot.file))
    logs = sources().logs
    in_logs = [log.last_batch for log in logs if log.contents.batch_count]
    newest_batch = max([found.manifest.sealed_batch, *in_logs, *(entry.last_batch for entry in found.manifest.parts)])
    records = folder.open_records(
        lambda path: RecordThread(path, sources, lambda: writer.committed_batch, on_failed=callbacks.failed),
        found.manifest,
        newest_batch,
    )
    writer = GroupCommit(
        found.hot,
        sources,
        records,
        next_batch=newest_batch + 1,
        next_session_key=_next_session_key(found.manifest, logs),
        room_watch=RoomWatch(
            folder.path,
            min_free_bytes=options.min_free_bytes,
            reserve_bytes=options.reserve_bytes,
            max_memory_bytes=options.max_memory_bytes,
        ),
        callbacks=callbacks,
    )
    keeper = LogKeeper(folder, found.manifest, sources, writer, records, prune_after_s=options.prune_streamed_after_s)
    writer.start()
    records.start()
    artifacts = ArtifactFolder(folder.artifacts_path, max_artifact_bytes=options.max_artifact_bytes)
    return OpenStore(folder, sources, writer, records, keeper, artifacts, found.deleted)


def _next_session_key(manifest: Manifest, logs: tuple[LogFile, ...]) -> int:
    known = [manifest.next_session_key - 1]
    known += [max(log.contents.session_ids, default=0) for log in logs]
    known += [max(log.contents.spans, default=0) for log in logs]
    known += [max(manifest.deleted, default=0)]
    return max(known) + 1
