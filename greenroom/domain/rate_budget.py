"""The rate budget of one provider account: how much it may be asked for in a minute, and how much at once."""

from dataclasses import dataclass, fields

from .errors import ValidationError
from .priority import unhurried, usable

_MINUTE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RateOptions:
    """Limits of an account. None: there is none that we know of."""

    requests_per_minute: int | None = None
    input_tokens_per_minute: int | None = None
    output_tokens_per_minute: int | None = None
    max_concurrent: int | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None and value < 1:
                raise ValidationError(f"rate.{item.name} must be at least 1.", details={"field": f"rate.{item.name}"})


class Bucket:
    """Fills by so much a minute, and holds no more than one minute's worth. It may be overdrawn by what turns out to
    have been more than was thought; then it has to fill up again."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at_s: float | None = None

    def wait_s(self, amount: float, now_s: float) -> float:
        """How long until so much is in it, or all that it can hold; 0: it is."""
        missing = min(amount, self.per_minute) - self.level(now_s)
        return max(0.0, missing * _MINUTE_S / self.per_minute)

    def take(self, amount: float, now_s: float) -> None:
        """Take so much out; a negative amount gives back what was not used."""
        self._level = min(self.level(now_s) - amount, float(self.per_minute))

    def lower(self, level: float, now_s: float) -> None:
        """Whoever counts at the other end says that no more than so much is in it."""
        self._level = min(self.level(now_s), level)

    def level(self, now_s: float) -> float:
        """What is in it, less than 0 when it is overdrawn."""
        if self._at_s is not None and now_s > self._at_s:
            self._level = min(self._level + (now_s - self._at_s) * self.per_minute / _MINUTE_S, float(self.per_minute))
        self._at_s = now_s if self._at_s is None else max(now_s, self._at_s)
        return self._level


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLevel:
    """What a provider says of one of its limits."""

    per_minute: int | None = None
    remaining: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLevels:
    """What a provider's answer says of the limits of the account, where it says anything."""

    requests: RateLevel = RateLevel()
    input_tokens: RateLevel = RateLevel()
    output_tokens: RateLevel = RateLevel()


class RateBudget:
    """Admits attempts one by one; knows no clock. Not fair by itself: whoever holds it decides who is next."""

    def __init__(self, options: RateOptions) -> None:
        self.options = options
        self.under_way = 0
        self._requests = _bucket(options.requests_per_minute)
        self._input = _bucket(options.input_tokens_per_minute)
        self._output = _bucket(options.output_tokens_per_minute)
        self._paused_until_s = 0.0
        self._slow_limit: int | None = None
        """How many may be under way while the account is tried again after a pause; None: as the options say."""

    @property
    def paused_until_s(self) -> float:
        """Until when nothing begins, because the provider said so."""
        return self._paused_until_s

    def is_unlimited(self, now_s: float) -> bool:
        """Whether there is nothing to count."""
        buckets = (self._requests, self._input, self._output)
        is_paused = self._slow_limit is not None or self._paused_until_s > now_s
        return self.options.max_concurrent is None and not is_paused and not any(buckets)

    def wait_s(self, input_tokens: int, output_tokens: int, now_s: float, *, priority: int = 0) -> float | None:
        """How long until an attempt that is thought to need so much may begin; 0: now. None: when another has ended.
        What those of a priority below 0 leave to others: see `priority`."""
        limits = [limit for limit in (self._slow_limit, self.options.max_concurrent) if limit is not None]
        if limits and self.under_way >= usable(min(limits), priority):
            return None
        wants = ((self._requests, 1), (self._input, input_tokens), (self._output, output_tokens))
        waits = [
            bucket.wait_s(amount + unhurried(bucket.per_minute, priority), now_s)
            for bucket, amount in wants
            if bucket is not None
        ]
        return max([self._paused_until_s - now_s, 0.0, *waits])

    def begin(self, input_tokens: int, output_tokens: int, now_s: float) -> None:
        """An attempt begins, and takes what it is thought to need."""
        self.under_way += 1
        self._take(1, input_tokens, output_tokens, now_s)

    def adopt(self) -> None:
        """An attempt is under way that took what it needs elsewhere."""
        self.under_way += 1

    def end(self, input_tokens: int, output_tokens: int, now_s: float, *, well: bool) -> None:
        """An attempt has ended that needed so much more than was thought, or less if it is negative."""
        was_full = self._slow_limit is not None and self.under_way >= self._slow_limit
        self.under_way -= 1
        self._take(0, input_tokens, output_tokens, now_s)
        if well and self._slow_limit is not None:
            self._slow_limit = self._slow_limit * 2 if was_full else None  # what is not used up limits nobody

    def configure(self, options: RateOptions) -> None:
        """Other limits. A bucket whose limit is the same stays as full as it is; one that is new is full."""
        for name in ("requests", "input_tokens", "output_tokens"):
            field_name = f"{name}_per_minute"
            if getattr(options, field_name) != getattr(self.options, field_name):
                setattr(self, f"_{name.removesuffix('_tokens')}", _bucket(getattr(options, field_name)))
        self.options = options

    def observe(self, levels: RateLevels, now_s: float) -> None:
        """The provider's own count, where it is lower than ours; a limit that nobody configured is taken over."""
        self._requests = _observed(self._requests, levels.requests, now_s)
        self._input = _observed(self._input, levels.input_tokens, now_s)
        self._output = _observed(self._output, levels.output_tokens, now_s)

    def drain(self, now_s: float) -> None:
        """Nobody knows what was used of late: what is configured has to fill up first."""
        for bucket in (self._requests, self._input, self._output):
            if bucket is not None:
                bucket.lower(0.0, now_s)

    def pause(self, until_s: float) -> None:
        """The provider has said that it is too much: nothing begins before then, and then one at a time at first."""
        self._paused_until_s = max(self._paused_until_s, until_s)
        self._slow_limit = 1

    def _take(self, requests: int, input_tokens: int, output_tokens: int, now_s: float) -> None:
        for bucket, amount in ((self._requests, requests), (self._input, input_tokens), (self._output, output_tokens)):
            if bucket is not None and amount:
                bucket.take(amount, now_s)


def _observed(bucket: Bucket | None, level: RateLevel, now_s: float) -> Bucket | None:
    if bucket is None and level.per_minute:
        bucket = Bucket(level.per_minute)
    if bucket is not None and level.remaining is not None:
        bucket.lower(level.remaining, now_s)
    return bucket


def _bucket(per_minute: int | None) -> Bucket | None:
    return None if per_minute is None else Bucket(per_minute)
