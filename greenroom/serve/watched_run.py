"""A run that this process submits, shows, and cancels when it is interrupted."""

import asyncio
import contextlib
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..domain.event import RUN_ENDINGS, Event

if TYPE_CHECKING:
    from ..actors.session_handle import SessionHandle

INTERRUPT_REASON = "interrupted by Ctrl-C"
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
ABANDON_REASON = "the command that showed it ended"
_CANCEL_S = 10.0


class WatchedRun:
    """The first Ctrl-C cancels the run, and the stream still goes to its end; the second one leaves at once."""

    def __init__(self, session: "SessionHandle", show: Callable[[Event], None]) -> None:
        self.interrupted = False
        self._session = session
        self._show = show
        self._run_id: str | None = None
        self._end: Event | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelling: asyncio.Task[None] | None = None

    async def execute(self, input: object, options: dict[str, Any]) -> Event:
        """Submit the run and show its events; returns the one that ended it. A run that is left is cancelled."""
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        for number in _INTERRUPTS:
            loop.add_signal_handler(number, self._interrupt)
        try:
            run_id: str = await self._session.submit_run.remote(input, options)
            self._run_id = run_id
            if self.interrupted:
                self._cancel_run()
            return await self._watch(run_id)
        finally:
            if self._run_id is not None and self._end is None:
                await self._give_up(self._run_id)
            for number in _INTERRUPTS:
                loop.remove_signal_handler(number)

    async def _watch(self, run_id: str) -> Event:
        async with contextlib.aclosing(self._session.follow(run_id=run_id)) as stream:
            async for event in stream:
                self._show(event)
                if event.type in RUN_ENDINGS:
                    self._end = event
        assert self._end is not None, "the stream of a run ends with the run"
        return self._end

    def _interrupt(self) -> None:
        if self.interrupted:
            assert self._task is not None
            self._task.cancel()
            return
        self.interrupted = True
        self._cancel_run()

    def _cancel_run(self) -> None:
        if self._run_id is not None:
            self._cancelling = asyncio.get_running_loop().create_task(self._cancel(self._run_id, INTERRUPT_REASON))

    async def _cancel(self, run_id: str, reason: str) -> None:
        await self._session.cancel_run.remote(run_id, reason)

    async def _give_up(self, run_id: str) -> None:
        """Nobody will see the end: cancel, without waiting for ever and without hiding why the run is left."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_CANCEL_S):
                await self._cancel(run_id, INTERRUPT_REASON if self.interrupted else ABANDON_REASON)
