"""What no handler expected: answered as any other problem, by the innermost of the layers: the others see it."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...adapters.logs import get_logger
from .problems import internal_error

_log = get_logger(__name__)


class Faults:
    """The framework would answer outside of all layers: without an id, headers and a line in the logs."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def told(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, told)
        except Exception:
            _log.exception("request_failed", trace_id=scope.get("state", {}).get("trace_id"))
            if has_begun or scope["type"] != "http":
                raise
            await internal_error()(scope, receive, send)
