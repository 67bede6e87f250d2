"""The frame that the mapping of each agent client fills: what a client says, as events under Greenroom's names."""

from collections.abc import Mapping
from typing import Any, Protocol

from ....domain.event import EventType
from ....domain.provider import ProviderEvent, ProviderOutcome
from ....domain.token_usage import TokenUsage


class WireMapping(Protocol):
    """One attempt, from the messages of a client in the order in which they came. Pure: no I/O, no clock.

    Whole messages are the truth and pieces advisory: what was streamed and then given up by the client is not in what
    was received. What means nothing to a reader of the log gives no event. Tool calls that began and whose end the
    client never reports are left open: the session closes them.
    """

    @property
    def handle(self) -> dict[str, str] | None:
        """What the client needs to go on with this conversation; None before it has said so."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether the client has ended its turn."""
        ...

    def take(self, message: Mapping[str, Any]) -> list[ProviderEvent]:
        """The events that this message gives. A kind of message that is not known gives none."""
        ...

    def outcome(self) -> ProviderOutcome:
        """What the attempt gave.

        Raises the typed error that the turn ended with: Cancelled where the client ended it because somebody asked,
        ProviderUnavailable where it never ended it.
        """
        ...


def message_streamed(content: str, kind: str = "text") -> ProviderEvent:
    """A piece of a message; `kind` is text or thinking."""
    return ProviderEvent(EventType.MESSAGE_STREAMED, {"content": content, "kind": kind})


def message_received(content: str, kind: str = "text") -> ProviderEvent:
    """A whole message of the agent."""
    return ProviderEvent(EventType.MESSAGE_RECEIVED, {"role": "assistant", "content": content, "kind": kind})


def usage_updated(usage: TokenUsage) -> ProviderEvent:
    """Totals of the attempt so far."""
    return ProviderEvent(EventType.TOKEN_USAGE_UPDATED, usage.to_dict())


def anthropic_usage(given: Mapping[str, Any]) -> TokenUsage:
    """Counts under the names of the Messages API, which Claude Code and Amp keep."""
    return TokenUsage(
        input_tokens=given.get("input_tokens") or 0,
        output_tokens=given.get("output_tokens") or 0,
        cache_read_tokens=given.get("cache_read_input_tokens") or 0,
        cache_write_tokens=given.get("cache_creation_input_tokens") or 0,
    )


def conversation_is_gone(said: str) -> str:
    """What to tell of a handle that the client does not know (any more)."""
    return f"{said}. The conversation is not there any more; run it with continuation='replay'."


def error_occurred(code: str, message: str, *, retry_after_s: float | None = None) -> ProviderEvent:
    """Something went wrong at the provider, and the client tries again by itself."""
    data: dict[str, Any] = {"error_code": code, "error_message": message, "retryable": True}
    if retry_after_s is not None:
        data["retry_after_s"] = retry_after_s
    return ProviderEvent(EventType.ERROR_OCCURRED, data)
