"""When to try again, and when to give up."""

import random
from collections.abc import Callable

from ...domain.errors import GreenroomError
from .failures import is_passing

FIRST_S = 0.2
MAX_PAUSE_S = 5.0
_MAX_DOUBLINGS = 10


class Backoff:
    """Pauses that grow with each failure in a row, drawn at random so that clients that failed together do not come
    back together."""

    def __init__(self, *, max_tries: int | None = None, draw: Callable[[], float] = random.random) -> None:
        self._max_tries = max_tries
        self._draw = draw
        self._failures = 0

    def reset(self) -> None:
        """It went well."""
        self._failures = 0

    def pause_s(self, error: GreenroomError, left_s: float) -> float | None:
        """How long to rest before the next try, at least as long as the service asks for; None: the error stands, or
        the pause would take more than what is left."""
        self._failures += 1
        if not is_passing(error) or self._failures == self._max_tries:
            return None
        ceiling_s = min(MAX_PAUSE_S, FIRST_S * 2 ** min(self._failures - 1, _MAX_DOUBLINGS))
        pause_s = error.details.get("retry_after_s", 0.0) + ceiling_s * (1 + self._draw()) / 2
        return pause_s if pause_s < left_s else None
