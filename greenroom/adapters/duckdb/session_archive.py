"""One session in one file: every batch with its place in the chain, and its artifacts, to be read by any store.

A gzipped stream of msgpack arrays, the first of which says what it is and the last of which how much there must have
been. Reading proves the chain from its start to its end; what does not fit is refused, and nothing is executed.
"""

import gzip
import hashlib
import os
import zlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgpack

from ...domain.errors import InvalidFormat, StorageFull, StorageReadFailed, StorageWriteFailed
from ...domain.hash_chain import chain_start
from ...domain.identifiers import SESSION_ID
from .chunks import SealedBatch
from .duckdb_files import sync_directory

_MAGIC = "greenroom session archive"
ARCHIVE_VERSION = 1
MAX_ITEM_BYTES = 512 * 1024 * 1024
"""Largest batch or artifact that is read."""
_COMPRESSION = 5
_GZIP_HEADER = b"\x1f\x8b\x08\x00" + bytes(5) + b"\xff"
"""No time and no name: the same session gives the same file."""


class ArchiveHead(NamedTuple):
    """What an archive says of itself first."""

    session_id: str
    epoch: int
    last_seq: int
    digest: bytes
    """After last_seq."""
    batch_count: int


@dataclass(frozen=True, slots=True)
class ArchivedArtifact:
    """Content that an event refers to."""

    reference: str
    content: bytes


ArchiveItem = SealedBatch | ArchivedArtifact


