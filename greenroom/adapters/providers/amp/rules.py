"""Rules of `amp.permissions`: what policies, the permission mode and the user want, in Amp's own words."""

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import reduce
from typing import Any

from ....domain.errors import CapabilityNotSupported
from ....domain.permission_mode import PermissionMode
from ....domain.policy import Policy

READING = (
    "Read",
    "Grep",
    "glob",
    "finder",
    "get_diagnostics",
    "view_media",
    "oracle",
    "librarian",
    "read_web_page",
    "web_search",
    "read_thread",
    "find_thread",
)
"""Built-in tools that change nothing. Those of them that are agents themselves are held to the same rules."""

EDITING = ("edit_file", "create_file", "apply_patch", "delete_file", "undo_edit")
"""Built-in tools that change files and do nothing else."""

_SHELLS = frozenset({"Bash", "shell_command", "async_shell_command"})
"""Amp takes a rule with one of these names for all three."""

_SAME_PATTERN = re.compile(r"[\w.:*?-]+", re.ASCII)
"""Patterns that Amp reads as policies do. In its own, braces are alternatives and ! in brackets is not a negation."""

_WILDCARDS = ("*", "?")

Rule = Mapping[str, Any]


def is_restricted(policies: Iterable[Policy], mode: PermissionMode, tools: Sequence[str] | None) -> bool:
    """Whether there is something that Amp must not do, so that its rules have to hold."""
    return mode is PermissionMode.PLAN or tools == () or any(policy.tool_rules for policy in policies)


def permission_rules(
    policies: Sequence[Policy], mode: PermissionMode, *, tools: Sequence[str] | None, own: Sequence[Rule]
) -> list[Rule]:
    """The rules in order; the first that fits a call decides, and where none does, Amp's own.

    Nobody can be asked, so what a policy wants asked is rejected. What an allow list names is allowed, though Amp may
    have asked for it; all else is rejected. The rules that the user has (`own`) come after what is rejected here, and
    where only a list is allowed, those of them that allow are left out, since they could only add to it.
    CapabilityNotSupported for what cannot be said in rules.
    """
    if mode is PermissionMode.DANGEROUSLY_SKIP_PERMISSIONS:
        if is_restricted(policies, mode, tools):
            raise CapabilityNotSupported(
                "Amp keeps to no policy and no list of tools while it skips permissions; use"
                " permission_mode='full_auto'.",
                details={"field": "permission_mode"},
            )
        return []
    given = [rule for policy in policies for rule in policy.tool_rules]
    rejected = [_checked(name) for kind, names in given if kind != "allow" for name in names]
    lists = [tuple(map(_checked, names)) for kind, names in given if kind == "allow"]
    lists += [READING] if mode is PermissionMode.PLAN else []
    lists += [()] if tools == () else []
    rules = _with_action("reject", rejected)
    if not lists:
        return [*rules, *own, *_with_action("allow", _granted(mode))]
    allowed = reduce(_both, lists)
    return [
        *rules,
        *_without_allowing(own),
        *_with_action("allow", map(_alone, allowed)),
        {"tool": "*", "action": "reject"},
    ]


def rejects(rules: Iterable[Rule], tool_name: str) -> bool:
    """Whether the rules reject every call of the tool."""
    name = tool_name.lower()
    fitting = (rule for rule in rules if "matches" not in rule and fnmatchcase(name, str(rule.get("tool")).lower()))
    return next((rule.get("action") == "reject" for rule in fitting), False)


def _granted(mode: PermissionMode) -> tuple[str, ...]:
    granted = {PermissionMode.FULL_AUTO: ("*",), PermissionMode.ACCEPT_EDITS: EDITING}
    return granted.get(mode, ())


def _with_action(action: str, names: Iterable[str]) -> list[Rule]:
    return [{"tool": name, "action": action} for name in names]


def _alone(name: str) -> str:
    """The pattern for the tool of this name, and for none that Amp takes for the same."""
    return f"[{name[0]}]{name[1:]}" if name in _SHELLS else name


def _without_allowing(own: Iterable[Rule]) -> list[Rule]:
    kept = [rule for rule in own if rule.get("action") != "allow"]
    if any(rule.get("action") == "delegate" for rule in kept):
        raise CapabilityNotSupported(
            "Amp cannot both keep to a list of allowed tools and delegate the decision to a program; leave one out.",
            details={"field": "extra.permissions"},
        )
    return kept


def _checked(pattern: str) -> str:
    if _SAME_PATTERN.fullmatch(pattern) is None:
        raise _inexpressible(f"Amp reads the pattern {pattern!r} of a policy differently")
    return pattern


def _both(ours: tuple[str, ...], theirs: tuple[str, ...]) -> tuple[str, ...]:
    """Patterns for the names that both lists allow."""
    common = (_narrower(one, other) for one in ours for other in theirs)
    return tuple(dict.fromkeys(pattern for pattern in common if pattern is not None))


def _narrower(one: str, other: str) -> str | None:
    """The pattern that fits what both fit; None if there is no such name."""
    if _covers(other, one):
        return one
    if _covers(one, other):
        return other
    if _is_name(one) or _is_name(other) or (_is_prefix(one) and _is_prefix(other)):
        return None
    raise _inexpressible(f"What both {one!r} and {other!r} allow is no pattern that Amp knows")


def _covers(wide: str, narrow: str) -> bool:
    if _is_name(narrow):
        return fnmatchcase(narrow, wide)
    return wide == narrow or (_is_prefix(wide) and narrow.startswith(wide[:-1]))


def _is_name(pattern: str) -> bool:
    return not any(wildcard in pattern for wildcard in _WILDCARDS)


def _is_prefix(pattern: str) -> bool:
    return pattern.endswith("*") and _is_name(pattern[:-1])


def _inexpressible(why: str) -> CapabilityNotSupported:
    return CapabilityNotSupported(
        f"{why}; name the tools, or use patterns like 'mcp__*'.", details={"field": "policies"}
    )
