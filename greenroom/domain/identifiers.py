"""Ids: a prefix that tells the kind, and a UUIDv7 in hex, so that ids of one kind sort by the time they were made."""

import re
from collections.abc import Callable
from typing import NewType

SessionId = NewType("SessionId", str)
RunId = NewType("RunId", str)
EventId = NewType("EventId", str)

_MICROSECONDS_PER_MILLISECOND = 1000
_COUNTER_BITS = 74  # what RFC 9562 leaves for rand_a and rand_b together
_RAND_B = (1 << 62) - 1
_RESERVE_BITS = 72  # a fresh start below this leaves room to count upwards within one millisecond


SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
"""What may name a session: it also names a folder."""


class IdFactory:
    """Makes UUIDv7 ids that are unique and strictly ascending within one factory.

    Within a millisecond the 74 random bits are counted upwards (RFC 9562, section 6.2, method 2): two ids of one
    factory never collide and sort in the order in which they were made. Not for secrets: the next id can be guessed.

    `now_us` gives the time in microseconds since 1970; `random_bits(n)` gives n random bits.
    """

    def __init__(self, *, now_us: Callable[[], int], random_bits: Callable[[int], int]) -> None:
        self._now_us = now_us
        self._random_bits = random_bits
        self._millisecond = -1
        self._counter = 0
        self._id = 0
        """The newest one, as a number."""

    def session_id(self) -> SessionId:
        return SessionId("ses_" + self._next_hex())

    def run_id(self) -> RunId:
        return RunId("run_" + self._next_hex())

    def event_id(self) -> EventId:
        return EventId("evt_" + self._next_hex())

    def approval_id(self) -> str:
        return "apr_" + self._next_hex()

    def _next_hex(self) -> str:
        millisecond = self._now_us() // _MICROSECONDS_PER_MILLISECOND
        if millisecond > self._millisecond:
            self._millisecond = millisecond
            self._counter = self._random_bits(_RESERVE_BITS)
        else:
            self._counter += 1
            if self._counter & _RAND_B:  # nothing is carried into rand_a
                self._id += 1
                return f"{self._id:032x}"
            if self._counter >> _COUNTER_BITS:
                self._millisecond += 1
                self._counter = self._random_bits(_RESERVE_BITS)
        rand_a, rand_b = self._counter >> 62, self._counter & _RAND_B
        self._id = (self._millisecond << 80) | (0x7 << 76) | (rand_a << 64) | (0b10 << 62) | rand_b
        return f"{self._id:032x}"
