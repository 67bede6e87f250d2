"""The lines that the amp program writes."""

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

_STOP_REASONS = frozenset({"end_turn", "tool_use", "max_tokens"})
"""Those that Amp's SDK knows; it takes no line with another one."""

_COUNTS = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")


class AmpLines:
    """Writes each line as soon as it is told. `result` counts the tokens of all messages before it."""

    def __init__(self, thread_id: str, *, with_thinking: bool) -> None:
        self._thread_id = thread_id
        self._with_thinking = with_thinking
        self._spent: Counter[str] = Counter()
        self._started_at = time.monotonic()

    def init(self, tools: list[str]) -> None:
        self._write({"type": "system", "subtype": "init", "cwd": str(Path.cwd()), "tools": tools, "mcp_servers": []})

    def user(self, content: list[dict[str, Any]]) -> None:
        """A prompt, or the results of tools."""
        message = {"role": "user", "content": content}
        self._write({"type": "user", "message": message, "parent_tool_use_id": None})

    def assistant(self, message: dict[str, Any]) -> None:
        """A message of the model, as the API gave it."""
        given: dict[str, Any] = message["usage"]
        counts = {name: given.get(name, 0) for name in _COUNTS}
        self._spent.update(counts)
        reason = message["stop_reason"]
        shown = {
            "type": "message",
            "role": "assistant",
            "model": message["model"],
            "content": self._shown(message["content"]),
            "stop_reason": reason if reason in _STOP_REASONS else "end_turn",
            "usage": _usage(counts),
        }
        self._write({"type": "assistant", "message": shown, "parent_tool_use_id": None})

    def success(self, content: str, turns: int, denials: list[str]) -> None:
        self._result(turns, denials, subtype="success", is_error=False, result=content, usage=_usage(self._spent))

    def failure(self, subtype: str, text: str, turns: int, denials: list[str]) -> None:
        self._result(turns, denials, subtype=subtype, is_error=True, error=text)

    def _result(self, turns: int, denials: list[str], **rest: Any) -> None:
        duration_ms = int((time.monotonic() - self._started_at) * 1000)
        denied = {"permission_denials": denials} if denials else {}
        self._write({"type": "result", "duration_ms": duration_ms, "num_turns": turns, **rest, **denied})

    def _shown(self, content: list[dict[str, Any]]) -> list[dict[str, Any]]:
        kinds = ("text", "tool_use", "thinking") if self._with_thinking else ("text", "tool_use")
        return [
            {key: value for key, value in block.items() if key != "signature"}
            for block in content
            if block["type"] in kinds
        ]

    def _write(self, line: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps({**line, "session_id": self._thread_id}) + "\n")
        sys.stdout.flush()


def _usage(counts: dict[str, int]) -> dict[str, Any]:
    return {**{name: counts[name] for name in _COUNTS}, "max_tokens": 200_000, "service_tier": "standard"}
