"""The tools of the amp program."""

import json
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from .amp_commands import Commands
from .amp_permissions import Permissions

_ARGUMENTS: Mapping[str, tuple[str, ...]] = {"Bash": ("cmd",), "Read": ("path",), "create_file": ("path", "content")}
"""Tool -> the arguments it needs, all of them texts."""


class AmpTools:
    """Bash, Read and create_file, in the folder where the program works; `enabled` are patterns of names."""

    def __init__(self, commands: Commands, permissions: Permissions, *, enabled: list[str]) -> None:
        self._commands = commands
        self._permissions = permissions
        self._enabled = enabled
        self._run: Mapping[str, Callable[..., tuple[str, bool]]] = {
            "Bash": self._bash,
            "Read": _read,
            "create_file": _create_file,
        }

    def names(self) -> list[str]:
        return [name for name in _ARGUMENTS if any(fnmatchcase(name, pattern) for pattern in self._enabled)]

    def definitions(self) -> list[dict[str, Any]]:
        """The tools as the Messages API wants to be told of them."""
        return [{"name": name, "input_schema": _schema(_ARGUMENTS[name])} for name in self.names()]

    def run(self, name: str, arguments: dict[str, Any]) -> tuple[str, bool]:
        """What the model is told, and whether it is an error. Nothing is done without permission."""
        if name not in self.names():
            return f"There is no tool {name}.", True
        missing = [argument for argument in _ARGUMENTS[name] if not isinstance(arguments.get(argument), str)]
        if missing:
            return f"Tool {name} needs {', '.join(missing)}.", True
        if refusal := self._permissions.refusal(name, arguments):
            return refusal, True
        try:
            return self._run[name](*(arguments[argument] for argument in _ARGUMENTS[name]))
        except OSError as exc:
            return str(exc), True

    def _bash(self, command: str) -> tuple[str, bool]:
        status, output = self._commands.run(["bash", "-c", command])
        return json.dumps({"output": output, "exitCode": status}), status != 0


def _read(path: str) -> tuple[str, bool]:
    return Path(path).read_text(encoding="utf-8", errors="replace"), False


def _create_file(path: str, content: str) -> tuple[str, bool]:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(content, encoding="utf-8")
    return f"Created {path}.", False


def _schema(arguments: tuple[str, ...]) -> dict[str, Any]:
    properties = {argument: {"type": "string"} for argument in arguments}
    return {"type": "object", "properties": properties, "required": list(arguments)}
