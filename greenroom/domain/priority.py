"""What runs that nobody waits for leave to those that somebody does."""

_SHARE = 10
_BURST = 20


def usable(limit: int, priority: int) -> int:
    """What of a limit runs of this priority may use together: those below 0 leave a tenth of it free, and one at least
    where there are two. A run that somebody waits for then finds a place at once, and need not wait for the end of one
    that nobody waits for."""
    if priority >= 0 or limit < 2:  # noqa: PLR2004  one cannot be shared
        return limit
    return limit - max(1, limit // _SHARE)


def unhurried(per_minute: int, priority: int) -> int:
    """What must stay in a bucket that fills by so much a minute when runs of this priority take from it. Those below 0
    take what flows in, and a twentieth of what it holds at once: so no minute sees more than 105% of the limit by them,
    and a run that somebody waits for finds it nearly full."""
    return 0 if priority >= 0 else per_minute - max(1, per_minute // _BURST)
