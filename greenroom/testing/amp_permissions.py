"""What the amp program may do."""

import json
import re
import shlex
from fnmatch import fnmatchcase
from typing import Any, cast

from .amp_commands import Commands

_ALLOWED_WITHOUT_RULE = frozenset({"Read"})


class Permissions:
    """The rules of `amp.permissions`: the first that fits a call decides. `denials` are all that were refused.

    Where no rule fits, reading is allowed and all else has to be asked for. There is nobody to ask, so that is refused.
    A program that decides (`delegate`) allows a call with exit status 0.
    """

    def __init__(self, settings: dict[str, Any], commands: Commands, thread_id: str, *, allow_all: bool) -> None:
        self.denials: list[str] = []
        self._rules: list[dict[str, Any]] = settings.get("amp.permissions", [])
        self._commands = commands
        self._thread_id = thread_id
        self._allow_all = allow_all or settings.get("amp.dangerouslyAllowAll", False)

    def refusal(self, tool: str, arguments: dict[str, Any]) -> str | None:
        """Why the call may not be made, in the words that the model is told; None if it may."""
        if self._allow_all:
            return None
        fallback = {"action": "allow" if tool in _ALLOWED_WITHOUT_RULE else "ask"}
        rule = next((rule for rule in self._rules if _fits(rule, tool, arguments)), fallback)
        reason = self._reason(rule, tool, arguments)
        if reason is None:
            return None
        text = f"Tool {tool} was rejected by permission rules" + (f": {reason}" if reason else "")
        self.denials.append(text)
        return text

    def _reason(self, rule: dict[str, Any], tool: str, arguments: dict[str, Any]) -> str | None:
        match rule["action"]:
            case "allow":
                return None
            case "delegate":
                return self._asked(rule["to"], tool, arguments)
            case "ask":
                return "there is nobody to ask for approval"
            case _:
                return str(rule.get("message", ""))

    def _asked(self, program: str, tool: str, arguments: dict[str, Any]) -> str | None:
        environment = {"AGENT": "amp", "AGENT_TOOL_NAME": tool, "AMP_THREAD_ID": self._thread_id}
        try:
            status, output = self._commands.run(
                shlex.split(program), given=json.dumps(arguments), environment=environment
            )
        except OSError as exc:
            return str(exc)
        return None if status == 0 else output.strip()


def _fits(rule: dict[str, Any], tool: str, arguments: dict[str, Any]) -> bool:
    if rule.get("context") == "subagent" or not fnmatchcase(tool, rule["tool"]):
        return False
    return _meets(rule.get("matches") or {}, arguments)


def _meets(condition: object, value: object) -> bool:
    """Whether a value is as a condition says: a text is a pattern, or a regular expression between slashes; a list
    offers several; an object has conditions for what is in the value; all else is the value itself."""
    if isinstance(condition, str):
        is_expression = len(condition) > 1 and condition[0] == condition[-1] == "/"
        if is_expression:
            return re.search(condition[1:-1], str(value)) is not None
        return fnmatchcase(str(value), condition)
    if isinstance(condition, list):
        return any(_meets(one, value) for one in cast("list[object]", condition))
    if isinstance(condition, dict):
        inner = cast("dict[str, object]", value) if isinstance(value, dict) else {}
        conditions = cast("dict[str, object]", condition)
        return all(name in inner and _meets(one, inner[name]) for name, one in conditions.items())
    return condition == value
