"""The loop of a plain client."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any

import pytest

from greenroom.domain.errors import InvalidOperation
from greenroom.serve.client.own_loop import OwnLoop
from tests.waiting import PATIENCE_S


class Work:
    """Takes for ever."""

    def __init__(self) -> None:
        self.has_begun = threading.Event()
        self.is_cancelled = threading.Event()

    async def done(self) -> None:
        self.has_begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.is_cancelled.set()
            raise


class InterruptedEarly(OwnLoop):
    """Ctrl-C comes when the work has begun, and the thread that asked for it has not got so far as to wait."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self._work = work

    def start(self, work: Coroutine[Any, Any, Any], *, given_up: Future[None] | None = None) -> Future[Any]:
        super().start(work, given_up=given_up)
        assert self._work.has_begun.wait(PATIENCE_S)
        raise KeyboardInterrupt


async def nothing() -> None:
    return None


def test_work_is_cancelled_that_was_interrupted_before_anybody_waited_for_it() -> None:
    work = Work()
    loop = InterruptedEarly(work)

    with pytest.raises(KeyboardInterrupt):
        loop.wait(work.done())

    assert work.is_cancelled.wait(PATIENCE_S)
    loop.stop(nothing)


def test_who_waits_when_the_loop_is_stopped_is_told_and_so_is_who_comes_later() -> None:
    work, loop = Work(), OwnLoop()
    told: list[BaseException] = []

    def wait() -> None:
        try:
            loop.wait(work.done())
        except InvalidOperation as exc:
            told.append(exc)

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert work.has_begun.wait(PATIENCE_S)
    loop.stop(nothing)
    waiter.join(PATIENCE_S)

    assert 1 == len(told)
    assert work.is_cancelled.is_set()
    with pytest.raises(InvalidOperation):
        loop.wait(nothing())
