"""An event loop in a thread of its own, for callers that have none."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

from ...domain.errors import InvalidOperation

if TYPE_CHECKING:
    from .streams import AsyncStream

ResultT = TypeVar("ResultT")


class OwnLoop:
    """Runs coroutines for any number of threads, whatever loops those may be in. Starts with the first of them."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a stream may be collected, and closed, while this thread holds it
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._is_stopped = False
        self._streams: WeakSet[AsyncStream[Any]] = WeakSet()

    def keeps(self, stream: "AsyncStream[Any]") -> None:
        """The stream is closed before the loop ends, if nobody has closed it."""
        self._streams.add(stream)

    def start(self, work: Coroutine[Any, Any, ResultT], *, given_up: Future[None] | None = None) -> Future[ResultT]:
        """Begin it, and do not wait; cancelled when `given_up` is set. InvalidOperation when the loop was stopped."""
        with self._lock:
            if self._is_stopped:
                work.close()
                raise InvalidOperation("This client is closed; make a new one.")
            if given_up is None:
                return asyncio.run_coroutine_threadsafe(work, self._running())
            future = asyncio.run_coroutine_threadsafe(_unless(given_up, work), self._running())
            future.add_done_callback(lambda _: work.close())  # it has not begun if the loop was stopped before
            return future

    def wait(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Run it to its end. What interrupts the wait, such as Ctrl-C, cancels it."""
        given_up: Future[None] = Future()  # is there before the work is, which may be far before `start` returns
        try:
            return self.start(work, given_up=given_up).result()
        except CancelledError as exc:
            raise InvalidOperation("This client was closed meanwhile; make a new one.") from exc
        except BaseException:
            given_up.set_result(None)
            raise

    def stop(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Cancel what runs, do the last thing, and end the thread. Nothing happens the second time."""
        with self._lock:
            was_stopped, self._is_stopped = self._is_stopped, True
            loop, thread = self._loop, self._thread
        if was_stopped or loop is None or thread is None:
            return
        try:
            asyncio.run_coroutine_threadsafe(_end(list(self._streams), last), loop).result()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=_run, args=(self._loop,), name="greenroom-client", daemon=True)
            self._thread.start()
        return self._loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


async def _unless(given_up: Future[None], work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Do the work, or cancel it as soon as it is given up."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    given_up.add_done_callback(lambda _: None if task.done() else loop.call_soon_threadsafe(task.cancel))
    return await work


async def _end(streams: "list[AsyncStream[Any]]", last: Callable[[], Coroutine[Any, Any, None]]) -> None:
    running = asyncio.all_tasks() - {asyncio.current_task()}
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    for stream in streams:  # by themselves their generators would be closed all at once, those within others too
        await stream.aclose()
    await last()
