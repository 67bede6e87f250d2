"""Recordings of Codex: stdin and stdout of its app-server, as openai_codex drives it, or what `codex exec` writes."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..agents.replayed_attempt import Attempt, Line
from .exec_mapping import CodexExecMapping
from .mapping import CodexMapping


def replay(lines: Sequence[Line], *, continued: Mapping[str, str] | None = None) -> list[Attempt]:
    """One attempt for each prompt: each turn of an app-server, each process of `codex exec`. `continued` is the handle
    of the process before that the latter goes on with."""
    if any(direction == "in" and "method" in line for direction, line in lines):
        return _replay_app(lines)
    return [_replay_exec(lines, continued)]


def _replay_exec(lines: Sequence[Line], continued: Mapping[str, str] | None) -> Attempt:
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
