"""Greenroom: AI-agent sessions as Ray actors, with one durable, sequenced stream of everything that happens.

    import ray, greenroom

    runtime = greenroom.start()
    session = runtime.open_session(agent_id="reviewer")
    run_id = ray.get(session.submit_run.remote("Hello!"))
    print(ray.get(session.await_run.remote(run_id)).output["content"])

Names are loaded when they are first used, so that importing the package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .actors.event_stream import EventStream as EventStream
    from .actors.runtime import Runtime as Runtime
    from .actors.runtime_overview import RuntimeStats as RuntimeStats
    from .actors.session_handle import SessionHandle as SessionHandle
    from .actors.starting import start as start
    from .adapters.settings import Settings as Settings
    from .adapters.tool_definition import tool as tool
    from .domain.account import AccountState as AccountState
    from .domain.batch_options import BatchOptions as BatchOptions
    from .domain.batch_summary import BatchSummary as BatchSummary
    from .domain.budget import BudgetState as BudgetState
    from .domain.budget_options import BudgetOptions as BudgetOptions
    from .domain.capability import Capability as Capability, CapabilityType as CapabilityType
    from .domain.capability_negotiation import Manifest as Manifest
    from .domain.errors import (
        ERRORS_BY_CODE as ERRORS_BY_CODE,
        AlreadyExists as AlreadyExists,
        ApprovalDenied as ApprovalDenied,
        BudgetExceeded as BudgetExceeded,
        Cancelled as Cancelled,
        CapabilityNotFound as CapabilityNotFound,
        CapabilityNotSupported as CapabilityNotSupported,
        ContextMismatch as ContextMismatch,
        DeadlineExceeded as DeadlineExceeded,
        DuplicateCapability as DuplicateCapability,
        ErrorCategory as ErrorCategory,
        Forbidden as Forbidden,
        GreenroomError as GreenroomError,
        InternalError as InternalError,
        InvalidCapabilityType as InvalidCapabilityType,
        InvalidCursor as InvalidCursor,
        InvalidEventType as InvalidEventType,
        InvalidFormat as InvalidFormat,
        InvalidInput as InvalidInput,
        InvalidOperation as InvalidOperation,
        InvalidStatus as InvalidStatus,
        InvalidTransition as InvalidTransition,
        MaxRunsExceeded as MaxRunsExceeded,
        MaxSessionsExceeded as MaxSessionsExceeded,
        MissingRequiredCapability as MissingRequiredCapability,
        MissingRequiredField as MissingRequiredField,
        NotFound as NotFound,
        PolicyViolation as PolicyViolation,
        ProviderAuthenticationFailed as ProviderAuthenticationFailed,
        ProviderContentRefused as ProviderContentRefused,
        ProviderError as ProviderError,
        ProviderInvalidRequest as ProviderInvalidRequest,
        ProviderOverloaded as ProviderOverloaded,
        ProviderQuotaExceeded as ProviderQuotaExceeded,
        ProviderRateLimited as ProviderRateLimited,
        ProviderTimeout as ProviderTimeout,
        ProviderUnavailable as ProviderUnavailable,
        QueueFull as QueueFull,
        RateLimited as RateLimited,
        ResyncRequired as ResyncRequired,
        RunInterrupted as RunInterrupted,
        RunMismatch as RunMismatch,
        RunNotFound as RunNotFound,
        RuntimeGone as RuntimeGone,
        SessionDraining as SessionDraining,
        SessionMismatch as SessionMismatch,
        SessionMoved as SessionMoved,
        SessionNotFound as SessionNotFound,
        StorageConnectionFailed as StorageConnectionFailed,
        StorageError as StorageError,
        StorageFull as StorageFull,
        StorageReadFailed as StorageReadFailed,
        StorageWriteFailed as StorageWriteFailed,
        StreamClosed as StreamClosed,
        Timeout as Timeout,
        ToolError as ToolError,
        ToolExecutionFailed as ToolExecutionFailed,
        ToolNotFound as ToolNotFound,
        ToolPermissionDenied as ToolPermissionDenied,
        Unauthorized as Unauthorized,
        UnknownError as UnknownError,
        ValidationError as ValidationError,
        WriterFenced as WriterFenced,
    )
    from .domain.event import Event as Event, EventType as EventType
    from .domain.provider import (
        Provider as Provider,
        ProviderEvent as ProviderEvent,
        ProviderOutcome as ProviderOutcome,
        ProviderRequest as ProviderRequest,
    )
    from .domain.routing import RouterState as RouterState, RoutingOverrides as RoutingOverrides
    from .domain.run import Run as Run, RunResult as RunResult, RunStatus as RunStatus
    from .domain.run_options import OnCrash as OnCrash, RunOptions as RunOptions
    from .domain.session import Session as Session, SessionState as SessionState, SessionStatus as SessionStatus
    from .domain.token_usage import TokenUsage as TokenUsage
    from .domain.tool import ToolOutcome as ToolOutcome
    from .serve.batch.job import batch as batch
    from .serve.batch.runner import BatchRunner as BatchRunner
    from .serve.client import (
        AsyncClient as AsyncClient,
        AsyncClientSession as AsyncClientSession,
        Client as Client,
        ClientSession as ClientSession,
    )

_HOMES = {
    "actors.event_stream": ("EventStream",),
    "actors.runtime": ("Runtime",),
    "actors.runtime_overview": ("RuntimeStats",),
    "actors.session_handle": ("SessionHandle",),
    "actors.starting": ("start",),
    "adapters.settings": ("Settings",),
    "adapters.tool_definition": ("tool",),
    "domain.account": ("AccountState",),
    "domain.budget": ("BudgetState",),
    "domain.budget_options": ("BudgetOptions",),
    "domain.capability": ("Capability", "CapabilityType"),
    "domain.capability_negotiation": ("Manifest",),
    "domain.event": ("Event", "EventType"),
    "domain.provider": (
        "Provider",
        "ProviderEvent",
        "ProviderOutcome",
        "ProviderRequest",
    ),
    "domain.routing": ("RouterState", "RoutingOverrides"),
    "domain.run": ("Run", "RunResult", "RunStatus"),
    "domain.run_options": ("OnCrash", "RunOptions"),
    "domain.session": ("Session", "SessionState", "SessionStatus"),
    "domain.token_usage": ("TokenUsage",),
    "domain.tool": ("ToolOutcome",),
    "domain.batch_options": ("BatchOptions",),
    "domain.batch_summary": ("BatchSummary",),
    "serve.batch.job": ("batch",),
    "serve.batch.runner": ("BatchRunner",),
    "serve.client": ("AsyncClient", "AsyncClientSession", "Client", "ClientSession"),
    "domain.errors": (
        "AlreadyExists",
        "ApprovalDenied",
        "BudgetExceeded",
        "Cancelled",
        "CapabilityNotFound",
        "CapabilityNotSupported",
        "ContextMismatch",
        "DeadlineExceeded",
        "DuplicateCapability",
        "ERRORS_BY_CODE",
        "ErrorCategory",
        "Forbidden",
        "GreenroomError",
        "InternalError",
        "InvalidCapabilityType",
        "InvalidCursor",
        "InvalidEventType",
        "InvalidFormat",
        "InvalidInput",
        "InvalidOperation",
        "InvalidStatus",
        "InvalidTransition",
        "MaxRunsExceeded",
        "MaxSessionsExceeded",
        "MissingRequiredCapability",
        "MissingRequiredField",
        "NotFound",
        "PolicyViolation",
        "ProviderAuthenticationFailed",
        "ProviderContentRefused",
        "ProviderError",
        "ProviderInvalidRequest",
        "ProviderOverloaded",
        "ProviderQuotaExceeded",
        "ProviderRateLimited",
        "ProviderTimeout",
        "ProviderUnavailable",
        "QueueFull",
        "RateLimited",
        "ResyncRequired",
        "RunInterrupted",
        "RunMismatch",
        "RunNotFound",
        "RuntimeGone",
        "SessionDraining",
        "SessionMismatch",
        "SessionMoved",
        "SessionNotFound",
        "StorageConnectionFailed",
        "StorageError",
        "StorageFull",
        "StorageReadFailed",
        "StorageWriteFailed",
        "StreamClosed",
        "Timeout",
        "ToolError",
        "ToolExecutionFailed",
        "ToolNotFound",
        "ToolPermissionDenied",
        "Unauthorized",
        "UnknownError",
        "ValidationError",
        "WriterFenced",
    ),
}

_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ERRORS_BY_CODE",
    "AccountState",
    "AlreadyExists",
    "ApprovalDenied",
    "AsyncClient",
    "AsyncClientSession",
    "BatchOptions",
    "BatchRunner",
    "BatchSummary",
    "BudgetExceeded",
    "BudgetOptions",
    "BudgetState",
    "Cancelled",
    "Capability",
    "CapabilityNotFound",
    "CapabilityNotSupported",
    "CapabilityType",
    "Client",
    "ClientSession",
    "ContextMismatch",
    "DeadlineExceeded",
    "DuplicateCapability",
    "ErrorCategory",
    "Event",
    "EventStream",
    "EventType",
    "Forbidden",
    "GreenroomError",
    "InternalError",
    "InvalidCapabilityType",
    "InvalidCursor",
    "InvalidEventType",
    "InvalidFormat",
    "InvalidInput",
    "InvalidOperation",
    "InvalidStatus",
    "InvalidTransition",
    "Manifest",
    "MaxRunsExceeded",
    "MaxSessionsExceeded",
    "MissingRequiredCapability",
    "MissingRequiredField",
    "NotFound",
    "OnCrash",
    "PolicyViolation",
    "Provider",
    "ProviderAuthenticationFailed",
    "ProviderContentRefused",
    "ProviderError",
    "ProviderEvent",
    "ProviderInvalidRequest",
    "ProviderOutcome",
    "ProviderOverloaded",
    "ProviderQuotaExceeded",
    "ProviderRateLimited",
    "ProviderRequest",
    "ProviderTimeout",
    "ProviderUnavailable",
    "QueueFull",
    "RateLimited",
    "ResyncRequired",
    "RouterState",
    "RoutingOverrides",
    "Run",
    "RunInterrupted",
    "RunMismatch",
    "RunNotFound",
    "RunOptions",
    "RunResult",
    "RunStatus",
    "Runtime",
    "RuntimeGone",
    "RuntimeStats",
    "Session",
    "SessionDraining",
    "SessionHandle",
    "SessionMismatch",
    "SessionMoved",
    "SessionNotFound",
    "SessionState",
    "SessionStatus",
    "Settings",
    "StorageConnectionFailed",
    "StorageError",
    "StorageFull",
    "StorageReadFailed",
    "StorageWriteFailed",
    "StreamClosed",
    "Timeout",
    "TokenUsage",
    "ToolError",
    "ToolExecutionFailed",
    "ToolNotFound",
    "ToolOutcome",
    "ToolPermissionDenied",
    "Unauthorized",
    "UnknownError",
    "ValidationError",
    "WriterFenced",
    "batch",
    "start",
    "tool",
]


def __getattr__(name: str) -> Any:
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f".{module}", __name__), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
