"""What goes wrong on the way to the service, as the typed errors of Greenroom."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from json import JSONDecodeError, loads
from typing import Any, cast

import httpx2

from ...domain.errors import (
    ERRORS_BY_CODE,
    GreenroomError,
    InternalError,
    InvalidFormat,
    InvalidInput,
    InvalidOperation,
    NotFound,
    RuntimeGone,
    Timeout,
    UnknownError,
    ValidationError,
)

_PROBLEM = "application/problem+json"

_MEMBERS = frozenset({"type", "title", "status", "code", "detail", "instance"})
"""What RFC 9457 and the service say of every problem; the rest are details."""

_BY_STATUS: Mapping[int, type[GreenroomError]] = {
    HTTPStatus.BAD_REQUEST: ValidationError,
    HTTPStatus.NOT_FOUND: NotFound,
    HTTPStatus.METHOD_NOT_ALLOWED: InvalidOperation,
    HTTPStatus.REQUEST_TIMEOUT: Timeout,
    HTTPStatus.CONFLICT: InvalidOperation,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: ValidationError,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: ValidationError,
    HTTPStatus.UNPROCESSABLE_ENTITY: ValidationError,
    HTTPStatus.INTERNAL_SERVER_ERROR: InternalError,
    HTTPStatus.BAD_GATEWAY: RuntimeGone,
    HTTPStatus.SERVICE_UNAVAILABLE: RuntimeGone,
    HTTPStatus.GATEWAY_TIMEOUT: Timeout,
}
"""What an answer means that has no code of Greenroom's, such as a proxy's. All others are UnknownError."""

_BY_KIND: tuple[tuple[type[Exception], type[GreenroomError]], ...] = (
    (httpx2.ConnectTimeout, RuntimeGone),
    (httpx2.TimeoutException, Timeout),
    (httpx2.SSEError, InvalidFormat),
    (httpx2.DecodingError, InvalidFormat),
    (httpx2.LocalProtocolError, InvalidInput),
    (httpx2.UnsupportedProtocol, ValidationError),
    (httpx2.InvalidURL, ValidationError),
    (httpx2.HTTPError, RuntimeGone),
    (httpx2.StreamError, RuntimeGone),
    (httpx2.CookieConflict, InternalError),
)
"""What httpx2 raises; the first that fits holds."""

_RAISED: tuple[type[Exception], ...] = tuple(kind for kind, _ in _BY_KIND)


def is_passing(error: GreenroomError) -> bool:
    """Whether the same request may succeed a little later: the service cannot be reached, or asks to come again."""
    return error.retryable or isinstance(error, RuntimeGone) or "retry_after_s" in error.details


@contextmanager
def translated(url: str) -> Generator[None]:
    """Turns what httpx2 raises into errors of Greenroom, which name the address."""
    try:
        yield
    except _RAISED as exc:
        raise error_of_transport(exc, url) from exc


def error_of_transport(exc: Exception, url: str) -> GreenroomError:
    """The error that an exception of httpx2 stands for."""
    kind = next((error for raised, error in _BY_KIND if isinstance(exc, raised)), InternalError)
    if isinstance(exc, httpx2.LocalProtocolError):
        return kind("The request cannot be sent: a header is malformed.")  # httpx2 would repeat it, and one is the key
    reason = str(exc) or type(exc).__name__
    if kind is RuntimeGone:
        return kind(f"The service at {url} cannot be reached: {reason}. See whether `greenroom serve` runs there.")
    if kind is Timeout:
        return kind(f"The service at {url} did not answer in time ({reason}). Try again.")
    return kind(f"The service at {url} and this client do not understand each other: {reason}.")


def error_of_answer(status: int, headers: httpx2.Headers, body: bytes) -> GreenroomError:
    """The error that an answer stands for. `details` have what the service says besides its code, and
    `retry_after_s`; for a code that this version does not know also `code` and `status`."""
    problem = _problem_in(headers, body)
    details = {name: value for name, value in problem.items() if name not in _MEMBERS}
    retry_after_s = _retry_after_s(headers.get("retry-after"))
    if retry_after_s is not None:
        details["retry_after_s"] = retry_after_s
    code = problem.get("code")
    kind = ERRORS_BY_CODE.get(str(code))
    if kind is None:
        kind = _BY_STATUS.get(status, UnknownError)
        details["status"] = status
        if code is not None:
            details["code"] = code
    detail = problem.get("detail")
    return kind(detail if isinstance(detail, str) else _said_by_nobody(status), details=details)


def _problem_in(headers: httpx2.Headers, body: bytes) -> dict[str, Any]:
    """The problem that the body tells of, empty if it does not."""
    if headers.get("content-type", "").partition(";")[0].strip().lower() != _PROBLEM:
        return {}
    try:
        found = loads(body)
    except (JSONDecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _said_by_nobody(status: int) -> str:
    name = HTTPStatus(status).phrase if status in set(HTTPStatus) else "an unknown status"
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        return f"What answers is not the service: {status} {name}. Redirects are not followed; give its own address."
    return f"The service, or a proxy before it, answered {status} {name}."


def _retry_after_s(given: str | None) -> float | None:
    """The seconds of a Retry-After, which may also be a date."""
    if given is None:
        return None
    if given.isdecimal():
        return float(given)
    try:
        moment = parsedate_to_datetime(given)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
