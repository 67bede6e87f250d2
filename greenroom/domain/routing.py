"""Which providers a run is tried on, and in which order: a choice among what is known of them just now."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from .account import AccountState
from .capability import Capability, CapabilityType
from .errors import ValidationError
from .routing_overrides import NO_OVERRIDES, RoutingOverrides, Strategy

HEALTH_PENALTY = 0.5
"""What each failure of late makes of a provider's weight: two of them leave a quarter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """A capability that a provider must have: of this type, and of this name if one is given."""

    type: CapabilityType | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if self.type is None and self.name is None:
            raise ValidationError(
                "A required capability needs a type or a name.", details={"field": "required_capabilities"}
            )

    @property
    def text(self) -> str:
        """In words."""
        return " ".join(part for part in (self.type and self.type.value, self.name and repr(self.name)) if part)

    def is_met_by(self, capability: Capability) -> bool:
        """Whether this capability is such a one."""
        return self.type in (None, capability.type) and self.name in (None, capability.name)


class AllOpen(StrEnum):
    """What a run does when the breakers of all its candidates are open."""

    WAIT = "wait"
    """Until one of them lets something through."""
    PROBE = "probe"
    """It tries the one that may be tried soonest, unless the provider itself has said when to come back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterOptions:
    """A router as it is declared."""

    providers: tuple[str, ...]
    strategy: Strategy = Strategy.PREFER
    weights: Mapping[str, float] = field(default_factory=dict[str, float])
    """Of those that are not named: 1."""
    max_attempts: int = 3
    sticky_ttl_s: float = 300.0
    """How long a session stays with the provider that served it last; 0: not at all."""
    all_open: AllOpen = AllOpen.WAIT

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "RouterOptions":
        """The inverse of `dataclasses.asdict`."""
        kinds: dict[str, Any] = {
            "providers": tuple(record["providers"]),
            "strategy": Strategy(record["strategy"]),
            "all_open": AllOpen(record["all_open"]),
        }
        return cls(**{**record, **kinds})

    def for_run(self, overrides: RoutingOverrides) -> "RouterOptions":
        """As this run wants it."""
        changed = {name: getattr(overrides, name) for name in ("strategy", "weights", "max_attempts")}
        given = {name: value for name, value in changed.items() if value is not None}
        return replace(self, **given) if given else self

    def __post_init__(self) -> None:
        if not self.providers or len(set(self.providers)) < len(self.providers):
            raise ValidationError("providers must be a list of different names.", details={"field": "providers"})
        for name, weight in self.weights.items():
            if name not in self.providers or not 0 <= weight < float("inf"):
                raise ValidationError(
                    f"weights.{name} must belong to one of the router's providers, and be 0 or more.",
                    details={"field": f"weights.{name}"},
                )
        if self.max_attempts < 1:
            raise ValidationError("max_attempts must be at least 1.", details={"field": "max_attempts"})
        if not 0 <= self.sticky_ttl_s < float("inf"):
            raise ValidationError("sticky_ttl_s must be 0 or more.", details={"field": "sticky_ttl_s"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterState:
    """A router, for people to look at."""

    name: str
    options: RouterOptions
    accounts: Mapping[str, AccountState]
    """By provider, as it saw them last; empty until it has decided something."""
    bound_sessions: int
    """Sessions that stay with a provider."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterMember:
    """What does not change of one of a router's providers."""

    capabilities: tuple[Capability, ...] = ()
    price_usd: float | None = None
    """For a million tokens in and as many out, with the model that is declared; None: not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What is known of one provider just now."""

    name: str
    capabilities: tuple[Capability, ...] = ()
    failures: int = 0
    """One after the other, up to now."""
    under_way: int = 0
    price: float | None = None
    """In USD for a million tokens in and as many out; None: not known."""
    is_open: bool = True
    """Whether its breaker lets something through."""
    retry_at_s: float = 0.0
    """When it may be tried, if it does not."""

    def meets(self, required: Iterable[Requirement]) -> bool:
        """Whether it has everything that is required."""
        return all(any(one.is_met_by(capability) for capability in self.capabilities) for one in required)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingRequest:
    """What a run wants of its provider."""

    options: RouterOptions
    """Of the router, as this run wants them."""
    session_id: str = ""
    overrides: RoutingOverrides = NO_OVERRIDES
    required: tuple[Requirement, ...] = ()
    exclude: frozenset[str] = frozenset()
    """Beside those that the overrides exclude."""


def route(
    candidates: Sequence[Candidate], request: RoutingRequest, *, draw: float, sticky: str | None = None
) -> list[Candidate]:
    """Whom the run is tried on, first to last, at most `max_attempts` of them. Never one that is excluded or cannot do
    what is required. Those whose breaker is open come last, the one that may be tried soonest first: when nothing else
    is there, the least bad is better than nothing. `draw` in [0, 1) decides where shares do. `sticky` is who served the
    session last, if that still holds.
    """
    options = request.options
    excluded = {*request.exclude, *request.overrides.exclude}
    able = [one for one in candidates if one.name not in excluded and one.meets(request.required)]
    ready = _ordered(options, [one for one in able if one.is_open], draw)
    preferred = {name: rank for rank, name in enumerate(request.overrides.prefer)}
    ready.sort(key=lambda one: preferred.get(one.name, len(preferred)))  # stable: the strategy decides among the rest
    if not preferred:
        ready.sort(key=lambda one: one.name != sticky)
    waiting = sorted((one for one in able if not one.is_open), key=lambda one: one.retry_at_s)
    return [*ready, *waiting][: options.max_attempts]


def _ordered(options: RouterOptions, ready: Sequence[Candidate], draw: float) -> list[Candidate]:
    place = {name: rank for rank, name in enumerate(options.providers)}
    listed = sorted(ready, key=lambda one: place.get(one.name, len(place)))
    if options.strategy is Strategy.LEAST_LOADED:
        return sorted(listed, key=lambda one: _load(one, options.weights.get(one.name, 1.0)))
    if options.strategy is Strategy.CHEAPEST:
        return sorted(listed, key=lambda one: float("inf") if one.price is None else one.price)
    if options.strategy is Strategy.WEIGHTED:
        return _drawn(listed, options.weights, draw)
    return listed


def _load(one: Candidate, weight: float) -> float:
    return one.under_way / weight if weight else float("inf")


def _drawn(listed: Sequence[Candidate], weights: Mapping[str, float], draw: float) -> list[Candidate]:
    """One by its share, and the others by weight behind it."""
    shares = {one.name: weights.get(one.name, 1.0) * HEALTH_PENALTY**one.failures for one in listed}
    behind = sorted(listed, key=lambda one: -shares[one.name])
    point = draw * sum(shares.values())
    for one in listed:
        point -= shares[one.name]
        if point < 0:
            return [one, *(other for other in behind if other is not one)]
    return behind
