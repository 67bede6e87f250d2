"""Which sealed parts to merge: so that a log of any length is few files, and each event is rewritten few times."""

from collections.abc import Sequence

FANOUT = 6
"""Neighbours of one tier that are merged into one of the next; at most this many less one stay per tier."""

FIRST_TIER_BYTES = 16 * 1024 * 1024
LARGEST_BYTES = FIRST_TIER_BYTES * FANOUT**3
"""No part is made larger than this (3.4 GiB): rewriting one, as deleting a session does, stays a matter of minutes."""


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
        tier, start = tier_of(sizes[end - 1]), end
        while start > 0 and tier_of(sizes[start - 1]) <= tier:
            start -= 1
        if end - start >= FANOUT:
            fitting = _fitting(sizes, start, end)
            if fitting is not None:
                return fitting
        end = min(start, end - 1)
    return None


def _fitting(sizes: Sequence[int], start: int, end: int) -> range | None:
    """As many neighbours from the oldest on as fit into one part; None if no two of them do."""
    for first in range(start, end - 1):
        stop, total = first, 0
        while stop < end and total + sizes[stop] <= LARGEST_BYTES:
            total += sizes[stop]
            stop += 1
        if stop - first > 1:
            return range(first, stop)
    return None
