"""Recordings of agents that speak the Agent Client Protocol: JSON-RPC lines both ways."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..agents.replayed_attempt import Attempt, Line
from .mapping import AcpMapping


def replay(lines: Sequence[Line]) -> list[Attempt]:
    """One attempt for each prompt, of all sessions in the order of the prompts: which of them were steered into the run
    of another cannot be told. Updates before the first one of a session are of no attempt: history, or news."""
    recording = _Recording()
    for direction, line in lines:
        if direction == "in":
            recording.sent(line)
        elif direction == "out":
            recording.received(line)
    return recording.attempts or [Attempt(AcpMapping())]


@dataclass
class _Prompt:
    """One that was sent, and what it gave."""

    mapping: AcpMapping
    attempt: Attempt
    is_cancelled: bool = False


class _Recording:
    """What the adapter would keep of the connection."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []
        self._prompts: dict[Any, _Prompt] = {}
        """By the id of the prompt."""
        self._sessions: dict[str, _Prompt] = {}
        """The last one of each session."""
        self._agent: str | None = None
        self._asked: dict[Any, Mapping[str, Any]] = {}

    def sent(self, line: Mapping[str, Any]) -> None:
        params: Mapping[str, Any] = line.get("params") or {}
        if line.get("method") == "session/prompt":
            self._begin(line["id"], params["sessionId"])
        elif line.get("method") == "session/cancel":
            if (prompt := self._sessions.get(params["sessionId"])) is not None:
                prompt.is_cancelled = True
                prompt.mapping.asked_to_cancel()
        elif line.get("id") in self._asked:
            asked = self._asked[line["id"]]
            prompt = self._sessions[asked["sessionId"]]
            result: Mapping[str, Any] = line.get("result") or {}
            if not prompt.is_cancelled and not _allows(asked, result.get("outcome") or {}):
                prompt.mapping.deny(asked["toolCall"]["toolCallId"])

    def received(self, line: Mapping[str, Any]) -> None:
        if "method" not in line:
            self._answered(line)
            return
        params: Mapping[str, Any] = line.get("params") or {}
        prompt = self._sessions.get(params.get("sessionId", ""))
        if prompt is not None and line["method"] == "session/update":
            prompt.attempt.events += prompt.mapping.take(params)
        elif prompt is not None and line["method"] == "session/request_permission":
            self._asked[line["id"]] = params
            prompt.attempt.events += prompt.mapping.permission_requested(params)

    def _begin(self, number: object, session_id: str) -> None:
        before = self._sessions.get(session_id)
        cost_usd = 0.0 if before is None else before.mapping.session_cost_usd
        mapping = AcpMapping(session_id, agent=self._agent, session_cost_usd=cost_usd)
        prompt = self._prompts[number] = self._sessions[session_id] = _Prompt(mapping, Attempt(mapping))
        self.attempts.append(prompt.attempt)

    def _answered(self, line: Mapping[str, Any]) -> None:
        result: Mapping[str, Any] = line.get("result") or {}
        if "agentInfo" in result:
            self._agent = result["agentInfo"]["name"]
        if (prompt := self._prompts.get(line["id"])) is not None:
            mapping = prompt.mapping
            prompt.attempt.events += mapping.failed(line["error"]) if "error" in line else mapping.answered(result)


def _allows(params: Mapping[str, Any], outcome: Mapping[str, Any]) -> bool:
    """Whether the chosen option is one that allows: by its kind, the ids differ from agent to agent."""
    kinds = {option["optionId"]: option["kind"] for option in params["options"]}
    return str(kinds.get(outcome.get("optionId"))).startswith("allow")
