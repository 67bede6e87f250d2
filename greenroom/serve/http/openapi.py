"""The OpenAPI file: what FastAPI says of the routes, and what it cannot know."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field

from .input_schemas import option_schemas, with_references
from .problems import MEDIA_TYPE

Responses = dict[int | str, dict[str, Any]]

_EVERYWHERE = (
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)
_WITH_BODY = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)

_TAGS = (
    ("sessions", "A session has a queue of runs, and one sequence of events."),
    ("runs", "A run is accepted (202) once it is durably queued. It never lives inside a request."),
    ("events", "Pages and streams; each event once, in order, from any cursor on."),
    ("approvals", "Tool calls that wait for a person."),
    ("runtime", "What there is beside sessions."),
    ("ag-ui", "For front ends that speak the AG-UI protocol."),
    ("health", "For whoever looks after the service."),
)


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    code: str = Field(description="What it is, for programs.", examples=["queue_full"])
    detail: str = Field(description="What it is, and what to do about it, for people.")
    field: str | None = Field(default=None, description="The field that is at fault.")
    last_seq: int | None = Field(default=None, description="Where the events end.")
    lowest_seq: int | None = Field(default=None, description="The lowest seq that there is.")


def problems(*statuses: HTTPStatus, body: bool = False) -> Responses:
    """The problems that a route may answer with, beside those of all routes; `body`: it takes one."""
    return only_problems(*_EVERYWHERE, *statuses, *(_WITH_BODY if body else ()))


def only_problems(*statuses: HTTPStatus) -> Responses:
    """The problems of a route that wants no key and does nothing."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status.value: {"description": status.phrase, "content": content} for status in sorted(set(statuses))}


def describe(app: FastAPI, *, title: str, version: str, description: str) -> None:
    """Make the app give the whole file, once it is asked for."""

    def whole() -> dict[str, Any]:
        if not app.openapi_schema:
            found = get_openapi(
                title=title,
                version=version,
                description=description,
                routes=app.routes,
                tags=[{"name": name, "description": text} for name, text in _TAGS],
            )
            schemas: dict[str, Any] = found.setdefault("components", {}).setdefault("schemas", {})
            schemas |= {"Problem": Problem.model_json_schema(), **option_schemas()}
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            app.openapi_schema = with_references(found)
        assert app.openapi_schema is not None, "it was made"
        return app.openapi_schema

    app.openapi = whole


def describe_stream(example: dict[str, str]) -> dict[str, Any]:
    """The description of an answer that is a stream of server-sent events; the schema is that of each."""
    text = {"type": "string"}
    schema = {"type": "object", "properties": {"id": text, "event": text, "data": text}, "required": ["data"]}
    return {
        "description": "A stream of events.",
        "content": {"text/event-stream": {"schema": schema, "example": example}},
    }
