"""Errors as problem+json (RFC 9457): one table from Greenroom's codes to HTTP statuses."""

import json
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import compile_path

from ...adapters.logs import get_logger
from ...domain.errors import (
    ErrorCategory,
    GreenroomError,
    InvalidFormat,
    NotFound,
    RunNotFound,
    SessionNotFound,
)

_log = get_logger(__name__)

MEDIA_TYPE = "application/problem+json"

BY_CODE: Mapping[str, HTTPStatus] = {
    "already_exists": HTTPStatus.CONFLICT,
    "capability_not_supported": HTTPStatus.UNPROCESSABLE_ENTITY,
    "forbidden": HTTPStatus.FORBIDDEN,
    "invalid_cursor": HTTPStatus.UNPROCESSABLE_ENTITY,
    "max_runs_exceeded": HTTPStatus.TOO_MANY_REQUESTS,
    "max_sessions_exceeded": HTTPStatus.TOO_MANY_REQUESTS,
    "missing_required_capability": HTTPStatus.UNPROCESSABLE_ENTITY,
    "policy_violation": HTTPStatus.UNPROCESSABLE_ENTITY,
    "queue_full": HTTPStatus.TOO_MANY_REQUESTS,
    "rate_limited": HTTPStatus.TOO_MANY_REQUESTS,
    "resync_required": HTTPStatus.GONE,
    "runtime_gone": HTTPStatus.SERVICE_UNAVAILABLE,
    "session_draining": HTTPStatus.SERVICE_UNAVAILABLE,
    "session_moved": HTTPStatus.SERVICE_UNAVAILABLE,
    "storage_full": HTTPStatus.INSUFFICIENT_STORAGE,
    "timeout": HTTPStatus.GATEWAY_TIMEOUT,
    "unauthorized": HTTPStatus.UNAUTHORIZED,
    "writer_fenced": HTTPStatus.SERVICE_UNAVAILABLE,
}
"""Codes that mean something else over HTTP than their category."""

BY_CATEGORY: Mapping[ErrorCategory, HTTPStatus] = {
    ErrorCategory.VALIDATION: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorCategory.STATE: HTTPStatus.CONFLICT,
    ErrorCategory.RESOURCE: HTTPStatus.NOT_FOUND,
    ErrorCategory.CONCURRENCY: HTTPStatus.CONFLICT,
    ErrorCategory.STORAGE: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""What is in neither table is a fault of ours."""

_OF_THE_FRAMEWORK: Mapping[HTTPStatus, tuple[str, str]] = {
    HTTPStatus.BAD_REQUEST: ("validation_error", "The body cannot be read."),
    HTTPStatus.NOT_FOUND: ("not_found", "There is nothing here; see /openapi.json."),
    HTTPStatus.REQUEST_TIMEOUT: ("body_too_slow", "The body did not come in time."),
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: ("body_too_large", "The body is larger than this service takes."),
    HTTPStatus.METHOD_NOT_ALLOWED: ("method_not_allowed", "This cannot be done here; see /openapi.json."),
}

RETRY_AFTER_S = 1
"""When a client that was refused for want of room may come again, where nobody knows better."""

_COMES_AGAIN = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_SAID_OF_NOTHING: Mapping[type[GreenroomError], str] = {
    SessionNotFound: "There is no such session.",
    RunNotFound: "There is no such run.",
    NotFound: "There is no such thing.",
}
"""The same for what does not exist and for what is another tenant's; and no path of the machine in it."""


def status_of(error: GreenroomError) -> HTTPStatus:
    """The HTTP status of an error."""
    found = BY_CODE.get(error.code) or BY_CATEGORY.get(error.category)
    return found or HTTPStatus.INTERNAL_SERVER_ERROR


def problem(
    status: HTTPStatus, code: str, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any
) -> Response:
    """A problem as a response."""
    body = {
        "type": "about:blank",
        "title": status.phrase,
        "status": status.value,
        "code": code,
        "detail": detail,
        **more,
    }
    content = json.dumps(body)  # all of it ASCII: what a caller sent may be repeated, and need not be valid Unicode
    return Response(content, status_code=status.value, media_type=MEDIA_TYPE, headers=dict(headers or {}))


def problem_of(error: GreenroomError) -> Response:
    """An error of Greenroom as a response. What is a fault of ours says nothing of how it came about."""
    status = status_of(error)
    if status is HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("request_failed", code=error.code, error=error.message)
        return internal_error()
    detail = next((said for kind, said in _SAID_OF_NOTHING.items() if isinstance(error, kind)), error.message)
    if error.category is ErrorCategory.STORAGE or isinstance(error, InvalidFormat):
        detail = (type(error).__doc__ or error.code).partition("\n")[0]  # the message names paths of this machine
    more = {name: error.details[name] for name in ("field", "last_seq", "lowest_seq") if name in error.details}
    headers: dict[str, str] = {}
    if status in _COMES_AGAIN:
        after_s = error.details.get("retry_after_s", RETRY_AFTER_S)
        headers["Retry-After"] = str(max(1, math.ceil(after_s)))
    if status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return problem(status, error.code, detail, headers=headers, **more)


async def answer_greenroom_error(_: Request, exc: Exception) -> Response:
    """What a route raised."""
    assert isinstance(exc, GreenroomError), "it is registered for no other"
    return problem_of(exc)


async def answer_invalid_request(_: Request, exc: Exception) -> Response:
    """A body or a parameter that is not what the route takes; never repeats what was sent."""
    assert isinstance(exc, RequestValidationError), "it is registered for no other"
    first = exc.errors()[0]
    field = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, "validation_error", f"{field}: {first['msg']}.", field=field)


async def answer_http_error(request: Request, exc: Exception) -> Response:
    """What the framework itself refuses: an unknown path, a wrong method."""
    assert isinstance(exc, HTTPException), "it is registered for no other"
    status = HTTPStatus(exc.status_code)
    headers = dict(exc.headers or {})
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = _methods_at(request)
    return problem_of_framework(status, headers)


def problem_of_framework(status: HTTPStatus, headers: Mapping[str, str] | None = None) -> Response:
    """A refusal of the framework, which has a status alone."""
    code, text = _OF_THE_FRAMEWORK.get(status, (status.phrase.lower().replace(" ", "_"), f"{status.phrase}."))
    return problem(status, code, text, headers=headers)


def _methods_at(request: Request) -> str:
    """What may be done at the path; the framework names the methods of the first of its routes alone."""
    described: dict[str, dict[str, Any]] = request.app.openapi()["paths"]
    path = request.url.path
    found = {
        method.upper()
        for pattern, methods in described.items()
        if compile_path(pattern)[0].fullmatch(path)
        for method in methods
    }
    return ", ".join(sorted(found or {"GET"}))


def internal_error() -> Response:
    """The answer to a fault of ours, which says nothing of how it came about."""
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", "Something went wrong here. Try again later.")
