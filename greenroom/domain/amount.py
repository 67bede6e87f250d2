"""Money and tokens, counted in whole numbers."""

from typing import NamedTuple

MICRO = 1_000_000
"""Money is counted in whole millionths of a dollar: twenty times 0.05 is exactly 1."""


class Amount(NamedTuple):
    """What a run needs or has used. None: not known."""

    micro_usd: int | None = None
    tokens: int | None = None

    @classmethod
    def of(cls, cost_usd: float | None, tokens: float | None) -> "Amount":
        """From dollars and tokens."""
        return cls(None if cost_usd is None else round(cost_usd * MICRO), None if tokens is None else int(tokens))


NOTHING = Amount(0, 0)
UNKNOWN = Amount()
