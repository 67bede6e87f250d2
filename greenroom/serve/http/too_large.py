"""What the framework answers to a body that is too large, in the form of all other answers."""

from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .problems import problem_of_framework


class TooLarge:
    """The framework's 413 is plain text."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_replaced = False

        async def replaced(message: Message) -> None:
            nonlocal is_replaced
            is_start = message["type"] == "http.response.start"
            if is_start and message["status"] == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                is_replaced = True
                await problem_of_framework(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)(scope, receive, send)
            elif not is_replaced:
                await send(message)

        await self._app(scope, receive, replaced)