def write_archive(path: Path, head: ArchiveHead, items: Iterable[ArchiveItem]) -> int:
    """Write all or nothing; returns the number of events. StorageWriteFailed or StorageFull."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        with scratch.open("xb") as raw:
            os.fchmod(raw.fileno(), 0o600)
            with gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=_COMPRESSION, filename="", mtime=0) as file:
                events = _write(file, head, items)
            raw.flush()
            os.fsync(raw.fileno())
        scratch.replace(path)
        sync_directory(path.absolute().parent)
    except OSError as exc:
        error = StorageFull if exc.errno == 28 else StorageWriteFailed  # noqa: PLR2004  ENOSPC
        raise error(f"{path} cannot be written: {exc.strerror}.", details={"path": str(path)}) from exc
    finally:
        scratch.unlink(missing_ok=True)
    return events


def _write(file: Any, head: ArchiveHead, items: Iterable[ArchiveItem]) -> int:
    digest, count, events = hashlib.sha256(), 0, 0

    def put(*fields: Any) -> None:
        packed = msgpack.packb(fields)
        digest.update(packed)
        file.write(packed)

    put(_MAGIC, ARCHIVE_VERSION, tuple(head))
    for item in items:
        count += 1
        if isinstance(item, SealedBatch):
            header = item.header
            events += header.event_count if item.kept is None else len(item.kept)
            put("batch", item.row, item.digest, item.kept)
        else:
            put("artifact", item.reference, item.content)
    file.write(msgpack.packb(("end", count, digest.digest())))
    return events


class ArchiveReader:
    """Reads an archive once. Iterating raises InvalidFormat at the first thing that does not fit, and at the end if
    something is missing: take nothing for good before it is over."""

    def __init__(self, file: Any, path: Path) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        self._unpacker = msgpack.Unpacker(file, use_list=False, max_buffer_size=MAX_ITEM_BYTES)
        fields = self._next()
        if len(fields) != 3 or fields[0] != _MAGIC:  # noqa: PLR2004
            raise self._refusal("it is no session archive")
        if fields[1] > ARCHIVE_VERSION:
            raise self._refusal(
                f"it has version {fields[1]}, and this version of Greenroom reads up to {ARCHIVE_VERSION}"
            )
        try:
            self.head = ArchiveHead(*fields[2])
        except TypeError as exc:
            raise self._refusal("its first item is not the head of an archive") from exc
        kinds = tuple(type(value) for value in self.head)
        self.require(kinds == (str, int, int, bytes, int), "its head is not well formed")
        self.require(SESSION_ID.fullmatch(self.head.session_id) is not None, "it names no session")

    @property
    def chain_start(self) -> bytes:
        """The digest before the first batch."""
        return chain_start(self.head.session_id)

    def require(self, holds: bool, problem: str) -> None:
        """InvalidFormat if it does not hold."""
        if not holds:
            raise self._refusal(problem)

    def _next(self) -> tuple[Any, ...]:
        start = self._unpacker.tell()
        try:
            fields: Any = next(self._unpacker)
        except (ValueError, OSError, EOFError, StopIteration, zlib.error) as exc:
            raise self._refusal(f"it ends or is damaged at byte {start} of its content") from exc
        if not isinstance(fields, tuple) or not fields:
            raise self._refusal("it holds something that is no item")
        if fields[0] != "end":
            self._digest.update(msgpack.packb(fields))
        return cast("tuple[Any, ...]", fields)

    def _refusal(self, problem: str) -> InvalidFormat:
        return InvalidFormat(
            f"{self._path} cannot be imported: {problem}. Nothing was changed.", details={"path": str(self._path)}
        )

    def _require_end(self) -> None:
        """Nothing follows, and the checksum of the file holds: it is compared when the end is reached."""
        try:
            next(self._unpacker)
        except StopIteration:
            return
        except (ValueError, OSError, EOFError, zlib.error) as exc:
            raise self._refusal("its checksum does not hold") from exc
        raise self._refusal("something follows its end")

    def _item(self, fields: tuple[Any, ...]) -> ArchiveItem:
        try:
            if fields[0] == "artifact":
                return ArchivedArtifact(*fields[1:])
            batch = SealedBatch(0, *fields[1:])
            self.require(fields[0] == "batch" and batch.header.last_seq > 0, "it holds something that is no item")
        except (TypeError, ValueError, StopIteration) as exc:
            raise self._refusal("it holds something that is no item") from exc
        return batch

    def __iter__(self) -> Iterator[ArchiveItem]:
        chain, last_seq, count, batch_count = self.chain_start, 0, 0, 0
        while True:
            fields = self._next()
            if fields[0] == "end":
                break
            count += 1
            item = self._item(fields)
            if isinstance(item, ArchivedArtifact):
                yield item
                continue
            batch = item
            chain = batch.next_digest(chain)
            batch_count += 1
            self.require(batch.header.first_seq == last_seq + 1, f"what follows seq {last_seq} is missing")
            self.require(batch_count <= self.head.batch_count, "it holds more batches than it says")
            last_seq = batch.header.last_seq
            yield batch
        self.require(
            (chain, last_seq) == (self.head.digest, self.head.last_seq),
            "its chain does not lead to the end that it names",
        )
        self.require(fields[1:] == (count, self._digest.digest()), "it is not what was written")
        self._require_end()


def read_head(path: Path) -> ArchiveHead:
    """What the archive says of itself; nothing else of it is read."""
    with open_archive(path) as archive:
        return archive.head


def prove_archive(path: Path) -> ArchiveHead:
    """Read all of it; what it says of itself, if everything fits."""
    with open_archive(path) as archive:
        for _ in archive:
            pass
        return archive.head


@contextmanager
def open_archive(path: Path) -> Generator[ArchiveReader]:
    """Read an archive. InvalidFormat if it is none; StorageReadFailed if it cannot be opened."""
    try:
        with path.open("rb") as raw, gzip.GzipFile(fileobj=raw, mode="rb") as file:
            if raw.read(len(_GZIP_HEADER)) != _GZIP_HEADER:
                raise InvalidFormat(
                    f"{path} cannot be imported: it is no session archive. Nothing was changed.",
                    details={"path": str(path)},
                )
            raw.seek(0)
            yield ArchiveReader(file, path)
    except OSError as exc:
        raise StorageReadFailed(f"{path} cannot be read: {exc.strerror or exc}.", details={"path": str(path)}) from exc
