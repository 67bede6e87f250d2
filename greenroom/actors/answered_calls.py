"""What a session has answered: so that what comes again gets the first answer."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import Any, Generic, TypeVar

AnswerT = TypeVar("AnswerT")


class AnsweredCalls(Generic[AnswerT]):
    """The newest answers by call id or idempotency key; the oldest are forgotten when there are too many."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        # No OrderedDict: a session has several of these, mostly empty ones.
        self._answers: dict[str | bytes, AnswerT] = {}
        self.has_forgotten = False
        """Whether there were too many at some time."""

    def __contains__(self, key: object) -> bool:
        return key in self._answers

    def __getitem__(self, key: str | bytes) -> AnswerT:
        return self._answers[key]

    def get(self, key: str | bytes) -> AnswerT | None:
        return self._answers.get(key)

    def keep(self, key: str | bytes, answer: AnswerT) -> None:
        """Remember the answer."""
        self._answers[key] = answer
        if len(self._answers) > self._bound:
            # A tenth at once: the first key of a dict is found by passing over all that were deleted before it.
            for oldest in list(islice(self._answers, self._bound // 10 + 1)):
                del self._answers[oldest]
            self.has_forgotten = True

    def drop(self, key: str | bytes) -> None:
        """Forget one answer, if it is there."""
        self._answers.pop(key, None)


class CallsOnce:
    """What comes again with the same call id, also while the first is under way, has its effect once and gets the first
    answer. A call that failed has had no effect, and may come again."""

    def __init__(self, bound: int) -> None:
        self._calls: AnsweredCalls[asyncio.Future[Any]] = AnsweredCalls(bound)

    def __contains__(self, call_id: object) -> bool:
        """Whether it has come before, and has not failed."""
        return call_id in self._calls

    async def do(self, call_id: str, work: Callable[[], Awaitable[AnswerT]]) -> AnswerT:
        """What the work answers. It begins at once, before anything else has its turn."""
        known = self._calls.get(call_id)
        if known is not None:
            return await asyncio.shield(known)
        answer: asyncio.Future[AnswerT] = asyncio.get_running_loop().create_future()
        self._calls.keep(call_id, answer)
        try:
            result = await work()
        except BaseException as exc:
            self._calls.drop(call_id)
            if isinstance(exc, asyncio.CancelledError):
                answer.cancel()
            else:
                answer.set_exception(exc)
                answer.exception()  # nobody else may be waiting
            raise
        answer.set_result(result)
        return result
