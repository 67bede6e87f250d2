"""The fsynced record of commit heads, outside DuckDB: one record for each batch and each grant of a log file, and one
for each session of a sealed part.

Nothing is acknowledged before its record lies on the disk. So whatever DuckDB loses or changes afterwards (of 40
single-byte flips in its write-ahead log, 3 opened silently with fewer rows) differs from this file, and is seen.
"""

import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from ...domain.errors import InvalidFormat
from ...domain.hash_chain import DIGEST_BYTES
from .duckdb_files import write_whole

_MAGIC = b"greenroom heads 1\n"
_BODY = struct.Struct(f">Bqqqq{DIGEST_BYTES}s{DIGEST_BYTES}s")
_CHECKSUM = struct.Struct(">I")
RECORD_BYTES = _BODY.size + _CHECKSUM.size
_NO_DIGEST = bytes(DIGEST_BYTES)
_NAME_BYTES = 2 * DIGEST_BYTES


class HeadKind(IntEnum):
    """What a record speaks of."""

    BATCH = 1
    GRANT = 2
    NAME = 3
    DELETED = 4


class Head(NamedTuple):
    """One record."""

    kind: HeadKind
    session_key: int
    number: int
    """Of a batch its batch_id, of a grant its epoch, of a name the place of the piece of it."""
    first_seq: int
    last_seq: int
    previous: bytes
    """The digest before the batch."""
    digest: bytes
    """The digest after it."""


def batch_head(session_key: int, batch_id: int, first_seq: int, last_seq: int, previous: bytes, digest: bytes) -> bytes:
    """The record of a batch."""
    return _packed(HeadKind.BATCH, session_key, batch_id, first_seq, last_seq, previous, digest)


def grant_head(session_key: int, epoch: int, last_seq: int) -> bytes:
    """The record of a grant, made when the log of the session ended at last_seq."""
    return _packed(HeadKind.GRANT, session_key, epoch, last_seq, last_seq, _NO_DIGEST, _NO_DIGEST)


def deleted_head(session_key: int) -> bytes:
    """The record that a session was deleted."""
    return _packed(HeadKind.DELETED, session_key, 0, 0, 0, _NO_DIGEST, _NO_DIGEST)


def name_heads(session_key: int, session_id: str) -> bytes:
    """Records of the session's name, in pieces: with them the journal can be read without the log file."""
    name = session_id.encode()
    pieces = [name[start : start + _NAME_BYTES] for start in range(0, len(name), _NAME_BYTES)]
    return b"".join(
        _packed(HeadKind.NAME, session_key, place, 0, 0, piece[:DIGEST_BYTES], piece[DIGEST_BYTES:])
        for place, piece in enumerate(pieces)
    )


def name_of(pieces: Sequence[Head]) -> str:
    """The inverse of `name_heads`."""
    ordered = sorted(pieces, key=lambda head: head.number)
    return b"".join((head.previous + head.digest).rstrip(b"\0") for head in ordered).decode()


def _packed(
    kind: HeadKind, session_key: int, number: int, first_seq: int, last_seq: int, previous: bytes, digest: bytes
) -> bytes:
    body = _BODY.pack(kind, session_key, number, first_seq, last_seq, previous, digest)
    return body + _CHECKSUM.pack(zlib.crc32(body))


class HeadJournal:
    """The end of the file, for the thread that acknowledges."""

    def __init__(self, path: Path) -> None:
        """Open for appending; made when it is missing. A record that a crash cut short is cut off."""
        self.path = path
        self._file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, 0o600)
        size = os.fstat(self._file).st_size
        if size < len(_MAGIC):
            os.ftruncate(self._file, 0)
            os.write(self._file, _MAGIC)
        elif (size - len(_MAGIC)) % RECORD_BYTES:
            os.ftruncate(self._file, size - (size - len(_MAGIC)) % RECORD_BYTES)
        os.fsync(self._file)

    def append(self, records: bytes) -> None:
        """Returns when the records lie on the disk. Any OSError means that they may or may not: end the process."""
        view = memoryview(records)
        while view:
            view = view[os.write(self._file, view) :]
        os.fdatasync(self._file)

    def close(self) -> None:
        os.close(self._file)


def write_heads(path: Path, records: Iterable[bytes]) -> None:
    """A journal that will not grow: of a sealed part, one record for all that it holds of a session."""
    write_whole(path, _MAGIC + b"".join(records))


def read_heads(path: Path) -> Iterator[Head]:
    """The records, in order. InvalidFormat at the first that was changed; a last one that was cut short is left out,
    as nothing in it was acknowledged."""
    for number, head in enumerate(_records(path)):
        if head is None:
            raise _changed(path, number)
        yield head


def salvage_heads(path: Path) -> list[Head]:
    """The records that can be read; those that were changed are left out."""
    try:
        return [head for head in _records(path) if head is not None]
    except (InvalidFormat, FileNotFoundError):
        return []


def _records(path: Path) -> Iterator[Head | None]:
    """The records, in order; None for each that was changed."""
    content = path.read_bytes()
    if len(content) < len(_MAGIC):
        if _MAGIC.startswith(content):
            return
        raise _changed(path, 0)
    if not content.startswith(_MAGIC):
        raise _changed(path, 0)
    whole = (len(content) - len(_MAGIC)) // RECORD_BYTES
    for number in range(whole):
        start = len(_MAGIC) + number * RECORD_BYTES
        body = content[start : start + _BODY.size]
        (checksum,) = _CHECKSUM.unpack_from(content, start + _BODY.size)
        if checksum != zlib.crc32(body):
            yield None
            continue
        kind, *rest = _BODY.unpack(body)
        yield Head(HeadKind(kind), *rest)


def _changed(path: Path, number: int) -> InvalidFormat:
    return InvalidFormat(f"Record {number} of {path} was changed.", details={"path": str(path), "record": number})
