"""Keeps the files of a log in shape while it is written: the next file in time, full ones sealed, parts merged."""

import asyncio
import contextlib
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ...domain.errors import StorageError
from ...domain.part_merging import parts_to_merge
from ..clock import now_us
from ..logs import get_logger
from .duckdb_files import wal_of
from .group_commit import GroupCommit
from .log_file import LogFile
from .log_sources import CurrentSources
from .maintenance import run_maintenance
from .manifest import Manifest, PartEntry
from .part_file import PartFile
from .record_thread import RecordThread
from .sealing import Sealed, SealOrder
from .store_folder import StoreFolder

_log = get_logger(__name__)


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
        self._prepared = False
        self._rotated = asyncio.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="greenroom-files")
        self._sealing: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Give up what is under way: it will be done when the store is opened again."""
        if self._sealing is not None:
            self._sealing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sealing
        async with self._busy:
            self._pool.shutdown()

    async def _in_thread(self, work: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *args)

    async def change_manifest(self, **changes: Any) -> None:
        """Write a manifest with these changes in the place of the one before."""
        changed = self.manifest.changed(**changes)
        await self._in_thread(self._folder.write_manifest, changed)
        self.manifest = changed

    # The file that is written to next

    async def prepare(self) -> None:
        """Make the file that follows the current one, if it is not there yet."""
        async with self._manifest_lock:
            if self._prepared:
                return
            number = self.manifest.next_number
            log = await self._in_thread(self._folder.new_log, number)
            await self.change_manifest(logs=(*self.manifest.logs, number), next_number=number + 1)
            self._prepared = True
            self._writer.prepare(log)

    def rotated(self) -> None:
        """The writer has turned to the next file: seal what it left."""
        self._prepared = False
        self._rotated.set()
        if self._sealing is None or self._sealing.done():
            self._sealing = asyncio.get_running_loop().create_task(self._tidy(), name="greenroom-sealing")

    def tidy_soon(self) -> None:
        """Seal what waits from before."""
        if self._sources().frozen:
            self.rotated()

    # Sealing

    async def _tidy(self) -> None:
        try:
            while await self.seal() or await self.merge():
                pass
        except StorageError:
            _log.exception("sealing_failed", path=str(self._folder.path))  # the log files stay as they are, and serve

    async def seal(self) -> bool:
        """Make a part of the frozen log files; True if there were any."""
        async with self._busy:
            frozen = self._sources().frozen
            if not frozen:
                return False
            await self._remember_owners(frozen)
            order = SealOrder(
                logs=[await self._in_thread(self._copy, log) for log in frozen],
                output=str(await self._next_part()),
                dropped=self.manifest.deleted,
                prune_before_us=self._prune_before_us(),
            )
            try:
                part = await self._make_part(order)
            finally:
                await self._in_thread(self._remove_copies, frozen)
            await self._take_in_sealed(frozen, part)
            return True

    async def _remember_owners(self, frozen: Sequence[LogFile]) -> None:
        """Fold the log files into the records and make that last: afterwards they are not there to be read again."""
        newest = {grant.session_key: grant for log in frozen for grant in log.contents.grants.values()}

        def work(tables: Any) -> None:
            tables.keep_owners(list(newest.values()))
            tables.checkpoint()

        await asyncio.wrap_future(self._records.run(work, after=frozen[-1].last_batch))

    def _copy(self, log: LogFile) -> tuple[str, str]:
        """Another process cannot open a file that this one has open: it gets a copy."""
        copy = self._copy_path(log)
        shutil.copyfile(log.path, copy)
        if wal_of(log.path).exists():
            shutil.copyfile(wal_of(log.path), wal_of(copy))
        return str(copy), str(self._folder.journal_path(log.number))

    def _copy_path(self, log: LogFile) -> Path:
        return log.path.with_name(f"copy-{log.number:06}.duckdb")

    def _remove_copies(self, logs: Sequence[LogFile]) -> None:
        for log in logs:
            self._copy_path(log).unlink(missing_ok=True)
            wal_of(self._copy_path(log)).unlink(missing_ok=True)

    async def _next_part(self) -> Path:
        async with self._manifest_lock:
            number = self.manifest.next_number
            await self.change_manifest(next_number=number + 1)
        return self._folder.part_path(number)

    async def _make_part(self, order: SealOrder) -> tuple[PartEntry, PartFile] | None:
        answer = await run_maintenance("seal", asdict(order))
        if answer is None:
            return None
        sealed = Sealed(**answer)
        path = Path(order.output)
        number = int(path.stem.removeprefix("part-"))
        entry = PartEntry(number=number, **sealed._asdict())
        return entry, await self._in_thread(PartFile, path, number)

    async def _take_in_sealed(self, frozen: Sequence[LogFile], part: tuple[PartEntry, PartFile] | None) -> None:
        numbers = {log.number for log in frozen}
        async with self._manifest_lock:
            await self.change_manifest(
                logs=tuple(number for number in self.manifest.logs if number not in numbers),
                parts=(*self.manifest.parts, *((part[0],) if part else ())),
                sealed_batch=frozen[-1].last_batch,
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
        places = parts_to_merge([entry.size for entry in self.manifest.parts])
        if places is None:
            return False
        await self._rewrite(self.manifest.parts[places.start : places.stop])
        return True

    async def _rewrite(self, entries: Sequence[PartEntry]) -> None:
        """One part in the place of these neighbours."""
        async with self._busy:
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
                await self._in_thread(self._folder.part_path(entry.number).unlink)

    def _prune_before_us(self) -> int | None:
        return None if self._prune_after_s is None else now_us() - round(self._prune_after_s * 1_000_000)

    async def compact(self) -> None:
        """Rewrite every file that holds something that was deleted, or that may be pruned; appends go on meanwhile."""
        deleted = self.manifest.deleted
        await self.prepare()
        self._rotated.clear()
        if await asyncio.wrap_future(self._writer.rotate()):
            await self._rotated.wait()
        while await self.seal() or await self.merge():
            pass
        gone = frozenset(deleted)
        for part in self._sources().parts:
            if self._prune_after_s is not None or not gone.isdisjoint(part.session_keys):
                await self._rewrite([entry for entry in self.manifest.parts if entry.number == part.number])
        async with self._manifest_lock:
            await self.change_manifest(deleted=tuple(key for key in self.manifest.deleted if key not in gone))


def _replaced(items: Sequence[Any], numbers: set[int], replacement: Any) -> tuple[Any, ...]:
    """The items, with one in the place of those that have these numbers."""
    first = next(place for place, item in enumerate(items) if item.number in numbers)
    kept_before = [item for item in items[:first] if item.number not in numbers]
    kept_after = [item for item in items[first:] if item.number not in numbers]
    return (*kept_before, *((replacement,) if replacement is not None else ()), *kept_after)
