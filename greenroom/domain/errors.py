"""Every error that Greenroom raises: one root, one class per code, grouped by what a caller can do about it.

    GreenroomError
    ├── validation    ValidationError InvalidInput MissingRequiredField InvalidFormat
    ├── state         InvalidStatus InvalidTransition InvalidEventType InvalidCapabilityType
    │                 MissingRequiredCapability StreamClosed ContextMismatch InvalidCursor SessionMismatch
    │                 RunMismatch ResyncRequired SessionMoved SessionDraining WriterFenced
    ├── resource      NotFound SessionNotFound RunNotFound CapabilityNotFound AlreadyExists
    │                 DuplicateCapability
    ├── provider      ProviderError ProviderUnavailable ProviderRateLimited ProviderTimeout ProviderOverloaded
    │                 ProviderAuthenticationFailed ProviderQuotaExceeded ProviderInvalidRequest
    │                 ProviderContentRefused
    ├── storage       StorageError StorageConnectionFailed StorageWriteFailed StorageReadFailed StorageFull
    ├── runtime       Timeout Cancelled PolicyViolation InternalError UnknownError RunInterrupted
    │                 ApprovalDenied BudgetExceeded DeadlineExceeded RuntimeGone
    ├── concurrency   MaxSessionsExceeded MaxRunsExceeded CapabilityNotSupported InvalidOperation QueueFull
    └── tool          ToolError ToolNotFound ToolExecutionFailed ToolPermissionDenied

The docstring of a class is its message unless the raiser gives a better one; it ends with the remedy. What a handler
needs is in `details`, never only in the prose. `code`, `category` and `retryable` belong to the class, so that they
also hold on the subclass that `ray.get` raises.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, ClassVar


class ErrorCategory(StrEnum):
    """What kind of trouble an error is, as behaviour.md section 3.2 groups the codes."""

    VALIDATION = "validation"
    STATE = "state"
    RESOURCE = "resource"
    PROVIDER = "provider"
    STORAGE = "storage"
    RUNTIME = "runtime"
    CONCURRENCY = "concurrency"
    TOOL = "tool"
    ACCESS = "access"
    """Of the HTTP service: who calls, and how often."""
    UNKNOWN = "unknown"


ERRORS_BY_CODE: dict[str, type["GreenroomError"]] = {}
"""Every error class under its code, filled as the classes below are defined."""


class GreenroomError(Exception):
    """Something went wrong inside Greenroom; `code` says what."""

    code: ClassVar[str] = "unknown_error"
    category: ClassVar[ErrorCategory] = ErrorCategory.UNKNOWN
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str | None = None,
        *,
        details: Mapping[str, Any] | None = None,
        provider_error: Mapping[str, Any] | None = None,
    ) -> None:
        self.message: str = message or " ".join((type(self).__doc__ or "").split())
        self.details: dict[str, Any] = dict(details or {})
        self.provider_error: dict[str, Any] | None = dict(provider_error) if provider_error is not None else None
        super().__init__(self.message)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "code" in cls.__dict__:
            ERRORS_BY_CODE[cls.code] = cls

    def __str__(self) -> str:
        return f"[{self.code}] {self.message}"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.details, self.provider_error))

    def to_record(self) -> dict[str, Any]:
        """The error as plain data, for an event or a response; `error_from_record` turns it back."""
        record: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.details:
            record["details"] = self.details
        if self.provider_error is not None:
            record["provider_error"] = self.provider_error
        return record


def _rebuild(
    cls: type[GreenroomError], message: str, details: dict[str, Any], provider_error: dict[str, Any] | None
) -> GreenroomError:
    return cls(message, details=details, provider_error=provider_error)


def error_from_record(record: Mapping[str, Any]) -> GreenroomError:
    """The typed error that `to_record` wrote; an unknown code becomes UnknownError and keeps the code in details."""
    code = str(record.get("code", ""))
    details = dict(record.get("details") or {})
    cls = ERRORS_BY_CODE.get(code)
    if cls is None:
        cls = UnknownError
        details["code"] = code
    return cls(record.get("message"), details=details, provider_error=record.get("provider_error"))


class ValidationError(GreenroomError):
    """A given value is not acceptable. Correct the field that `details['field']` names."""

    code = "validation_error"
    category = ErrorCategory.VALIDATION


class InvalidInput(GreenroomError):
    """The input cannot be used. See the message for what is expected."""

    code = "invalid_input"
    category = ErrorCategory.VALIDATION


class MissingRequiredField(GreenroomError):
    """A required field is missing. Add the field that `details['field']` names."""

    code = "missing_required_field"
    category = ErrorCategory.VALIDATION


class InvalidFormat(GreenroomError):
    """The data is not in a format that this version reads. Check its origin and version."""

    code = "invalid_format"
    category = ErrorCategory.VALIDATION


class InvalidStatus(GreenroomError):
    """There is no such status. Use one of the listed names."""

    code = "invalid_status"
    category = ErrorCategory.STATE


class InvalidTransition(GreenroomError):
    """This move is not legal from the present state; nothing was changed."""

    code = "invalid_transition"
    category = ErrorCategory.STATE


class InvalidEventType(GreenroomError):
    """There is no such event type. Use one of greenroom.EventType."""

    code = "invalid_event_type"
    category = ErrorCategory.STATE


class InvalidCapabilityType(GreenroomError):
    """There is no such capability type."""

    code = "invalid_capability_type"
    category = ErrorCategory.STATE


class MissingRequiredCapability(GreenroomError):
    """The provider lacks a capability that the run requires. Choose another provider."""

    code = "missing_required_capability"
    category = ErrorCategory.STATE


class StreamClosed(GreenroomError):
    """The stream is closed. Open a new one from the last seq that you saw."""

    code = "stream_closed"
    category = ErrorCategory.STATE


class ContextMismatch(GreenroomError):
    """The events belong to different sessions or runs."""

    code = "context_mismatch"
    category = ErrorCategory.STATE


class InvalidCursor(GreenroomError):
    """The cursor lies beyond the end of the log. Start from `details['last_seq']` or lower."""

    code = "invalid_cursor"
    category = ErrorCategory.STATE


class SessionMismatch(GreenroomError):
    """The event belongs to another session."""

    code = "session_mismatch"
    category = ErrorCategory.STATE


class RunMismatch(GreenroomError):
    """The event belongs to another run."""

    code = "run_mismatch"
    category = ErrorCategory.STATE


class ResyncRequired(GreenroomError):
    """The events after this cursor are gone. Start again from `details['lowest_seq']`."""

    code = "resync_required"
    category = ErrorCategory.STATE


class SessionMoved(GreenroomError):
    """The session is served elsewhere now. Call again with the last seq that you saw."""

    code = "session_moved"
    category = ErrorCategory.STATE
    retryable = True


class SessionDraining(GreenroomError):
    """The session takes no new runs because it is being drained. Open another session."""

    code = "session_draining"
    category = ErrorCategory.STATE


class WriterFenced(GreenroomError):
    """A newer owner writes this session's log; this writer has stopped."""

    code = "writer_fenced"
    category = ErrorCategory.STATE


