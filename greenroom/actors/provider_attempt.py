"""One attempt of a run at its provider: the stream consumed, the outcome and the errors made fit for an event."""

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

from ..domain.errors import GreenroomError, ProviderError, SessionMoved, WriterFenced, error_from_record
from ..domain.event import RECORD_TYPES
from ..domain.json_values import check_json_safe
from ..domain.provider import (
    Provider,
    ProviderConversation,
    ProviderEvent,
    ProviderLevels,
    ProviderOutcome,
    ProviderRequest,
)
from .live_run import LiveRun


async def consume(
    provider: Provider,
    request: ProviderRequest,
    run: LiveRun,
    *,
    record: Callable[[ProviderEvent], None],
    room: Callable[[], Awaitable[None] | None],
) -> ProviderOutcome:
    """Carry the attempt out; each event goes to `record`, never faster than `room` allows: what it gives is awaited.

    Raises what the provider raises, and ProviderError for one that breaks the port's rules. The stream is closed in
    any case.
    """
    outcome: ProviderOutcome | None = None
    async with aclosing(provider.execute(request)) as stream:
        async for item in stream:
            if run.ended:  # it did not heed its cancellation
                break
            if isinstance(item, ProviderOutcome):
                outcome = item
                continue
            if isinstance(item, ProviderConversation):
                run.conversation = _checked_handle(run, item)
                continue
            if isinstance(item, ProviderLevels):
                run.route.levels = item.levels
                continue
            if item.type in RECORD_TYPES:
                raise ProviderError(f"Provider {run.provider!r} gave {item.type}, which only the session may.")
            record(item)
            if run.ended:  # a limit was passed: the provider is stopped here and now, not with its next word
                break
            if (wait := room()) is not None:
                await wait
    if outcome is None:
        raise ProviderError(f"Provider {run.provider!r} ended its stream without an outcome.")
    return outcome


def _checked_handle(run: LiveRun, conversation: ProviderConversation) -> dict[str, str]:
    """It goes into the event that ends the run, which nothing may keep from being written."""
    handle = dict(conversation.handle)
    try:
        check_json_safe(handle)
    except ValueError as exc:
        raise ProviderError(f"Provider {run.provider!r} gave a conversation that is not JSON-safe: {exc}.") from exc
    return handle


def completed_data(run: LiveRun, outcome: ProviderOutcome) -> dict[str, Any]:
    """The data of run_completed, with what all attempts of the run have used. ProviderError if the outcome holds what
    an event cannot."""
    output: dict[str, Any] = {"content": outcome.content}
    if outcome.structured is not None:
        output["structured"] = outcome.structured
    data = {
        "output": output,
        "token_usage": run.total_usage.to_dict(),
        "cost_usd": run.total_cost_usd,
        "stop_reason": outcome.stop_reason,
        "turn_count": outcome.turn_count,
        "model": outcome.model or run.options.model,
    }
    try:
        check_json_safe(data)
        check_json_safe(outcome.metadata)
    except ValueError as exc:
        raise ProviderError(f"Provider {run.provider!r} gave an outcome that is not JSON-safe: {exc}.") from exc
    return data | run.extra_data()


def storable_error(raised: GreenroomError) -> GreenroomError:
    """The error of a provider as an event can keep it, and as whoever awaits the run gets it."""
    if isinstance(raised, SessionMoved | WriterFenced):  # from here these mean something else
        return ProviderError(raised.message, details={"code": raised.code})
    record = raised.to_record()
    try:
        check_json_safe(record)
    except ValueError:
        record = {"code": raised.code, "message": str(raised.message).encode(errors="replace").decode()}
    return error_from_record(record)
