"""Recovering what can be proven intact from damaged files.

A batch counts when its bytes give the digest that its record of heads holds; where the record itself was damaged, when
it continues the chain and DuckDB reads it without complaint. What was acknowledged and is not found becomes a batch
that says so: its seqs stay taken.
"""

import contextlib
import shutil
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import msgpack

from ...domain.errors import GreenroomError
from ...domain.hash_chain import chain_next, chain_start
from .chunks import SealedBatch, batches_in, lost_batch, unpack_chunk
from .duckdb_files import connect, heads_of, wal_of
from .head_journal import Head, HeadKind, name_of, salvage_heads
from .log_file import Grant, Link, SessionSpan, scan_rows
from .log_rows import STAMP_BYTES, RowHeader

_ZLIB_MAGIC = b"\x78\x01"  # at compression level 1
_LARGEST_ROW = 64 * 1024 * 1024

_FIRST_BLOCK, _BLOCK_BYTES, _NUMBER_BYTES = 3 * 4096, 256 * 1024, 8
"""Where the blocks of a DuckDB file begin, and how large they and the numbers in them are."""

_LARGEST_CHUNK = 1024 * 1024
"""How far a chunk is followed across blocks; nearly all are smaller than 32 KiB."""


@dataclass(slots=True)
class SalvagedSession:
    """What is left of one session in one file, in order, with batches in the place of what is not."""

    span: SessionSpan
    batches: list[SealedBatch] = field(default_factory=list[SealedBatch])
    recovered_events: int = 0
    lost: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """First and last seq of what could not be recovered."""


@dataclass(slots=True)
class Salvage:
    """What is left of one file."""

    sessions: dict[int, SalvagedSession] = field(default_factory=dict[int, SalvagedSession])
    grants: dict[int, Grant] = field(default_factory=dict[int, Grant])
    deleted: set[int] = field(default_factory=set[int])


def salvage_log(path: Path, ends: Mapping[int, Link]) -> Salvage:
    """What can be recovered of a log file: from its tables, and where DuckDB refuses them from its bytes. `ends` says
    where sessions end in the files before it."""
    heads = salvage_heads(heads_of(path))
    found = _Found(Salvage(), heads, ends)
    with _private_copy(path) as copy:
        for attempt in (copy, _without_wal(copy)):
            found.add_tables(attempt)
    found.carve(path)
    return found.result()


