"""The options of a run, with their defaults in one place."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any

from .errors import ValidationError
from .permission_mode import PermissionMode
from .routing_overrides import RoutingOverrides
from .transcript import TranscriptLimits

DEFAULT_DEADLINE_S = 600.0
DEFAULT_MAX_ATTEMPTS = 3


class OnCrash(StrEnum):
    """What becomes of a run whose process died under it."""

    FAIL = "fail"
    """It ends failed with run_interrupted: nothing is done twice."""
    RETRY = "retry"
    """It runs again as the next attempt, up to max_attempts: what it did may be done twice."""


class Busy(StrEnum):
    """What a submit does when no slot is free."""

    ENQUEUE = "enqueue"
    REJECT = "reject"
    """It is refused with queue_full."""
    INTERRUPT = "interrupt"
    """The run that has been under way longest is interrupted, and the new one stands in line."""
    STEER = "steer"
    """The input is handed to the run that has been under way longest, whose id is the answer."""


class Continuation(StrEnum):
    """What a run is told of the runs of its session that have ended."""

    OFF = "off"
    """Nothing."""
    AUTO = "auto"
    """Natively where the provider can and has a conversation of this session, else by replay."""
    REPLAY = "replay"
    """The transcript of the session goes before its input."""
    NATIVE = "native"
    """The provider's own conversation goes on: the newest one that it had in this session, or a first one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a run is to be carried out. Checked when made: a bad value raises ValidationError that names the field."""

    provider: str | None = None
    """A provider, or a router, by its name."""
    router: str | None = None
    """A router by its name; instead of a provider."""
    routing: RoutingOverrides | None = None
    """What this run wants otherwise than its router is declared."""
    required_capabilities: tuple[str | dict[str, str], ...] = ()
    """What the provider must be able to do: types, names, or {"type", "name"}. Refused before anything is queued if it
    cannot; a router chooses among those that can."""
    optional_capabilities: tuple[str | dict[str, str], ...] = ()
    """What it should be able to do: if it cannot, the run says so and goes on."""
    retry_budget_s: float | None = None
    """For how long a failure of the provider that may pass is tried again there, from the first one on. None: 60 s
    where the provider has an account (a breaker or a rate budget) and there is no other, 2 s where a router has another
    one, else 0: a failure is told at once."""
    provider_options: dict[str, Any] = field(default_factory=dict[str, Any])
    """Options of the provider's kind, laid over the declared ones."""
    model: str | None = None
    deadline_s: float = DEFAULT_DEADLINE_S
    """Seconds from the start of the first attempt; waiting in the queue does not count, a crash does not reset it."""
    max_turns: int | None = None
    permission_mode: PermissionMode = PermissionMode.DEFAULT
    continuation: Continuation = Continuation.OFF
    continuation_limits: TranscriptLimits | None = None
    """How much of the past a replay tells; None: all of it."""
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    on_crash: OnCrash = OnCrash.FAIL
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    busy: Busy = Busy.ENQUEUE
    priority: int = 0
    """Where the runtime is at its limit, runs with a higher one start first. Within a session the order stands."""
    policies: tuple[dict[str, Any], ...] = ()
    """All of them hold: together they can only tighten. `policy` adds one; those of the session's run_defaults stay."""

    def __post_init__(self) -> None:
        if not self.deadline_s > 0 or self.deadline_s == float("inf"):
            raise ValidationError(
                f"options.deadline_s is {self.deadline_s}; it must be a positive, finite number of seconds.",
                details={"field": "options.deadline_s"},
            )
        if self.retry_budget_s is not None and not 0 <= self.retry_budget_s < float("inf"):
            raise ValidationError(
                f"options.retry_budget_s is {self.retry_budget_s}; it must be a finite number of seconds, 0 or more.",
                details={"field": "options.retry_budget_s"},
            )
        if self.router is not None and self.provider is not None:
            raise ValidationError(
                "options.router and options.provider are both given; give one of them.",
                details={"field": "options.router"},
            )
        for name in ("max_turns", "max_attempts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValidationError(
                    f"options.{name} is {value}; it must be at least 1.", details={"field": f"options.{name}"}
                )


DEFAULT_RUN_OPTIONS = RunOptions()

LATER_OPTIONS = frozenset(
    {
        "workspace",
        "response_schema",
    }
)
"""Names that the public contract reserves and this version cannot honour: refused with capability_not_supported."""


def given_options(options: RunOptions) -> dict[str, Any]:
    """The options that differ from their defaults, as JSON-safe values: what an event keeps."""
    return {
        item.name: _plain(value)
        for item in fields(RunOptions)
        if (value := getattr(options, item.name)) != getattr(DEFAULT_RUN_OPTIONS, item.name)
    }


def _plain(value: Any) -> Any:
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, TranscriptLimits | RoutingOverrides):
        return {name: _plain(one) for name, one in asdict(value).items() if one is not None}
    return list(value) if isinstance(value, tuple) else value  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def merge_options(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A run's options over its session's defaults; mappings are merged key by key, everything else is replaced."""
    merged = {**defaults, **given}
    for name, other in (("provider", "router"), ("router", "provider")):  # the run's own choice counts alone
        if given.get(name) is not None and given.get(other) is None:
            merged.pop(other, None)
    for name in ("provider_options", "metadata"):
        if name in defaults and name in given:
            merged[name] = {**defaults[name], **given[name]}
    policies = [*_policies_of(defaults), *_policies_of(given)]
    merged.pop("policy", None)
    if policies:
        merged["policies"] = policies
    return merged


def _policies_of(options: Mapping[str, Any]) -> list[Any]:
    """`policy` and `policies` as one list."""
    several = options.get("policies", ())
    if not isinstance(several, list | tuple):
        raise ValidationError("options.policies must be a list of policies.", details={"field": "options.policies"})
    found: list[Any] = list(several)  # pyright: ignore[reportUnknownArgumentType]  whatever a caller gave
    if options.get("policy") is not None:
        found.append(options["policy"])
    return found
