"""The queue against a plain list: first in first out, bounded slots, bounded waiting."""

from itertools import count

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from greenroom.domain.errors import QueueFull
from greenroom.domain.run_queue import RunQueue


class QueueModel(RuleBasedStateMachine):
    """What the queue must look like, kept as two lists."""

    def __init__(self) -> None:
        super().__init__()
        self.names = count()
        self.waiting: list[str] = []
        self.running: list[str] = []
        self.queue = RunQueue(slots=1, capacity=0)

    @initialize(slots=st.integers(1, 4), capacity=st.integers(0, 5))
    def build(self, slots: int, capacity: int) -> None:
        self.queue = RunQueue(slots=slots, capacity=capacity)

    @rule(size=st.integers(0, 4))
    def submit(self, size: int) -> None:
        free = self.queue.slots + self.queue.capacity - len(self.waiting) - len(self.running)
        run_ids = [f"run_{next(self.names)}" for _ in range(size)]
        try:
            self.queue.admit(size)
        except QueueFull as exc:
            assert size > free
            assert len(self.waiting) == exc.details["queued"]  # noqa: PT017
            return
        assert size <= max(free, 0)
        self.queue.enqueue(run_ids)
        self.waiting += run_ids

    @rule(size=st.integers(1, 3))
    def recover(self, size: int) -> None:
        run_ids = [f"run_{next(self.names)}" for _ in range(size)]

        self.queue.enqueue(run_ids)

        self.waiting += run_ids

    @rule()
    def start(self) -> None:
        free = max(0, self.queue.slots - len(self.running))
        expected, self.waiting = self.waiting[:free], self.waiting[free:]
        self.running += expected

        assert expected == self.queue.start_ready()

    @precondition(lambda self: self.waiting or self.running)
    @rule(data=st.data())
    def leave_from_anywhere(self, data: st.DataObject) -> None:
        run_id = data.draw(st.sampled_from(self.waiting + self.running))

        self.queue.leave(run_id)

        self.waiting = [one for one in self.waiting if one != run_id]
        self.running = [one for one in self.running if one != run_id]

    @rule()
    def leave_of_a_stranger(self) -> None:
        self.queue.leave("run_unknown")

    @invariant()
    def it_is_what_the_lists_say(self) -> None:
        assert (tuple(self.waiting), tuple(self.running)) == (self.queue.waiting, self.queue.running)
        assert len(self.queue.running) <= self.queue.slots
        assert (not self.waiting and not self.running) == self.queue.is_idle
        assert (len(self.waiting) + len(self.running) < self.queue.slots) == self.queue.has_free_slot


TestQueueAgainstItsModel = QueueModel.TestCase


def test_with_two_slots_the_third_of_five_starts_when_one_leaves() -> None:
    queue = RunQueue(slots=2, capacity=3)
    queue.enqueue("abcde")

    assert ["a", "b"] == queue.start_ready()
    assert [] == queue.start_ready()

    queue.leave("a")

    assert ["c"] == queue.start_ready()
    assert (("d", "e"), ("b", "c")) == (queue.waiting, queue.running)


def test_capacity_zero_takes_what_finds_a_slot_and_nothing_else() -> None:
    queue = RunQueue(slots=1, capacity=0)
    queue.admit(1)
    queue.enqueue(["a"])
    queue.start_ready()

    with pytest.raises(QueueFull) as refused:
        queue.admit(1)

    assert {"queued": 0, "max_queued_runs": 0, "asked": 1} == refused.value.details
    assert ((), ("a",)) == (queue.waiting, queue.running)


def test_more_than_fit_are_refused_together() -> None:
    queue = RunQueue(slots=1, capacity=2)

    queue.admit(3)

    with pytest.raises(QueueFull):
        queue.admit(4)


def test_recovery_may_exceed_the_capacity_and_then_nothing_is_admitted() -> None:
    queue = RunQueue(slots=1, capacity=1)
    queue.enqueue("abcd")
    queue.start_ready()

    with pytest.raises(QueueFull):
        queue.admit(1)

    assert ("b", "c", "d") == queue.waiting
