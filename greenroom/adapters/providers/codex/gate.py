"""Where Codex asks before each tool call, and tells of it afterwards: a socket, and the hook that leads Codex there."""

import asyncio
import json
import os
import secrets
import shlex
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import hook

_CREDENTIALS = struct.Struct("3i")
"""What SO_PEERCRED gives: pid, uid, gid."""

_PERSON_S = 14 * 86_400
"""How long a hook may take, since a person may have to answer: longer than any approval lives."""

Ask = Callable[[Mapping[str, Any]], Awaitable[str | None]]
"""What Codex says of the call -> None, or why it must not be made; after the call that makes no difference."""


class CodexGate:
    """Open from `open` to `aclose`. The socket has a name in the abstract namespace: no file of it can be left behind.

    Only processes of this user are heard.
    """

    def __init__(self, name: str, ask: Ask) -> None:
        self._name = name
        self._ask = ask
        self._server: asyncio.Server | None = None
        self._answering: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, ask: Ask) -> "CodexGate":
        gate = cls(f"greenroom-{os.getpid()}-{secrets.token_hex(8)}", ask)
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(f"\0{gate._name}")
        gate._server = await asyncio.start_unix_server(gate._take, sock=listening)
        return gate

    @property
    def command(self) -> str:
        """What Codex has to run."""
        return shlex.join([sys.executable, "-I", "-S", str(Path(hook.__file__)), self._name])

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of Codex that make it do so."""
        hooks = [{"hooks": [{"type": "command", "command": self.command, "timeout": _PERSON_S}]}]
        return {"features.hooks": True, "hooks.PreToolUse": hooks, "hooks.PostToolUse": hooks}

    async def aclose(self) -> None:
        """Who still waits for an answer is refused."""
        if self._server is not None:
            self._server.close()
        for task in self._answering:
            task.cancel()
        if self._answering:
            await asyncio.wait(self._answering)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "it is run as one"
        self._answering.add(task)
        try:
            if _uid_of(writer) == os.geteuid():
                asked: Mapping[str, Any] = json.loads(await reader.read())
                writer.write(json.dumps({"refusal": await self._ask(asked)}).encode())
                await writer.drain()
        except (AttributeError, KeyError, TypeError, ValueError, OSError):
            pass  # the hook refuses what it gets no answer for
        except asyncio.CancelledError:
            pass  # by aclose: the hook sees the end of the stream
        finally:
            self._answering.discard(task)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


def _uid_of(writer: asyncio.StreamWriter) -> int:
    peer: socket.socket = writer.get_extra_info("socket")
    _, uid, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return uid
