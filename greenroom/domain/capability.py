"""What providers can do, and what their models add to that or take from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase


class CapabilityType(StrEnum):
    """What kind of thing a provider can do."""

    TOOL = "tool"
    RESOURCE = "resource"
    PROMPT = "prompt"
    SAMPLING = "sampling"
    FILE_ACCESS = "file_access"
    NETWORK_ACCESS = "network_access"
    CODE_EXECUTION = "code_execution"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """One thing that a provider can do."""

    name: str
    type: CapabilityType
    description: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAbilities:
    """What a model adds to what its provider can do, or takes from it; by the names of capabilities."""

    add: tuple[Capability, ...] = ()
    remove: tuple[str, ...] = ()


def capabilities_with(
    own: Sequence[Capability], models: Mapping[str, ModelAbilities], model: str | None
) -> tuple[Capability, ...]:
    """The capabilities of a provider with this model. Names of models may have the wildcards of a shell; all that fit
    hold, one after the other."""
    found = {one.name: one for one in own}
    for pattern, abilities in models.items():
        if model is not None and fnmatchcase(model, pattern):
            found |= {one.name: one for one in abilities.add}
            found = {name: one for name, one in found.items() if name not in abilities.remove}
    return tuple(found.values())
