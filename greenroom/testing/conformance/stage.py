"""A session on one kind of provider, and what holds for every run on it."""

import asyncio
import contextlib
import secrets
from itertools import count
from typing import Any

import psutil

from ...actors.activation import Activation
from ...actors.live_session import LiveSession
from ...actors.provider_set import ProviderSet
from ...adapters.clock import id_factory, now_us
from ...adapters.memory_event_log import MemoryEventLog
from ...adapters.process_trees import OWNER_VARIABLE, owner_mark
from ...domain.errors import GreenroomError
from ...domain.event import Event, EventType
from ...domain.event_log import EventQuery
from ...domain.provider import ProviderDeclaration
from ...domain.run import RunResult
from ...domain.session import SessionSpec
from .rig import Rig

GONE_WITHIN_S = 5.0
"""A run that was stopped leaves nothing behind for longer than this."""

SESSION = "ses_1"
LONG = {"deadline_s": 60.0}

TERMINAL = ("run_completed", "run_failed", "run_cancelled", "run_timeout")


class Stage:
    """A session on one kind of provider."""

    def __init__(self, rig: Rig, log: MemoryEventLog, live: LiveSession) -> None:
        self.rig = rig
        self.live = live
        self._log = log
        self._calls = count(1)
        self._later: Stage | None = None

    @classmethod
    async def open(
        cls, rig: Rig, *, declared: ProviderDeclaration | None = None, log: MemoryEventLog | None = None, **spec: Any
    ) -> "Stage":
        """The session as a process would serve it that takes it over; with a log of before it is the one in there."""
        declared = declared or rig.declaration()
        known = log or MemoryEventLog()
        activation = Activation(
            f"stage-{secrets.token_hex(4)}",
            log=known,
            default_provider=declared.name,
            max_input_bytes=1_000_000,
            approval_expires_s=3_600.0,
            ids=id_factory(),
            now_us=now_us,
        )
        live = await activation.activate(
            SESSION,
            spec=None if log else SessionSpec(provider=declared.name, **spec),
            idempotency_key=None,
            providers=ProviderSet({declared.name: declared}),
            home=str(rig.home),
            unpack_tools=lambda _: rig.tools(),
            on_lost=lambda: None,
        )
        return cls(rig, known, live)

    def call(self) -> str:
        """The id of a call that nobody has made before."""
        return f"call_{id(self)}_{next(self._calls)}"

    async def submit(self, prepared: tuple[str, dict[str, Any]], **options: Any) -> str:
        """Queue a run that does what the rig has prepared."""
        prompt, own = prepared
        return (await self.live.submit_runs([prompt], {**LONG, **own, **options}, [None], self.call()))[0]

    async def run(self, prepared: tuple[str, dict[str, Any]], **options: Any) -> RunResult:
        return await self.live.await_run(await self.submit(prepared, **options), 60)

    async def error(self, prepared: tuple[str, dict[str, Any]], **options: Any) -> GreenroomError:
        (outcome,) = await self.live.await_runs([await self.submit(prepared, **options)], 60)
        assert isinstance(outcome, GreenroomError), outcome
        return outcome

    async def events(self, run_id: str, *types: EventType) -> list[Event]:
        found = await self._log.read(SESSION, EventQuery(run_id=run_id, limit=10_000))
        return [event for event in found if not types or event.type in types]

    async def seen(self, run_id: str, *types: EventType) -> Event:
        """The first event of one of these types, when it comes."""
        query_types = {event_type.value for event_type in types}
        async with asyncio.timeout(60):
            async with contextlib.aclosing(self.live.subscribe(0, run_id, sorted(query_types), True)) as batches:
                async for batch in batches:
                    return batch[0]
        raise AssertionError(f"the run ended without {types}")

    async def cancel(self, run_id: str) -> None:
        assert await self.live.cancel_run(run_id, None, self.call())

    async def reopened(self) -> "Stage":
        """The same session as the next process would serve it."""
        await self.live.aclose()
        self._later = await Stage.open(self.rig, log=self._log)
        return self._later

    async def aclose(self) -> None:
        """Leave the session; nothing of the provider is left when this returns."""
        if self._later is not None:
            await self._later.aclose()
        await self.live.aclose()
        await nothing_left()


def left_behind() -> list[psutil.Process]:
    """Processes that bear this process' mark: whatever a provider has started, however far away it went."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(OWNER_VARIABLE) == owner_mark():
                found.append(process)
    return found


async def nothing_left(within_s: float = GONE_WITHIN_S) -> None:
    async with asyncio.timeout(within_s):
        while left_behind():
            await asyncio.sleep(0.02)


def types_of(events: list[Event]) -> list[str]:
    return [event.type.value for event in events]


def check_run(events: list[Event]) -> None:
    """What holds for every run: the order, one end, and an end for each tool call that began."""
    types = types_of(events)
    assert types[:3] == ["run_queued", "message_sent", "run_started"]
    assert [one for one in types if one in TERMINAL] == [types[-1]]
    started = [event.data["tool_call_id"] for event in events if event.type is EventType.TOOL_CALL_STARTED]
    ended = [
        event.data["tool_call_id"]
        for event in events
        if event.type in (EventType.TOOL_CALL_COMPLETED, EventType.TOOL_CALL_FAILED)
    ]
    assert sorted(started) == sorted(ended)
    assert len(set(started)) == len(started)
