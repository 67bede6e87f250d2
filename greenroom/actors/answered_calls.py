"""What a session has answered: so that what comes again gets the first answer."""

from collections import OrderedDict
from typing import Generic, TypeVar

AnswerT = TypeVar("AnswerT")


class AnsweredCalls(Generic[AnswerT]):
    """The newest answers by call id or idempotency key; the oldest is forgotten when there are too many."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._answers: OrderedDict[str | bytes, AnswerT] = OrderedDict()
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
            self._answers.popitem(last=False)
            self.has_forgotten = True
