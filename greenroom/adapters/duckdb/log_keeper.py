"""Keeps the files of a log in shape while it is written: the next file in time, full ones sealed, parts merged."""

import asyncio
import contextlib
import itertools
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ...domain.errors import GreenroomError, InvalidOperation
from ...domain.hash_chain import chain_start
from ...domain.part_merging import parts_to_merge
from ..clock import now_us
from ..logs import get_logger
from .backup import BackupOrder
from .chunks import SealedBatch
from .duckdb_files import heads_of, storage_error, wal_of
from .group_commit import GroupCommit
from .log_file import Grant, Link, LogFile, SessionSpan
from .log_sources import CurrentSources, LogSources
from .maintenance import run_maintenance
from .manifest import Manifest, PartEntry
from .part_file import PartFile
from .record_tables import RecordTables
from .record_thread import RecordThread
from .sealing import Sealed, SealOrder
from .session_archive import ArchiveHead, prove_archive
from .session_transfer import AdoptOrder, ExportOrder, ImportOrder, write_tail
from .store_folder import StoreFolder

_log = get_logger(__name__)


_PREPARE_RETRY_S = 2.0


class LogKeeper:
    """One thing at a time. A file counts from when the manifest names it, and is removed after it does not any more."""

    def __init__(
        self,
        folder: StoreFolder,
        manifest: Manifest,
        sources: CurrentSources,
        writer: GroupCommit,
        records: RecordThread,
        *,
        prune_after_s: float | None = None,
    ) -> None:
        self.manifest = manifest
        self._folder = folder
        self._sources = sources
        self._writer = writer
        self._records = records
        self._prune_after_s = prune_after_s
        self._busy = asyncio.Lock()
        self._manifest_lock = asyncio.Lock()
        self._closing = False
        self._rotated = asyncio.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="greenroom-files")
        self._sealing: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Give up what is under way: it will be done when the store is opened again."""
        self._closing = True
        if self._sealing is not None:
            self._sealing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sealing
        async with self._busy, self._manifest_lock:  # a file that is being made becomes the writer's, who closes it
            self._pool.shutdown()

    async def _in_thread(self, work: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *args)

    async def change_manifest(self, **changes: Any) -> None:
        """Write a manifest with these changes in the place of the one before."""
        changed = self.manifest.changed(**changes)
        try:
            await self._in_thread(self._folder.write_manifest, changed)
        except BaseException:
            # It may lie on the disk all the same: the numbers of files that it names are not given out again.
            self.manifest = self.manifest.changed(next_number=changed.next_number)
            raise
        self.manifest = changed

    # The file that is written to next

    async def prepare_until_done(self) -> None:
        """`prepare`, again and again while the disk refuses: the current file grows meanwhile."""
        while not self._closing:
            try:
                await self.prepare()
            except (GreenroomError, OSError):
                _log.exception("next_log_file_not_made", path=str(self._folder.path))
                await asyncio.sleep(_PREPARE_RETRY_S)
            else:
                break

    async def prepare(self) -> None:
        """Make the file that follows the current one, if it is not there yet."""
        async with self._manifest_lock:
            if self._writer.has_prepared or self._closing:
                return
            number = self.manifest.next_number
            try:
                log = await self._in_thread(self._folder.new_log, number)
            except BaseException:
                self.manifest = self.manifest.changed(next_number=number + 1)  # nothing is made in place of what failed
                raise
            await self.change_manifest(logs=(*self.manifest.logs, number), next_number=number + 1)
            self._writer.prepare(log)

    def rotated(self) -> None:
        """The writer has turned to the next file: seal what it left."""
        self._rotated.set()
        if self._sealing is None or self._sealing.done():
            self._sealing = asyncio.get_running_loop().create_task(self._tidy(), name="greenroom-sealing")

    def tidy_soon(self) -> None:
        """Seal what waits from before."""
        if self._sources().frozen:
            self.rotated()

    async def delete(self, session_key: int) -> None:
        """From now on the session's rows do not count, whatever happens: the point of no return."""
        async with self._manifest_lock:
            if session_key not in self.manifest.deleted:
                await self.change_manifest(deleted=(*self.manifest.deleted, session_key))

    # Sealing

    async def _tidy(self) -> None:
        try:
            while await self.seal() or await self.merge():
                pass
        except (GreenroomError, OSError):
            _log.exception("sealing_failed", path=str(self._folder.path))  # the log files stay as they are, and serve

    async def seal(self) -> bool:
        """Make a part of the frozen log files; True if there were any."""
        async with self._busy:
            frozen = tuple(itertools.takewhile(lambda log: log.is_recorded, self._sources().frozen))
            if not frozen:
                return False
            await self._remember_owners(frozen)
            with self._folder.workspace() as work:
                order = SealOrder(
                    logs=[await self._in_thread(self._copy, log, work) for log in frozen],
                    output=str(await self._next_part()),
                    dropped=self.manifest.deleted,
                    prune_before_us=self._prune_before_us(),
                )
                part = await self._make_part(order)
            await self._take_in_sealed(frozen, part)
            return True

    async def _remember_owners(self, frozen: Sequence[LogFile]) -> None:
        """Fold the log files into the records and make that last: afterwards they are not there to be read again."""
        newest = {grant.session_key: grant for log in frozen for grant in log.contents.grants.values()}

        def work(tables: Any) -> None:
            tables.keep_owners(list(newest.values()))
            tables.checkpoint()

        await asyncio.wrap_future(self._records.run(work, after=_last_batch(frozen)))

    def _copy(self, log: LogFile, work: Path) -> tuple[str, str]:
        """Another process cannot open a file that this one has open: it gets a copy."""
        copy = work / log.path.name
        try:
            shutil.copyfile(log.path, copy)
            if wal_of(log.path).exists():
                shutil.copyfile(wal_of(log.path), wal_of(copy))
        except OSError as exc:
            raise storage_error(exc, log.path) from exc
        return str(copy), str(self._folder.journal_path(log.number))

    async def _next_part(self) -> Path:
        async with self._manifest_lock:
            number = self.manifest.next_number
            await self.change_manifest(next_number=number + 1)
        return self._folder.part_path(number)

    async def _make_part(self, order: SealOrder) -> tuple[PartEntry, PartFile] | None:
        answer = await run_maintenance("seal", asdict(order))
        return await self._open_part(Path(order.output), answer)

    async def _open_part(self, path: Path, answer: dict[str, Any] | None) -> tuple[PartEntry, PartFile] | None:
        if answer is None:
            return None
        sealed = Sealed(**answer)
        number = int(path.stem.removeprefix("part-"))
        entry = PartEntry(number=number, **sealed._asdict())
        return entry, await self._in_thread(PartFile, path, number)

    async def _take_in_sealed(self, frozen: Sequence[LogFile], part: tuple[PartEntry, PartFile] | None) -> None:
        numbers = {log.number for log in frozen}
        async with self._manifest_lock:
            await self.change_manifest(
                logs=tuple(number for number in self.manifest.logs if number not in numbers),
                parts=(*self.manifest.parts, *((part[0],) if part else ())),
                sealed_batch=max(self.manifest.sealed_batch, _last_batch(frozen)),
                next_session_key=self._writer.next_session_key,
            )
        self._sources.change(
            lambda now: replace(
                now,
                parts=(*now.parts, *((part[1],) if part else ())),
                frozen=tuple(log for log in now.frozen if log.number not in numbers),
            )
        )
        for log in frozen:
            await self._in_thread(self._folder.remove_log, log.number)

    # Parts

    async def merge(self) -> bool:
        """Merge some parts if there are too many; True if it did."""

        def too_many() -> Sequence[PartEntry]:
            places = parts_to_merge([entry.size for entry in self.manifest.parts])
            return self.manifest.parts[places.start : places.stop] if places else ()

        return await self._rewrite(too_many)

    async def _rewrite(self, choose: Callable[[], Sequence[PartEntry]]) -> bool:
        """One part in the place of neighbours, which are chosen when nothing else goes on; False if there are none."""
        async with self._busy:
            entries = choose()
            if not entries:
                return False
            dropped = self.manifest.deleted
            order = SealOrder(
                parts=[str(self._folder.part_path(entry.number)) for entry in entries],
                output=str(await self._next_part()),
                dropped=dropped,
                prune_before_us=self._prune_before_us(),
            )
            part = await self._make_part(order)
            numbers = {entry.number for entry in entries}
            async with self._manifest_lock:
                await self.change_manifest(parts=_replaced(self.manifest.parts, numbers, part[0] if part else None))
            self._sources.change(
                lambda now: replace(now, parts=_replaced(now.parts, numbers, part[1] if part else None))
            )
            for entry in entries:
                await self._in_thread(self._folder.remove_part, entry.number)
            return True

    def _prune_before_us(self) -> int | None:
        return None if self._prune_after_s is None else now_us() - round(self._prune_after_s * 1_000_000)

    async def freeze(self) -> None:
        """Seal everything that was committed until now."""
        await self.prepare()
        await asyncio.wrap_future(self._writer.rotate())
        while any(not log.is_recorded for log in self._sources().frozen):
            self._rotated.clear()
            if any(not log.is_recorded for log in self._sources().frozen):
                await self._rotated.wait()
        while await self.seal():
            pass

    async def compact(self) -> None:
        """Rewrite every file that holds something that was deleted, or that may be pruned; appends go on meanwhile."""
        gone = frozenset(self.manifest.deleted)
        await self.freeze()
        while await self.merge():
            pass
        done = {entry.number for entry in self.manifest.parts if not self._wants_rewriting(entry.number, gone)}

        def next_one() -> Sequence[PartEntry]:
            for entry in self.manifest.parts:
                if entry.number < made_from and entry.number not in done:
                    done.add(entry.number)
                    if self._wants_rewriting(entry.number, gone):
                        return (entry,)
            return ()

        made_from = self.manifest.next_number
        while await self._rewrite(next_one):
            pass
        async with self._manifest_lock:
            await self.change_manifest(deleted=tuple(key for key in self.manifest.deleted if key not in gone))

    def _wants_rewriting(self, number: int, gone: frozenset[int]) -> bool:
        parts = [part for part in self._sources().parts if part.number == number]
        return any(self._prune_after_s is not None or not gone.isdisjoint(part.session_keys) for part in parts)

    def look_at(self, session_key: int) -> "Future[tuple[tuple[PartFile, ...], list[tuple[LogFile, SessionSpan]]]]":
        """The parts, and what the log files have of the session, at one moment at which nothing is half committed."""

        def look() -> tuple[tuple[PartFile, ...], list[tuple[LogFile, SessionSpan]]]:
            now = self._sources()
            return now.parts, now.spans(session_key)

        return self._writer.between_groups(look)

    # Copies

    async def export(self, grant: Grant, path: Path) -> int:
        """Write the session to an archive; returns how many events it holds."""
        with self._folder.workspace() as work:
            async with self._busy:  # else a part may go before it is pinned
                parts, logs = await asyncio.wrap_future(self.look_at(grant.session_key))
                pinned = [await self._in_thread(_pin, part.path, work) for part in parts]
            tail = await self._in_thread(_tail, logs, grant.session_key)
            await self._in_thread(write_tail, work / "tail", tail)
            link = await self._in_thread(_end_of, parts, logs, grant)
            order = ExportOrder(
                path=str(path),
                session_key=grant.session_key,
                session_id=grant.session_id,
                epoch=grant.epoch,
                last_seq=link[0],
                digest=link[1].hex(),
                parts=pinned,
                tail=str(work / "tail"),
                artifacts=str(self._folder.artifacts_path),
            )
            answer = await run_maintenance("export", asdict(order))
        return answer["events"]

    async def import_(self, path: Path) -> None:
        """Make the session of an archive part of the log: all of it or nothing. InvalidFormat if it is not whole."""
        head = await self._in_thread(prove_archive, path)
        if not head.batch_count:
            await self._import_empty(head)
            return

        def order(output: Path, session_key: int, first_batch: int) -> tuple[str, dict[str, Any]]:
            return "import", asdict(
                ImportOrder(
                    path=str(path),
                    output=str(output),
                    session_key=session_key,
                    first_batch=first_batch,
                    artifacts=str(self._folder.artifacts_path),
                )
            )

        await self._take_in(order, sessions=1, batches=head.batch_count)

    async def _import_empty(self, head: ArchiveHead) -> None:
        """A session that was owned and has no events: its epoch counts all the same."""
        session_key, _ = await self._set_aside(1, 0)
        async with self._manifest_lock:
            await self.change_manifest(next_session_key=max(self.manifest.next_session_key, session_key + 1))
        grant = Grant(session_key, head.session_id, head.epoch, "", now_us())
        await asyncio.wrap_future(self._records.run(lambda tables: tables.take_in(grant, ())))

    async def adopt(self, parts: Sequence[Path], session_keys: Sequence[int]) -> None:
        """Make these sessions of another store's parts part of this log: all of them or none."""
        batches = await self._in_thread(_batch_bound, parts)

        def order(output: Path, first_key: int, first_batch: int) -> tuple[str, dict[str, Any]]:
            keys = {str(old): first_key + place for place, old in enumerate(sorted(session_keys))}
            names = [str(part) for part in parts]
            return "adopt", asdict(AdoptOrder(parts=names, output=str(output), keys=keys, first_batch=first_batch))

        await self._take_in(order, sessions=len(session_keys), batches=batches, identity=secrets.token_hex(4))

    async def _take_in(
        self,
        order: Callable[[Path, int, int], tuple[str, dict[str, Any]]],
        *,
        sessions: int,
        batches: int,
        identity: str | None = None,
    ) -> None:
        """Add a part that another process makes of what comes from elsewhere, and fold it into the records. With an
        identity the store is another one from then on: its sessions have moved."""
        async with self._busy:
            first_key, first_batch = await self._set_aside(sessions, batches)
            output = await self._next_part()
            answer = await run_maintenance(*order(output, first_key, first_batch))
            part = await self._open_part(output, answer)
            assert part is not None, "what comes from elsewhere has batches"
            async with self._manifest_lock:
                await self.change_manifest(
                    parts=(*self.manifest.parts, part[0]),
                    untaken=(*self.manifest.untaken, part[0].number),
                    foreign=_joined(self.manifest.foreign, (first_batch, first_batch + batches - 1)),
                    identity=identity or self.manifest.identity,
                    next_session_key=self._writer.next_session_key,
                )
            self._sources.change(lambda now: replace(now, parts=(*now.parts, part[1])))
        await self.finish_taking_in()

    async def _set_aside(self, sessions: int, batches: int) -> tuple[int, int]:
        """Numbers for what comes from elsewhere; the writer may turn to the prepared file before it is asked."""
        while True:
            await self.prepare()
            try:
                return await asyncio.wrap_future(self._writer.set_aside(sessions, batches))
            except InvalidOperation:
                _log.info("next_log_file_was_taken", path=str(self._folder.path))

    async def finish_taking_in(self) -> None:
        """Fold what came from elsewhere into the records: now, or at the opening after a crash."""
        async with self._busy:
            for part in self._sources().parts:
                if part.number in self.manifest.untaken:
                    await asyncio.wrap_future(self._records.run(lambda tables, part=part: _fold_part(tables, part)))
            async with self._manifest_lock:
                if self.manifest.untaken:
                    await self.change_manifest(untaken=())

    async def pinned_parts(self, sources: LogSources, since: int, work: Path) -> list[str]:
        """Names that stay of the parts with batches past that number."""
        async with self._busy:  # else a part may go before it is pinned
            names = {part.path.name for part in sources.parts}
            wanted = [self._folder.part_path(entry.number) for entry in self.manifest.parts if entry.last_batch > since]
            return [await self._in_thread(_pin, path, work) for path in wanted if path.name in names or path.exists()]

    async def back_up(self, target: Path) -> int:
        """Copy the store as it is now to a folder; returns the bytes. Appends go on meanwhile."""
        with self._folder.workspace() as work:
            # The records first: what is sealed after them is folded into the copy, and nothing is in it that is not
            # in the log.
            owners_up_to = self.manifest.sealed_batch
            records = await asyncio.wrap_future(self._records.run(lambda tables: tables.copy_to(work)))
            await self.freeze()
            async with self._busy:
                manifest = self.manifest
                parts = [
                    (await self._in_thread(_pin, self._folder.part_path(entry.number), work), asdict(entry))
                    for entry in manifest.parts
                ]
                order = BackupOrder(
                    target=str(target),
                    parts=parts,
                    records=str(records),
                    owners_up_to=owners_up_to,
                    next_number=manifest.next_number,
                    sealed_batch=manifest.sealed_batch,
                    next_session_key=self._writer.next_session_key,
                    deleted=manifest.deleted,
                    artifacts=str(self._folder.artifacts_path),
                )
                answer = await run_maintenance("backup", asdict(order))
        return answer["bytes"]