class NotFound(GreenroomError):
    """There is no such thing here."""

    code = "not_found"
    category = ErrorCategory.RESOURCE


class SessionNotFound(GreenroomError):
    """There is no session with this id in this data_dir."""

    code = "session_not_found"
    category = ErrorCategory.RESOURCE


class RunNotFound(GreenroomError):
    """There is no run with this id."""

    code = "run_not_found"
    category = ErrorCategory.RESOURCE


class CapabilityNotFound(GreenroomError):
    """There is no capability with this name."""

    code = "capability_not_found"
    category = ErrorCategory.RESOURCE


class AlreadyExists(GreenroomError):
    """Something with this name exists already."""

    code = "already_exists"
    category = ErrorCategory.RESOURCE


class DuplicateCapability(GreenroomError):
    """A capability with this name exists already."""

    code = "duplicate_capability"
    category = ErrorCategory.RESOURCE


class ProviderError(GreenroomError):
    """The provider failed in a way that it did not explain further."""

    code = "provider_error"
    category = ErrorCategory.PROVIDER


class ProviderUnavailable(GreenroomError):
    """The provider cannot be reached or failed on its side. Try again later."""

    code = "provider_unavailable"
    category = ErrorCategory.PROVIDER
    retryable = True


class ProviderRateLimited(GreenroomError):
    """The provider asks for fewer requests. Wait `details['retry_after_s']` seconds, if given."""

    code = "provider_rate_limited"
    category = ErrorCategory.PROVIDER
    retryable = True


class ProviderTimeout(GreenroomError):
    """The provider did not answer in time. Try again."""

    code = "provider_timeout"
    category = ErrorCategory.PROVIDER
    retryable = True


class ProviderOverloaded(GreenroomError):
    """The provider is overloaded. Try again later."""

    code = "provider_overloaded"
    category = ErrorCategory.PROVIDER
    retryable = True


class ProviderAuthenticationFailed(GreenroomError):
    """The provider refused the credentials. Check the key that the provider's configuration names."""

    code = "provider_authentication_failed"
    category = ErrorCategory.PROVIDER


class ProviderQuotaExceeded(GreenroomError):
    """The account has used up its quota with this provider."""

    code = "provider_quota_exceeded"
    category = ErrorCategory.PROVIDER


class ProviderInvalidRequest(GreenroomError):
    """The provider refused the request as invalid. See the message for what it objects to."""

    code = "provider_invalid_request"
    category = ErrorCategory.PROVIDER


