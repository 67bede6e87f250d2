"""A body that does not come."""

import asyncio
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .problems import problem


class _TooSlow(Exception):
    """The body was not all there in time."""


class SlowBody:
    """All of a body has so much time to come, from when the request is here; then the answer is 408."""

    def __init__(self, app: ASGIApp, timeout_s: float) -> None:
        self._app = app
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        is_here = has_begun = False

        async def timed() -> Message:
            nonlocal is_here
            if is_here:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise _TooSlow from None
            is_here = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        async def told(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, timed, told)
        except _TooSlow:
            if has_begun:
                raise
            text = "The body did not come in time."
            answer = problem(HTTPStatus.REQUEST_TIMEOUT, "body_too_slow", text, headers={"Connection": "close"})
            await answer(scope, receive, send)
