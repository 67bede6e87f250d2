"""Recordings of Codex: stdin and stdout of its app-server, as openai_codex drives it, or what `codex exec` writes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from greenroom.adapters.providers.codex_exec_mapping import CodexExecMapping
from greenroom.adapters.providers.codex_mapping import CodexMapping

from .attempt import Attempt, Line

RECORDINGS = Path(__file__).parents[1] / "data" / "recordings" / "codex"


def replay(lines: Sequence[Line]) -> list[Attempt]:
    """One attempt for each prompt: each turn of an app-server, each process of `codex exec`."""
    return _replay_app(lines) if any(direction == "in" for direction, _ in lines) else [_replay_exec(lines)]


def _replay_exec(lines: Sequence[Line]) -> Attempt:
    continued = None
    outputs = [one for one in lines if one[0] == "out"]
    if outputs == _outputs("exec_resume"):  # the thread of another recording, whose usage it counts again
        continued = _replay_exec(_outputs("exec_text")).mapping.handle
    mapping = CodexExecMapping(continued=continued)
    attempt = Attempt(mapping)
    stderr: list[str] = []
    for direction, line in lines:
        if direction == "out":
            attempt.events += mapping.take(line)
        elif direction == "err":
            stderr.append(line)
        elif direction == "exit":
            mapping.ended(line, "\n".join(stderr))
    return attempt


def _outputs(case: str) -> list[Line]:
    recorded = [json.loads(line) for line in (RECORDINGS / f"{case}.jsonl").read_text(encoding="utf-8").splitlines()]
    return [("out", one["line"]) for one in recorded if one["dir"] == "out"]


def _replay_app(lines: Sequence[Line]) -> list[Attempt]:
    attempts: list[Attempt] = []
    models: dict[str, str] = {}
    asked: dict[Any, str] = {}
    for direction, line in lines:
        if direction == "in" and line.get("method") == "turn/start":
            thread_id = line["params"]["threadId"]
            continued = attempts[-1].mapping.handle if attempts else None
            attempts.append(Attempt(CodexMapping(thread_id, model=models.get(thread_id), continued=continued)))
        elif direction == "in" and line.get("id") in asked:
            mapping = attempts[-1].mapping
            if line["result"]["decision"] in ("decline", "cancel") and isinstance(mapping, CodexMapping):
                mapping.deny(asked[line["id"]])
        elif direction == "out" and str(line.get("method")).endswith("/requestApproval"):
            asked[line["id"]] = line["params"]["itemId"]
        elif direction == "out" and "thread" in (line.get("result") or {}):
            models[line["result"]["thread"]["id"]] = line["result"]["model"]
        elif direction == "out" and attempts:
            attempts[-1].events += attempts[-1].mapping.take(line)
    return attempts
