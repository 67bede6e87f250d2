"""Asks a Messages API with nothing but the standard library, for programs that have to start fast."""

import json
from collections.abc import Iterator
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any
from urllib.parse import urlsplit


class ApiFailed(Exception):
    """The API refused, failed in the middle or went away; the text says which, with the HTTP status if it has one."""


class MessagesClient:
    """Posts to a Messages API at an http URL. It tries once and waits as long as it takes."""

    def __init__(self, url: str, key: str) -> None:
        self._url = urlsplit(url)
        self._headers = {"content-type": "application/json", "anthropic-version": "2023-06-01", "x-api-key": key}

    def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """The message that answers, put together from its stream."""
        connection = HTTPConnection(self._url.hostname or "", self._url.port)
        data = json.dumps({**body, "stream": True})
        try:
            connection.request("POST", f"{self._url.path.rstrip('/')}/v1/messages", data, self._headers)
            response = connection.getresponse()
            if response.status != HTTPStatus.OK:
                raise ApiFailed(_refusal(response.status, response.read()))
            return _message(_events(response))
        except (OSError, HTTPException) as exc:
            raise ApiFailed(f"The connection to the API failed: {exc!r}") from exc
        finally:
            connection.close()


def _events(response: HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in response:
        if line.startswith(b"data: "):
            yield json.loads(line.removeprefix(b"data: "))


def _message(events: Iterator[dict[str, Any]]) -> dict[str, Any]:
    message: dict[str, Any] = {}
    blocks: list[dict[str, Any]] = []
    arguments = ""
    for event in events:
        match event["type"]:
            case "message_start":
                message = event["message"]
            case "content_block_start":
                blocks.append(dict(event["content_block"]))
                arguments = ""
            case "content_block_delta":
                arguments += event["delta"].get("partial_json", "")
                _fill(blocks[-1], event["delta"])
            case "content_block_stop" if blocks[-1]["type"] == "tool_use":
                blocks[-1]["input"] = json.loads(arguments or "{}")
            case "message_delta":
                message |= {**event["delta"], "usage": {**message["usage"], **event["usage"]}}
            case "message_stop":
                return {**message, "content": blocks}
            case "error":
                raise ApiFailed(f"{event['error']['type']}: {event['error']['message']}")
            case _:
                pass
    raise ApiFailed("The connection to the API was closed before the message was complete.")


def _fill(block: dict[str, Any], delta: dict[str, Any]) -> None:
    for name in ("text", "thinking", "signature"):
        if name in delta:
            block[name] += delta[name]


def _refusal(status: int, raw: bytes) -> str:
    try:
        detail = json.loads(raw)["error"]
        return f"{detail['type']}: {detail['message']} ({status})"
    except (ValueError, KeyError, TypeError):
        return f"{raw[:500].decode(errors='replace')} ({status})"
