"""Which sealed parts to merge: so that a log of any length is few files, and each event is rewritten few times."""

from collections.abc import Sequence

FANOUT = 6
"""Neighbours of one tier that are merged into one of the next; at most this many less one stay per tier."""

FIRST_TIER_BYTES = 16 * 1024 * 1024
LARGEST_BYTES = 2 * 1024 * 1024 * 1024
"""A part of this size is not merged any more: rewriting it, as deleting a session does, stays a matter of minutes."""


def tier_of(size: int) -> int:
    """0 for the smallest parts; each tier is FANOUT times as large as the one before."""
    tier, bound = 0, FIRST_TIER_BYTES
    while size > bound:
        tier, bound = tier + 1, bound * FANOUT
    return tier


def parts_to_merge(sizes: Sequence[int]) -> range | None:
    """Places of neighbours to merge, of parts with these sizes in bytes, oldest first; None if all is well."""
    end = len(sizes)
    while end > 0:
        tier, start, total = tier_of(sizes[end - 1]), end, 0
        while start > 0 and tier_of(sizes[start - 1]) <= tier and total + sizes[start - 1] <= LARGEST_BYTES:
            start -= 1
            total += sizes[start]
        if end - start >= FANOUT:
            return range(start, end)
        end = min(start, end - 1)
    return None
