"""What policies say of tools, alone and together."""

import itertools
from typing import Any

import pytest
from hypothesis import given, strategies as st

from greenroom.domain.errors import PolicyViolation, ValidationError
from greenroom.domain.policy import (
    Metric,
    OnViolation,
    Permission,
    Policy,
    breaches,
    merged,
    parse_policy,
    preflight,
    tightest,
    tool_verdict,
)
from greenroom.domain.tool import ToolApproval

NAMES = ("read", "write", "bash")
NO_RULES: list[dict[str, list[str]]] = []
NO_NAMES: list[str] = []


def policy(*rules: dict[str, list[str]], **more: Any) -> Policy:
    return parse_policy({"tool_rules": list(rules), **more}, field="policy")


def says(*policies: Policy, tool: str, approval: ToolApproval = ToolApproval.NEVER) -> Permission:
    return tool_verdict(policies, tool, approval).permission


@pytest.mark.parametrize(
    ("rules", "tool", "expected"),
    [
        (NO_RULES, "bash", Permission.ALLOW),
        ([{"allow": ["read"]}], "read", Permission.ALLOW),
        ([{"allow": ["read"]}], "bash", Permission.DENY),
        ([{"deny": ["bash"]}], "bash", Permission.DENY),
        ([{"deny": ["bash"]}], "read", Permission.ALLOW),
        ([{"ask": ["bash"]}], "bash", Permission.ASK),
        ([{"ask": ["bash"]}, {"deny": ["bash"]}], "bash", Permission.DENY),
        ([{"allow": ["read", "bash"]}, {"allow": ["read"]}], "bash", Permission.DENY),
        ([{"deny": ["mcp__*"]}], "mcp__files__read", Permission.DENY),
        ([{"allow": NO_NAMES}], "read", Permission.DENY),
    ],
)
def test_the_strictest_rule_counts(rules: list[dict[str, list[str]]], tool: str, expected: Permission) -> None:
    assert expected == says(policy(*rules), tool=tool)


def test_a_tool_that_wants_to_be_asked_for_is_unless_it_is_denied() -> None:
    assert Permission.ASK == says(tool="bash", approval=ToolApproval.ALWAYS)
    assert Permission.ALLOW == says(tool="bash", approval=ToolApproval.POLICY)
    assert Permission.DENY == says(policy({"deny": ["bash"]}), tool="bash", approval=ToolApproval.ALWAYS)


def test_on_violation_ask_turns_a_denial_into_a_question() -> None:
    assert Permission.ASK == says(policy({"deny": ["bash"]}, on_violation="ask"), tool="bash")


def test_a_verdict_names_the_policy_and_the_rule() -> None:
    verdict = tool_verdict([policy({"deny": ["bash"]}, name="ours", on_violation="warn")], "bash", ToolApproval.NEVER)

    assert ("ours", {"deny": ["bash"]}, OnViolation.WARN) == (verdict.policy, verdict.rule, verdict.on_violation)


rules = st.lists(
    st.dictionaries(st.sampled_from(["allow", "deny", "ask"]), st.lists(st.sampled_from(NAMES), max_size=3)), max_size=3
)


def made(given: list[dict[str, list[str]]], action: str) -> Policy:
    return policy(*given, on_violation=action)


any_policy = st.builds(made, rules, st.sampled_from(["cancel", "warn", "ask"]))
policies = st.lists(any_policy, max_size=4)


@given(policies, policies)
def test_more_policies_can_only_tighten(some: list[Policy], more: list[Policy]) -> None:
    for tool in NAMES:
        assert says(*some, *more, tool=tool) >= says(*some, tool=tool)


