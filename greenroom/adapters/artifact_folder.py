"""The artifact store in a folder of the file system, shared by any number of threads and processes of one machine.

    root/objects/ab/<digest>      every content once; `ab` are the first two digits
    root/owners/<owner>/<digest>  a hard link to it for each owner
    root/tmp/                     what is being written
    root/lock                     held for a moment by whoever changes links

The file system's link count is the reference count: there is no table that a crash could leave wrong. A content comes
into sight by a rename when it is whole and on the disk. Only links are made, counted and removed under the lock, never
contents written, so that an object is not removed between somebody's look at it and his link to it. Without the lock,
as when the file system does not honour it, a content could lie there twice, but never be lost: a link holds it.
"""

import errno
import fcntl
import hashlib
import os
import re
import threading
import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..domain.errors import (
    GreenroomError,
    NotFound,
    StorageConnectionFailed,
    StorageFull,
    StorageReadFailed,
    StorageWriteFailed,
    ValidationError,
)
from ..domain.identifiers import SESSION_ID

DEFAULT_MAX_ARTIFACT_BYTES = 256 * 1024 * 1024

STALE_TEMPORARY_S = 3600.0
"""A temporary file that has not been written to for so long belongs to a process that has died."""

LOCK_PATIENCE_S = 30.0
"""How long to wait for the lock, which others hold for a few writes of folders."""

_LONGEST_PAUSE_S = 0.02
_COMPARED_AT_ONCE_BYTES = 1024 * 1024

_PREFIX = "sha256:"
_DIGEST = re.compile(r"[0-9a-f]{64}")

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_NO_LINK = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}

_FOLDER_MODE = 0o700
_FILE_MODE = 0o600

_Identity = tuple[int, int]
"""Device and inode: what makes two names the same file."""


