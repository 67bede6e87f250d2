"""Recordings of real clients, replayed through the mappings. `python -m tests.provider_recordings` writes the golden
lists anew: read what has changed before you believe it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from .replays import acp, amp, claude_code, codex
from .replays.attempt import Attempt, Line

DATA = Path(__file__).parent / "data"
RECORDINGS, GOLDEN = DATA / "recordings", DATA / "golden"

_OF_PROCESSES = frozenset({"err", "exit"})

REPLAYS: dict[str, Callable[[Sequence[Line]], list[Attempt]]] = {
    "acp": acp.replay,
    "amp": amp.replay,
    "claude-code": claude_code.replay,
    "codex": codex.replay,
}


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
        [
            (one["dir"], one["line"])
            for one in recorded
            if isinstance(one.get("line"), dict) or one["dir"] in _OF_PROCESSES
        ]
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
