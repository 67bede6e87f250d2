"""What the anthropic SDK raises, in Greenroom's words. Imports the SDK: load it only where the SDK is needed anyway."""

import json
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, cast

import anthropic
import httpx2
from anthropic.lib.credentials import WorkloadIdentityError

from ....domain.errors import (
    GreenroomError,
    ProviderAuthenticationFailed,
    ProviderContentRefused,
    ProviderError,
    ProviderInvalidRequest,
    ProviderOverloaded,
    ProviderQuotaExceeded,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnavailable,
)
from ..http_errors import class_of_status

BY_ERROR_CODE: dict[str, type[GreenroomError]] = {
    "contract_spend_limit_reached": ProviderQuotaExceeded,
    "enforced_spend_limit_reached": ProviderQuotaExceeded,
    "linked_organization_billing_unavailable": ProviderQuotaExceeded,
    "linked_organization_spend_limit_reached": ProviderQuotaExceeded,
    "storage_quota_exceeded": ProviderQuotaExceeded,
}
"""Causes that the type or the status alone would misread: a spend limit answers 429, and waiting does not help."""

BY_TYPE: dict[str, type[GreenroomError]] = {
    "invalid_request_error": ProviderInvalidRequest,
    "authentication_error": ProviderAuthenticationFailed,
    "billing_error": ProviderQuotaExceeded,
    "permission_error": ProviderAuthenticationFailed,
    "not_found_error": ProviderInvalidRequest,
    "request_too_large": ProviderInvalidRequest,
    "rate_limit_error": ProviderRateLimited,
    "timeout_error": ProviderTimeout,
    "api_error": ProviderUnavailable,
    "overloaded_error": ProviderOverloaded,
    "conflict_error": ProviderUnavailable,
    "memory_precondition_failed_error": ProviderInvalidRequest,
    "memory_path_conflict_error": ProviderInvalidRequest,
}
"""`error.type` of the body: the only thing that tells in the middle of a stream, where the status was 200."""

BY_CLASS: tuple[tuple[type[Exception], type[GreenroomError]], ...] = (
    (anthropic.APITimeoutError, ProviderTimeout),
    (anthropic.APIConnectionError, ProviderUnavailable),
    (anthropic.APIResponseValidationError, ProviderError),
    (anthropic.APIWebhookValidationError, ProviderError),
    (anthropic.RetryableError, ProviderUnavailable),
    (anthropic.CredentialsError, ProviderAuthenticationFailed),
    (WorkloadIdentityError, ProviderAuthenticationFailed),
    (httpx2.TimeoutException, ProviderTimeout),
    (httpx2.UnsupportedProtocol, ProviderInvalidRequest),
    (httpx2.InvalidURL, ProviderInvalidRequest),
    (httpx2.TooManyRedirects, ProviderInvalidRequest),
    (httpx2.HTTPError, ProviderUnavailable),
    (httpx2.StreamError, ProviderUnavailable),
    (json.JSONDecodeError, ProviderUnavailable),
    (UnicodeDecodeError, ProviderUnavailable),
)
"""What carries no status; the first that fits holds. Raw httpx2 errors are what a connection lost mid-stream raises."""

FOREIGN_ERRORS: tuple[type[Exception], ...] = (anthropic.AnthropicError, *(foreign for foreign, _ in BY_CLASS))
"""All that `translated` takes; anything else that is raised is a fault of Greenroom's own."""

_REMEDIES: dict[type[GreenroomError], str] = {
    ProviderAuthenticationFailed: "Check the key that api_key_env or api_key_file names, and what it may do.",
    ProviderQuotaExceeded: "Raise the limit or add credit in the account; waiting alone does not help.",
    ProviderInvalidRequest: "Correct the request or the provider's options.",
    ProviderRateLimited: "Wait before the next request.",
    ProviderOverloaded: "Try again later.",
    ProviderUnavailable: "Try again later.",
    ProviderTimeout: "Try again, or raise timeout_s.",
}

