"""What an agent says went wrong over the Agent Client Protocol, in Greenroom's words.

The protocol has only JSON-RPC errors, nearly always -32603. What happened stands in their `data`, which each agent
fills in its own way, and an HTTP status often in the text alone.
"""

import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, cast

from ....domain.errors import (
    GreenroomError,
    ProviderAuthenticationFailed,
    ProviderContentRefused,
    ProviderError,
    ProviderInvalidRequest,
    ProviderOverloaded,
    ProviderQuotaExceeded,
    ProviderRateLimited,
    ProviderUnavailable,
)
from ..agents.wire_mapping import conversation_is_gone
from ..http_errors import class_of_status

REQUEST_CANCELLED = -32800
"""The code with which an agent answers a request that was cancelled."""

AUTHENTICATION_REQUIRED = -32000
"""The code with which an agent asks to be authenticated first."""

RESOURCE_NOT_FOUND = -32002
"""The code with which an agent answers for a session that it has not got."""

_BY_CAUSE: Mapping[str, type[GreenroomError]] = {
    "billing_error": ProviderQuotaExceeded,
    "context_overflow_error": ProviderInvalidRequest,
    "context_window_exceeded": ProviderInvalidRequest,
    "cyber_policy": ProviderContentRefused,
    "server_overloaded": ProviderOverloaded,
    "usage_limit_exceeded": ProviderQuotaExceeded,
}
"""Names that say more than the status: a used-up limit answers 429, and waiting does not help."""

_BY_NAME: Mapping[str, type[GreenroomError]] = {
    "authentication_failed": ProviderAuthenticationFailed,
    "bad_request": ProviderInvalidRequest,
    "http_connection_failed": ProviderUnavailable,
    "internal_server_error": ProviderUnavailable,
    "invalid_request": ProviderInvalidRequest,
    "invalid_request_error": ProviderInvalidRequest,
    "model_not_found": ProviderInvalidRequest,
    "overloaded": ProviderOverloaded,
    "provider_auth_error": ProviderAuthenticationFailed,
    "rate_limit": ProviderRateLimited,
    "response_stream_connection_failed": ProviderUnavailable,
    "response_stream_disconnected": ProviderUnavailable,
    "response_too_many_failed_attempts": ProviderUnavailable,
    "server_error": ProviderUnavailable,
    "unauthorized": ProviderAuthenticationFailed,
}

_BY_CODE: Mapping[int, type[GreenroomError]] = {
    AUTHENTICATION_REQUIRED: ProviderAuthenticationFailed,
    RESOURCE_NOT_FOUND: ProviderInvalidRequest,
    -32600: ProviderInvalidRequest,
    -32601: ProviderInvalidRequest,
    -32602: ProviderInvalidRequest,
}
"""JSON-RPC codes. -32603, "internal error", tells nothing."""

_STATUS_IN_TEXT = re.compile(r"\b(?:status|error|rejected)\D{0,8}([45]\d\d)\b", re.IGNORECASE)
_IN_TEXT: Mapping[type[GreenroomError], re.Pattern[str]] = {
    ProviderRateLimited: re.compile(r"rate.?limit|too many requests", re.IGNORECASE),
    ProviderOverloaded: re.compile(r"\boverloaded\b|\bat capacity\b", re.IGNORECASE),
    ProviderAuthenticationFailed: re.compile(r"authentication|unauthori[sz]ed|\bapi key\b", re.IGNORECASE),
    ProviderInvalidRequest: re.compile(r"\binvalid.request", re.IGNORECASE),
}
"""Last resort: OpenCode passes on the text of the provider and nothing else, and codex-acp now and then."""


def error_of_answer(error: Mapping[str, Any]) -> GreenroomError:
    """The error for a JSON-RPC error with which session/prompt was answered."""
    data: Any = error.get("data")
    given = cast("Mapping[str, Any]", data) if isinstance(data, Mapping) else {"message": data}
    said = (given.get("message"), given.get("details"), error.get("message"))
    message = next((one for one in said if one and isinstance(one, str)), "The agent failed and did not say why.")
    name, status = codex_error(given.get("codex_error_info") or given.get("codexErrorInfo"))
    name = name or given.get("errorKind") or given.get("errorName")
    code = error.get("code")
    if isinstance(code, int) and code >= HTTPStatus.BAD_REQUEST:  # Gemini answers with the status itself
        status, code = code, None
    return _error(message, status=status, name=name, code=code)


def error_of_load(error: Mapping[str, Any]) -> GreenroomError:
    """The error for one with which session/load was answered. No model is asked for that, so whatever the agent says
    of it, it has not got the conversation."""
    known = error_of_answer(error)
    if isinstance(known, ProviderAuthenticationFailed):
        return known
    said = known.message.rstrip(". \n")
    return ProviderInvalidRequest(conversation_is_gone(said), details={**known.details, "field": "continuation"})


def error_of_thread(message: str, info: object) -> GreenroomError:
    """The error that ended a turn of codex-acp, which answers it as if it had gone well."""
    name, status = codex_error(info)
    return _error(message.strip() or "Codex failed and did not say why.", status=status, name=name)


def error_class(message: str, *, status: int | None, name: str | None, code: int | None = None) -> type[GreenroomError]:
    """The class for what is known: a telling name, the status, any other name, the JSON-RPC code, the text."""
    spelled = _snake(name or "")
    if telling := _BY_CAUSE.get(spelled):
        return telling
    if of_status := class_of_status(status):
        return of_status
    if known := _BY_NAME.get(spelled) or _BY_CODE.get(code or 0):
        return known
    return next((of_text for of_text, words in _IN_TEXT.items() if words.search(message)), ProviderError)


def codex_error(info: object) -> tuple[str | None, int | None]:
    """Name and HTTP status of a codexErrorInfo: a name, or a name with what belongs to it."""
    if not isinstance(info, Mapping) or not info:
        return (info if isinstance(info, str) else None), None
    name, more = next(iter(cast("Mapping[str, Any]", info).items()))
    given = cast("Mapping[str, Any]", more if isinstance(more, Mapping) else {})
    return name, given.get("httpStatusCode") or given.get("http_status_code")


def status_in(message: str) -> int | None:
    """The HTTP status that a message names."""
    found = _STATUS_IN_TEXT.search(message)
    return int(found[1]) if found else None


def _error(message: str, *, status: int | None, name: str | None, code: int | None = None) -> GreenroomError:
    message, type_in_body = _unwrapped(message)
    if name in (None, "other"):
        name = type_in_body or name
    status = status or status_in(message)
    known = {"http_status": status, "reason": name, "rpc_code": code}
    details = {key: value for key, value in known.items() if value is not None}
    return error_class(message, status=status, name=name, code=code)(message, details=details)


def _unwrapped(message: str) -> tuple[str, str | None]:
    """What an API answered says in words, and the type of its error: both codex-acp pass a body on as it came."""
    try:
        body: Any = json.loads(message) if message.lstrip().startswith("{") else None
        return str(body["error"]["message"]), body["error"].get("type")
    except (ValueError, TypeError, KeyError, AttributeError):
        return message, None


def _snake(name: str) -> str:
    """One spelling of a name: codex-acp says responseStreamDisconnected, zed's says response_stream_disconnected."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
