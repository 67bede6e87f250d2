"""keys.json in the data_dir: the keys of the HTTP service, as digests, for this user alone."""

import json
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path

import filelock

from ..domain.api_key import ApiKey, Keyring, Scope, digest_of
from ..domain.errors import InvalidFormat

FILE_NAME = "keys.json"
_LOCK_S = 10.0


class KeyFile:
    """Several processes may read and change it. A reader sees a change with its next look."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / FILE_NAME
        self._lock = filelock.FileLock(data_dir / f"{FILE_NAME}.lock", timeout=_LOCK_S)
        self._seen: tuple[int, int, int] | None = None
        self._keyring = Keyring()

    def keyring(self) -> Keyring:
        """The keys as they are now. InvalidFormat if the file is not what this wrote."""
        seen = self._stamp()
        if seen != self._seen:
            self._keyring = self._read()
            self._seen = seen
        return self._keyring

    def create(self, tenant: str, scope: Scope) -> tuple[ApiKey, str]:
        """A new key, durable when this returns, and the token that its owner needs: it is nowhere else."""
        secret = secrets.token_urlsafe(32)
        key = ApiKey(
            id=secrets.token_hex(8), tenant=tenant, scope=scope, digest=digest_of(secret), created_at=datetime.now(UTC)
        )
        with self._lock:
            self._write(self._read().with_key(key))
        return key, f"gk_{key.id}_{secret}"

    def revoke(self, key_id: str) -> None:
        """The key is good for nothing any more. NotFound."""
        with self._lock:
            self._write(self._read().revoked(key_id, datetime.now(UTC)))

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _read(self) -> Keyring:
        try:
            records = json.loads(self._path.read_text())["keys"]
            return Keyring(ApiKey.from_record(record) for record in records)
        except FileNotFoundError:
            return Keyring()
        except (ValueError, KeyError, TypeError) as exc:
            raise InvalidFormat(
                f"{self._path} cannot be read: restore it from a backup, or remove it and make new keys.",
                details={"path": str(self._path)},
            ) from exc

    def _write(self, keyring: Keyring) -> None:
        scratch = self._path.with_name(f"{FILE_NAME}.{os.getpid()}")
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump({"keys": [key.to_record() for key in keyring.keys]}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
