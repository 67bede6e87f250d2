"""What every request passes: security headers, an id in the log, and a line of what it was."""

import secrets
import time
from collections.abc import Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...adapters.audit_log import AuditLog
from ...adapters.logs import get_logger

_log = get_logger(__name__)
_propagator = TraceContextTextMapPropagator()

HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Of every answer that does not say otherwise."""

_READS = ("GET", "HEAD", "OPTIONS")
_QUIET = ("/healthz", "/readyz", "/metrics")
_SERVER_ERROR = 500


class Edge:
    """The outermost of the app. Says nothing of what bodies, queries or keys held."""

    def __init__(self, app: ASGIApp, audit: AuditLog) -> None:
        self._app = app
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        started_at = time.perf_counter()
        trace_id = _trace_id(Headers(scope=scope))
        scope.setdefault("state", {})["trace_id"] = trace_id
        status = 0

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] in {"http.response.start", "websocket.close", "websocket.accept"}:
                status = message.get("status") or message.get("code") or 101
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers["Trace-Id"] = trace_id
                self._keep(scope, status, trace_id)
            await send(message)

        try:
            await self._app(scope, receive, told)
        finally:
            self._tell(scope, status, trace_id, time.perf_counter() - started_at)

    def _keep(self, scope: Scope, status: int, trace_id: str) -> None:
        """What a key asked to change is on record before the caller hears of it. Who has no key can do nothing, and is
        in the access log."""
        if scope["method"] not in _READS and "key" in scope["state"]:
            route, ids = _route_of(scope), _ids_of(scope)
            self._audit.write(
                method=scope["method"], route=route, status=status, trace_id=trace_id, **_who(scope), **ids
            )

    def _tell(self, scope: Scope, status: int, trace_id: str, duration_s: float) -> None:
        method, route = scope.get("method", "WEBSOCKET"), _route_of(scope)
        if route not in _QUIET or status >= _SERVER_ERROR:
            _log.info(
                "request",
                method=method,
                route=route,
                status=status,
                duration_ms=round(duration_s * 1_000, 1),
                trace_id=trace_id,
                **_who(scope),
            )


def _trace_id(headers: Headers) -> str:
    """The caller's, if it sent one (W3C trace context); else one of its own."""
    given = headers.get("traceparent")
    if given is not None:
        context = trace.get_current_span(_propagator.extract({"traceparent": given})).get_span_context()
        if context.is_valid:
            return trace.format_trace_id(context.trace_id)
    return secrets.token_hex(16)


def _route_of(scope: Scope) -> str:
    """The pattern of the path; what matches none is not repeated."""
    return getattr(scope.get("route"), "path", None) or "unknown"


def _who(scope: Scope) -> dict[str, str]:
    key = scope["state"].get("key")
    return {"key": key.id, "tenant": key.tenant} if key is not None else {}


def _ids_of(scope: Scope) -> dict[str, Any]:
    return {name: value for name, value in scope.get("path_params", {}).items() if name.endswith("_id")}