class ProviderContentRefused(GreenroomError):
    """The provider refused the content of the request or of its answer."""

    code = "provider_content_refused"
    category = ErrorCategory.PROVIDER


class StorageError(GreenroomError):
    """The event store failed. See the message, and `greenroom doctor`."""

    code = "storage_error"
    category = ErrorCategory.STORAGE


class StorageConnectionFailed(GreenroomError):
    """The event store cannot be reached. Try again."""

    code = "storage_connection_failed"
    category = ErrorCategory.STORAGE
    retryable = True


class StorageWriteFailed(GreenroomError):
    """The event store could not write; nothing of this call was kept."""

    code = "storage_write_failed"
    category = ErrorCategory.STORAGE


class StorageReadFailed(GreenroomError):
    """The event store could not read."""

    code = "storage_read_failed"
    category = ErrorCategory.STORAGE


class StorageFull(GreenroomError):
    """There is no room left to write. Free disk space; service resumes by itself."""

    code = "storage_full"
    category = ErrorCategory.STORAGE


class Timeout(GreenroomError):
    """The wait is over before the end. What was waited for goes on; wait again."""

    code = "timeout"
    category = ErrorCategory.RUNTIME
    retryable = True


class Cancelled(GreenroomError):
    """The run was cancelled."""

    code = "cancelled"
    category = ErrorCategory.RUNTIME


class PolicyViolation(GreenroomError):
    """The run broke a rule of its policy."""

    code = "policy_violation"
    category = ErrorCategory.RUNTIME


class InternalError(GreenroomError):
    """A fault inside Greenroom or in code that it ran. Please report it with the message."""

    code = "internal_error"
    category = ErrorCategory.RUNTIME


class UnknownError(GreenroomError):
    """An error with a code that this version does not know."""

    code = "unknown_error"
    category = ErrorCategory.RUNTIME


class RunInterrupted(GreenroomError):
    """The process that executed the run died. Submit it again, or use on_crash='retry'."""

    code = "run_interrupted"
    category = ErrorCategory.RUNTIME


class ApprovalDenied(GreenroomError):
    """The tool call was not approved."""

    code = "approval_denied"
    category = ErrorCategory.RUNTIME


class BudgetExceeded(GreenroomError):
    """The budget for this work is used up."""

    code = "budget_exceeded"
    category = ErrorCategory.RUNTIME


class DeadlineExceeded(GreenroomError):
    """The run was stopped at its deadline. Give it a larger deadline_s."""

    code = "deadline_exceeded"
    category = ErrorCategory.RUNTIME


class RuntimeGone(GreenroomError):
    """The runtime that this process had joined has ended. Call greenroom.start() again."""

    code = "runtime_gone"
    category = ErrorCategory.RUNTIME


class MaxSessionsExceeded(GreenroomError):
    """There are as many live sessions as allowed. Try again later."""

    code = "max_sessions_exceeded"
    category = ErrorCategory.CONCURRENCY


class MaxRunsExceeded(GreenroomError):
    """There are as many running runs as allowed. Try again later."""

    code = "max_runs_exceeded"
    category = ErrorCategory.CONCURRENCY


class CapabilityNotSupported(GreenroomError):
    """This provider or version cannot do that."""

    code = "capability_not_supported"
    category = ErrorCategory.CONCURRENCY


class InvalidOperation(GreenroomError):
    """This cannot be done in the present state; nothing was changed."""

    code = "invalid_operation"
    category = ErrorCategory.CONCURRENCY


class QueueFull(GreenroomError):
    """The queue is full and kept nothing of this call. Wait for runs to end, or raise max_queued_runs."""

    code = "queue_full"
    category = ErrorCategory.CONCURRENCY


class Unauthorized(GreenroomError):
    """A valid key is needed: `Authorization: Bearer <key>`. `greenroom keys create --tenant T` makes one."""

    code = "unauthorized"
    category = ErrorCategory.ACCESS


class Forbidden(GreenroomError):
    """The key is not good for this. Use one with a wider scope."""

    code = "forbidden"
    category = ErrorCategory.ACCESS


class RateLimited(GreenroomError):
    """The service was asked too often, or holds too much open. Wait `details['retry_after_s']` seconds."""

    code = "rate_limited"
    category = ErrorCategory.ACCESS
    retryable = True


class ToolError(GreenroomError):
    """A tool failed."""

    code = "tool_error"
    category = ErrorCategory.TOOL


class ToolNotFound(GreenroomError):
    """There is no such tool in this session, or it could not be restored. Open the session again with it."""

    code = "tool_not_found"
    category = ErrorCategory.TOOL


class ToolExecutionFailed(GreenroomError):
    """The tool raised an error while it ran."""

    code = "tool_execution_failed"
    category = ErrorCategory.TOOL


class ToolPermissionDenied(GreenroomError):
    """The tool may not be used here."""

    code = "tool_permission_denied"
    category = ErrorCategory.TOOL
