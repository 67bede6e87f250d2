"""Recordings of real clients, replayed through the mappings. `python -m tests.provider_recordings` writes the golden
lists anew: read what has changed before you believe it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from greenroom.adapters.providers.agents.recording import read_recording
from greenroom.adapters.providers.agents.replayed_attempt import Attempt
from greenroom.adapters.providers.codex import replay as codex
from greenroom.adapters.providers.replay import REPLAYS
from greenroom.domain.provider import ProviderEvent, ProviderOutcome

DATA = Path(__file__).parent / "data"
RECORDINGS, GOLDEN = DATA / "recordings", DATA / "golden"

CONTINUED = {"codex/exec_resume": "codex/exec_text"}
"""Recordings of a process that goes on with the conversation of another one."""


def names() -> list[str]:
    """Provider and case of every recording."""
    return [
        f"{provider}/{path.stem}" for provider in REPLAYS for path in sorted((RECORDINGS / provider).glob("*.jsonl"))
    ]


def replay(name: str) -> list[Attempt]:
    """The attempts that the recording holds."""
    lines = list(read_recording(RECORDINGS / f"{name}.jsonl"))
    if name in CONTINUED:
        return codex.replay(lines, continued=replay(CONTINUED[name])[-1].mapping.handle)
    return REPLAYS[name.partition("/")[0]](lines)


def golden_path(name: str) -> Path:
    return GOLDEN / f"{name}.json"


def to_golden(attempt: Attempt) -> dict[str, Any]:
    """What is kept of it, and read."""
    end = attempt.end()
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
    return {"events": list(_golden_events(attempt.events)), "end": ended, "handle": attempt.mapping.handle}


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


def _write_golden() -> None:
    for name in names():
        path = golden_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        golden = [to_golden(attempt) for attempt in replay(name)]
        path.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _write_golden()