@given(st.lists(any_policy, min_size=2, max_size=3))
def test_the_order_of_policies_does_not_matter(some: list[Policy]) -> None:
    for tool in NAMES:
        assert 1 == len({says(*order, tool=tool) for order in itertools.permutations(some)})


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ("x", "policy"),
        ({"rules": []}, "policy.rules"),
        ({"name": ""}, "policy.name"),
        ({"on_violation": "explode"}, "policy.on_violation"),
        ({"tool_rules": {}}, "policy.tool_rules"),
        ({"tool_rules": [{"forbid": ["x"]}]}, "policy.tool_rules[0].forbid"),
        ({"tool_rules": [{"deny": "bash"}]}, "policy.tool_rules[0].deny"),
        ({"tool_rules": [{"deny": [""]}]}, "policy.tool_rules[0].deny"),
        ({"tool_rules": ["deny"]}, "policy.tool_rules[0]"),
        ({"limits": [1]}, "policy.limits"),
        ({"limits": {"max_turn": 1}}, "policy.limits.max_turn"),
        ({"limits": {"max_turns": 1.5}}, "policy.limits.max_turns"),
        ({"limits": {"max_turns": True}}, "policy.limits.max_turns"),
        ({"limits": {"max_cost_usd": -1}}, "policy.limits.max_cost_usd"),
        ({"limits": {"max_duration_s": float("inf")}}, "policy.limits.max_duration_s"),
        ({"limits": {"max_duration_s": float("nan")}}, "policy.limits.max_duration_s"),
    ],
)
def test_what_is_no_policy_is_refused_by_name(given: object, field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        parse_policy(given, field="policy")

    assert field == refused.value.details["field"]


# Limits


def limited(action: str = "cancel", **limits: float) -> Policy:
    return policy(limits=limits, on_violation=action, name=f"{action} {sorted(limits.items())}")


def test_a_limit_that_is_just_reached_is_kept() -> None:
    one = limited(max_tool_calls=2)

    assert [] == breaches([one], Metric.TOOL_CALLS, 2)
    assert [(one.name, 2, 3)] == [(b.policy, b.limit, b.value) for b in breaches([one], Metric.TOOL_CALLS, 3)]


def test_of_several_limits_that_are_passed_the_strictest_action_comes_first() -> None:
    stack = [limited("warn", max_turns=1), limited("ask", max_turns=2), limited("cancel", max_turns=3)]

    assert ["cancel", "ask", "warn"] == [breach.on_violation for breach in breaches(stack, Metric.TURNS, 4)]
    assert ["warn"] == [breach.on_violation for breach in breaches(stack, Metric.TURNS, 2)]


actions = st.sampled_from(["cancel", "warn", "ask"])
some_limits = st.dictionaries(st.sampled_from([metric.value for metric in Metric]), st.integers(0, 5), max_size=4)


def with_limits(limits: dict[str, int], action: str) -> Policy:
    return limited(action, **limits)


limit_policies = st.lists(st.builds(with_limits, some_limits, actions), max_size=4)


@given(limit_policies, st.permutations(range(4)))
def test_merged_in_any_order_no_limit_is_looser_than_any_of_the_policies_sets(
    stack: list[Policy], order: list[int]
) -> None:
    shuffled = [stack[index] for index in order if index < len(stack)]
    together = merged(shuffled)

    for metric in Metric:
        limits = [one.limits[metric] for one in stack if metric in one.limits]
        assert together.limits.get(metric) == min(limits, default=None)
        assert tightest(shuffled, metric) == min(limits, default=None)
    assert merged(stack).limits == together.limits
    assert all(
        list(OnViolation).index(together.on_violation) <= list(OnViolation).index(one.on_violation) for one in stack
    )


@given(limit_policies, limit_policies, st.sampled_from(Metric), st.integers(0, 6))
def test_another_policy_takes_back_no_breach(
    some: list[Policy], more: list[Policy], metric: Metric, value: int
) -> None:
    assert set(breaches(some, metric, value)) <= set(breaches([*more, *some], metric, value))


@given(policies, policies)
def test_merged_rules_allow_nothing_that_one_of_the_policies_denies(some: list[Policy], more: list[Policy]) -> None:
    strict = [policy(*({kind: list(names)} for kind, names in one.tool_rules)) for one in (*some, *more)]
    for tool in NAMES:
        assert says(merged(strict), tool=tool) >= says(*strict, tool=tool)


@pytest.mark.parametrize(
    ("stack", "check"),
    [
        ([{"limits": {"max_total_tokens": 0}}], "zero_budget"),
        ([{"limits": {"max_tool_calls": 0}}], "zero_budget"),
        ([{"limits": {"max_duration_s": 0}}], "zero_budget"),
        ([{"limits": {"max_cost_usd": 0.0}}], "zero_budget"),
        ([{"tool_rules": [{"allow": NO_NAMES}]}], "empty_allow_list"),
        ([{"tool_rules": [{"allow": ["a", "b"]}, {"deny": ["a"]}]}], "contradictory_rules"),
        ([{"tool_rules": [{"allow": ["a"]}]}, {"tool_rules": [{"allow": ["b"]}]}], "nothing_allowed"),
        ([{"tool_rules": [{"allow": ["a"]}]}, {"tool_rules": [{"deny": ["*"]}]}], "nothing_allowed"),
    ],
)
def test_policies_that_no_run_could_keep_are_refused_before_it(stack: list[dict[str, Any]], check: str) -> None:
    with pytest.raises(PolicyViolation) as refused:
        preflight([parse_policy(one, field="policy") for one in stack])

    assert check == refused.value.details["check"]


@pytest.mark.parametrize(
    "stack",
    [
        [],
        [{}],
        [{"tool_rules": [{"deny": ["*"]}]}],
        [{"tool_rules": [{"allow": ["a"]}]}, {"tool_rules": [{"allow": ["a", "b"]}]}],
        [{"tool_rules": [{"allow": ["a*"]}]}, {"tool_rules": [{"allow": ["b"]}]}],
        [{"tool_rules": [{"allow": ["a"]}]}, {"tool_rules": [{"allow": ["b"]}], "on_violation": "ask"}],
    ],
)
def test_policies_that_a_run_could_keep_are_not(stack: list[dict[str, Any]]) -> None:
    preflight([parse_policy(one, field="policy") for one in stack])