class ArtifactFolder:
    """An `ArtifactStore` in the folder `root`, which is made (for this user alone) if it is not there.

    `max_artifact_bytes` bounds one content and `max_total_bytes`, unless None, the sum of all; each is a StorageFull.
    The sum is counted over all files when it is first needed, and then kept up to date with what this object itself
    does. What other processes put is not seen until the next count, so each of several processes may use up what is
    left; the next count comes by `collect`, and before a put is refused, so that what others deleted is seen then.
    While the store is full, a refused put therefore takes a time that grows with the number of artifacts.

    On a file system without hard links every owner has a copy of its own. A file has a largest number of links (65 000
    on ext4): the owners beyond it share a second copy.

    After a power failure or a kill at any moment an owner has a content entirely or not at all; after `put` returned,
    entirely. What nobody refers to may be left over, until `collect`. Whoever may write to `root` can change what is
    kept, but not so that `get` returns it.

    StorageConnectionFailed, which can be tried again, if the lock stays taken for LOCK_PATIENCE_S. Not to be used in a
    fork of the process that made it.
    """

    def __init__(
        self,
        root: Path,
        *,
        max_artifact_bytes: int = DEFAULT_MAX_ARTIFACT_BYTES,
        max_total_bytes: int | None = None,
    ) -> None:
        """StorageWriteFailed if the folder cannot be made."""
        self._root = root = root.absolute()  # the process may change its folder
        self._objects = root / "objects"
        self._owners = root / "owners"
        self._temporaries = root / "tmp"
        self._max_artifact_bytes = max_artifact_bytes
        self._max_total_bytes = max_total_bytes
        self._threads = threading.Lock()
        self._total: int | None = None  # not counted yet; changed only by the holder of the lock
        with _failures_as(StorageWriteFailed, f"The artifact folder {root} cannot be made"):
            root.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            for folder in (self._objects, self._owners, self._temporaries):
                folder.mkdir(mode=_FOLDER_MODE, exist_ok=True)
            _sync_folder(root)
            _sync_folder(root.parent)

    def put(self, owner: str, content: bytes) -> str:
        """As the port says. Content that is there already is compared with the given one, and replaced if it is not
        the same; other owners that refer to it still get StorageReadFailed until they put it again.
        """
        folder = self._folder_of(owner)
        if len(content) > self._max_artifact_bytes:
            raise StorageFull(
                f"The artifact has {len(content)} bytes; at most {self._max_artifact_bytes} are allowed.",
                details={"bytes": len(content), "max_artifact_bytes": self._max_artifact_bytes},
            )
        digest = hashlib.sha256(content).hexdigest()
        with _failures_as(StorageWriteFailed, f"The artifact {digest} was not kept"):
            self._keep(content, self._object(digest), folder / digest)
        return _PREFIX + digest

    def get(self, owner: str, reference: str) -> bytes:
        digest = _digest_of(reference)
        link = self._folder_of(owner) / digest
        details = {"owner": owner, "reference": reference}
        with _failures_as(StorageReadFailed, f"The artifact {digest} cannot be read"):
            try:
                with open(link, "rb", buffering=0, opener=_open_no_link) as file:
                    content = file.read()
            except FileNotFoundError:
                raise NotFound(f"{owner} has no artifact {reference}.", details=details) from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise StorageReadFailed(f"The artifact {reference} was changed on the disk: {link}.", details=details)
        return content

    def delete_owner(self, owner: str) -> None:
        """As the port says. After a kill in the middle, what is left goes by a second call, but for one content at
        most that nobody refers to any more: `collect` removes that.
        """
        folder = self._folder_of(owner)
        changed: set[Path] = {self._owners}
        with _failures_as(StorageWriteFailed, f"The artifacts of {owner} were not all deleted"):
            for name in _names_in(folder):
                kept = self._object(name)
                with self._exclusively():  # for each anew, so that others need not wait for the whole
                    self._remove(folder / name)
                    if self._remove_if_unreferred(kept):
                        changed.add(kept.parent)
            with self._exclusively():
                _remove_if_empty(folder)
            for one in changed:
                _sync_folder(one)

    def references(self, owner: str) -> list[str]:
        folder = self._folder_of(owner)
        with _failures_as(StorageReadFailed, f"The artifacts of {owner} cannot be listed"):
            return sorted(_PREFIX + name for name in _names_in(folder) if _DIGEST.fullmatch(name))

    def owners(self) -> list[str]:
        """Everybody who refers to something."""
        with _failures_as(StorageReadFailed, "The owners of artifacts cannot be listed"):
            return sorted(_names_in(self._owners))

    def total_bytes(self) -> int:
        """As the port says, as far as it is known here: see the class. What is being written is not in it."""
        total = self._total
        if total is None:
            with _failures_as(StorageReadFailed, "The artifacts cannot be counted"), self._exclusively():
                total = self._counted_total()
        return total

    def collect(self, *, stale_after_s: float = STALE_TEMPORARY_S) -> int:
        """Remove what kills have left: objects that nobody refers to, temporary files that nobody has written to for
        `stale_after_s` seconds, and empty folders of owners. Returns how many files went.

        May run beside puts and deletes. A put that takes longer than `stale_after_s` to write fails with
        StorageWriteFailed. Takes a time that grows with the number of artifacts. StorageWriteFailed if it cannot go on.
        """
        removed = 0
        with _failures_as(StorageWriteFailed, "The artifacts that nobody refers to were not all removed"):
            with self._exclusively():  # then none of these is a second name that a put is about to use
                for entry in _entries(self._temporaries):
                    with suppress(FileNotFoundError):  # its put has ended
                        if time.time() - entry.stat(follow_symlinks=False).st_mtime >= stale_after_s:
                            Path(entry.path).unlink()
                            removed += 1
            for entry in _entries_below(self._objects):
                with suppress(FileNotFoundError):  # its last owner was deleted
                    if _DIGEST.fullmatch(entry.name) and entry.stat(follow_symlinks=False).st_nlink == 1:
                        with self._exclusively():
                            removed += self._remove_if_unreferred(Path(entry.path))
            for entry in _entries(self._owners):
                with self._exclusively():
                    _remove_if_empty(Path(entry.path))
            with self._exclusively():
                self._total = None
        return removed

    # Places

    def _folder_of(self, owner: str) -> Path:
        if not SESSION_ID.fullmatch(owner):
            raise ValidationError(
                f"owner {owner[:140]!r} is not usable; give letters, digits and . _ : - (at most 128).",
                details={"field": "owner"},
            )
        return self._owners / owner

    def _object(self, digest: str) -> Path:
        return self._objects / digest[:2] / digest

    # Writing

    def _keep(self, content: bytes, kept: Path, link: Path) -> None:
        """Make `link` a name of `kept`, and that the content."""
        temporary: Path | None = None
        may_share = True
        try:
            while True:
                judged = _identity(kept)
                if may_share and judged is not None and _holds(kept, content):
                    source = None
                else:
                    source = temporary = temporary or self._write_temporary(content)
                with self._exclusively():
                    if _identity(kept) != judged:  # another put or delete came between: judge what is there now
                        continue
                    if source is not None:
                        self._require_room(len(content))
                    if self._install(source, kept, link):
                        return
                may_share = False  # it has as many links as the file system allows: begin a second copy
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)  # missing, because it has become the object

    def _write_temporary(self, content: bytes) -> Path:
        """A new file with the content, on the disk."""
        if self._max_total_bytes is not None:
            with self._exclusively():  # before the disk is filled in vain; what counts is the check at the end
                self._require_room(len(content))
        path = self._temporary_path()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
        try:
            try:
                unwritten = memoryview(content)
                while unwritten:
                    unwritten = unwritten[os.write(descriptor, unwritten) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path

    def _temporary_path(self) -> Path:
        return self._temporaries / uuid.uuid4().hex

    # Under the lock

    def _install(self, source: Path | None, kept: Path, link: Path) -> bool:
        """Put the source, if any, in the place of the object, and refer to the object by the link, on the disk.

        False, and nothing done, when the object is to be used as it is but the file system allows no further link to
        it. Removes what it has made when it fails.
        """
        was_referred = _identity(link) is not None
        try:
            for folder in (kept.parent, link.parent):
                folder.mkdir(mode=_FOLDER_MODE, exist_ok=True)
            if source is not None:
                self._replace(source, kept, added_bytes=source.lstat().st_size)
            try:
                self._link(kept, link)
            except OSError as exc:
                if exc.errno not in _NO_LINK:
                    raise
                if source is None:
                    return False
                self._replace(kept, link)  # there are no hard links here: the owner has it for itself
            # Under the lock and even when nothing was made: who finds a link must be able to rely on it, and one whose
            # folders fail to reach the disk is taken away again before anybody else has found it.
            for folder in (kept.parent, self._objects, link.parent, self._owners):
                _sync_folder(folder)
        except BaseException:
            with suppress(OSError):
                if not was_referred:
                    self._remove(link)
                self._remove_if_unreferred(kept)
                _remove_if_empty(link.parent)
            raise
        return True

    def _link(self, kept: Path, link: Path) -> None:
        try:
            os.link(kept, link)
        except FileExistsError:
            if _identity(link) == _identity(kept):
                return
            # The owner has another file under this name: a copy of its own, or one that was changed on the disk.
            second_name = self._temporary_path()
            os.link(kept, second_name)
            try:
                self._replace(second_name, link)
            except BaseException:
                second_name.unlink(missing_ok=True)
                raise

    def _replace(self, source: Path, target: Path, *, added_bytes: int = 0) -> None:
        freed_bytes = _bytes_freed_without(target)
        source.replace(target)
        self._add_to_total(added_bytes - freed_bytes)

    def _remove(self, path: Path) -> None:
        """Nothing happens when there is no such file."""
        freed_bytes = _bytes_freed_without(path)
        path.unlink(missing_ok=True)
        self._add_to_total(-freed_bytes)

    def _remove_if_unreferred(self, kept: Path) -> bool:
        """Whether it was there and nobody referred to it."""
        try:
            if kept.lstat().st_nlink > 1:
                return False
        except FileNotFoundError:
            return False
        self._remove(kept)
        return True

    def _require_room(self, size: int) -> None:
        limit = self._max_total_bytes
        if limit is None or self._counted_total() + size <= limit:
            return
        self._total = None  # other processes may have deleted some
        total = self._counted_total()
        if total + size > limit:
            raise StorageFull(
                f"The artifacts have {total} bytes and {size} more were given; at most {limit} are allowed.",
                details={"bytes": size, "total_bytes": total, "max_total_bytes": limit},
            )

    def _counted_total(self) -> int:
        if self._total is None:
            sizes: dict[_Identity, int] = {}
            for folder in (self._objects, self._owners):  # in both, since a copy of an owner's own is only in one
                for entry in _entries_below(folder):
                    status = entry.stat(follow_symlinks=False)
                    sizes[status.st_dev, status.st_ino] = status.st_size
            self._total = sum(sizes.values())
        return self._total

    def _add_to_total(self, difference: int) -> None:
        if self._total is not None:
            self._total += difference

    @contextmanager
    def _exclusively(self) -> Generator[None]:
        """Hold the lock, against the threads of this process and against other processes. A kill releases it."""
        deadline = time.monotonic() + LOCK_PATIENCE_S
        if not self._threads.acquire(timeout=LOCK_PATIENCE_S):
            raise self._lock_is_taken()
        try:
            descriptor = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
            try:
                self._wait_for_other_processes(descriptor, deadline)
                yield
            finally:
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough if a fork has the descriptor too
                os.close(descriptor)
        finally:
            self._threads.release()

    def _wait_for_other_processes(self, descriptor: int, deadline: float) -> None:
        pause = 0.0005
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise self._lock_is_taken() from None
                time.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_S)
            else:
                return

    def _lock_is_taken(self) -> GreenroomError:
        return StorageConnectionFailed(
            f"Another process has held the artifact folder for {LOCK_PATIENCE_S:g} s. Try again.",
            details={"path": str(self._root)},
        )


