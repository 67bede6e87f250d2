"""What a run wants of a provider, and what it can have."""

from typing import Any

import pytest
from hypothesis import given, strategies as st

from greenroom.domain.capability import Capability, CapabilityType, ModelAbilities, capabilities_with
from greenroom.domain.capability_negotiation import NegotiationStatus, negotiate, parse_requirements
from greenroom.domain.errors import MissingRequiredCapability, ValidationError

BASH = Capability(name="bash", type=CapabilityType.TOOL)
STREAMING = Capability(name="streaming", type=CapabilityType.SAMPLING)


def wants(*given: Any) -> Any:
    return parse_requirements(given, field="options.required_capabilities")


@pytest.mark.parametrize(
    "given", ["tool", "bash", {"type": "tool"}, {"name": "bash"}, {"type": "tool", "name": "bash"}]
)
def test_a_capability_is_asked_for_by_type_by_name_or_by_both(given: Any) -> None:
    negotiation = negotiate([BASH, STREAMING], wants(given), (), whose="it")

    assert (NegotiationStatus.FULL, ()) == (negotiation.status, negotiation.warnings)


@pytest.mark.parametrize("given", ["resource", "teleport", {"type": "sampling", "name": "bash"}])
def test_what_is_required_and_missing_is_refused_and_named(given: Any) -> None:
    with pytest.raises(MissingRequiredCapability) as refused:
        negotiate([BASH, STREAMING], wants("bash", given), (), whose="it")

    assert 1 == len(refused.value.details["missing"])


def test_what_is_optional_and_missing_leaves_a_warning() -> None:
    negotiation = negotiate([BASH], (), wants("bash", "teleport"), whose="it")

    assert NegotiationStatus.DEGRADED is negotiation.status
    assert "teleport" in negotiation.warnings[0]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ("", "[0]"),
        (1, "[0]"),
        ({}, "[0]"),
        ({"kind": "tool"}, "[0].kind"),
        ({"type": "tols"}, "[0].type"),
        ({"name": ""}, "[0].name"),
    ],
)
def test_what_is_no_requirement_is_refused_by_name(given: Any, field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        wants(given)

    assert f"options.required_capabilities{field}" == refused.value.details["field"]


def test_a_model_adds_to_what_its_provider_can_do_and_takes_from_it() -> None:
    models = {"tiny-*": ModelAbilities(add=(STREAMING,), remove=("bash",))}

    assert (BASH,) == capabilities_with([BASH], models, "big-1")
    assert (BASH,) == capabilities_with([BASH], models, None)
    assert (STREAMING,) == capabilities_with([BASH], models, "tiny-1")


names = st.sampled_from(["a", "b", "c"])
capabilities = st.lists(st.builds(Capability, name=names, type=st.sampled_from(CapabilityType)), max_size=5)


@given(capabilities, st.lists(names, max_size=3), st.lists(names, max_size=3))
def test_it_is_full_exactly_when_nothing_is_missing(
    there: list[Capability], required: list[str], optional: list[str]
) -> None:
    found = {one.name for one in there}
    try:
        negotiation = negotiate(there, wants(*required), wants(*optional), whose="it")
    except MissingRequiredCapability:
        assert not set(required) <= found
    else:
        assert set(required) <= found
        assert (negotiation.status is NegotiationStatus.FULL) == (set(optional) <= found)
