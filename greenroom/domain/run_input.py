"""The input of a run: accepted in three forms, kept in one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

from .errors import ValidationError

MAX_INPUT_BYTES = 1_048_576
"""Default cap on one run's input, in bytes of its JSON; the same as the body cap of the HTTP service."""


class Role(StrEnum):
    """Who speaks in a message of the input."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


_ROLES = frozenset(Role)  # `text in Role` is a TypeError before Python 3.12


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the input."""

    role: Role
    content: str


def parse_input(given: object, *, max_bytes: int = MAX_INPUT_BYTES) -> tuple[Message, ...]:
    """The messages of an input given as text, `{"prompt": text}` or `{"messages": [{"role", "content"}, ...]}`.

    Raises ValidationError that names the field for anything else, for empty content, and for more than max_bytes.
    """
    messages = tuple(_messages(given))
    size = sum(len(message.content.encode()) for message in messages)
    if size > max_bytes:
        raise ValidationError(
            f"input is {size} bytes; at most {max_bytes} are taken. Shorten it, or raise limits.max_input_bytes.",
            details={"field": "input", "bytes": size, "max_bytes": max_bytes},
        )
    return messages


def messages_to_input(messages: Sequence[Message]) -> dict[str, Any]:
    """The one form in which an input is kept."""
    return {"messages": [{"role": message.role.value, "content": message.content} for message in messages]}


def _messages(given: object) -> Sequence[Message]:
    if isinstance(given, str):
        return [Message(Role.USER, _text(given, "input"))]
    if not isinstance(given, Mapping):
        raise _refusal("input", f"must be text or a mapping, not {type(given).__name__}")
    fields = cast("Mapping[str, object]", given)
    unknown = sorted(str(key) for key in fields if key not in ("prompt", "messages"))
    if unknown:
        raise _refusal(f"input.{unknown[0]}", "is not known; give 'messages' or 'prompt'")
    if len(fields) != 1:
        raise _refusal("input", "must have exactly one of 'messages' and 'prompt'")
    if "prompt" in fields:
        return [Message(Role.USER, _text(fields["prompt"], "input.prompt"))]
    listed = fields["messages"]
    if not isinstance(listed, Sequence) or isinstance(listed, str | bytes) or not listed:
        raise _refusal("input.messages", "must be a list with at least one message")
    return [_message(item, f"input.messages[{index}]") for index, item in enumerate(cast("Sequence[object]", listed))]


def _message(item: object, field: str) -> Message:
    if not isinstance(item, Mapping):
        raise _refusal(field, 'must be a mapping {"role", "content"}')
    fields = cast("Mapping[str, object]", item)
    unknown = sorted(str(key) for key in fields if key not in ("role", "content"))
    if unknown:
        raise _refusal(f"{field}.{unknown[0]}", "is not known; a message has 'role' and 'content'")
    role = str(fields.get("role", Role.USER)).lower()
    if role not in _ROLES:
        raise _refusal(f"{field}.role", f"is {json.dumps(role)}; it must be one of {', '.join(Role)}")
    return Message(Role(role), _text(fields.get("content"), f"{field}.content"))


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise _refusal(field, f"must be text, not {type(value).__name__}")
    if not value.strip():
        raise _refusal(field, "is empty; say what the agent is to do")
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise _refusal(field, "is not valid Unicode (a lone surrogate)") from exc
    return value


def _refusal(field: str, reason: str) -> ValidationError:
    return ValidationError(f"{field} {reason}.", details={"field": field})
