"""Waiting for a condition in another process: polled, never slept for."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_S = 60.0
"""How long a condition may take on a noisy machine before the test gives up."""


def wait_until(probe: Callable[[], T], *, what: str, patience_s: float = PATIENCE_S) -> T:
    """The first true answer of the probe."""
    deadline = time.monotonic() + patience_s
    tick = threading.Event()
    while True:
        answer = probe()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"never came true: {what}"
        tick.wait(0.02)
