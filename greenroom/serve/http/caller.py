"""Who calls: the key of a request, and what it is good for."""

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.responses import JSONResponse

from ...domain.api_key import ApiKey, Scope
from .problems import problem

_BEARER = HTTPBearer(auto_error=False, scheme_name="key", description="A key, as `greenroom keys create` prints it.")


class Refused(Exception):
    """The request is not allowed; the answer to it."""

    def __init__(self, response: JSONResponse) -> None:
        super().__init__()
        self.response = response


async def answer_refused(_: Request, exc: Exception) -> JSONResponse:
    """The answer that it holds."""
    assert isinstance(exc, Refused), "it is registered for no other"
    return exc.response


def _needs(scope: Scope) -> Callable[..., Coroutine[Any, Any, ApiKey]]:
    async def caller(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
    ) -> ApiKey:
        key = request.app.state.keys.keyring().find(credentials.credentials) if credentials else None
        if key is None:
            text = "Give a valid key: Authorization: Bearer <key>. `greenroom keys create --tenant T` makes one."
            challenge = {"WWW-Authenticate": "Bearer"}
            raise Refused(problem(HTTPStatus.UNAUTHORIZED, "unauthorized", text, headers=challenge))
        if not key.allows(scope):
            text = f"This key is good for {key.scope.value}, and this needs {scope.value}."
            raise Refused(problem(HTTPStatus.FORBIDDEN, "forbidden", text))
        return key

    return caller


Reader = Annotated[ApiKey, Depends(_needs(Scope.READ))]
Runner = Annotated[ApiKey, Depends(_needs(Scope.RUN))]
Admin = Annotated[ApiKey, Depends(_needs(Scope.ADMIN))]
