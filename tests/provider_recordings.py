"""Recordings of real clients, replayed through the mappings. `python -m tests.provider_recordings` writes the golden
lists anew: read what has changed before you believe it."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from greenroom.adapters.providers.claude_code_mapping import ClaudeCodeMapping
from greenroom.adapters.providers.wire_mapping import WireMapping
from greenroom.domain.errors import GreenroomError
from greenroom.domain.provider import ProviderEvent, ProviderOutcome

DATA = Path(__file__).parent / "data"
Line = tuple[str, dict[str, Any]]
"""Direction (in, out) and message; what is no message is left out."""

RECORDINGS, GOLDEN = DATA / "recordings", DATA / "golden"


@dataclass
class Attempt:
    """What a mapping made of one turn of a recording."""

    mapping: WireMapping
    events: list[ProviderEvent] = field(default_factory=list[ProviderEvent])

    def end(self) -> ProviderOutcome | GreenroomError:
        try:
            return self.mapping.outcome()
        except GreenroomError as exc:
            return exc

    def to_golden(self) -> dict[str, Any]:
        end = self.end()
        if isinstance(end, ProviderOutcome):
            ended: dict[str, Any] = {
                "content": end.content,
                "stop_reason": end.stop_reason,
                "token_usage": end.token_usage.to_dict(),
                "cost_usd": None if end.cost_usd is None else round(end.cost_usd, 9),
                "model": end.model,
                "turn_count": end.turn_count,
            }
        else:
            ended = {"error": end.code, "message": end.message, "details": end.details}
        return {"events": list(_golden_events(self.events)), "end": ended, "handle": self.mapping.handle}


def _golden_events(events: list[ProviderEvent]) -> Iterator[list[Any]]:
    """Type, data and metadata; pieces of one message on one line."""
    pieces: list[Any] | None = None
    for event in events:
        data = {**event.data, **({"metadata": event.metadata} if event.metadata else {})}
        if event.type.value != "message_streamed":
            if pieces:
                yield pieces
            pieces = None
            yield [event.type.value, data]
        elif pieces and pieces[2]["kind"] == event.data["kind"]:
            pieces[1] += 1
            pieces[2] = {**pieces[2], "content": pieces[2]["content"] + event.data["content"]}
        else:
            if pieces:
                yield pieces
            pieces = [event.type.value, 1, data]
    if pieces:
        yield pieces


def _claude_code(lines: Sequence[Line]) -> list[Attempt]:
    attempts: list[Attempt] = []
    asked: dict[str, str] = {}
    for direction, line in lines:
        if direction == "in" and line.get("type") == "user":
            attempts.append(Attempt(ClaudeCodeMapping()))
        elif direction == "out" and line.get("type") == "control_request":
            asked[line["request_id"]] = line["request"].get("tool_use_id", "")
        elif direction == "in" and line.get("type") == "control_response":
            mapping, answer = attempts[-1].mapping, line["response"].get("response") or {}
            if answer.get("behavior") == "deny" and isinstance(mapping, ClaudeCodeMapping):
                mapping.deny(asked[line["response"]["request_id"]])
        elif direction == "out" and attempts:
            attempts[-1].events += attempts[-1].mapping.take(line)
    return attempts or [Attempt(ClaudeCodeMapping())]


REPLAYS: dict[str, Callable[[Sequence[Line]], list[Attempt]]] = {"claude-code": _claude_code}


def names() -> list[str]:
    """Provider and case of every recording."""
    return [
        f"{provider}/{path.stem}" for provider in REPLAYS for path in sorted((RECORDINGS / provider).glob("*.jsonl"))
    ]


def replay(name: str) -> list[Attempt]:
    """The attempts that the recording holds."""
    path = RECORDINGS / f"{name}.jsonl"
    recorded = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return REPLAYS[path.parent.name](
        [(one["dir"], one.get("line")) for one in recorded if isinstance(one.get("line"), dict)]
    )


def golden_path(name: str) -> Path:
    return GOLDEN / f"{name}.json"


def _write_golden() -> None:
    for name in names():
        path = golden_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        golden = [attempt.to_golden() for attempt in replay(name)]
        path.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _write_golden()
