"""Opening DuckDB files, what their errors mean here, and making files last."""

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import duckdb

from ...domain.errors import GreenroomError, StorageConnectionFailed, StorageError, StorageFull, StorageWriteFailed

LOCK_WAIT_S = 15.0
"""How long opening waits for the lock of a process that is just dying (2-3 s were seen after kill -9)."""

_LOCK_POLL_S = 0.05
_HASH_CHUNK = 1 << 20


def connect(path: Path, *, read_only: bool = False, memory_limit: str = "256MB") -> duckdb.DuckDBPyConnection:
    """A connection that never checkpoints by itself, loads nothing, and spills beside its file. Typed errors."""
    settings: dict[str, str | bool | int | float | list[str]] = {
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "checkpoint_threshold": "1GB",  # a checkpoint stalls commits (0.2 s seen): its owner chooses when
        "memory_limit": memory_limit,
        "threads": 1,  # with two, DuckDB hands each commit between them: 0.15 ms more
    }
    try:
        return duckdb.connect(str(path), read_only=read_only, config=settings)
    except duckdb.Error as exc:
        raise storage_error(exc, path) from exc


def first_row(
    connection: duckdb.DuckDBPyConnection, statement: str, parameters: Sequence[Any] = ()
) -> tuple[Any, ...] | None:
    """The first row, the result read to its end: an appender of a connection with an open one refuses to flush."""
    rows = connection.execute(statement, list(parameters)).fetchall()
    return rows[0] if rows else None


_MACHINE_TROUBLE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM)
"""Why a file cannot be opened though nothing is wrong with it."""


def is_machine_trouble(exc: Exception) -> bool:
    """Whether the error speaks of the process and its machine, and not of what a file holds."""
    if isinstance(exc, OSError):
        return exc.errno in _MACHINE_TROUBLE
    return "Cannot open file" in str(exc) and any(os.strerror(number) in str(exc) for number in _MACHINE_TROUBLE)


_TRANSLATION: tuple[tuple[Callable[[Exception], bool], type[GreenroomError], str], ...] = (
    (
        lambda exc: (
            "Could not set lock on file" in str(exc)
        ),  # no looser: a damaged file has a wrong checksum "in block"
        StorageConnectionFailed,
        "Another process uses this file of the event store. Stop it, or use another data_dir",
    ),
    (
        lambda exc: "o space left" in str(exc) or "quota exceeded" in str(exc),
        StorageFull,
        "There is no room left on the disk of the event store. Free some",
    ),
    (
        lambda exc: "fsync failed" in str(exc) or (isinstance(exc, OSError) and exc.errno == errno.EIO),
        StorageWriteFailed,
        "The disk of the event store refused to make something last. See to the disk, and to what the system says",
    ),
    (
        is_machine_trouble,
        StorageConnectionFailed,
        "A file of the event store cannot be opened, and not for what it holds. See to what the system says",
    ),
)


def storage_error(exc: Exception, path: Path | str) -> GreenroomError:
    """What an error of DuckDB or of the file system means here."""
    text = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
    for applies, error, message in _TRANSLATION:
        if applies(exc):
            return error(f"{message}: {path} ({text}).", details={"path": str(path), "pid": os.getpid()})
    return StorageError(f"The event store failed: {text} ({path}).", details={"path": str(path)})


class StoreLock:
    """The right to use a folder, which ends with this process. An flock: other file handles of the process do not end
    it, as they end the locks of DuckDB (closing any handle of a file gives those up)."""

    def __init__(self, path: Path, *, wait_s: float = LOCK_WAIT_S) -> None:
        self._path = path
        self._file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + wait_s
        while not self._taken():
            if time.monotonic() > deadline:
                os.close(self._file)
                raise StorageConnectionFailed(
                    f"Another process uses the event store in {path.parent}. Stop it, or use another data_dir.",
                    details={"path": str(path), "pid": os.getpid()},
                )
            time.sleep(_LOCK_POLL_S)

    def _taken(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        os.close(self._file)


def sync_directory(path: Path) -> None:
    """Make the names in a directory last."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Make the content of a file last."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, content: bytes) -> None:
    """Put the content at the path: all of it or nothing, and to last."""
    scratch = path.with_name(path.name + ".new")
    with scratch.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
    sync_directory(path.parent)


def digest_file(path: Path) -> str:
    """SHA-256 of the file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def wal_of(path: Path) -> Path:
    """The write-ahead log that DuckDB keeps beside the file."""
    return path.with_name(path.name + ".wal")


def heads_of(path: Path) -> Path:
    """The record of heads that is kept beside the file."""
    return path.with_suffix(".heads")


def remove_database(path: Path) -> None:
    """Remove a DuckDB file, its write-ahead log and its record of heads."""
    for each in (path, wal_of(path), heads_of(path)):
        each.unlink(missing_ok=True)
