"""Policies on tools: which may run, which may not, and for which a person is asked. Several can only tighten."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, cast

from .errors import CapabilityNotSupported, ValidationError
from .tool import ToolApproval


class OnViolation(StrEnum):
    """What becomes of a run whose agent calls a tool that its policy denies. The call itself never runs unasked."""

    CANCEL = "cancel"
    """The run ends failed with policy_violation."""
    ASK = "ask"
    """A person is asked, as if the rule were `ask`."""
    WARN = "warn"
    """The agent is told that the call was denied, and goes on."""


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


_KINDS = ("allow", "deny", "ask")
_KEYS = frozenset({"name", "limits", "tool_rules", "on_violation"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One policy."""

    name: str
    tool_rules: tuple[tuple[str, tuple[str, ...]], ...]
    """Kind (allow, deny, ask) and names of tools, which may have the wildcards of a shell."""
    on_violation: OnViolation

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
    strictest = max(verdicts, key=lambda verdict: verdict.permission, default=Verdict(Permission.ALLOW))
    if approval is ToolApproval.ALWAYS and strictest.permission is Permission.ALLOW:
        return Verdict(Permission.ASK)
    return strictest


def parse_policy(given: object, *, field: str) -> Policy:
    """The policy. ValidationError names what is wrong; CapabilityNotSupported for limits, which come later."""
    values = _mapping(given, field)
    for key in values:
        if key not in _KEYS:
            raise _refusal(f"{field}.{key}", f"is not known; known are: {', '.join(sorted(_KEYS))}")
    if values.get("limits"):
        raise CapabilityNotSupported(
            f"{field}.limits is not in this version; tool_rules are.", details={"field": f"{field}.limits"}
        )
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
    return Policy(name=name, tool_rules=tuple(parsed), on_violation=OnViolation(on_violation))


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
