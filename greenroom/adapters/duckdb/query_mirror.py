"""The query mirror: the log once more, in columns, for those who ask in SQL.

A file of derived data. One trusted process writes it, brings it up to date batch by batch and closes it; the processes
that answer queries (`query_process`) open it read-only, and never while it is being written: DuckDB lets either one
writer or many readers have a file. Whatever is wrong with the file, it is thrown away and filled again from batch 0.
"""

import json
import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import duckdb

from ...domain.errors import InvalidFormat, InvalidTransition, StorageConnectionFailed, StorageWriteFailed
from ...domain.event import RECORD_TYPES, SCHEMA_VERSION, Event, EventType
from ...domain.record_projection import changes_session, fold_run, fold_session
from ...domain.run import Run
from ...domain.session import TENANT, Session
from ...domain.token_usage import TokenUsage
from ..event_codec import Slab, decode_slab, split_events
from ..logs import get_logger
from .query_process import LAYOUT_VERSION

_log = get_logger(__name__)

STEP_EVENTS = 20_000
STEP_BYTES = 16 << 20
"""One transaction takes in about so many events, or so many bytes of them, whichever comes first."""

_MEMORY_LIMIT = "512MB"
_MODE = 0o600  # it holds what the log holds
_COMPACTING = ".compacting"
_TOOL_TYPES = frozenset({EventType.TOOL_CALL_STARTED, EventType.TOOL_CALL_COMPLETED, EventType.TOOL_CALL_FAILED})

# `record` is what the fold goes on from; NULL once the record can change no more, so that it is not kept twice.
# `tenant` stands in every row, for the filter of a view to be one comparison inside the scan. It is NULL, and the row
# for no tenant's eyes, when the events of a session are there and their session_created is not.
_TABLES = """
    CREATE TABLE meta (layout_version INTEGER NOT NULL, watermark BIGINT NOT NULL);
    CREATE TABLE progress (session_id VARCHAR NOT NULL, tenant VARCHAR, last_seq BIGINT NOT NULL);
    CREATE TABLE sessions (
        tenant VARCHAR, session_id VARCHAR NOT NULL, status VARCHAR NOT NULL, agent_id VARCHAR NOT NULL,
        parent_session_id VARCHAR, provider VARCHAR, tags VARCHAR[], metadata JSON, context JSON,
        created_at TIMESTAMP NOT NULL, updated_at TIMESTAMP NOT NULL, epoch BIGINT NOT NULL, record VARCHAR
    );
    CREATE TABLE runs (
        tenant VARCHAR, run_id VARCHAR NOT NULL, session_id VARCHAR NOT NULL, status VARCHAR NOT NULL,
        provider VARCHAR, model VARCHAR, attempt BIGINT NOT NULL, turn_count BIGINT NOT NULL,
        input JSON, output JSON, error JSON, metadata JSON,
        input_tokens BIGINT, output_tokens BIGINT, cache_read_tokens BIGINT, cache_write_tokens BIGINT,
        total_tokens BIGINT, cost_usd DOUBLE,
        created_at TIMESTAMP NOT NULL, queued_at TIMESTAMP NOT NULL, started_at TIMESTAMP, ended_at TIMESTAMP,
        record VARCHAR
    );
    CREATE TABLE events (
        tenant VARCHAR, session_id VARCHAR NOT NULL, seq BIGINT NOT NULL, event_id VARCHAR NOT NULL,
        type VARCHAR NOT NULL, run_id VARCHAR, attempt BIGINT, timestamp TIMESTAMP NOT NULL,
        recorded_at TIMESTAMP NOT NULL, provider VARCHAR, data JSON NOT NULL, metadata JSON NOT NULL,
        schema_version BIGINT NOT NULL, tool_call_id VARCHAR
    );
"""

