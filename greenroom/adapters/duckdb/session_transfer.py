"""Writing a session to an archive and making a part of an archive. Both run in the maintenance process."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from ..artifact_folder import ArtifactFolder
from ..clock import now_us
from .chunks import SealedBatch
from .log_file import Grant, SessionSpan
from .part_file import PartFile
from .sealing import Row, Spans, write_part
from .session_archive import (
    ArchivedArtifact,
    ArchiveHead,
    ArchiveItem,
    ArchiveReader,
    open_archive,
    write_archive,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOrder:
    """What to write, and from where."""

    path: str
    session_key: int
    session_id: str
    epoch: int
    last_seq: int
    digest: str
    parts: Sequence[str]
    tail: str
    """A file with the batches that are not in a part yet; see `write_tail`."""
    artifacts: str


def write_tail(path: Path, batches: Sequence[SealedBatch]) -> None:
    """Batches for the maintenance process: it cannot open a log file that is written to."""
    path.write_bytes(msgpack.packb([tuple(batch) for batch in batches]))


def read_tail(path: Path) -> list[SealedBatch]:
    """The inverse of `write_tail`."""
    return [SealedBatch(*fields) for fields in msgpack.unpackb(path.read_bytes(), use_list=False)]


def export_session(order: ExportOrder) -> dict[str, Any]:
    """Write the archive; returns how many events it holds."""
    parts = [PartFile(Path(path), 0) for path in order.parts]
    tail = read_tail(Path(order.tail))

    def batches() -> Iterator[SealedBatch]:
        for part in parts:
            yield from part.session_batches(order.session_key)
        yield from tail

    folder = ArtifactFolder(Path(order.artifacts))

    def items() -> Iterator[ArchiveItem]:
        for reference in folder.references(order.session_id):
            yield ArchivedArtifact(reference, folder.get(order.session_id, reference))
        yield from batches()

    head = ArchiveHead(
        order.session_id, order.epoch, order.last_seq, bytes.fromhex(order.digest), sum(1 for _ in batches())
    )
    return {"events": write_archive(Path(order.path), head, items())}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOrder:
    """What to make a part of, and the numbers that the store has set aside for it."""

    path: str
    output: str
    session_key: int
    first_batch: int
    artifacts: str


def import_session(order: ImportOrder) -> dict[str, Any] | None:
    """Make the part; InvalidFormat if the archive is not what was exported, and then nothing is left of it."""
    folder = ArtifactFolder(Path(order.artifacts))
    with open_archive(Path(order.path)) as archive:
        head = archive.head
        spans = Spans()
        spans.add(order.session_key, SessionSpan(1, head.last_seq, archive.chain_start, head.digest))
        grant = Grant(order.session_key, head.session_id, head.epoch, "", now_us())
        spans.grants[order.session_key] = grant
        try:
            sealed = write_part(Path(order.output), _rows(archive, order, folder), spans)
        except BaseException:
            folder.delete_owner(head.session_id)
            raise
    return sealed._asdict() if sealed else None


def _rows(archive: ArchiveReader, order: ImportOrder, folder: ArtifactFolder) -> Iterator[Row]:
    batch_id = order.first_batch
    for item in archive:
        if isinstance(item, ArchivedArtifact):
            archive.require(
                folder.put(archive.head.session_id, item.content) == item.reference, "an artifact was changed"
            )
            continue
        yield order.session_key, item.header.first_seq, item._replace(batch_id=batch_id)
        batch_id += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptOrder:
    """Which sessions of another store's parts to make a part of, and under which numbers."""

    parts: Sequence[str]
    output: str
    keys: Mapping[str, int]
    """Session key there (as text: it travels as JSON) -> here, in the same order."""
    first_batch: int


def adopt_sessions(order: AdoptOrder) -> dict[str, Any] | None:
    """Make the part; StorageError if a chain does not hold."""
    parts = [PartFile(Path(path), 0) for path in order.parts]
    keys = {int(old): new for old, new in order.keys.items()}
    spans = Spans()
    for part in parts:
        grants = {grant.session_key: grant for grant in part.grants()}
        for old in part.session_keys:
            span = part.span(old)
            if old in keys and span is not None:
                spans.add(keys[old], span)
                spans.grants[keys[old]] = grants[old]._replace(session_key=keys[old])
    sealed = write_part(Path(order.output), _adopted_rows(parts, keys, order.first_batch), spans)
    return sealed._asdict() if sealed else None


def _adopted_rows(parts: Sequence[PartFile], keys: Mapping[int, int], first_batch: int) -> Iterator[Row]:
    batch_id = first_batch
    for old in sorted(keys):
        for part in parts:
            for batch in part.session_batches(old):
                yield keys[old], batch.header.first_seq, batch._replace(batch_id=batch_id)
                batch_id += 1