def _last_batch(logs: Sequence[LogFile]) -> int:
    """The newest batch in these files; 0 if they hold none."""
    return max((log.last_batch for log in logs if log.contents.batch_count), default=0)


def _fold_part(tables: RecordTables, part: PartFile) -> None:
    for grant in part.grants():
        tables.take_in(grant, part.session_batches(grant.session_key))


def _batch_bound(parts: Sequence[Path]) -> int:
    """No fewer than the batches in these parts."""
    numbers = [PartFile(path, 0).batch_numbers for path in parts]
    return sum(last - first + 1 for first, last in numbers)


def _pin(path: Path, work: Path) -> str:
    """Another name of a file that never changes: it stays readable under it when the first one is removed."""
    for each in (path, heads_of(path)):
        os.link(each, work / each.name)
    return str(work / path.name)


def _tail(logs: Sequence[tuple[LogFile, SessionSpan]], session_key: int) -> list[SealedBatch]:
    """The batches of the session in log files, as far as their spans go."""
    return [
        batch
        for log, span in logs
        for batch in itertools.takewhile(
            lambda batch, last_seq=span.last_seq: batch.header.last_seq <= last_seq, log.session_batches(session_key)
        )
    ]


def _end_of(parts: Sequence[PartFile], logs: Sequence[tuple[LogFile, SessionSpan]], grant: Grant) -> Link:
    spans = [span for _, span in logs]
    spans = spans or [span for part in parts if (span := part.span(grant.session_key)) is not None]
    return (spans[-1].last_seq, spans[-1].digest) if spans else (0, chain_start(grant.session_id))


def _replaced(items: Sequence[Any], numbers: set[int], replacement: Any) -> tuple[Any, ...]:
    """The items, with one in the place of those that have these numbers."""
    first = next(place for place, item in enumerate(items) if item.number in numbers)
    kept_before = [item for item in items[:first] if item.number not in numbers]
    kept_after = [item for item in items[first:] if item.number not in numbers]
    return (*kept_before, *((replacement,) if replacement is not None else ()), *kept_after)


def _joined(ranges: tuple[tuple[int, int], ...], last: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """With one that follows them, which may go on where the one before ends."""
    if ranges and ranges[-1][1] + 1 == last[0]:
        return (*ranges[:-1], (ranges[-1][0], last[1]))
    return (*ranges, last)
