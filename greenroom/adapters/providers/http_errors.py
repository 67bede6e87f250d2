"""What an HTTP status of a model's API means, in Greenroom's words: one table for all providers."""

from collections.abc import Mapping
from http import HTTPStatus

from ...domain.errors import (
    GreenroomError,
    ProviderAuthenticationFailed,
    ProviderInvalidRequest,
    ProviderOverloaded,
    ProviderQuotaExceeded,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnavailable,
)

_BY_STATUS: Mapping[int, type[GreenroomError]] = {
    401: ProviderAuthenticationFailed,
    402: ProviderQuotaExceeded,
    403: ProviderAuthenticationFailed,
    408: ProviderTimeout,
    409: ProviderUnavailable,
    429: ProviderRateLimited,
    499: ProviderUnavailable,
    504: ProviderTimeout,
    529: ProviderOverloaded,
}
"""Those that mean something else than the family that they belong to."""


def class_of_status(status: int | None) -> type[GreenroomError] | None:
    """The class for an HTTP status: else a request that is not valid (4xx), or an API that is not there (5xx). None for
    what is no error, or no status."""
    if status is None or status < HTTPStatus.BAD_REQUEST:
        return None
    family = ProviderUnavailable if status >= HTTPStatus.INTERNAL_SERVER_ERROR else ProviderInvalidRequest
    return _BY_STATUS.get(status, family)
