"""The inspector page: files of the package. The page holds nothing; what it shows it asks for with the user's key."""

from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

_FOLDER = Path(str(files("greenroom.serve.http").joinpath("page")))

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}


class _Assets(StaticFiles):
    """Asked for again each time, and sent again only when they have changed."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(name.lower().encode(), text.encode()) for name, text in _HEADERS.items()]
            await send(message)

        await super().__call__(scope, receive, marked)


def add_page(app: FastAPI) -> None:
    """The page at `/`, what it is made of below `/assets`."""

    @app.get("/", include_in_schema=False)
    async def show_page(_: Request) -> FileResponse:  # pyright: ignore[reportUnusedFunction]  FastAPI calls it
        return FileResponse(_FOLDER / "index.html", headers=_HEADERS)

    app.mount("/assets", _Assets(directory=_FOLDER), name="assets")
