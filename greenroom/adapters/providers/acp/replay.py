"""Recordings of agents that speak the Agent Client Protocol: JSON-RPC lines both ways."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..agents.replayed_attempt import Attempt, Line
from .mapping import AcpMapping


def replay(lines: Sequence[Line]) -> list[Attempt]:
    """One attempt for each prompt. Updates before the first one are of no attempt: history, or news of the session."""
    recording = _Recording()
    for direction, line in lines:
        if direction == "in":
            recording.sent(line)
        elif direction == "out":
            recording.received(line)
    return recording.attempts or [Attempt(AcpMapping())]


class _Recording:
    """What the adapter would keep of the connection."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []
        self._mappings: dict[Any, AcpMapping] = {}
        """By the id of the prompt."""
        self._mapping = AcpMapping()
        self._agent: str | None = None
        self._asked: dict[Any, Mapping[str, Any]] = {}
        self._is_cancelled = False

    def sent(self, line: Mapping[str, Any]) -> None:
        if line.get("method") == "session/prompt":
            self._mapping = AcpMapping(
                line["params"]["sessionId"], agent=self._agent, session_cost_usd=self._mapping.session_cost_usd
            )
            self._mappings[line["id"]] = self._mapping
            self._is_cancelled = False
            self.attempts.append(Attempt(self._mapping))
        elif line.get("method") == "session/cancel":
            self._is_cancelled = True
            self._mapping.asked_to_cancel()
        elif line.get("id") in self._asked and not self._is_cancelled:
            params = self._asked[line["id"]]
            if not _allows(params, line["result"]["outcome"]):
                self._mapping.deny(params["toolCall"]["toolCallId"])

    def received(self, line: Mapping[str, Any]) -> None:
        if "method" not in line:
            self._answered(line)
        elif self.attempts and line["method"] == "session/update":
            self.attempts[-1].events += self._mapping.take(line["params"])
        elif self.attempts and line["method"] == "session/request_permission":
            self._asked[line["id"]] = line["params"]
            self.attempts[-1].events += self._mapping.permission_requested(line["params"])

    def _answered(self, line: Mapping[str, Any]) -> None:
        result: Mapping[str, Any] = line.get("result") or {}
        if "agentInfo" in result:
            self._agent = result["agentInfo"]["name"]
        if line["id"] in self._mappings:
            mapping = self._mappings[line["id"]]
            events = mapping.failed(line["error"]) if "error" in line else mapping.answered(result)
            self.attempts[-1].events += events


def _allows(params: Mapping[str, Any], outcome: Mapping[str, Any]) -> bool:
    """Whether the chosen option is one that allows: by its kind, the ids differ from agent to agent."""
    kinds = {option["optionId"]: option["kind"] for option in params["options"]}
    return str(kinds.get(outcome.get("optionId"))).startswith("allow")
