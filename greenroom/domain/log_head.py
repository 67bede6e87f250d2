"""Who may write a session's log, and where the next batch goes: the decision that makes appends exact."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

REMEMBERED_BATCHES = 64
"""How many answers per session are kept for repeats; a writer has at most a tenth of that under way."""


class Placed(NamedTuple):
    """The batch is new and begins here."""

    first_seq: int


class Repeated(NamedTuple):
    """The batch was stored before, and this was the answer."""

    first_seq: int
    recorded_at_us: int


class Fenced(NamedTuple):
    """A newer owner exists."""

    epoch: int


class OutOfOrder(NamedTuple):
    """A batch before this one has not arrived; send again from `expected`."""

    expected: int


Verdict = Placed | Repeated | Fenced | OutOfOrder


@dataclass(slots=True)
class LogHead:
    """The end of one session's log. `judge` looks, `advance` and `grant` move."""

    session_key: int
    epoch: int = 0
    last_seq: int = 0
    last_batch: int = 0
    """Number of the newest batch of this epoch; each epoch counts 1, 2, 3 ..."""
    digest: bytes = b""
    """Of the chain up to last_seq."""
    answers: "OrderedDict[int, tuple[int, int]]" = field(default_factory=OrderedDict[int, tuple[int, int]])

    def judge(self, *, epoch: int, batch_number: int) -> Verdict:
        """What is to be done with this batch; changes nothing."""
        if epoch != self.epoch:
            return Fenced(self.epoch)
        if batch_number == self.last_batch + 1:
            return Placed(self.last_seq + 1)
        answer = self.answers.get(batch_number)
        if answer is not None:
            return Repeated(*answer)
        return OutOfOrder(self.last_batch + 1)

    def advance(self, *, batch_number: int, count: int, recorded_at_us: int, digest: bytes) -> None:
        """The batch that `judge` placed has been taken into the group that commits next."""
        self.digest = digest
        self.answers[batch_number] = (self.last_seq + 1, recorded_at_us)
        if len(self.answers) > REMEMBERED_BATCHES:
            self.answers.popitem(last=False)
        self.last_batch = batch_number
        self.last_seq += count

    def grant(self) -> int:
        """Make a new owner: the next epoch, which fences all earlier ones."""
        self.epoch += 1
        self.last_batch = 0
        self.answers.clear()
        return self.epoch
