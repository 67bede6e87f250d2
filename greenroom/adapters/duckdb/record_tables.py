"""The sessions and runs tables: projections of the log, brought up to date in small steps and on demand."""

import itertools
import json
import shutil
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import duckdb

from ...domain.batch_row import JOB_PREFIX, LedgerEntry
from ...domain.errors import InvalidTransition
from ...domain.event import Event, EventType, to_microseconds
from ...domain.record_projection import changes_session, fold_run, fold_session
from ...domain.run import Run
from ...domain.session import Session
from ..event_codec import record_events
from ..logs import get_logger
from .chunks import SealedBatch
from .duckdb_files import connect, first_row, remove_database, storage_error, sync_directory, sync_file, wal_of
from .log_file import Grant
from .log_rows import unpack_row

_log = get_logger(__name__)

_RecordT = TypeVar("_RecordT", Session, Run)

STEP_BATCHES = 256
"""Batches folded in one step: some tens of milliseconds. What begins and ends within a step is written once."""

MAX_OPEN_SESSIONS = 5_000
MAX_OPEN_RUNS = 50_000
"""Those that have not ended and are kept in memory beside the tables; others are read from them, which takes 0.4 ms
each. Sessions may stay open for ever, and have a system prompt each."""

_WATERMARK = "SELECT batch_id FROM watermark"
_SESSION = "SELECT record FROM sessions WHERE session_id = ?"
_RUN = "SELECT record FROM runs WHERE run_id = ?"
_RUN_BY_KEY = "SELECT run_id FROM runs WHERE session_id = ? AND idempotency_key = ? AND created_at_us > ?"
_SESSION_BY_KEY = "SELECT session_id FROM sessions WHERE idempotency_key = ? AND created_at_us > ?"
_OPEN_RUNS = "SELECT record FROM runs WHERE session_id = ? AND status IN ('pending', 'running') ORDER BY queued_seq"
_RUN_COUNT = "SELECT count(*) FROM runs WHERE session_id = ?"
_RECENT_CALLS = """
    SELECT call_id, run_id FROM runs WHERE session_id = ? AND call_id IS NOT NULL ORDER BY queued_seq DESC LIMIT ?
"""
_SESSIONS_WITH_OPEN_RUNS = "SELECT DISTINCT session_id FROM runs WHERE status IN ('pending', 'running')"
_OWNER = """
    SELECT session_key, session_id, epoch, owner, granted_at_us FROM owners WHERE session_id = ?
"""
_KNOWN = "SELECT session_id FROM owners WHERE session_id IN (SELECT unnest(?::VARCHAR[]))"
_UNCHANGED = "SELECT session_id FROM sessions WHERE status IN (SELECT unnest(?::VARCHAR[])) AND updated_at_us < ?"
_OWNED = "SELECT session_id FROM owners WHERE session_key IN (SELECT unnest(?::BIGINT[]))"
_FORGET_RECORDS = (
    "DELETE FROM sessions WHERE session_id = ?",
    "DELETE FROM runs WHERE session_id = ?",
    "DELETE FROM owners WHERE session_id = ?",
)
_FORGET = (*_FORGET_RECORDS, "DELETE FROM session_tools WHERE session_id = ?")
_STATUS_COUNTS = {
    "sessions": "SELECT status, count(*) FROM sessions GROUP BY ALL",
    "runs": "SELECT status, count(*) FROM runs GROUP BY ALL",
}
_LEDGER_SESSIONS = "SELECT session_id, record FROM sessions WHERE session_id IN (SELECT unnest(?::VARCHAR[]))"
_LEDGER_RUNS = """
    SELECT session_id, record FROM runs WHERE session_id IN (SELECT unnest(?::VARCHAR[])) ORDER BY queued_seq
"""
_ROW_COUNTS = "SELECT status, count(*) FROM sessions WHERE list_contains(tags, ?) GROUP BY ALL"
_JOBS = "SELECT 1 FROM sessions WHERE starts_with(session_id, ?) LIMIT 1"
_COUNTS = "SELECT (SELECT count(*) FROM sessions), (SELECT count(*) FROM runs)"


@dataclass(slots=True)
class _Step:
    """Records changed in one step: what they are now, and which of them replace a row."""

    sessions: dict[str, Session] = field(default_factory=dict[str, Session])
    runs: dict[str, Run] = field(default_factory=dict[str, Run])
    replaced_sessions: set[str] = field(default_factory=set[str])
    replaced_runs: set[str] = field(default_factory=set[str])


