"""The fast lane of appends: a unix socket on the store's own node, length-prefixed frames both ways.

The socket lies in the data_dir (0700) and is itself 0600: only the user who runs the store can connect.
"""

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

from ..domain.errors import StorageConnectionFailed

SOCKET_NAME = "append.sock"

_LENGTH_BYTES = 4
_MAX_PATH_BYTES = 100  # sun_path has 108 with the closing zero
_MAX_FRAME_BYTES = 256 * 1024 * 1024
_PAUSE_BYTES = 32 * 1024 * 1024
"""Answers that a client has not read; its frames are not read either while there are more."""


def encode_message(frame: bytes) -> bytes:
    """The frame behind its length."""
    return len(frame).to_bytes(_LENGTH_BYTES, "big") + frame


class _FrameProtocol(asyncio.Protocol):
    """Cuts what arrives into frames."""

    def __init__(self, on_frame: Callable[["_FrameProtocol", bytes], None]) -> None:
        self._on_frame = on_frame
        self._buffer = bytearray()
        self.transport: asyncio.Transport | None = None
        self.on_lost: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's transports are no subclass of it
        self.transport.set_write_buffer_limits(high=_PAUSE_BYTES)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= _LENGTH_BYTES:
            length = int.from_bytes(buffer[start : start + _LENGTH_BYTES], "big")
            if length > _MAX_FRAME_BYTES:
                self.close()
                return
            end = start + _LENGTH_BYTES + length
            if end > len(buffer):
                break
            self._on_frame(self, bytes(buffer[start + _LENGTH_BYTES : end]))
            start = end
        del buffer[:start]

    def send(self, frame: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(encode_message(frame))

    def pause_writing(self) -> None:
        if self.transport is not None:
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.transport is not None:
            self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.on_lost is not None:
            self.on_lost()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()


class SocketLaneServer:
    """The store's end."""

    def __init__(self, path: Path, submit: Callable[[bytes, Callable[[bytes], None]], None]) -> None:
        self.path = path
        self._submit = submit
        self._server: asyncio.Server | None = None
        self._clients: set[_FrameProtocol] = set()

    async def start(self) -> None:
        """Listen, in place of a socket that an earlier owner left behind."""
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.get_running_loop().create_unix_server(self._client, reachable_path(self.path))
        self.path.chmod(0o600)

    def _client(self) -> _FrameProtocol:
        client = _FrameProtocol(lambda protocol, frame: self._submit(frame, protocol.send))
        client.on_lost = lambda: self._clients.discard(client)
        self._clients.add(client)
        return client

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for client in list(self._clients):
            client.close()
        self.path.unlink(missing_ok=True)


class SocketLane:
    """A writer's end. Replies come in the order in which the store commits, each tagged with its frame's number."""

    def __init__(self, protocol: _FrameProtocol) -> None:
        self._protocol = protocol

    @classmethod
    async def connect(
        cls, path: Path, *, on_reply: Callable[[bytes], None], on_broken: Callable[[], None]
    ) -> "SocketLane":
        """StorageConnectionFailed if nobody listens there."""
        protocol = _FrameProtocol(lambda _, frame: on_reply(frame))
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: protocol, reachable_path(path))
        except OSError as exc:
            raise StorageConnectionFailed(f"Nobody listens on {path}: {exc}.", details={"path": str(path)}) from exc
        if protocol.transport is None:  # lost before anyone could be told
            raise StorageConnectionFailed(f"The store on {path} hung up.", details={"path": str(path)})
        protocol.on_lost = on_broken
        return cls(protocol)

    def send(self, frame: bytes) -> None:
        self._protocol.send(frame)

    def close(self) -> None:
        self._protocol.on_lost = None
        self._protocol.close()


_directories: dict[Path, int] = {}


def reachable_path(path: Path) -> str:
    """A name for the socket that fits into a socket address, whatever the length of the path.

    On Linux a long one is reached through the descriptor of its directory, which stays open for the process's life.
    """
    given = str(path.absolute())
    if len(given.encode()) <= _MAX_PATH_BYTES or not sys.platform.startswith("linux"):
        return given
    directory = path.absolute().parent
    if directory not in _directories:
        _directories[directory] = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return f"/proc/self/fd/{_directories[directory]}/{path.name}"
