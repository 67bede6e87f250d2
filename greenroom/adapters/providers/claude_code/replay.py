"""Recordings of Claude Code: stdin and stdout of the CLI, as the claude-agent-sdk drives it."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..agents.replayed_attempt import Attempt, Line
from .mapping import ClaudeCodeMapping


def replay(lines: Sequence[Line]) -> list[Attempt]:
    """One attempt for each prompt."""
    attempts: list[Attempt] = []
    asked: dict[str, str] = {}
    for direction, line in lines:
        if direction == "in" and line.get("type") == "user":
            attempts.append(Attempt(ClaudeCodeMapping()))
        elif direction == "out" and line.get("type") == "control_request":
            asked[line["request_id"]] = line["request"].get("tool_use_id", "")
        elif direction == "in" and line.get("type") == "control_response":
            mapping = attempts[-1].mapping
            answer: Mapping[str, Any] = line["response"].get("response") or {}
            if answer.get("behavior") == "deny" and isinstance(mapping, ClaudeCodeMapping):
                mapping.deny(asked[line["response"]["request_id"]])
        elif direction == "out" and attempts:
            attempts[-1].events += attempts[-1].mapping.take(line)
    return attempts or [Attempt(ClaudeCodeMapping())]
