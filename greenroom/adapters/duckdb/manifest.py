"""The manifest of a store folder: which files make up the log. A file that it does not name does not count."""

import contextlib
import hashlib
import json
import os
import secrets
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ...domain.errors import InvalidFormat, StorageError
from .duckdb_files import write_whole

MANIFEST_NAME = "manifest.json"
PREVIOUS_NAME = "manifest.previous.json"

LAYOUT_VERSION = 2
"""Layout of the folder; a newer one is refused, untouched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartEntry:
    """A sealed part: a file that never changes."""

    number: int
    first_batch: int
    last_batch: int
    events: int
    size: int
    sha256: str
    heads_sha256: str
    """Of the record of heads beside it."""
    mtime_ns: int
    """Of the file when its digest was last seen to hold: while it stands, opening does not read the file again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What the folder holds. Changed only by writing a new one in its place."""

    layout: int = LAYOUT_VERSION
    next_number: int = 1
    """The number of the next file, log or part."""
    logs: tuple[int, ...] = ()
    """Numbers of the log files, oldest first; the last one may not have been written to yet."""
    parts: tuple[PartEntry, ...] = ()
    """Oldest first."""
    sealed_batch: int = 0
    """The newest batch in a part."""
    next_session_key: int = 1
    """No key from here on has been sealed."""
    untaken: tuple[int, ...] = ()
    """Numbers of parts that came from elsewhere and that the records may not have taken in yet."""
    identity: str = field(default_factory=lambda: secrets.token_hex(4))
    """Of this store and no copy of it: what a cursor of its feed is good for."""
    foreign: tuple[tuple[int, int], ...] = ()
    """First and last number of batches that came from elsewhere: nothing of them happened here, so that no feed has
    them."""
    deleted: tuple[int, ...] = ()
    """Keys of sessions that were deleted and whose rows may still lie in the files."""

    def changed(self, **changes: Any) -> "Manifest":
        return replace(self, **changes)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put it in the place of the one before, to last."""
    body = json.dumps(asdict(manifest), indent=1)
    digest = hashlib.sha256(body.encode()).hexdigest()
    path = folder / MANIFEST_NAME
    with contextlib.suppress(FileNotFoundError):  # the one before is kept for repair
        (folder / PREVIOUS_NAME).unlink(missing_ok=True)
        os.link(path, folder / PREVIOUS_NAME)
    write_whole(path, f"{body}\n{digest}\n".encode())


def read_manifest(folder: Path, name: str = MANIFEST_NAME) -> Manifest | None:
    """The manifest; None if there is none. StorageError if it was changed, InvalidFormat if it is of a newer layout."""
    path = folder / name
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as exc:
        raise _changed(path) from exc
    body, _, digest = text.rstrip("\n").rpartition("\n")
    if hashlib.sha256(body.encode()).hexdigest() != digest or not text.endswith("\n"):
        raise _changed(path)
    fields: dict[str, Any] = json.loads(body)
    if fields["layout"] > LAYOUT_VERSION:
        raise InvalidFormat(
            f"{path} has layout {fields['layout']}; this version of Greenroom reads up to {LAYOUT_VERSION}, and has"
            " changed nothing. Use the version that wrote it, or a newer one.",
            details={"path": str(path), "schema_version": fields["layout"]},
        )
    fields["logs"] = tuple(fields["logs"])
    fields["parts"] = tuple(PartEntry(**part) for part in fields["parts"])
    fields["deleted"] = tuple(fields["deleted"])
    fields["untaken"] = tuple(fields["untaken"])
    fields["foreign"] = tuple((first, last) for first, last in fields["foreign"])
    return Manifest(**fields)


def _changed(path: Path) -> StorageError:
    return StorageError(f"{path} was changed.", details={"path": str(path)})