class RecordTables:
    """Reads are true as of the watermark. For one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if not _is_whole(path):
            remove_database(path)
        self._connection = connect(path)
        self._prepare()
        self._lookup = self._connection.cursor()
        self._lookup_lock = threading.Lock()
        row = first_row(self._connection, _WATERMARK)
        self.watermark: int = row[0] if row else 0
        """Number of the newest batch that the tables hold."""
        # As they are in the tables: most end soon after they began.
        self._open_sessions: dict[str, Session] = {}
        self._open_runs: dict[str, Run] = {}

    def _prepare(self) -> None:
        try:
            if self._connection.execute("SELECT table_name FROM duckdb_tables()").fetchall():
                return
            with self._transaction():
                self._connection.execute(files("greenroom.adapters.duckdb").joinpath("record_schema.sql").read_text())
                self._connection.execute("INSERT INTO watermark VALUES (0)")
            self._connection.execute("CHECKPOINT")
        except duckdb.Error as exc:
            self._connection.close()
            raise storage_error(exc, self._path) from exc

    def close(self) -> None:
        self._lookup.close()
        self._connection.close()

    def checkpoint(self, *, if_larger: int = 0) -> None:
        """Fold the write-ahead log into the file, if it is larger than that."""
        wal = wal_of(self._path)
        if wal.exists() and wal.stat().st_size > if_larger:
            self._connection.execute("CHECKPOINT")

    def compact(self) -> None:
        """Write the file anew: deleted rows leave their bytes in it until then."""
        fresh = self._path.with_name(self._path.name + ".new")
        remove_database(fresh)
        self._connection.execute(f"ATTACH '{_quoted(fresh)}' AS fresh")
        try:
            self._connection.execute(f"COPY FROM DATABASE {self._path.stem} TO fresh")
            self._connection.execute("CHECKPOINT fresh")
        finally:
            self._connection.execute("DETACH fresh")
        sync_file(fresh)
        self._connection.execute("CHECKPOINT")  # so that no log of the old file lies beside the new one
        with self._lookup_lock:
            self.close()
            try:
                fresh.replace(self._path)
                sync_directory(self._path.parent)
            finally:
                self._connection = connect(self._path)
                self._lookup = self._connection.cursor()

    def reopen(self) -> None:
        """Begin anew from the file: a commit that failed leaves a connection that can do nothing more."""
        with self._lookup_lock:
            self.close()
            self._connection = connect(self._path)
            self._lookup = self._connection.cursor()
        row = first_row(self._connection, _WATERMARK)
        self.watermark = row[0] if row else 0
        self._open_sessions.clear()
        self._open_runs.clear()

    def copy_to(self, folder: Path) -> Path:
        """A copy of the file, whole, made while nothing changes it."""
        self._connection.execute("CHECKPOINT")
        return Path(shutil.copyfile(self._path, folder / self._path.name))

    def take_in(self, grant: Grant, batches: Iterable[SealedBatch]) -> None:
        """Fold the log of a session that came from elsewhere."""
        with self._transaction():
            for statement in _FORGET_RECORDS:
                self._connection.execute(statement, [grant.session_id])
        self._close(grant.session_id)
        self.keep_owners([grant])
        remaining = iter(batches)
        while some := list(itertools.islice(remaining, STEP_BATCHES)):
            self._fold_all([(grant.session_id, batch) for batch in some], self.watermark)
        self.checkpoint()

    def step(self, batches: Sequence[tuple[str | None, SealedBatch]]) -> None:
        """Fold the batches that follow the watermark; those of deleted sessions are passed over."""
        self._fold_all(batches, batches[-1][1].batch_id)

    def _fold_all(self, batches: Sequence[tuple[str | None, SealedBatch]], watermark: int) -> None:
        step = _Step()
        for session_id, batch in batches:
            if session_id is None:
                continue
            header, payload = unpack_row(batch.row)
            for event in record_events(session_id, batch.seqs, header.recorded_at_us, header.records, payload):
                self._fold(step, event, header.epoch)
        self._write(step, watermark)

    def _fold(self, step: _Step, event: Event, epoch: int) -> None:
        try:
            if changes_session(event):
                session = self._changed_session(step, event)
                step.sessions[event.session_id] = fold_session(session, event, epoch=epoch)
            if event.run_id is not None:
                run = self._changed_run(step, event)
                step.runs[event.run_id] = fold_run(run, event)
        except (InvalidTransition, LookupError, TypeError, ValueError):
            # The writer refuses what does not fit, so the log was changed: show it, and keep serving.
            _log.exception("illegal_event_in_log", session_id=event.session_id, seq=event.seq, type=event.type)

    def _changed_session(self, step: _Step, event: Event) -> Session | None:
        session_id = event.session_id
        if session_id not in step.sessions:
            if event.type is EventType.SESSION_CREATED:
                return None  # new: asking the table for each of these would cost more than all the rest
            stored = self._open_sessions.get(session_id) or self.session(session_id)
            if stored is None:
                return None
            step.sessions[session_id] = stored
            step.replaced_sessions.add(session_id)
        return step.sessions[session_id]

    def _changed_run(self, step: _Step, event: Event) -> Run | None:
        run_id = event.run_id or ""
        if run_id not in step.runs:
            if event.type is EventType.RUN_QUEUED and event.attempt == 1:
                return None
            stored = self._open_runs.get(run_id) or self.run(run_id)
            if stored is None:
                return None
            step.runs[run_id] = stored
            step.replaced_runs.add(run_id)
        return step.runs[run_id]

    def _write(self, step: _Step, watermark: int) -> None:
        connection = self._connection
        with self._transaction():
            if step.replaced_sessions:
                connection.execute(
                    "DELETE FROM sessions WHERE session_id IN (SELECT unnest(?))", [list(step.replaced_sessions)]
                )
            if step.replaced_runs:
                connection.execute("DELETE FROM runs WHERE run_id IN (SELECT unnest(?))", [list(step.replaced_runs)])
            _append(connection, "sessions", map(_session_row, step.sessions.values()))
            _append(connection, "runs", map(_run_row, step.runs.values()))
            connection.execute("DELETE FROM watermark")
            connection.execute("INSERT INTO watermark VALUES (?)", [watermark])
        self.watermark = watermark
        _keep_open(self._open_sessions, step.sessions, MAX_OPEN_SESSIONS)
        _keep_open(self._open_runs, step.runs, MAX_OPEN_RUNS)

    def session(self, session_id: str) -> Session | None:
        row = first_row(self._connection, _SESSION, [session_id])
        return Session.from_dict(json.loads(row[0])) if row else None

    def run(self, run_id: str) -> Run | None:
        row = first_row(self._connection, _RUN, [run_id])
        return Run.from_dict(json.loads(row[0])) if row else None

    def run_by_key(self, session_id: str, idempotency_key: str, *, since_us: int) -> str | None:
        """The run that was submitted with this key after that time."""
        row = first_row(self._connection, _RUN_BY_KEY, [session_id, idempotency_key, since_us])
        return row[0] if row else None

    def session_by_key(self, idempotency_key: str, *, since_us: int) -> str | None:
        """The session that was opened with this key after that time."""
        row = first_row(self._connection, _SESSION_BY_KEY, [idempotency_key, since_us])
        return row[0] if row else None

    def open_runs(self, session_id: str) -> tuple[Run, ...]:
        """Runs that have not ended, in the order of the queue."""
        rows = self._connection.execute(_OPEN_RUNS, [session_id]).fetchall()
        return tuple(Run.from_dict(json.loads(record)) for (record,) in rows)

    def run_count(self, session_id: str) -> int:
        row = first_row(self._connection, _RUN_COUNT, [session_id])
        return row[0] if row else 0

    def recent_calls(self, session_id: str, limit: int) -> tuple[tuple[str, str], ...]:
        """Call id and run id of the newest runs, oldest first."""
        return tuple(reversed(self._connection.execute(_RECENT_CALLS, [session_id, limit]).fetchall()))

    def sessions_with_open_runs(self) -> list[str]:
        return [session_id for (session_id,) in self._connection.execute(_SESSIONS_WITH_OPEN_RUNS).fetchall()]

    def set_watermark(self, batch_id: int) -> None:
        """Say that the tables hold everything up to this batch, and make that last."""
        self._write(_Step(), batch_id)
        self.checkpoint()

    def save_tools(self, session_id: str, tools: bytes) -> None:
        """Keep the packed tools of a session, in place of earlier ones."""
        self._replace(
            ("DELETE FROM session_tools WHERE session_id = ?", [session_id]),
            ("INSERT INTO session_tools VALUES (?, ?)", [session_id, tools]),
        )

    def save_tools_of_all(self, session_ids: Sequence[str], tools: bytes) -> None:
        """Keep the same packed tools for all of the sessions."""
        ids = list(session_ids)
        self._replace(
            ("DELETE FROM session_tools WHERE session_id IN (SELECT unnest(?::VARCHAR[]))", [ids]),
            ("INSERT INTO session_tools SELECT unnest(?::VARCHAR[]), ?", [ids, tools]),
        )

    def has_jobs(self) -> bool:
        """Whether there is a session that stands for a batch."""
        return first_row(self._connection, _JOBS, [JOB_PREFIX]) is not None

    def tools(self, session_id: str) -> bytes | None:
        row = first_row(self._connection, "SELECT tools FROM session_tools WHERE session_id = ?", [session_id])
        return row[0] if row else None

    def _replace(self, *statements: tuple[str, list[Any]]) -> None:
        with self._transaction():
            for statement, parameters in statements:
                self._connection.execute(statement, parameters)

    @contextmanager
    def _transaction(self) -> Generator[None]:
        """Commits at the end, rolls back on any exception."""
        self._connection.execute("BEGIN")
        try:
            yield
        except BaseException:
            with suppress(duckdb.Error):  # where the commit itself failed there is nothing to roll back
                self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def grant(self, session_id: str) -> Grant | None:
        """The newest owner as of when the session was last sealed. From any thread."""
        with self._lookup_lock:
            row = first_row(self._lookup, _OWNER, [session_id])
        return Grant(*row) if row else None

    def known(self, session_ids: Sequence[str]) -> set[str]:
        """Those of the sessions that had an owner when they were last sealed. From any thread."""
        with self._lookup_lock:
            rows = self._lookup.execute(_KNOWN, [list(session_ids)]).fetchall()
        return {session_id for (session_id,) in rows}

    def session_ids(self, others: set[str]) -> list[str]:
        """These sessions and all that were sealed, each once."""
        sealed = {session_id for (session_id,) in self._connection.execute("SELECT session_id FROM owners").fetchall()}
        return sorted(sealed | others)

    def unchanged_sessions(self, statuses: Sequence[str], before_us: int) -> list[str]:
        """Sessions in one of these states whose record was last changed before that time."""
        rows = self._connection.execute(_UNCHANGED, [list(statuses), before_us]).fetchall()
        return [session_id for (session_id,) in rows]

    def owned(self, session_keys: Sequence[int]) -> list[str]:
        """The sessions with these keys, of those that were sealed."""
        rows = self._connection.execute(_OWNED, [list(session_keys)]).fetchall()
        return [session_id for (session_id,) in rows]

    def keep_owners(self, grants: Sequence[Grant]) -> None:
        """Remember the owners that a log file knows, before it goes."""
        with self._transaction():
            self._connection.execute(
                "DELETE FROM owners WHERE session_key IN (SELECT unnest(?))", [[grant.session_key for grant in grants]]
            )
            _append(self._connection, "owners", grants)

    def forget(self, session_id: str) -> None:
        """Every row of the session."""
        with self._transaction():
            for statement in _FORGET:
                self._connection.execute(statement, [session_id])
        self._close(session_id)

    def _close(self, session_id: str) -> None:
        """The session is not as it was in the tables any more."""
        self._open_sessions.pop(session_id, None)
        for run_id in [run_id for run_id, run in self._open_runs.items() if run.session_id == session_id]:
            del self._open_runs[run_id]

    def ledger(self, session_ids: Sequence[str]) -> dict[str, LedgerEntry]:
        """Those of the sessions that there are, with their runs."""
        ids = [list(session_ids)]
        sessions = self._connection.execute(_LEDGER_SESSIONS, ids).fetchall()
        runs: dict[str, list[Run]] = {session_id: [] for session_id, _ in sessions}
        for session_id, record in self._connection.execute(_LEDGER_RUNS, ids).fetchall():
            if session_id in runs:
                runs[session_id].append(Run.from_dict(json.loads(record)))
        return {
            session_id: LedgerEntry(Session.from_dict(json.loads(record)), tuple(runs[session_id]))
            for session_id, record in sessions
        }

    def row_counts(self, tag: str) -> dict[str, int]:
        """How many of the sessions with this tag there are in each status."""
        return dict(self._connection.execute(_ROW_COUNTS, [tag]).fetchall())

    def counts(self) -> tuple[int, int]:
        """How many sessions and runs there are."""
        row = first_row(self._connection, _COUNTS, [])
        return (row[0], row[1]) if row else (0, 0)

    def status_counts(self) -> dict[str, dict[str, int]]:
        """How many sessions and runs there are in each status."""
        return {noun: dict(self._connection.execute(sql).fetchall()) for noun, sql in _STATUS_COUNTS.items()}

    def list_sessions(
        self,
        *,
        status: str | None,
        agent_id: str | None,
        tag: str | None,
        after: str | None,
        limit: int,
        tenant: str | None = None,
        newest_first: bool = False,
    ) -> list[Session]:
        """Sessions in the order of their ids (the order in which they were made), or the other way round; those that
        come after the id `after` in that order."""
        past, order = ("<", "DESC") if newest_first else (">", "ASC")
        rows = self._connection.execute(
            f"""
            SELECT record FROM sessions
            WHERE ($after IS NULL OR session_id {past} $after) AND ($status IS NULL OR status = $status)
              AND ($agent_id IS NULL OR agent_id = $agent_id) AND ($tag IS NULL OR list_contains(tags, $tag))
              AND ($tenant IS NULL OR tenant = $tenant)
            ORDER BY session_id {order} LIMIT $limit
            """,  # noqa: S608  one of the two above
            {
                "after": after,
                "status": status,
                "agent_id": agent_id,
                "tag": tag,
                "tenant": tenant,
                "limit": limit,
            },
        ).fetchall()
        return [Session.from_dict(json.loads(record)) for (record,) in rows]

    def list_runs(self, *, session_id: str | None, status: str | None, after: str | None, limit: int) -> list[Run]:
        """Runs in the order of their ids, those after the id `after`."""
        rows = self._connection.execute(
            """
            SELECT record FROM runs
            WHERE run_id > $after AND ($session_id IS NULL OR session_id = $session_id)
              AND ($status IS NULL OR status = $status)
            ORDER BY run_id LIMIT $limit
            """,
            {"after": after or "", "session_id": session_id, "status": status, "limit": limit},
        ).fetchall()
        return [Run.from_dict(json.loads(record)) for (record,) in rows]


def _keep_open(kept: dict[str, _RecordT], changed: Mapping[str, _RecordT], bound: int) -> None:
    for id_, record in changed.items():
        if record.status.is_terminal:
            kept.pop(id_, None)
        else:
            kept[id_] = record
    while len(kept) > bound:
        del kept[next(iter(kept))]


def _session_row(session: Session) -> tuple[Any, ...]:
    return (
        session.id,
        session.status.value,
        session.agent_id,
        session.tags,
        session.tenant,
        to_microseconds(session.created_at),
        to_microseconds(session.updated_at),
        session.idempotency_key,
        json.dumps(session.to_dict()),
    )


def _run_row(run: Run) -> tuple[Any, ...]:
    return (
        run.id,
        run.session_id,
        run.status.value,
        run.queued_seq,
        to_microseconds(run.created_at),
        run.idempotency_key,
        run.call_id,
        json.dumps(run.to_dict()),
    )


def _append(connection: duckdb.DuckDBPyConnection, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
    appender = connection.appender(table)
    for row in rows:
        appender.append_row(*row)
    appender.flush()


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def _is_whole(path: Path) -> bool:
    """Whether the tables are all there; read without changing anything. StorageError if a block of it was changed."""
    if not path.exists():
        return False
    connection = connect(path, read_only=True)
    try:
        tables = {table for (table,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        for table in tables:  # every block, so that each checksum is looked at
            connection.table(table).aggregate("max(hash(COLUMNS(*)))").fetchall()
        return "session_tools" in tables and first_row(connection, _WATERMARK) is not None
    except duckdb.Error as exc:
        raise storage_error(exc, path) from exc
    finally:
        connection.close()


def read_tools(path: Path) -> list[tuple[str, bytes]]:
    """The packed tools of every session, read without changing anything. StorageError if they cannot be read."""
    connection = connect(path, read_only=True)
    try:
        return connection.execute("SELECT session_id, tools FROM session_tools").fetchall()
    except duckdb.Error as exc:
        raise storage_error(exc, path) from exc
    finally:
        connection.close()
