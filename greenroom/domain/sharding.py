"""Which shard has a session: a stable function of its id and of how many shards there are."""

import hashlib

MAX_SHARDS = 64


def shard_of(session_id: str, shards: int) -> int:
    """From 0 to shards - 1. When one shard more is added, only the sessions that it gets change their place.

    Jump consistent hash (Lamping and Veach 2014, arXiv 1406.2294), over SHA-256 of the id.
    """
    key = int.from_bytes(hashlib.sha256(session_id.encode()).digest()[:8], "big")
    place, following = -1, 0
    while following < shards:
        place = following
        key = (key * 2862933555777941757 + 1) % 2**64
        following = int((place + 1) * (2**31 / ((key >> 33) + 1)))
    return place
