"""Run options: defaults, what overrides what, and refusals that name the field."""

from typing import Any

import pytest
from hypothesis import given, strategies as st

from greenroom.adapters.json_safety import require_json_safe
from greenroom.adapters.option_parsing import parse_options
from greenroom.adapters.run_option_parsing import parse_run_options
from greenroom.domain.errors import CapabilityNotSupported, ValidationError
from greenroom.domain.run_options import (
    DEFAULT_RUN_OPTIONS,
    LATER_OPTIONS,
    Busy,
    OnCrash,
    RunOptions,
    given_options,
)
from greenroom.domain.session import SessionSpec


def test_nothing_given_gives_the_defaults_of_the_contract() -> None:
    options = parse_run_options({}, None)

    assert DEFAULT_RUN_OPTIONS == options
    assert (600.0, OnCrash.FAIL, 3, Busy.ENQUEUE) == (
        options.deadline_s,
        options.on_crash,
        options.max_attempts,
        options.busy,
    )


@pytest.mark.parametrize(
    ("key", "nearest"), [("deadline", "deadline_s"), ("on_crsh", "on_crash"), ("max_turn", "max_turns")]
)
def test_an_unknown_key_is_refused_with_the_nearest_right_one(key: str, nearest: str) -> None:
    with pytest.raises(ValidationError) as refused:
        parse_run_options({}, {key: 1})

    assert {"field": f"options.{key}", "nearest": [nearest]} == refused.value.details
    assert f"did you mean {nearest!r}?" in refused.value.message


def test_a_key_like_no_other_is_refused_with_all_that_are_known() -> None:
    with pytest.raises(ValidationError, match=r"options\.xyzzy is not known; known are: .*deadline_s") as refused:
        parse_run_options({}, {"xyzzy": 1})

    assert [] == refused.value.details["nearest"]