@contextmanager
def _failures_as(error: type[GreenroomError], what: str) -> Generator[None]:
    """Turns errors of the operating system into this one, or into StorageFull."""
    try:
        yield
    except OSError as exc:
        reason = exc.strerror or str(exc)
        if exc.errno in _NO_ROOM:
            raise StorageFull(
                f"{what}: {reason}. Free disk space; service resumes by itself.", details={"errno": exc.errno}
            ) from exc
        raise error(f"{what}: {reason}.", details={"errno": exc.errno}) from exc


def _digest_of(reference: str) -> str:
    digest = reference.removeprefix(_PREFIX)
    if not reference.startswith(_PREFIX) or not _DIGEST.fullmatch(digest):
        raise ValidationError(
            f'reference {reference[:80]!r} is none; give "sha256:" and 64 lower-case hex digits.',
            details={"field": "reference"},
        )
    return digest


def _identity(path: Path) -> _Identity | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _holds(path: Path, content: bytes) -> bool:
    """Whether the file is there, can be read and has exactly this content."""
    try:
        with open(path, "rb", buffering=0, opener=_open_no_link) as file:
            if os.fstat(file.fileno()).st_size != len(content):
                return False
            at = 0
            while at < len(content):
                found = file.read(_COMPARED_AT_ONCE_BYTES)
                if not found or found != content[at : at + len(found)]:  # copies, but a memoryview compares slowly
                    return False
                at += len(found)
            return True
    except OSError:
        return False


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def _bytes_freed_without(path: Path) -> int:
    """The size of the file if this is its only name; 0 if there is none."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return 0
    return status.st_size if status.st_nlink == 1 else 0


def _remove_if_empty(folder: Path) -> None:
    """Nothing happens when something is in it, or there is no such folder."""
    try:
        folder.rmdir()
    except OSError as exc:
        if exc.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ENOTDIR}:
            raise


def _names_in(folder: Path) -> list[str]:
    """Empty when there is no such folder."""
    try:
        return [entry.name for entry in _entries(folder)]
    except FileNotFoundError:
        return []


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    with os.scandir(folder) as entries:
        return list(entries)


def _entries_below(folder: Path) -> Iterator["os.DirEntry[str]"]:
    """What lies in the folders of this folder."""
    for entry in _entries(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(Path(entry.path))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
