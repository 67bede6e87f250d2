"""Policies: which tools may run, for which a person is asked, and how much a run may use. Several can only tighten."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, cast

from .errors import PolicyViolation, ValidationError
from .tool import ToolApproval


class OnViolation(StrEnum):
    """What becomes of a run that breaks a rule of its policy. A tool that is denied never runs unasked."""

    CANCEL = "cancel"
    """It ends failed: with policy_violation, or budget_exceeded where a budget is used up."""
    ASK = "ask"
    """It stops where it is and a person is asked: about the call, or if it may go beyond the limit."""
    WARN = "warn"
    """It goes on, and the log says so; an agent is told that its call was denied."""


class Metric(StrEnum):
    """What can be limited, by the names of contract.md."""

    TOTAL_TOKENS = "max_total_tokens"
    DURATION_S = "max_duration_s"
    TOOL_CALLS = "max_tool_calls"
    TURNS = "max_turns"
    COST_USD = "max_cost_usd"


_WHOLE = frozenset({Metric.TOTAL_TOKENS, Metric.TOOL_CALLS, Metric.TURNS})


class Breach(NamedTuple):
    """A limit that was passed: of which policy, and by what."""

    policy: str
    metric: Metric
    limit: float
    value: float
    on_violation: OnViolation


class Permission(IntEnum):
    """What a policy says of a call, the strictest last."""

    ALLOW = 0
    ASK = 1
    DENY = 2


class Verdict(NamedTuple):
    """What is to be done with a call, and which rule of which policy says so."""

    permission: Permission
    policy: str | None = None
    rule: dict[str, list[str]] | None = None
    on_violation: OnViolation = OnViolation.CANCEL


POLICY_QUESTION = "greenroom.policy"
"""The name under which a person is asked if a run may go beyond a limit."""

_KINDS = ("allow", "deny", "ask")
_WILDCARDS = frozenset("*?[")
_KEYS = frozenset({"name", "limits", "tool_rules", "on_violation"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One policy."""

    name: str
    tool_rules: tuple[tuple[str, tuple[str, ...]], ...]
    """Kind (allow, deny, ask) and names of tools, which may have the wildcards of a shell."""
    on_violation: OnViolation
    limits: Mapping[Metric, float] = field(default_factory=dict[Metric, float])
    """The most that a run may use, over all its attempts."""

    def verdict(self, tool_name: str) -> Verdict:
        """What this policy says of the tool: the strictest of its rules. What an allow list does not name is denied."""
        strictest = Verdict(Permission.ALLOW)
        for kind, patterns in self.tool_rules:
            hit = any(fnmatchcase(tool_name, pattern) for pattern in patterns)
            if kind == "ask" and hit:
                found = Permission.ASK
            elif (kind == "deny") == hit and kind != "ask":
                found = Permission.DENY
            else:
                continue
            if found is Permission.DENY and self.on_violation is OnViolation.ASK:
                found = Permission.ASK
            if found > strictest.permission:
                strictest = Verdict(found, self.name, {kind: list(patterns)}, self.on_violation)
        return strictest


def tool_verdict(policies: Sequence[Policy], tool_name: str, approval: ToolApproval) -> Verdict:
    """What all policies and the tool's own wish say together: the strictest."""
    verdicts = [policy.verdict(tool_name) for policy in policies]
    strictest = max(verdicts, key=_strictness, default=Verdict(Permission.ALLOW))
    if approval is ToolApproval.ALWAYS and strictest.permission is Permission.ALLOW:
        return Verdict(Permission.ASK)
    return strictest


def _strictness(verdict: Verdict) -> tuple[Permission, int]:
    return verdict.permission, -list(OnViolation).index(verdict.on_violation)


def binding(policies: Sequence[Policy]) -> list[Policy]:
    """Those whose limits a run cannot go beyond: what warns or asks lets it, or may."""
    return [policy for policy in policies if policy.on_violation is OnViolation.CANCEL]


def breaches(policies: Sequence[Policy], metric: Metric, value: float) -> list[Breach]:
    """The limits that a value passes; one that is just reached is kept. The strictest action first."""
    found = [
        Breach(policy.name, metric, policy.limits[metric], value, policy.on_violation)
        for policy in policies
        if metric in policy.limits and value > policy.limits[metric]
    ]
    return sorted(found, key=lambda breach: list(OnViolation).index(breach.on_violation))


def tightest(policies: Sequence[Policy], metric: Metric) -> float | None:
    """The lowest limit that any of them sets."""
    return min((policy.limits[metric] for policy in policies if metric in policy.limits), default=None)


def merged(policies: Sequence[Policy]) -> Policy:
    """One policy that is never looser than any of them, whatever their order: the lowest limits, all rules, and the
    strictest action. For people to look at: a run holds each policy's rules with that policy's own action."""
    return Policy(
        name=" + ".join(dict.fromkeys(policy.name for policy in policies)) or "default",
        tool_rules=tuple(rule for policy in policies for rule in policy.tool_rules),
        on_violation=min(
            (policy.on_violation for policy in policies), key=list(OnViolation).index, default=OnViolation.CANCEL
        ),
        limits={metric: limit for metric in Metric if (limit := tightest(policies, metric)) is not None},
    )