# 100,000 events of 228 bytes, by 20,000, one thread, three rounds; of each event msgpack takes 1.3 µs and JSON 3.5.
# `append_rows` into this table and INSERT .. SELECT: 103,000 to 125,000 events/s. `append_rows` with datetimes into the
# last table itself: 86,000 to 95,000. NDJSON in a file and read_json: 85,000 to 101,000, but an object has a largest
# size. One `append_row` each: 57,000 to 73,000. CSV: 75,000. from_json: 48,000. unnest of list parameters: 40,000.
# The whole of catch_up, an eighth of the events changing a record: 65,000 to 75,000 (1.9 million in 29 s), 50,000 busy.
_INCOMING = """
    CREATE TEMP TABLE incoming (
        tenant VARCHAR, session_id VARCHAR, seq BIGINT, event_id VARCHAR, type VARCHAR, run_id VARCHAR, attempt BIGINT,
        timestamp_us BIGINT, recorded_at_us BIGINT, provider VARCHAR, data VARCHAR, metadata VARCHAR,
        schema_version BIGINT, tool_call_id VARCHAR
    )
"""
# Sorted, for a row group to hold few sessions: batches of many sessions come interleaved.
_TAKE_IN = """
    INSERT INTO events
    SELECT tenant, session_id, seq, event_id, type, run_id, attempt, make_timestamp(timestamp_us),
           make_timestamp(recorded_at_us), provider, data, metadata, schema_version, tool_call_id
    FROM incoming ORDER BY session_id, seq
"""

_PROGRESS = "SELECT session_id, tenant, last_seq FROM progress WHERE session_id IN (SELECT unnest(?))"
_SESSIONS = "SELECT session_id, record FROM sessions WHERE session_id IN (SELECT unnest(?))"
_RUNS = "SELECT session_id, run_id, record FROM runs WHERE (session_id, run_id) IN (SELECT unnest(?), unnest(?))"
_DELETE_SESSIONS = "DELETE FROM sessions WHERE session_id IN (SELECT unnest(?))"
_DELETE_RUNS = "DELETE FROM runs WHERE (session_id, run_id) IN (SELECT unnest(?), unnest(?))"
_DELETE_PROGRESS = "DELETE FROM progress WHERE session_id IN (SELECT unnest(?))"
_FORGET = tuple(
    f"DELETE FROM {table} WHERE session_id IN (SELECT unnest(?))"  # noqa: S608  names of our own
    for table in ("events", "runs", "sessions", "progress")
)

_to_json = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode


class MirroredBatch(NamedTuple):
    """One committed batch, as the maintenance process reads it from the log."""

    batch_id: int
    session_id: str
    epoch: int
    slab: Slab


class _Progress(NamedTuple):
    """How far a session is mirrored, and whose it is."""

    tenant: str | None
    last_seq: int


_NOTHING = _Progress(None, 0)

_RunKey = tuple[str, str]  # session id and run id: an imported session may bring run ids that exist already


@dataclass(slots=True)
class _Step:
    """What one transaction takes in."""

    progress: dict[str, _Progress]
    rows: list[tuple[Any, ...]] = field(default_factory=list[tuple[Any, ...]])
    records: list[tuple[Event, int]] = field(default_factory=list[tuple[Event, int]])
    """Events that change a record, each with the epoch of its writer."""


