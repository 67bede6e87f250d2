"""A session's tools as bytes: how they lie in the session's own row."""

from collections.abc import Sequence
from typing import Any

import msgpack

from .tool_definition import ToolLike
from .tools import CallableToolbox, as_tool, pack_tool, unpack_tools


def pack_toolbox(tools: Sequence[ToolLike]) -> bytes | None:
    """The tools, checked and packed; None when there are none."""
    toolbox = CallableToolbox([as_tool(tool) for tool in tools])
    packed: list[dict[str, Any]] = [pack_tool(as_tool(tool)) for tool in tools]
    toolbox.close()
    return msgpack.packb(packed) if packed else None


def join_toolboxes(packed: Sequence[bytes]) -> bytes:
    """The tools of all of them as one."""
    return msgpack.packb([tool for one in packed for tool in msgpack.unpackb(one)])


def unpack_toolbox(packed: bytes, *, max_threads: int | None = None) -> CallableToolbox:
    """The tools again; one that cannot be restored answers tool_not_found. `max_threads`: see CallableToolbox."""
    return unpack_tools(msgpack.unpackb(packed), max_threads=max_threads)