@pytest.mark.parametrize(
    ("given_options_", "field"),
    [
        ({"deadline_s": "soon"}, "options.deadline_s"),
        ({"deadline_s": 0}, "options.deadline_s"),
        ({"deadline_s": -1.0}, "options.deadline_s"),
        ({"deadline_s": float("inf")}, "options.deadline_s"),
        ({"deadline_s": float("nan")}, "options.deadline_s"),
        ({"provider": 7}, "options.provider"),
        ({"provider_options": "x"}, "options.provider_options"),
        ({"metadata": []}, "options.metadata"),
        ({"metadata": {"at": float("nan")}}, "options.metadata"),
        ({"metadata": {"raw": b"x"}}, "options.metadata"),
        ({"metadata": {"text": "\ud800"}}, "options.metadata"),
        ({"metadata": {"number": 1 << 64}}, "options.metadata"),
        ({"metadata": {1: "x"}}, "options.metadata"),
        ({"provider_options": {"deep": {"raw": {1, 2}}}}, "options.provider_options"),
        ({"model": ["a"]}, "options.model"),
        ({"max_turns": 0}, "options.max_turns"),
        ({"max_turns": "many"}, "options.max_turns"),
        ({"max_attempts": 0}, "options.max_attempts"),
        ({"on_crash": "explode"}, "options.on_crash"),
        ({"busy": "panic"}, "options.busy"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(given_options_: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        parse_run_options({}, given_options_)

    assert field == refused.value.details["field"]


@pytest.mark.parametrize("given_options_", ["provider", 7, [("provider", "shell")]])
def test_options_that_are_no_mapping_are_refused(given_options_: Any) -> None:
    with pytest.raises(ValidationError) as refused:
        parse_run_options({}, given_options_)

    assert {"field": "options"} == refused.value.details


@pytest.mark.parametrize("name", sorted(LATER_OPTIONS))
def test_an_option_of_a_later_version_is_told_from_a_wrong_one(name: str) -> None:
    with pytest.raises(CapabilityNotSupported) as refused:
        parse_run_options({}, {name: "x"})

    assert {"field": f"options.{name}"} == refused.value.details


def test_the_contract_names_are_all_known() -> None:
    contract = {
        *("provider", "router", "provider_options", "model", "deadline_s", "max_turns", "permission_mode"),
        *("continuation", "workspace", "policy", "policies", "required_capabilities", "optional_capabilities"),
        *("metadata", "on_crash", "max_attempts", "retry_budget_s", "busy", "priority", "response_schema"),
    }

    assert contract <= LATER_OPTIONS | set(RunOptions.__dataclass_fields__) | {"policy"}
    assert not LATER_OPTIONS & set(RunOptions.__dataclass_fields__)


def test_a_runs_options_override_those_of_its_session_and_mappings_merge() -> None:
    defaults = {"deadline_s": 5, "model": "a", "metadata": {"x": 1, "y": 1}, "provider_options": {"reply": "no"}}

    options = parse_run_options(defaults, {"deadline_s": 600, "metadata": {"y": 2}})

    expected = RunOptions(deadline_s=600, model="a", metadata={"x": 1, "y": 2}, provider_options={"reply": "no"})
    assert expected == options


def test_options_given_as_the_record_are_the_same_as_a_mapping() -> None:
    assert parse_run_options({}, {"deadline_s": 7}) == parse_run_options({}, RunOptions(deadline_s=7))


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "provider": st.sampled_from(["shell", "scripted"]),
            "model": st.none() | st.sampled_from(["m"]),
            "deadline_s": st.sampled_from([1.0, 600.0]),
            "max_turns": st.none() | st.integers(1, 5),
            "metadata": st.dictionaries(st.text(max_size=3), st.integers(0, 9), max_size=2),
            "on_crash": st.sampled_from(["fail", "retry"]),
            "max_attempts": st.integers(1, 5),
            "busy": st.sampled_from(["enqueue", "reject"]),
        },
    )
)
def test_what_an_event_keeps_of_the_options_gives_them_back(given_options_: dict[str, Any]) -> None:
    options = parse_run_options({}, given_options_)

    kept = given_options(options)

    require_json_safe(kept, field="options")
    assert options == parse_run_options({}, kept)


def test_an_instance_of_the_options_type_passes_as_it_is() -> None:
    options = RunOptions(model="m")

    assert options is parse_options(RunOptions, options, field="options")


@pytest.mark.parametrize(
    "value", [None, True, "é\n", 0, -(1 << 63), (1 << 64) - 1, 0.5, [], {"a": [1, {"b": None}]}, ("a", 1), OnCrash.FAIL]
)
def test_json_values_are_json_safe(value: Any) -> None:
    require_json_safe(value, field="metadata")


@pytest.mark.parametrize(
    "value",
    [b"x", {1}, object(), float("inf"), [float("nan")], {1: "a"}, {None: "a"}, 1 << 64, -(1 << 63) - 1, "\udc00"],
)
def test_what_json_or_the_log_cannot_keep_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError, match="metadata is not JSON-safe") as refused:
        require_json_safe({"value": value}, field="metadata")

    assert {"field": "metadata"} == refused.value.details


def test_a_value_that_is_nested_too_deep_is_refused() -> None:
    value: Any = []
    for _ in range(2_000):
        value = [value]

    with pytest.raises(ValidationError, match="metadata is not JSON-safe"):
        require_json_safe(value, field="metadata")


@pytest.mark.parametrize(("field", "value"), [("agent_id", ""), ("max_concurrent_runs", 0), ("max_queued_runs", -1)])
def test_a_session_is_not_specified_with_a_value_that_cannot_be(field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as refused:
        SessionSpec(**{field: value})

    assert {"field": field} == refused.value.details


def test_a_session_may_be_specified_to_let_no_run_wait() -> None:
    assert 0 == SessionSpec(max_queued_runs=0).max_queued_runs