class QueryMirror:
    """The open file. For one thread of one process; a reader that has the file open keeps it from being opened."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it. Raises what `open` says."""
        self._path = path
        for left_over in (_COMPACTING, _COMPACTING + ".wal"):
            _remove(_beside(path, left_over))
        self._connection = _open_file(path)
        self._watermark: int = self._first_row("SELECT watermark FROM meta")[0]

    @classmethod
    def open(cls, path: Path) -> "QueryMirror":
        """The mirror as far as it was filled; empty if there was none, or one that cannot be used.

        StorageConnectionFailed when somebody has the file open; OSError when its folder cannot be written.
        """
        return cls(path)

    @property
    def watermark(self) -> int:
        """Number of the newest batch up to which everything is mirrored."""
        return self._watermark

    def catch_up(self, batches: Iterable[MirroredBatch], up_to: int) -> int:
        """Take in the batches and raise the watermark to `up_to`; returns how many events were new.

        The batches of a session come in the order of their seqs, the sessions in any order. Those at or below the
        watermark of before the call are passed over, and so is every event that is here already: after a crash, or an
        exception from `batches`, the same call again completes what was begun. Memory is bounded by the size of a step
        and the largest batch. Raises InvalidFormat for events that a newer version wrote.
        """
        watermark, added, events, size = self._watermark, 0, 0, 0
        step: list[MirroredBatch] = []
        for batch in batches:
            if batch.batch_id <= watermark:
                continue
            step.append(batch)
            events += len(batch.slab.seqs)
            size += len(batch.slab.payload)
            if events >= STEP_EVENTS or size >= STEP_BYTES:
                added += self._take_in(step)
                step, events, size = [], 0, 0
        added += self._take_in(step, watermark=max(up_to, watermark))
        self._watermark = max(up_to, watermark)
        return added

    def forget(self, session_ids: Iterable[str]) -> None:
        """Delete everything of these sessions. Their bytes are in the file until `compact`."""
        ids = list(session_ids)
        with self._transaction():
            for statement in _FORGET:
                self._connection.execute(statement, [ids])

    def compact(self) -> None:
        """Write the file anew, without anything that was forgotten. Durable when it returns.

        It needs room for a second file meanwhile. A crash leaves the old file or the new one, whole. On an exception
        the mirror is closed; open it again.
        """
        fresh = _beside(self._path, _COMPACTING)
        try:
            self._copy_to(fresh)
        finally:
            self.close()
        if _beside(self._path, ".wal").exists():
            msg = f"{self._path} still has a WAL after it was closed; it was not replaced."
            raise StorageWriteFailed(msg)  # a new file beside an old WAL would be damaged by it
        fresh.chmod(_MODE)
        _sync(fresh)
        fresh.replace(self._path)
        _sync(self._path.parent)
        self._connection = _open_file(self._path)

    def close(self) -> None:
        """Write everything into the one file and let go of it. May be called again."""
        self._connection.close()

    def _copy_to(self, fresh: Path) -> None:
        connection = self._connection
        connection.execute("CHECKPOINT")
        connection.execute(f"ATTACH {_quoted(str(fresh))} AS greenroom_compacting")
        (name,) = self._first_row("SELECT current_database()")
        connection.execute(f'COPY FROM DATABASE "{name.replace(chr(34), chr(34) * 2)}" TO greenroom_compacting')
        connection.execute("CHECKPOINT greenroom_compacting")
        connection.execute("DETACH greenroom_compacting")

    def _take_in(self, batches: Sequence[MirroredBatch], *, watermark: int | None = None) -> int:
        """One transaction; how many events it added."""
        step = _Step(self._progress_of({batch.session_id for batch in batches}))
        for batch in batches:
            _decode(step, batch)
        with self._transaction():
            if step.rows:
                self._append("incoming", step.rows)
                self._connection.execute(_TAKE_IN)
                self._connection.execute("TRUNCATE incoming")
                self._fold_sessions(step)
                self._fold_runs(step)
                self._connection.execute(_DELETE_PROGRESS, [list(step.progress)])
                self._append("progress", [(session_id, *one) for session_id, one in step.progress.items()])
            if watermark is not None:
                self._connection.execute("UPDATE meta SET watermark = ?", [watermark])
        return len(step.rows)

    def _progress_of(self, session_ids: set[str]) -> dict[str, _Progress]:
        if not session_ids:
            return {}
        rows = self._connection.execute(_PROGRESS, [list(session_ids)]).fetchall()
        return {session_id: _Progress(tenant, last_seq) for session_id, tenant, last_seq in rows}

    def _fold_sessions(self, step: _Step) -> None:
        changes = [change for change in step.records if changes_session(change[0])]
        if not changes:
            return
        ids = list({event.session_id for event, _ in changes})
        stored = {session_id: record for session_id, record in self._rows(_SESSIONS, [ids])}  # noqa: C416  typed
        folded: dict[str, Session] = {}
        for event, epoch in changes:
            key = event.session_id
            with _illegal_events_shown(event):
                before = folded.get(key) or _session_to_go_on(stored, key)
                folded[key] = fold_session(before, event, epoch=epoch)
        self._connection.execute(_DELETE_SESSIONS, [[key for key in folded if key in stored]])
        self._append("sessions", [_session_row(step.progress[key].tenant, one) for key, one in folded.items()])

    def _fold_runs(self, step: _Step) -> None:
        changes = [(event, (event.session_id, event.run_id)) for event, _ in step.records if event.run_id is not None]
        if not changes:
            return
        keys = list({key for _, key in changes})
        stored = {(session, run): record for session, run, record in self._rows(_RUNS, _columns(keys))}
        folded: dict[_RunKey, Run] = {}
        for event, key in changes:
            with _illegal_events_shown(event):
                before = folded.get(key) or _run_to_go_on(stored, key)
                folded[key] = fold_run(before, event)
        replaced = [key for key in folded if key in stored]
        self._connection.execute(_DELETE_RUNS, _columns(replaced))
        self._append("runs", [_run_row(step.progress[key[0]].tenant, one) for key, one in folded.items()])

    def _append(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if not rows:
            return
        appender: Any = self._connection.appender(table)
        try:
            appender.append_rows(rows)
            appender.flush()
        except BaseException:
            appender.clear()  # or the rows would come with the next flush
            raise

    def _rows(self, statement: str, parameters: list[Any]) -> list[Any]:
        return self._connection.execute(statement, parameters).fetchall()

    def _first_row(self, statement: str) -> tuple[Any, ...]:
        row = self._connection.execute(statement).fetchone()
        if row is None:
            raise LookupError(statement)
        return row

    @contextmanager
    def _transaction(self) -> Generator[None]:
        self._connection.execute("BEGIN")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise


def discard(path: Path) -> None:
    """Throw the file away, for it to be filled from batch 0: what to do when reading or writing it fails."""
    for suffix in ("", ".wal", _COMPACTING, _COMPACTING + ".wal"):
        _remove(_beside(path, suffix))


def _open_file(path: Path) -> duckdb.DuckDBPyConnection:
    connection = _opened(path)
    if connection is None:
        discard(path)
        connection = _connect(path)
        connection.execute(_TABLES)
        connection.execute("INSERT INTO meta VALUES (?, 0)", [LAYOUT_VERSION])
        connection.execute("CHECKPOINT")
        path.chmod(_MODE)
    connection.execute(_INCOMING)
    return connection


def _opened(path: Path) -> duckdb.DuckDBPyConnection | None:
    """The file, if it is there, whole, and of this layout."""
    if not path.exists():
        return None
    with path.open("r+b"):  # a file that may not be written is no damage
        pass
    connection = None
    try:
        connection = _connect(path)
        rows = connection.execute("SELECT layout_version FROM meta").fetchall()
        if rows == [(LAYOUT_VERSION,)]:
            return connection
        _log.info("query_mirror_of_another_layout", path=str(path), found=rows)
    except duckdb.Error as exc:
        if "Could not set lock" in str(exc):
            msg = f"{path} is in use by another process; try again when it has let go of it."
            raise StorageConnectionFailed(msg) from exc
        _log.warning("query_mirror_damaged", path=str(path), error=str(exc))
    if connection is not None:
        connection.close()
    return None


def _connect(path: Path) -> duckdb.DuckDBPyConnection:
    config: dict[str, Any] = {
        "threads": 1,  # the other cores are the sessions'
        "memory_limit": _MEMORY_LIMIT,
        "temp_directory": "",  # what is spilled to disk would outlive `forget`
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    return duckdb.connect(str(path), config=config)


def _decode(step: _Step, batch: MirroredBatch) -> None:
    """Add what is new in the batch to the step. The hot loop: all but some 2 µs of what an event costs is in here."""
    session_id, slab = batch.session_id, batch.slab
    tenant, last_seq = step.progress.get(session_id, _NOTHING)
    recorded_at_us = slab.recorded_at_us
    for seq, (start, end, fields) in zip(slab.seqs, split_events(slab.payload), strict=True):
        if seq <= last_seq:
            continue
        if fields[-1] > SCHEMA_VERSION:
            raise InvalidFormat(
                f"Event {seq} of {session_id} has schema_version {fields[-1]}; this version of Greenroom reads up to"
                f" {SCHEMA_VERSION}. Use the version that wrote it, or a newer one.",
                details={"field": "schema_version", "schema_version": fields[-1]},
            )
        id_, type_, timestamp_us, run_id, attempt, provider, data, metadata, version = fields
        if type_ in RECORD_TYPES:
            step.records += ((event, batch.epoch) for event in _record_event(batch, seq, slab.payload[start:end]))
            if type_ == EventType.SESSION_CREATED:
                tenant = str(data["metadata"].get(TENANT) or "")
        call_id = _text(data.get("tool_call_id")) if type_ in _TOOL_TYPES else None
        step.rows.append(
            (
                *(tenant, session_id, seq, id_, type_, run_id, attempt, timestamp_us, recorded_at_us, provider),
                *(_to_json(data), _to_json(metadata) if metadata else "{}", version, call_id),
            )
        )
        last_seq = seq
    step.progress[session_id] = _Progress(tenant, last_seq)


def _record_event(batch: MirroredBatch, seq: int, packed: bytes) -> list[Event]:
    return decode_slab(batch.session_id, Slab((seq,), batch.slab.recorded_at_us, packed))


@contextmanager
def _illegal_events_shown(event: Event) -> Generator[None]:
    """The writer of the log refuses what does not fit, so the log was changed: show it, and go on without."""
    try:
        yield
    except (InvalidTransition, LookupError, TypeError, ValueError) as exc:
        _log.error("illegal_event_in_log", session_id=event.session_id, seq=event.seq, type=event.type, error=repr(exc))


def _session_to_go_on(stored: Mapping[str, str | None], key: str) -> Session | None:
    """The record of before this step, None for a new one; InvalidTransition if it had ended."""
    if key not in stored:
        return None
    return Session.from_dict(_open_record(stored[key]))


def _run_to_go_on(stored: Mapping[_RunKey, str | None], key: _RunKey) -> Run | None:
    if key not in stored:
        return None
    return Run.from_dict(_open_record(stored[key]))


def _open_record(record: str | None) -> dict[str, Any]:
    if record is None:
        raise InvalidTransition("It has ended and takes nothing more.")
    return json.loads(record)


def _session_row(tenant: str | None, session: Session) -> tuple[Any, ...]:
    return (
        *(tenant, session.id, session.status.value, session.agent_id, session.parent_session_id, session.provider),
        *(session.tags, _to_json(session.metadata), _to_json(session.context)),
        *(_naive(session.created_at), _naive(session.updated_at), session.epoch),
        None if session.status.is_terminal else _to_json(session.to_dict()),
    )


def _run_row(tenant: str | None, run: Run) -> tuple[Any, ...]:
    return (
        *(tenant, run.id, run.session_id, run.status.value, _text(run.provider), _text(run.model)),
        *(run.attempt, _number(run.turn_count) or 0),
        *(_to_json(run.input), _json_or_null(run.output), _json_or_null(run.error), _to_json(run.metadata)),
        *_tokens(run.token_usage),
        _number(run.cost_usd),
        *(_naive(run.created_at), _naive(run.queued_at), _naive(run.started_at), _naive(run.ended_at)),
        None if run.status.is_terminal else _to_json(run.to_dict()),
    )


def _tokens(recorded: Mapping[str, Any]) -> tuple[int | float | None, ...]:
    """Input, output, read from and written to a cache, and all together; NULLs while nothing is known."""
    if not recorded:
        return (None,) * 5
    counts = {name: _number(count) or 0 for name, count in recorded.items()}
    usage = TokenUsage.from_dict(counts)
    return (
        *(usage.input_tokens, usage.output_tokens, usage.cache_read_tokens, usage.cache_write_tokens),
        counts.get("total_tokens", usage.total_tokens),
    )


# What a provider reports may be of any JSON type; one odd value must not stop the mirror for good.


def _number(value: Any) -> int | float | None:
    return value if isinstance(value, int | float) and abs(value) < 1 << 62 else None


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _json_or_null(value: Any) -> str | None:
    return None if value is None else _to_json(value)


def _naive(moment: Any) -> Any:
    """UTC without saying so: TIMESTAMPTZ would need pytz to be read."""
    return None if moment is None else moment.replace(tzinfo=None)


def _columns(keys: Sequence[_RunKey]) -> list[Any]:
    return [[session_id for session_id, _ in keys], [run_id for _, run_id in keys]]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