_MAX_TEXT = 2_000
"""Longest text kept of a foreign error: a gateway may answer with a whole page."""


def translated(exc: Exception, *, secret: str) -> GreenroomError:
    """The Greenroom error for one of FOREIGN_ERRORS, to be raised `from` it. `secret` is struck from all of it."""
    kind = _kind(exc)
    message = f"{_what_happened(exc)} {_REMEDIES.get(kind, '')}".strip()
    wait = _retry_after_s(exc)
    return kind(
        _without(message, secret),
        details={} if wait is None else {"retry_after_s": wait},
        provider_error=_without(_provider_error(exc), secret),
    )


def refused(category: str | None, explanation: str | None) -> ProviderContentRefused:
    """The error for an answer that ended with stop_reason `refusal`, which the SDK does not raise."""
    reason = explanation or (f"category {category}" if category else "no reason was given")
    return ProviderContentRefused(
        f"The model refused to go on ({reason}). Change the request, or use another model.",
        details={"category": category} if category else {},
        provider_error={"status_code": 200, "type": "refusal", "request_id": None, "body": None},
    )


def _kind(exc: Exception) -> type[GreenroomError]:
    if not isinstance(exc, anthropic.APIStatusError):
        return next((kind for foreign, kind in BY_CLASS if isinstance(exc, foreign)), ProviderError)
    status, text = exc.status_code, (exc.api_message or "").lower()
    if exc.error_code in BY_ERROR_CODE:
        return BY_ERROR_CODE[exc.error_code]
    if "credit balance" in text:  # answered as a plain 400 invalid_request_error
        return ProviderQuotaExceeded
    return BY_TYPE.get(exc.type or "") or class_of_status(status) or ProviderError


def _what_happened(exc: Exception) -> str:
    if isinstance(exc, anthropic.APIStatusError):
        what = " ".join(str(part) for part in (exc.status_code, exc.type) if part and part != HTTPStatus.OK)
        return f"The Messages API answered {what or 'with an error'}: {(exc.api_message or exc.message)[:_MAX_TEXT]}"
    if isinstance(exc, anthropic.APITimeoutError | httpx2.TimeoutException):
        return "The Messages API was silent for longer than timeout_s."
    if isinstance(exc, anthropic.APIConnectionError):
        return f"The Messages API at {exc.request.url.host} cannot be reached ({exc.__cause__ or exc})."
    if isinstance(exc, httpx2.HTTPError | httpx2.StreamError):
        return f"The connection to the Messages API was lost ({exc})."
    if isinstance(exc, ValueError):
        return "The Messages API sent something that is not a message stream."
    return f"The anthropic SDK failed ({type(exc).__name__}: {str(exc)[:_MAX_TEXT]})."


def _provider_error(exc: Exception) -> dict[str, Any]:
    if not isinstance(exc, anthropic.APIStatusError):
        return {"status_code": None, "type": type(exc).__name__, "request_id": None, "body": None}
    body: Any = exc.body
    return {
        "status_code": exc.status_code,
        "type": exc.type,
        "request_id": exc.request_id,
        "body": body if isinstance(exc.body, dict | list) else str(body)[:_MAX_TEXT],
    }


def _retry_after_s(exc: Exception) -> float | None:
    """How long the service asks to wait, from `retry-after-ms` or `retry-after` (seconds or a date)."""
    if not isinstance(exc, anthropic.APIStatusError):
        return None
    headers = exc.response.headers
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers.get(name, "")) * unit_s)
        except ValueError:
            continue
    try:
        moment = parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _without(value: Any, secret: str) -> Any:
    if isinstance(value, str):
        return value.replace(secret, "***") if secret else value
    if isinstance(value, dict):
        return {str(key): _without(item, secret) for key, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list):
        return [_without(item, secret) for item in cast("list[Any]", value)]
    return value
