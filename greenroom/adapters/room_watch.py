"""How much room is left, on the disk and in memory, asked for seldom enough to cost nothing."""

import shutil
import time
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path

import psutil

LOOK_EVERY_S = 0.2
LOOK_EVERY_BYTES = 1024 * 1024


class Room(IntEnum):
    """What may still be written."""

    PLENTY = 0
    LOW = 1
    """Nothing new should be begun."""
    FULL = 2
    """Nothing may be appended."""


class RoomWatch:
    """For one thread. Looks again after LOOK_EVERY_S, or when LOOK_EVERY_BYTES were written."""

    def __init__(
        self,
        folder: Path,
        *,
        min_free_bytes: int,
        reserve_bytes: int,
        max_memory_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._min_free_bytes = min_free_bytes
        self._reserve_bytes = reserve_bytes
        self._max_memory_bytes = max_memory_bytes
        self._clock = clock
        self._looked_at = -LOOK_EVERY_S
        self._written = 0
        self._room = Room.PLENTY

    def look(self, about_to_write: int = 0) -> Room:
        """The room there is, when so many bytes more are about to be written."""
        self._written += about_to_write
        if self._clock() - self._looked_at >= LOOK_EVERY_S or self._written >= LOOK_EVERY_BYTES:
            self._looked_at, self._written = self._clock(), 0
            self._room = self._measured(about_to_write)
        return self._room

    def _measured(self, about_to_write: int) -> Room:
        free = shutil.disk_usage(self._folder).free - about_to_write
        if free < self._reserve_bytes:
            return Room.FULL
        if free < self._min_free_bytes or resident_bytes() > self._max_memory_bytes:
            return Room.LOW
        return Room.PLENTY


def resident_bytes() -> int:
    """Memory that this process holds."""
    return psutil.Process().memory_info().rss
