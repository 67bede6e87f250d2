"""What a run wants of a provider, held against what the provider can do: before anything is queued."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

from .capability import Capability, CapabilityType
from .errors import MissingRequiredCapability, ValidationError
from .routing import Requirement


class NegotiationStatus(StrEnum):
    """How much of what was wished for is there."""

    FULL = "full"
    DEGRADED = "degraded"
    """What is required is; something optional is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Negotiation:
    """What came of it."""

    status: NegotiationStatus = NegotiationStatus.FULL
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As a run keeps it."""
        return {"status": self.status.value, "warnings": list(self.warnings)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a provider can do, with one of its models."""

    provider: str
    kind: str
    model: str | None
    """None: whichever the provider takes by itself."""
    capabilities: tuple[Capability, ...]
    permission_modes: tuple[str, ...] = ()
    continues_natively: bool = False
    enforces_tool_rules: bool = True
    """Whether a tool that a policy denies never runs; if not, the call is judged after the fact (`advisory`)."""
    price_usd: float | None = None
    """For a million tokens in and as many out; None: not known."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON-safe values."""
        return {
            "provider": self.provider,
            "kind": self.kind,
            "model": self.model,
            "capabilities": [
                {"name": one.name, "type": one.type.value, "description": one.description} for one in self.capabilities
            ],
            "permission_modes": list(self.permission_modes),
            "continues_natively": self.continues_natively,
            "enforces_tool_rules": self.enforces_tool_rules,
            "price_usd": self.price_usd,
        }


def negotiate(
    capabilities: Iterable[Capability], required: Sequence[Requirement], optional: Sequence[Requirement], *, whose: str
) -> Negotiation:
    """What a run can have of what it wants. MissingRequiredCapability names all that it requires and cannot have."""
    there = tuple(capabilities)
    missing = [one.text for one in required if not any(one.is_met_by(capability) for capability in there)]
    if missing:
        raise MissingRequiredCapability(
            f"{whose} cannot do what the run requires: {', '.join(missing)}. It can:"
            f" {', '.join(sorted(one.name for one in there)) or 'nothing of the kind'}. Choose another provider.",
            details={"field": "options.required_capabilities", "missing": missing},
        )
    warnings = [
        f"{whose} does not have the optional capability {one.text}."
        for one in optional
        if not any(one.is_met_by(capability) for capability in there)
    ]
    status = NegotiationStatus.DEGRADED if warnings else NegotiationStatus.FULL
    return Negotiation(status=status, warnings=tuple(warnings))


def parse_requirements(given: Iterable[object], *, field: str) -> tuple[Requirement, ...]:
    """Requirements from a type (`"tool"`), a name (`"bash"`), or `{"type", "name"}`. ValidationError."""
    return tuple(_requirement(one, f"{field}[{index}]") for index, one in enumerate(given))


def _requirement(given: object, field: str) -> Requirement:
    if isinstance(given, str) and given:
        if given in set(CapabilityType):
            return Requirement(type=CapabilityType(given))
        return Requirement(name=given)
    if not isinstance(given, Mapping) or not given:
        raise _refusal(field, "must be a type or a name of a capability, or a mapping with `type` and `name`")
    values = cast("Mapping[str, object]", given)
    for key in values:
        if key not in {"type", "name"}:
            raise _refusal(f"{field}.{key}", "is not known; known are: name, type")
    return Requirement(type=_type(values.get("type"), f"{field}.type"), name=_name(values.get("name"), f"{field}.name"))


def _type(given: object, field: str) -> CapabilityType | None:
    if given is None:
        return None
    if given not in [one.value for one in CapabilityType]:
        raise _refusal(field, f"is {given!r}; it must be one of {', '.join(CapabilityType)}")
    return CapabilityType(str(given))


def _name(given: object, field: str) -> str | None:
    if given is not None and (not isinstance(given, str) or not given):
        raise _refusal(field, "must be the name of a capability")
    return given


def _refusal(field: str, reason: str) -> ValidationError:
    return ValidationError(f"{field} {reason}.", details={"field": field})
