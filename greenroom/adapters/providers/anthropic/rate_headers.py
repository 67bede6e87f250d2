"""What the Messages API says of the account's rate limits in the headers of each answer."""

from collections.abc import Mapping

from ....domain.rate_budget import RateLevel, RateLevels

_PREFIX = "anthropic-ratelimit-"


def levels_of(headers: Mapping[str, str]) -> RateLevels | None:
    """The limits a minute and what is left of them; None where the headers say nothing.

    The names are those of "Rate limits" in Anthropic's API documentation; what is left of tokens is rounded to the
    nearest thousand there.
    """
    levels = RateLevels(
        requests=_level(headers, "requests"),
        input_tokens=_level(headers, "input-tokens"),
        output_tokens=_level(headers, "output-tokens"),
    )
    return None if levels == RateLevels() else levels


def _level(headers: Mapping[str, str], name: str) -> RateLevel:
    return RateLevel(
        per_minute=_count(headers.get(f"{_PREFIX}{name}-limit")),
        remaining=_count(headers.get(f"{_PREFIX}{name}-remaining")),
    )


def _count(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
