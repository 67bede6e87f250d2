"""What Claude Code says went wrong, in Greenroom's words: one table by HTTP status, one by its own names."""

from collections.abc import Mapping
from typing import Any

from ....domain.errors import (
    GreenroomError,
    ProviderAuthenticationFailed,
    ProviderError,
    ProviderInvalidRequest,
    ProviderOverloaded,
    ProviderQuotaExceeded,
    ProviderRateLimited,
    ProviderUnavailable,
)
from ..agents.wire_mapping import conversation_is_gone
from ..http_errors import class_of_status

_BY_NAME: Mapping[str, type[GreenroomError]] = {
    "authentication_failed": ProviderAuthenticationFailed,
    "billing_error": ProviderQuotaExceeded,
    "rate_limit": ProviderRateLimited,
    "invalid_request": ProviderInvalidRequest,
    "server_error": ProviderUnavailable,
    "overloaded": ProviderOverloaded,
}

_UNKNOWN_SESSION = "No conversation found"


def error_class(status: int | None, name: str | None) -> type[GreenroomError]:
    """The class for an HTTP status, else for Claude Code's own name of the error."""
    return class_of_status(status) or _BY_NAME.get(name or "", ProviderError)


def error_of_result(result: Mapping[str, Any], *, name: str | None) -> GreenroomError:
    """The error of a `result` that is one. Its `subtype` says nothing: an API error comes as "success"."""
    said = [str(one) for one in result.get("errors") or ()]
    message = str(result.get("result") or "; ".join(said) or "Claude Code ended with an error and did not say which.")
    details = {"terminal_reason": result.get("terminal_reason"), "http_status": result.get("api_error_status")}
    if any(_UNKNOWN_SESSION in one for one in said):
        return ProviderInvalidRequest(
            conversation_is_gone(message),
            details={**details, "field": "continuation"},
        )
    return error_class(result.get("api_error_status"), name)(message, details=details)