def preflight(policies: Sequence[Policy]) -> None:
    """PolicyViolation for policies that no run could keep; `details.check` says why."""
    for policy in policies:
        for metric, limit in policy.limits.items():
            if limit == 0:
                remedy = " Forbid all tools with tool_rules [{'deny': ['*']}]." if metric is Metric.TOOL_CALLS else ""
                raise _impossible("zero_budget", f"{metric} is 0: nothing could be done.{remedy}", policy)
        allowed = [set(names) for kind, names in policy.tool_rules if kind == "allow"]
        denied = {name for kind, names in policy.tool_rules if kind == "deny" for name in names}
        if not all(allowed):
            raise _impossible("empty_allow_list", "an allow list is empty: no tool could pass.", policy)
        both = sorted(denied & {name for names in allowed for name in names})
        if both:
            raise _impossible(
                "contradictory_rules", f"{', '.join(both)} would be allowed and denied.", policy, tools=both
            )
    _check_that_something_is_allowed(policies)


def _check_that_something_is_allowed(policies: Sequence[Policy]) -> None:
    denying = [policy for policy in policies if policy.on_violation is not OnViolation.ASK]
    lists = [names for policy in denying for kind, names in policy.tool_rules if kind == "allow"]
    if not lists or any(_WILDCARDS & set(name) for names in lists for name in names):
        return
    together = {name for name in lists[0] if all(name in names for names in lists)}
    if not any(tool_verdict(denying, name, ToolApproval.NEVER).permission is not Permission.DENY for name in together):
        names = ", ".join(repr(policy.name) for policy in policies)
        raise PolicyViolation(
            f"Policies {names} together leave no tool that may be used. Let their allow lists have one in common, or"
            " say so with tool_rules [{'deny': ['*']}].",
            details={"check": "nothing_allowed", "policies": [policy.name for policy in policies]},
        )


def _impossible(check: str, reason: str, policy: Policy, **details: Any) -> PolicyViolation:
    return PolicyViolation(
        f"Policy {policy.name!r} cannot be kept: {reason}", details={"check": check, "policy": policy.name, **details}
    )


def parse_policy(given: object, *, field: str) -> Policy:
    """The policy. ValidationError names what is wrong."""
    values = _mapping(given, field)
    for key in values:
        if key not in _KEYS:
            raise _refusal(f"{field}.{key}", f"is not known; known are: {', '.join(sorted(_KEYS))}")
    name = values.get("name", "default")
    if not isinstance(name, str) or not name:
        raise _refusal(f"{field}.name", "must be text")
    on_violation = values.get("on_violation", OnViolation.CANCEL.value)
    if on_violation not in [one.value for one in OnViolation]:
        raise _refusal(f"{field}.on_violation", f"is {on_violation!r}; it must be one of {', '.join(OnViolation)}")
    rules = values.get("tool_rules", ())
    if not isinstance(rules, list | tuple):
        raise _refusal(f"{field}.tool_rules", "must be a list of {'allow' | 'deny' | 'ask': [names of tools]}")
    parsed = [
        rule
        for index, one in enumerate(cast("Sequence[object]", rules))
        for rule in _rules(one, f"{field}.tool_rules[{index}]")
    ]
    return Policy(
        name=name,
        tool_rules=tuple(parsed),
        on_violation=OnViolation(on_violation),
        limits=_limits(values.get("limits") or {}, f"{field}.limits"),
    )


def _limits(given: object, field: str) -> dict[Metric, float]:
    limits: dict[Metric, float] = {}
    for key, value in _mapping(given, field).items():
        if key not in [metric.value for metric in Metric]:
            near = difflib.get_close_matches(str(key), list(Metric), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(Metric)}"
            raise _refusal(f"{field}.{key}", f"is not known; {hint}")
        metric = Metric(key)
        if value is None:
            continue
        kinds = (int,) if metric in _WHOLE else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool) or not 0 <= value < float("inf"):
            what = "a whole number" if metric in _WHOLE else "a finite number"
            raise _refusal(f"{field}.{key}", f"must be {what} that is not negative")
        limits[metric] = value
    return limits


def _rules(given: object, field: str) -> list[tuple[str, tuple[str, ...]]]:
    values = _mapping(given, field)
    rules: list[tuple[str, tuple[str, ...]]] = []
    for kind, names in values.items():
        if kind not in _KINDS:
            raise _refusal(f"{field}.{kind}", f"is not known; known are: {', '.join(_KINDS)}")
        if not isinstance(names, list | tuple) or not all(
            isinstance(name, str) and name for name in cast("Any", names)
        ):
            raise _refusal(f"{field}.{kind}", "must be a list of names of tools")
        rules.append((kind, tuple(cast("Sequence[str]", names))))
    return rules


def _mapping(given: object, field: str) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise _refusal(field, f"must be a mapping, not {type(given).__name__}")
    return cast("Mapping[str, Any]", given)


def _refusal(field: str, reason: str) -> ValidationError:
    return ValidationError(f"{field} {reason}.", details={"field": field})
