"""Who calls: the key of a request, what it is good for, and how often it may ask."""

import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param
from starlette.requests import HTTPConnection

from ...adapters.key_file import KeyFile
from ...domain.api_key import ApiKey, Scope
from ...domain.errors import Forbidden, RateLimited, Unauthorized
from ...domain.rate_budget import Bucket

_BEARER = HTTPBearer(auto_error=False, scheme_name="key", description="A key, as `greenroom keys create` prints it.")
_MAX_BUCKETS = 100_000


class Callers:
    """The keys, and how often each has asked this replica."""

    def __init__(self, keys: KeyFile, *, requests_per_minute: int | None) -> None:
        self._keys = keys
        self._requests_per_minute = requests_per_minute
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def admit(self, connection: HTTPConnection, token: str | None, scope: Scope) -> ApiKey:
        """The key of a request that may be answered. Unauthorized, RateLimited, Forbidden."""
        key = self._keys.keyring().find(token) if token else None
        if key is None:
            raise Unauthorized
        connection.state.key = key
        self._count(key)
        if not key.allows(scope):
            raise Forbidden(f"This key is good for {key.scope.value}, and this needs {scope.value}.")
        return key

    def is_good(self, key: ApiKey) -> bool:
        """Whether the key has not been revoked since."""
        return self._keys.keyring().has(key)

    def _count(self, key: ApiKey) -> None:
        if self._requests_per_minute is None:
            return
        bucket = self._buckets.pop(key.id, None) or Bucket(self._requests_per_minute)
        self._buckets[key.id] = bucket
        if len(self._buckets) > _MAX_BUCKETS:
            self._buckets.popitem(last=False)  # the key that has not asked for longest: its bucket is likely full
        now_s = time.monotonic()
        wait_s = bucket.wait_s(1, now_s)
        if wait_s > 0:
            raise RateLimited(
                f"This key may ask {self._requests_per_minute} times a minute.", details={"retry_after_s": wait_s}
            )
        bucket.take(1, now_s)


def _needs(scope: Scope) -> Callable[..., Coroutine[Any, Any, ApiKey]]:
    async def caller(
        connection: HTTPConnection, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
    ) -> ApiKey:
        return connection.app.state.callers.admit(connection, credentials and credentials.credentials, scope)

    return caller


def bearer_token(connection: HTTPConnection) -> str | None:
    """The token of a connection that brings it in its headers."""
    kind, token = get_authorization_scheme_param(connection.headers.get("Authorization"))
    return token if kind.lower() == "bearer" else None


async def _callers(connection: HTTPConnection) -> Callers:
    return connection.app.state.callers


TheCallers = Annotated[Callers, Depends(_callers)]
Reader = Annotated[ApiKey, Depends(_needs(Scope.READ))]
Runner = Annotated[ApiKey, Depends(_needs(Scope.RUN))]
Admin = Annotated[ApiKey, Depends(_needs(Scope.ADMIN))]
