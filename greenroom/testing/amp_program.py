"""A stand-in for the program `amp`: an agent that asks a Messages API and works with tools of its own.

It takes Amp's command line and writes Amp's lines of JSON, so that Amp's real SDK can drive it. The API it asks is at
$AMP_URL, which is to be the url of a MessagesServer: whatever that answers, faults included, happens to the program.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, cast

from .amp_commands import Commands
from .amp_lines import AmpLines
from .amp_permissions import Permissions
from .amp_thread import AmpThread
from .amp_tools import AmpTools
from .messages_client import ApiFailed, MessagesClient

_SCRIPT = """#!/bin/sh
exec {python} -P -m {module} --max-turns {max_turns} "$@"
"""
"""-P: a module in the folder where it works is not to be taken for one of Python's."""

_IGNORED = ("--mcp-config", "--effort", "--log-level", "--log-file")


class AmpProgram:
    """Puts an executable file `amp` into a folder, for AMP_CLI_PATH of Amp's SDK.

    The environment of the program has AMP_URL, AMP_API_KEY and HOME, under which it keeps its threads. Its tools are
    Bash, Read and create_file. As Amp does without a person at it, it may read, and for all else needs a rule of
    `amp.permissions` that allows it, or leave to do everything. It ends with `error_max_turns` when the model still
    calls tools after `max_turns` messages. It tries nothing again: what the API answers is told at once.

        program = AmpProgram(tmp_path)
        environment = {"AMP_CLI_PATH": str(program.path), "AMP_URL": server.url, "AMP_API_KEY": "any", "HOME": home}
    """

    def __init__(self, folder: Path, *, max_turns: int = 50) -> None:
        self.path = folder / "amp"
        script = _SCRIPT.format(python=shlex.quote(sys.executable), module=__name__, max_turns=max_turns)
        self.path.write_text(script, encoding="utf-8")
        self.path.chmod(0o755)


class _OutOfTurnsError(Exception):
    """The model wants to go on, but may not."""


class _Agent:
    """Answers prompts of one thread: asks the model, runs the tools it calls, and tells each step as a line."""

    def __init__(self, thread: AmpThread, client: MessagesClient, tools: AmpTools, lines: AmpLines) -> None:
        self._thread = thread
        self._client = client
        self._tools = tools
        self._lines = lines

    def answer(self, prompt: str, *, model: str, max_turns: int) -> str:
        """The last text of the model.

        The thread is saved only where it can be continued: never with calls that have no result.
        """
        asked: dict[str, Any] = {"role": "user", "content": [{"type": "text", "text": prompt}]}
        self._lines.user(asked["content"])
        self._thread.add(asked)
        for _ in range(max_turns):
            message = self._client.ask({"model": model, "max_tokens": 32_000, **self._request()})
            self._lines.assistant(message)
            said = {"role": "assistant", "content": message["content"]}
            calls = [block for block in message["content"] if block["type"] == "tool_use"]
            if not calls:
                self._thread.add(said)
                return "".join(block["text"] for block in message["content"] if block["type"] == "text")
            results = [self._result(call) for call in calls]
            self._lines.user(results)
            self._thread.add(said, {"role": "user", "content": results})
        raise _OutOfTurnsError(f"The agent used all {max_turns} turns that it may take.")

    def _request(self) -> dict[str, Any]:
        return {"messages": self._thread.messages, "tools": self._tools.definitions()}

    def _result(self, call: dict[str, Any]) -> dict[str, Any]:
        content, is_error = self._tools.run(call["name"], call["input"])
        return {"type": "tool_result", "tool_use_id": call["id"], "content": content, "is_error": is_error}


def main(arguments: list[str]) -> int:
    """Run the program and return its exit status."""
    options, unknown = _parser().parse_known_args(arguments)
    if unknown:
        _give_up(f"error: unknown option '{unknown[0]}'")
    if not options.execute or not (options.stream_json or options.stream_json_thinking):
        _give_up("Error: The stand-in has no other mode than --execute with --stream-json.")
    commands = Commands()
    commands.obey_signals()
    return _executed(options, _client(), commands)


def _executed(options: argparse.Namespace, client: MessagesClient, commands: Commands) -> int:
    thread = _thread(options)
    settings = _settings(options)
    permissions = Permissions(settings, commands, thread.id, allow_all=options.dangerously_allow_all)
    tools = AmpTools(commands, permissions, enabled=settings.get("amp.tools.enable", ["*"]))
    lines = AmpLines(thread.id, with_thinking=options.stream_json_thinking)
    agent = _Agent(thread, client, tools, lines)
    lines.init(tools.names())
    content = ""
    try:
        for prompt in _prompts(options):
            content = agent.answer(prompt, model=f"amp-{options.mode}", max_turns=options.max_turns)
    except ApiFailed as failed:
        lines.failure("error_during_execution", str(failed), thread.turns, permissions.denials)
        return 1
    except _OutOfTurnsError as out_of_turns:
        lines.failure("error_max_turns", str(out_of_turns), thread.turns, permissions.denials)
        return 1
    lines.success(content, thread.turns, permissions.denials)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="amp", allow_abbrev=False)
    parser.add_argument("words", nargs="*", help="threads continue [T-id]")
    for flag in ("execute", "stream-json", "stream-json-thinking", "stream-json-input", "dangerously-allow-all"):
        parser.add_argument(f"--{flag}", action="store_true")
    parser.add_argument("--no-archive-after-execute", action="store_true")
    parser.add_argument("--settings-file", type=Path)
    parser.add_argument("--mode", default="medium")
    parser.add_argument("--label", action="append", default=[])
    parser.add_argument("--title")
    parser.add_argument("--visibility")
    parser.add_argument("--max-turns", type=int, default=50, help="of the stand-in only")
    for ignored in _IGNORED:
        parser.add_argument(ignored)
    return parser


def _client() -> MessagesClient:
    url, key = os.environ.get("AMP_URL"), os.environ.get("AMP_API_KEY")
    if not key:
        _give_up("Error: No API key found. Run `amp login`, or set AMP_API_KEY.")
    if not url:
        _give_up("Error: The stand-in asks nobody but the API at AMP_URL, which is not set.")
    return MessagesClient(url, key)


def _thread(options: argparse.Namespace) -> AmpThread:
    about = {"title": options.title, "labels": options.label, "visibility": options.visibility, "mode": options.mode}
    match options.words:
        case []:
            return AmpThread.new(about)
        case ["threads", "continue", *rest]:
            thread = AmpThread.found(rest[0]) if rest else AmpThread.latest()
            return thread or _give_up("Error: thread not found")
        case words:
            return _give_up(f"error: unknown command '{' '.join(words)}'")


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    if options.settings_file is None:
        return {}
    try:
        return cast("dict[str, Any]", json.loads(options.settings_file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as exc:
        _give_up(f"Error: The settings file cannot be read: {exc}")


def _prompts(options: argparse.Namespace) -> Iterator[str]:
    """All of stdin as one prompt; or one a line, the next read when the one before is answered."""
    if not options.stream_json_input:
        yield sys.stdin.read().removesuffix("\n")
        return
    for line in sys.stdin:
        if line.strip():
            content: list[dict[str, Any]] = json.loads(line)["message"]["content"]
            yield "".join(block.get("text", "") for block in content)


def _give_up(text: str) -> NoReturn:
    sys.stderr.write(f"{text}\n")
    sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
