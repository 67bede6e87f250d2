"""A session on one kind of provider, and what holds for every run on it."""

import asyncio
import contextlib
from typing import Any

import psutil
import pytest

from greenroom.actors.live_session import LiveSession
from greenroom.adapters.process_trees import OWNER_VARIABLE, owner_mark
from greenroom.domain.errors import GreenroomError
from greenroom.domain.event import Event, EventType
from greenroom.domain.run import RunResult
from tests.conformance.provider_rigs import Rig
from tests.unit.live_session_world import TERMINAL, World

GONE_WITHIN_S = 5.0
LONG = {"deadline_s": 60.0}


class Stage:
    """A session on one kind of provider."""

    def __init__(self, rig: Rig, world: World, live: LiveSession) -> None:
        self.rig = rig
        self.world = world
        self.live = live

    async def submit(self, prepared: tuple[str, dict[str, Any]], **options: Any) -> str:
        prompt, own = prepared
        return (await self.world.submit(self.live, prompt, options={**LONG, **own, **options}))[0]

    async def run(self, prepared: tuple[str, dict[str, Any]], **options: Any) -> RunResult:
        return await self.live.await_run(await self.submit(prepared, **options), 60)

    async def error(self, prepared: tuple[str, dict[str, Any]], **options: Any) -> GreenroomError:
        with pytest.raises(GreenroomError) as caught:
            await self.run(prepared, **options)
        return caught.value

    async def events(self, run_id: str, *types: EventType) -> list[Event]:
        return [event for event in await self.world.events(run_id) if not types or event.type in types]

    async def seen(self, run_id: str, *types: EventType) -> Event:
        """The first event of one of these types, when it comes."""
        query_types = {event_type.value for event_type in types}
        async with asyncio.timeout(60):
            async with contextlib.aclosing(self.live.subscribe(0, run_id, sorted(query_types), True)) as batches:
                async for batch in batches:
                    return batch[0]
        raise AssertionError(f"the run ended without {types}")

    async def cancel(self, run_id: str) -> None:
        assert await self.live.cancel_run(run_id, None, self.world.call())

    async def reopened(self) -> "Stage":
        """The same session as the next process would serve it."""
        await self.live.aclose()
        live = await self.world.open(declared=self.rig.declaration(), home=str(self.rig.home), create=False)
        return Stage(self.rig, self.world, live)


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
