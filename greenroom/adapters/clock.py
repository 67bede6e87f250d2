"""The system's clock, sleep and randomness, for those who are built with them."""

import random
import time

from ..domain.identifiers import IdFactory


def now_us() -> int:
    """Microseconds since 1970 UTC."""
    return time.time_ns() // 1000


def id_factory() -> IdFactory:
    """Ids from the system's clock. Its randomness is seeded by the operating system, anew in every process."""
    return IdFactory(now_us=now_us, random_bits=random.SystemRandom().getrandbits)
