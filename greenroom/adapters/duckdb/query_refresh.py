"""Bringing a query mirror up to date: runs in the maintenance process, which may decode as long as it likes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..artifact_folder import ArtifactFolder
from ..event_codec import Slab, with_resolved_data
from .chunks import SealedBatch
from .log_rows import unpack_row
from .part_file import PartFile
from .query_mirror import MirroredBatch, QueryMirror, discard
from .session_transfer import read_tail


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshOrder:
    """What is there to be mirrored."""

    path: str
    """Of the mirror."""
    parts: Sequence[str]
    """Sealed parts with batches past `since`."""
    tail: str
    """A file with the batches past `since` that are in log files."""
    tail_sessions: Sequence[str]
    """The sessions of those batches, one for each."""
    since: int
    """The batch up to which the mirror is believed to be filled."""
    up_to: int
    """The newest batch."""
    deleted: Sequence[int]
    """Keys of sessions whose rows in the parts do not count."""
    forgotten: Sequence[str]
    """Sessions that are to be gone from the mirror."""
    rebuild: bool
    """Begin anew."""
    compact: bool
    """Take the bytes of what was forgotten out of the file."""
    artifacts: str


def refresh_mirror(order: RefreshOrder) -> dict[str, int]:
    """Fill the mirror; returns its watermark, which is below `since` when it has to be asked again from there."""
    path = Path(order.path)
    if order.rebuild:
        discard(path)
    mirror = QueryMirror.open(path)
    try:
        if order.forgotten:
            mirror.forget(order.forgotten)
        if mirror.watermark < order.since:
            return {"watermark": mirror.watermark}
        mirror.catch_up(_batches(order), order.up_to)
        if order.compact:
            mirror.compact()
        return {"watermark": mirror.watermark}
    finally:
        mirror.close()


def _batches(order: RefreshOrder) -> Iterator[MirroredBatch]:
    folder = ArtifactFolder(Path(order.artifacts))
    gone = frozenset(order.deleted)
    for name in order.parts:
        part = PartFile(Path(name), 0)
        for grant in part.grants():
            if grant.session_key not in gone:
                for batch in part.session_batches(grant.session_key):
                    yield _mirrored(grant.session_id, batch, folder)
    for session_id, batch in zip(order.tail_sessions, read_tail(Path(order.tail)), strict=True):
        yield _mirrored(session_id, batch, folder)


def _mirrored(session_id: str, batch: SealedBatch, folder: ArtifactFolder) -> MirroredBatch:
    header, payload = unpack_row(batch.row)
    payload = with_resolved_data(payload, lambda reference: folder.get(session_id, reference))
    return MirroredBatch(batch.batch_id, session_id, header.epoch, Slab(batch.seqs, header.recorded_at_us, payload))
