"""What Amp says went wrong, in Greenroom's words. Amp has no codes, only text: one table by the HTTP status in that
text, one by its words."""

import re
from collections.abc import Mapping
from typing import Any

from ....domain.errors import (
    Cancelled,
    GreenroomError,
    ProviderAuthenticationFailed,
    ProviderError,
    ProviderInvalidRequest,
    ProviderOverloaded,
    ProviderQuotaExceeded,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnavailable,
)
from ..agents.wire_mapping import conversation_is_gone
from ..http_errors import class_of_status

_BY_WORDS: Mapping[str, type[GreenroomError]] = {
    r"user cancell?ed|cancell?ed by (the )?user": Cancelled,
    r"credit balance|out of credits": ProviderQuotaExceeded,
    r"missing API key|no API key|not logged in|unauthorized": ProviderAuthenticationFailed,
    r"rate limit|too many requests": ProviderRateLimited,
    r"overloaded": ProviderOverloaded,
    r"timed out": ProviderTimeout,
    r"connection to|couldn't connect|cannot reach|server returned an error": ProviderUnavailable,
    r"invalid visibility|not permitted with --mode|unknown option": ProviderInvalidRequest,
}

_STATUS = re.compile(r"(?:^|\(|\b(?:HTTP|status|status code|error):? )([45]\d\d)\b", re.IGNORECASE | re.MULTILINE)
"""A status as programs write it, not any three digits: an error may well speak of line 500 of a file."""

_UNKNOWN_THREAD = re.compile(r"thread not found", re.IGNORECASE)

_TERMINAL_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")

_URL_QUERY = re.compile(r"(\bhttps?://[^\s?]+\?)\S+")
"""Amp without a key prints where to log in, with a token in the query."""

_CAUGHT_SIGNALS = frozenset({130, 143})
"""Exit statuses of a program that caught SIGINT or SIGTERM and ended itself."""

_MOST_TEXT = 2_000


def error_of_result(result: Mapping[str, Any]) -> GreenroomError:
    """The error of a `result` that is one."""
    text = str(result.get("error") or "Amp ended with an error and did not say which.")
    return _error(text, text, {"subtype": result.get("subtype")}, otherwise=ProviderError)


def is_gone(result: Mapping[str, Any]) -> bool:
    """Whether a `result` says that there is no such thread."""
    return bool(result.get("is_error")) and _UNKNOWN_THREAD.search(str(result.get("error"))) is not None


def error_of_exit(exit_status: int, stderr_text: str) -> GreenroomError:
    """The error of a process that ended without a result, which it explains on stderr alone or not at all."""
    details = {"exit_status": exit_status}
    if exit_status in _CAUGHT_SIGNALS:
        return Cancelled(f"Amp ended because it was told to stop (exit status {exit_status}).", details=details)
    text = _URL_QUERY.sub(r"\1***", _TERMINAL_CONTROL.sub("", stderr_text)).strip()[-_MOST_TEXT:]
    message = f"Amp ended without a result (exit status {exit_status})" + (f": {text}" if text else ".")
    return _error(text, message, details, otherwise=ProviderUnavailable)


def _error(text: str, message: str, details: Mapping[str, Any], *, otherwise: type[GreenroomError]) -> GreenroomError:
    """The error that `text` names, or else one of the class `otherwise`."""
    if _UNKNOWN_THREAD.search(text):
        return ProviderInvalidRequest(
            conversation_is_gone(message),
            details={**details, "http_status": None, "field": "continuation"},
        )
    found = _STATUS.search(text)
    status = int(found[1]) if found else None
    error_class = _error_class(status, text, otherwise)
    if error_class is ProviderAuthenticationFailed:
        message = f"{message.rstrip('.')}. Set AMP_API_KEY to an access token of your account."
    return error_class(message, details={**details, "http_status": status})


def _error_class(status: int | None, text: str, otherwise: type[GreenroomError]) -> type[GreenroomError]:
    if of_status := class_of_status(status):
        return of_status
    named = (found for words, found in _BY_WORDS.items() if re.search(words, text, re.IGNORECASE))
    return next(named, otherwise)
