"""What policies say of tools, alone and together."""

import itertools
from typing import Any

import pytest
from hypothesis import given, strategies as st

from greenroom.domain.errors import CapabilityNotSupported, ValidationError
from greenroom.domain.tool import ToolApproval
from greenroom.domain.tool_policy import OnViolation, Permission, Policy, parse_policy, tool_verdict

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
    ],
)
def test_what_is_no_policy_is_refused_by_name(given: object, field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        parse_policy(given, field="policy")

    assert field == refused.value.details["field"]


def test_limits_come_later() -> None:
    with pytest.raises(CapabilityNotSupported):
        parse_policy({"limits": {"max_turns": 1}}, field="policy")
