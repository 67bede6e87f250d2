"""What Codex says went wrong, in Greenroom's words: by HTTP status, by Codex's or the API's own name, by its text.

The app-server names most errors; `codex exec` gives nothing but the text that a person would read.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from ....domain.errors import (
    Cancelled,
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
from ..agents.wire_mapping import conversation_is_gone
from ..http_errors import class_of_status

_BY_NAME: Mapping[str, type[GreenroomError]] = {
    "contextWindowExceeded": ProviderInvalidRequest,
    "badRequest": ProviderInvalidRequest,
    "usageLimitExceeded": ProviderQuotaExceeded,
    "rateLimitExceeded": ProviderRateLimited,
    "serverOverloaded": ProviderOverloaded,
    "internalServerError": ProviderUnavailable,
    "unauthorized": ProviderAuthenticationFailed,
    "cyberPolicy": ProviderContentRefused,
    "bioPolicy": ProviderContentRefused,
    "misalignmentPolicyViolation": ProviderContentRefused,
    "httpConnectionFailed": ProviderUnavailable,
    "responseStreamConnectionFailed": ProviderUnavailable,
    "responseStreamDisconnected": ProviderUnavailable,
    "responseTooManyFailedAttempts": ProviderUnavailable,
    "invalid_request_error": ProviderInvalidRequest,
    "authentication_error": ProviderAuthenticationFailed,
    "insufficient_quota": ProviderQuotaExceeded,
    "rate_limit_exceeded": ProviderRateLimited,
    "server_error": ProviderUnavailable,
}

_BY_TEXT: Mapping[str, type[GreenroomError]] = {
    "no rollout found": ProviderInvalidRequest,
    "reason: content_filter": ProviderContentRefused,
    "failed to load configuration": ProviderInvalidRequest,
    "Error loading config.toml": ProviderInvalidRequest,
    "ran out of room in the model's context window": ProviderInvalidRequest,
    "rate limit exceeded": ProviderRateLimited,
    "hit your usage limit": ProviderQuotaExceeded,
    "Quota exceeded": ProviderQuotaExceeded,
    "To use Codex with your ChatGPT plan": ProviderQuotaExceeded,
    "model is at capacity": ProviderOverloaded,
    "experiencing high demand": ProviderUnavailable,
    "idle timeout": ProviderTimeout,
    "stream disconnected before completion": ProviderUnavailable,
    "Connection failed": ProviderUnavailable,
}
"""Part of a text -> class; the first that fits counts."""

_OUT_OF_TOKENS = "Incomplete response returned, reason: max_output_tokens"

_STATUS = re.compile(r"(?:unexpected|last) status:? (\d{3})\b")
_RETRY_AFTER = re.compile(r"try again in (\d+(?:\.\d+)?) ?(ms|s)\b")
_UNKNOWN_THREAD = "no rollout found"

_STOPPED = frozenset({-2, -15, 130, 143})
"""Exit statuses of a process that SIGINT or SIGTERM ended, or that caught one and ended itself."""

_INTERRUPTED = 1
"""Exit status of `codex exec` when its turn was interrupted: it says nothing then, neither as a line nor on stderr."""

_STATEMENT = "Error: "
"""So begins what Codex says on stderr when it gives up. All else there is a notice or a log."""

_MOST_TEXT = 2_000


def unreadable(exc: Exception, redacted: Callable[[str], str]) -> ProviderError:
    """The error for something that Codex said in a way that nobody here expected."""
    return ProviderError(f"What Codex said cannot be read ({redacted(f'{type(exc).__name__}: {exc}')}).")


def ran_out_of_tokens(message: str | None) -> bool:
    """Whether the model stopped only because its answer had become too long."""
    return _OUT_OF_TOKENS in (message or "")


def error_of_text(message: str) -> GreenroomError:
    """The error of a text: what `codex exec` says in its lines, or the app-server when it refuses a request."""
    return _error(message, name=None, status=None)


def error_of_exit(exit_status: int, stderr_text: str, *, began: bool) -> GreenroomError:
    """The error of a `codex exec` that ended without ending its turn; `began` is whether it had begun one."""
    details = {"exit_status": exit_status}
    said = any(line.startswith(_STATEMENT) for line in stderr_text.splitlines())
    if exit_status in _STOPPED or (exit_status == _INTERRUPTED and began and not said):
        return Cancelled(f"Codex ended because it was told to stop (exit status {exit_status}).", details=details)
    text = stderr_text.strip()[-_MOST_TEXT:]
    message = f"Codex ended without ending its turn (exit status {exit_status})" + (f": {text}" if text else ".")
    error = _error(message, name=None, status=None, otherwise=ProviderUnavailable)
    error.details.update(details)
    return error


def error_of_end(stderr_text: str) -> GreenroomError:
    """The error of an app-server that has ended. Most of what it says on stderr is a log, of no use to anybody here."""
    said = [line for line in stderr_text.splitlines() if line.startswith(_STATEMENT)]
    if not said:
        return ProviderUnavailable("Codex ended in the middle of its work. Try again later.")
    return _error(f"Codex ended: {said[-1]}", name=None, status=None, otherwise=ProviderUnavailable)


def error_of_turn(error: Mapping[str, Any]) -> GreenroomError:
    """The error of the app-server: `message`, `additionalDetails` and `codexErrorInfo`, a name with or without data."""
    message = str(error.get("message") or "Codex ended its turn with an error and did not say which.")
    if details := error.get("additionalDetails"):
        message = f"{message} ({details})"
    info = error.get("codexErrorInfo")
    if isinstance(info, Mapping):
        for name, data in cast("Mapping[str, Mapping[str, Any]]", info).items():
            return _error(message, name=name, status=data.get("httpStatusCode"))
    return _error(message, name=info if isinstance(info, str) else None, status=None)


def _error(
    message: str, *, name: str | None, status: int | None, otherwise: type[GreenroomError] = ProviderError
) -> GreenroomError:
    """The error that name, status or words stand for, or else one of the class `otherwise`."""
    if status is None and (given := _STATUS.search(message)):
        status = int(given[1])
    found = _class(message, name=name, status=status) or otherwise
    details: dict[str, Any] = {"codex_error": name, "http_status": status}
    if _UNKNOWN_THREAD in message:
        details["field"] = "continuation"
        message = conversation_is_gone(message)
    if after := _RETRY_AFTER.search(message):
        details["retry_after_s"] = float(after[1]) / (1_000 if after[2] == "ms" else 1)
    return found(message, details=details)


def _class(message: str, *, name: str | None, status: int | None) -> type[GreenroomError] | None:
    if of_status := class_of_status(status):
        return of_status
    for one in (name or "", *_api_names(message)):
        if one in _BY_NAME:
            return _BY_NAME[one]
    return next((found for part, found in _BY_TEXT.items() if part in message), None)


def _api_names(message: str) -> Iterator[str]:
    """The names in the answer of the API: of a request that it refused, Codex gives the body as the message."""
    try:
        body: Any = json.loads(message)
    except ValueError:
        return
    error = cast("Mapping[str, Any]", body).get("error") if isinstance(body, Mapping) else None
    if isinstance(error, Mapping):
        said = cast("Mapping[str, Any]", error)
        yield from (str(said.get(key)) for key in ("code", "type"))
