"""Keys of the HTTP service: who may do what, for which tenant. Kept as digests, compared in constant time."""

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from .errors import NotFound, ValidationError

TOKEN = re.compile(r"gk_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
"""A key as its owner has it: an id that may be shown, and 256 random bits that may not."""

TENANT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Scope(StrEnum):
    """What a key is good for; each includes those before it."""

    READ = "read"
    RUN = "run"
    """Open sessions, submit and stop runs, decide approvals."""
    ADMIN = "admin"
    """Delete, and look at the whole runtime."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """What is kept of a key."""

    id: str
    tenant: str
    scope: Scope
    digest: str
    """SHA-256 of the secret: with 256 random bits in it there is nothing to try out, so nothing slower is needed."""
    created_at: datetime
    revoked_at: datetime | None = None

    def __post_init__(self) -> None:
        if not TENANT_NAME.fullmatch(self.tenant):
            raise ValidationError(
                f"tenant {self.tenant[:80]!r} is not usable; give letters, digits and . _ - (at most 64).",
                details={"field": "tenant"},
            )

    def allows(self, scope: Scope) -> bool:
        """Whether the key is good for that."""
        order = list(Scope)
        return order.index(self.scope) >= order.index(scope)

    def to_record(self) -> dict[str, Any]:
        """As JSON-safe values."""
        return {
            "id": self.id,
            "tenant": self.tenant,
            "scope": self.scope.value,
            "digest": self.digest,
            "created_at": self.created_at.isoformat(),
            "revoked_at": self.revoked_at.isoformat() if self.revoked_at else None,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "ApiKey":
        """The inverse of `to_record`."""
        revoked = record["revoked_at"]
        return cls(
            id=record["id"],
            tenant=record["tenant"],
            scope=Scope(record["scope"]),
            digest=record["digest"],
            created_at=datetime.fromisoformat(record["created_at"]),
            revoked_at=datetime.fromisoformat(revoked) if revoked else None,
        )


def digest_of(secret: str) -> str:
    """What is kept of the secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


_NOBODY = digest_of("nobody has this")


class Keyring:
    """The keys that there are."""

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self._by_id = {key.id: key for key in keys}

    @property
    def keys(self) -> tuple[ApiKey, ...]:
        """All of them, the revoked ones too, in the order in which they were made."""
        return tuple(self._by_id.values())

    @property
    def is_empty(self) -> bool:
        """Whether no key is valid."""
        return all(key.revoked_at is not None for key in self._by_id.values())

    def find(self, token: str) -> ApiKey | None:
        """The valid key that this is; None if it is none. An id that is not known takes as long as a secret that is
        wrong."""
        parts = TOKEN.fullmatch(token)
        key = self._by_id.get(parts[1]) if parts else None
        matches = hmac.compare_digest(digest_of(parts[2] if parts else ""), key.digest if key else _NOBODY)
        return key if key is not None and matches and key.revoked_at is None else None

    def has(self, key: ApiKey) -> bool:
        """Whether the key is there as it is, and so not revoked."""
        return self._by_id.get(key.id) == key

    def with_key(self, key: ApiKey) -> "Keyring":
        """And this one."""
        return Keyring([*self.keys, key])

    def revoked(self, key_id: str, at: datetime) -> "Keyring":
        """Without that one. NotFound; nothing happens to one that was revoked before."""
        if key_id not in self._by_id:
            raise NotFound(f"There is no key {key_id[:40]!r}.", details={"key_id": key_id[:40]})
        return Keyring(
            replace(key, revoked_at=at) if key.id == key_id and key.revoked_at is None else key for key in self.keys
        )