@contextlib.contextmanager
def _private_copy(path: Path) -> Generator[Path]:
    """A copy: opening may change a file whose write-ahead log is damaged."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="work-") as folder:
        copy = Path(folder) / path.name
        for each in (path, wal_of(path)):
            if each.exists():
                shutil.copyfile(each, copy if each == path else wal_of(copy))
        yield copy


def _without_wal(path: Path) -> Path:
    other = path.with_name("without-wal.duckdb")
    if path.exists():
        shutil.copyfile(path, other)
    return other


class _Found:
    """Rows by the number of their batch, from wherever they were found."""

    def __init__(self, salvage: Salvage, heads: Sequence[Head], ends: Mapping[int, Link]) -> None:
        self._salvage = salvage
        self._ends = ends
        self._heads = heads
        self._by_batch = {head.number: head for head in heads if head.kind is HeadKind.BATCH}
        self._rows: dict[int, tuple[int, SealedBatch]] = {}  # batch_id -> session key, batch
        self._take_names()

    def _take_names(self) -> None:
        pieces: dict[int, list[Head]] = defaultdict(list)
        epochs: dict[int, int] = {}
        for head in self._heads:
            if head.kind is HeadKind.NAME and head.number not in {piece.number for piece in pieces[head.session_key]}:
                pieces[head.session_key].append(head)
            elif head.kind is HeadKind.GRANT:
                epochs[head.session_key] = max(head.number, epochs.get(head.session_key, 0))
            elif head.kind is HeadKind.DELETED:
                self._salvage.deleted.add(head.session_key)
        for session_key, named in pieces.items():
            self._salvage.grants[session_key] = Grant(session_key, name_of(named), epochs.get(session_key, 1), "", 0)

    def add_tables(self, path: Path) -> None:
        """Whatever DuckDB still reads."""
        with contextlib.suppress(GreenroomError, duckdb.Error):
            connection = connect(path, read_only=True)
            try:
                self._add_grants(connection)
                for session_key, batch in scan_rows(connection):
                    self._offer(session_key, batch)
            finally:
                connection.close()

    def _add_grants(self, connection: duckdb.DuckDBPyConnection) -> None:
        for row in connection.execute(
            "SELECT session_key, session_id, epoch, owner, granted_at_us FROM grants"
        ).fetchall():
            grant = Grant(*row)
            known = self._salvage.grants.get(grant.session_key)
            if known is None or known.epoch <= grant.epoch:
                self._salvage.grants[grant.session_key] = grant

    def _offer(self, session_key: int, batch: SealedBatch) -> None:
        head = self._by_batch.get(batch.batch_id)
        if head is not None and chain_next(head.previous, batch.row) != head.digest:
            return
        try:
            well_formed = batch.header.last_seq > 0
        except (ValueError, TypeError, StopIteration):
            return
        if well_formed:
            self._rows.setdefault(batch.batch_id, (session_key, batch))

    def carve(self, path: Path) -> None:
        """Find what is missing in the bytes themselves: rows lie in the write-ahead log as they were handed over."""
        missing = [head for batch_id, head in self._by_batch.items() if batch_id not in self._rows]
        if not missing:
            return
        for file in (wal_of(path), path):
            content = file.read_bytes() if file.exists() else b""
            for head in missing:
                row = _carved(content, head)
                if row is not None:
                    self._rows.setdefault(head.number, (head.session_key, SealedBatch(head.number, row)))

    def result(self) -> Salvage:
        by_session: dict[int, list[int]] = defaultdict(list)
        for batch_id, head in self._by_batch.items():
            by_session[head.session_key].append(batch_id)
        for batch_id, (session_key, _) in self._rows.items():
            if batch_id not in self._by_batch:
                by_session[session_key].append(batch_id)
        for session_key, batch_ids in by_session.items():
            session = self._session(session_key, sorted(batch_ids))
            if session is not None:
                self._salvage.sessions[session_key] = session
        return self._salvage

    def _session(self, session_key: int, batch_ids: Sequence[int]) -> SalvagedSession | None:
        chain = _Chain()
        for batch_id in batch_ids:
            head = self._by_batch.get(batch_id)
            batch = self._rows[batch_id][1] if batch_id in self._rows else None
            if head is not None:
                chain.add(batch, batch_id, head.first_seq, head.last_seq, head.previous, head.digest)
            elif batch is not None:
                previous = chain.digest or self._start(session_key, batch)
                if previous is not None:  # else nothing says what came before it
                    header = batch.header
                    digest = batch.next_digest(previous)
                    chain.add(batch, batch_id, header.first_seq, header.last_seq, previous, digest)
        return chain.session

    def _start(self, session_key: int, batch: SealedBatch) -> bytes | None:
        last_seq, digest = self._ends.get(session_key, (0, None))
        if digest is not None:
            return digest if batch.header.first_seq == last_seq + 1 else None
        grant = self._salvage.grants.get(session_key)
        return chain_start(grant.session_id) if grant is not None and batch.header.first_seq == 1 else None


class _Chain:
    """Puts batches one after another, and fills what is missing between them."""

    def __init__(self) -> None:
        self.session: SalvagedSession | None = None

    @property
    def digest(self) -> bytes | None:
        return self.session.span.digest if self.session else None

    def add(
        self, batch: SealedBatch | None, batch_id: int, first_seq: int, last_seq: int, previous: bytes, digest: bytes
    ) -> None:
        if self.session is None:
            self.session = SalvagedSession(SessionSpan(first_seq, first_seq - 1, previous, previous))
        span = self.session.span
        if first_seq <= span.last_seq:
            return
        if first_seq > span.last_seq + 1:
            self._lose(batch_id, span.last_seq + 1, first_seq - 1, previous)
        if batch is None:
            self._lose(batch_id, first_seq, last_seq, digest)
            return
        self.session.batches.append(batch)
        self.session.recovered_events += len(batch.seqs)
        span.last_seq, span.digest = last_seq, digest

    def _lose(self, batch_id: int, first_seq: int, last_seq: int, digest: bytes) -> None:
        assert self.session is not None, "something was added before"
        self.session.batches.append(lost_batch(batch_id, first_seq, last_seq, digest))
        self.session.lost.append((first_seq, last_seq))
        self.session.span.last_seq, self.session.span.digest = last_seq, digest


def _carved(content: bytes, head: Head) -> bytes | None:
    """The row of this batch, if it lies whole among these bytes."""
    stamp = head.number.to_bytes(STAMP_BYTES, "big")
    start = content.find(stamp)
    while start >= 0:
        row = _row_at(content, start + STAMP_BYTES)
        if row is not None and chain_next(head.previous, row) == head.digest:
            return row
        start = content.find(stamp, start + 1)
    return None


def _row_at(content: bytes, start: int) -> bytes | None:
    view = memoryview(content)[start : start + _LARGEST_ROW]
    unpacker = msgpack.Unpacker(use_list=False, strict_map_key=False, max_buffer_size=0)
    unpacker.feed(view)
    try:
        header = RowHeader(*next(unpacker))
        for _ in range(header.event_count):
            unpacker.skip()
    except (ValueError, TypeError, StopIteration, RecursionError):
        return None
    except Exception as exc:  # msgpack.OutOfData has no common root with the others
        if type(exc).__name__ != "OutOfData":
            raise
        return None
    return bytes(view[: unpacker.tell()])


def salvage_part(path: Path) -> Salvage:
    """What can be recovered of a sealed part: chunk by chunk where DuckDB refuses more at once."""
    heads = salvage_heads(heads_of(path))
    found = _Found(Salvage(), [head for head in heads if head.kind is not HeadKind.BATCH], {})
    salvage = found.result()
    spans = {
        head.session_key: SessionSpan(head.first_seq, head.last_seq, head.previous, head.digest)
        for head in heads
        if head.kind is HeadKind.BATCH
    }
    chunks: dict[int, list[_Chunk]] = defaultdict(list)
    for session_key, chunk in _chunks(path, spans, salvage):
        chunks[session_key].append(chunk)
    for session_key, span in spans.items():
        salvage.sessions[session_key] = _part_session(span, chunks[session_key], {})
    if any(session.lost for session in salvage.sessions.values()):
        carved = _carved_chunks(path)
        for session_key, span in spans.items():
            salvage.sessions[session_key] = _part_session(span, chunks[session_key], carved.get(session_key, {}))
    return salvage


def _add_carved(chain: "_Chain", carved: Mapping[int, list[SealedBatch]], wanted: tuple[int, bytes]) -> None:
    """Fill the gap in front of what follows, if what was carved proves to be what was there."""
    assert chain.session is not None, "it begins where its span begins"
    end = chain.session.span
    digest = end.digest
    for batch in _bridge(carved, end.last_seq, digest, wanted):
        header, following = batch.header, batch.next_digest(digest)
        chain.add(batch, batch.batch_id, header.first_seq, header.last_seq, digest, following)
        digest = following


@dataclass(slots=True)
class _Chunk:
    first_seq: int
    previous: bytes
    batches: list[SealedBatch]


def _chunks(path: Path, spans: dict[int, SessionSpan], salvage: Salvage) -> Iterator[tuple[int, _Chunk]]:
    """Every chunk that can still be read; spans and grants are filled in where the record of heads lacks them."""
    try:
        connection = connect(path, read_only=True)
    except GreenroomError:
        return
    try:
        with contextlib.suppress(duckdb.Error):
            for key, *fields in connection.execute(
                "SELECT session_key, first_seq, last_seq, previous, digest FROM spans"
            ).fetchall():
                spans.setdefault(key, SessionSpan(*fields))
        with contextlib.suppress(duckdb.Error):
            for row in connection.execute(
                "SELECT session_key, session_id, epoch, owner, granted_at_us FROM grants"
            ).fetchall():
                salvage.grants[row[0]] = Grant(*row)
        yield from _readable_chunks(connection)
    finally:
        connection.close()


def _readable_chunks(connection: duckdb.DuckDBPyConnection) -> Iterator[tuple[int, _Chunk]]:
    try:
        count = connection.execute("SELECT count(*) FROM chunks").fetchall()[0][0]
    except duckdb.Error:
        return
    step, first = 2048, 0
    while first < count:
        try:
            rows = connection.execute(
                "SELECT session_key, first_seq, previous, chunk FROM chunks WHERE rowid >= ? AND rowid < ?",
                [first, first + step],
            ).fetchall()
        except duckdb.Error:
            if step > 1:
                step //= 2
            else:
                first += 1
            continue
        first += step
        step = min(step * 2, 2048)
        for session_key, first_seq, previous, chunk in rows:
            with contextlib.suppress(zlib.error, ValueError, TypeError):
                found, batches = unpack_chunk(chunk)
                if found == session_key:
                    yield session_key, _Chunk(first_seq, previous, batches)


def _carved_chunks(path: Path) -> dict[int, dict[int, list[SealedBatch]]]:
    """Chunks that lie whole among the bytes of the file, whatever DuckDB says of it, by session and first seq."""
    content = path.read_bytes() if path.exists() else b""
    carved: dict[int, dict[int, list[SealedBatch]]] = defaultdict(dict)
    for piece, end in ((content, len(content)), *_across_blocks(content)):
        start = piece.find(_ZLIB_MAGIC, 0, end)
        while start >= 0:
            unpacker = zlib.decompressobj()
            with contextlib.suppress(zlib.error, ValueError, TypeError, StopIteration):
                whole = unpacker.decompress(memoryview(piece)[start : start + _LARGEST_ROW])
                if unpacker.eof:
                    session_key, batches = batches_in(whole)
                    carved[session_key][batches[0].header.first_seq] = batches
            start = piece.find(_ZLIB_MAGIC, start + 1, end)
    return carved


def _across_blocks(content: bytes) -> Iterator[tuple[bytes, int]]:
    """What lies across the ends of blocks: the end of each with what follows it, and how much of that is the end.

    A value that does not fit goes on in the block whose number stands in the last eight bytes (DuckDB's overflow
    strings); each block begins with a checksum of eight.
    """
    blocks = range(_FIRST_BLOCK, len(content) - _BLOCK_BYTES + 1, _BLOCK_BYTES)
    for block in blocks:
        end = content[block + _NUMBER_BYTES : block + _BLOCK_BYTES - _NUMBER_BYTES]
        piece = bytearray(end)
        at = block
        while len(piece) < len(end) + _LARGEST_CHUNK:
            following = int.from_bytes(content[at + _BLOCK_BYTES - _NUMBER_BYTES : at + _BLOCK_BYTES], "little")
            at = _FIRST_BLOCK + following * _BLOCK_BYTES
            if at not in blocks:
                break
            piece += content[at + _NUMBER_BYTES : at + _BLOCK_BYTES - _NUMBER_BYTES]
        if len(piece) > len(end):
            yield bytes(piece), len(end)


def _bridge(
    carved: Mapping[int, list[SealedBatch]], last_seq: int, digest: bytes, wanted: tuple[int, bytes]
) -> list[SealedBatch]:
    """Carved batches from behind last_seq up to the seq and digest that are wanted; none if they do not lead there."""
    found: list[SealedBatch] = []
    while last_seq < wanted[0] and last_seq + 1 in carved:
        for batch in carved[last_seq + 1]:
            found.append(batch)
            last_seq, digest = batch.header.last_seq, batch.next_digest(digest)
    return found if (last_seq, digest) == wanted else []


def _part_session(
    span: SessionSpan, chunks: Iterable[_Chunk], carved: Mapping[int, list[SealedBatch]]
) -> SalvagedSession:
    """Chunks that lead into each other, or to the end on record; between them what was carved, or what is missing."""
    chain = _Chain()
    chain.session = SalvagedSession(SessionSpan(span.first_seq, span.first_seq - 1, span.previous, span.previous))
    chunks = sorted(chunks, key=lambda chunk: chunk.first_seq)
    for chunk in chunks:
        _add_carved(chain, carved, (chunk.first_seq - 1, chunk.previous))
        digest = chunk.previous
        for batch in chunk.batches:
            following = batch.next_digest(digest)
            header = batch.header
            chain.add(batch, batch.batch_id, header.first_seq, header.last_seq, digest, following)
            digest = following
    _add_carved(chain, carved, (span.last_seq, span.digest))
    end = chain.session.span
    if end.last_seq < span.last_seq:
        chain.add(
            None,
            chunks[-1].batches[-1].batch_id if chunks else 0,
            end.last_seq + 1,
            span.last_seq,
            end.digest,
            span.digest,
        )
    return chain.session
