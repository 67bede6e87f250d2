"""The queue of a session: first in, first out, with a fixed number of slots. Pure bookkeeping, no clock, no I/O."""

from collections.abc import Callable, Iterable

from .errors import QueueFull


class RunQueue:
    """Who waits and who holds a slot.

    Runs take slots in the order in which they were enqueued. `capacity` bounds those that wait, not those with a slot.
    """

    def __init__(self, *, slots: int, capacity: int) -> None:
        self.slots = slots
        self.capacity = capacity
        self.is_paused = False
        """Whether nobody is to take a slot for now."""
        self._waiting: dict[str, None] = {}  # a dict keeps order and removes from the middle in constant time
        self._running: dict[str, None] = {}

    @property
    def waiting(self) -> tuple[str, ...]:
        """Run ids that wait, first the one that starts next."""
        return tuple(self._waiting)

    @property
    def running(self) -> tuple[str, ...]:
        """Run ids that hold a slot, in the order in which they took it."""
        return tuple(self._running)

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not self._running

    @property
    def has_free_slot(self) -> bool:
        """Whether a run enqueued now would start at once."""
        return not self.is_paused and len(self._waiting) + len(self._running) < self.slots

    def admit(self, count: int) -> None:
        """Raise QueueFull unless that many more runs find a slot or a place to wait; changes nothing."""
        if count > self.slots + self.capacity - len(self._running) - len(self._waiting):
            raise QueueFull(
                f"{len(self._waiting)} runs wait and max_queued_runs is {self.capacity}; nothing of this call was kept."
                " Wait for runs to end, or open the session with a larger max_queued_runs.",
                details={"queued": len(self._waiting), "max_queued_runs": self.capacity, "asked": count},
            )

    def enqueue(self, run_ids: Iterable[str]) -> None:
        """Put runs at the end of the line. Admission is the caller's business: recovery must be able to exceed it."""
        self._waiting.update(dict.fromkeys(run_ids))

    def start_ready(self, may_start: Callable[[str], bool] = lambda _: True) -> list[str]:
        """Give the free slots to the first in line; returns those that took one, in order. Who may not start holds up
        those behind it: nobody overtakes."""
        started: list[str] = []
        while self._waiting and len(self._running) < self.slots and not self.is_paused:
            run_id = next(iter(self._waiting))
            if not may_start(run_id):
                break
            del self._waiting[run_id]
            self._running[run_id] = None
            started.append(run_id)
        return started

    def leave(self, run_id: str) -> None:
        """The run has ended: take it out of the line or free its slot, whichever it had."""
        self._waiting.pop(run_id, None)
        self._running.pop(run_id, None)
