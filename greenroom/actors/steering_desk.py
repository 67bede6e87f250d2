"""Handing messages to runs that are under way, with a receipt for each."""

import asyncio

from ..domain.errors import InvalidOperation
from ..domain.event import EventType
from ..domain.steering import SteerReceipt
from .live_run import LiveRun
from .provider_set import ProviderSet
from .session_writer import SessionWriter


class SteeringDesk:
    """Belongs to one live session."""

    def __init__(self, providers: ProviderSet, writer: SessionWriter) -> None:
        self._providers = providers
        self._writer = writer

    async def steer(self, run: LiveRun, message: str, call_id: str, key: str | None) -> SteerReceipt:
        """Hand the message over and record it; durable when it returns. InvalidOperation for a run that is not under
        way, CapabilityNotSupported where its provider cannot be steered; then nothing was recorded."""
        if run.ended or run.task is None or run.is_between_attempts:
            raise not_under_way(run.run_id)
        delivered = await self._providers.get(run.provider).steer(run.run_id, message)
        if run.ended:
            raise not_under_way(run.run_id)
        metadata = {"call_id": call_id} if key is None else {"call_id": call_id, "idempotency_key": key}
        data = {"message": message, "delivered": delivered}
        event = self._writer.event(EventType.SESSION_STEERED, run, data, metadata=metadata)
        committed = await asyncio.shield(self._writer.append([event]))
        return SteerReceipt(run_id=run.run_id, delivered=delivered, seq=committed.first_seq)


def not_under_way(run_id: str) -> InvalidOperation:
    """The answer for a run that waits or has ended."""
    return InvalidOperation(
        f"Run {run_id} is not under way, so it cannot be steered; submit a new run.", details={"run_id": run_id}
    )
