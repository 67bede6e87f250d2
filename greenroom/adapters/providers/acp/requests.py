"""What is sent to an agent, checked by the `acp` library's schema."""

from collections.abc import Mapping
from typing import Any, cast

from acp import PROTOCOL_VERSION
from acp.schema import (
    AcpMcpServer,
    ClientCapabilities,
    EnvVariable,
    FileSystemCapabilities,
    HttpHeader,
    HttpMcpServer,
    Implementation,
    InitializeRequest,
    LoadSessionRequest,
    McpServerStdio,
    NewSessionRequest,
    PromptRequest,
    SseMcpServer,
    TextContentBlock,
)
from pydantic import BaseModel

from ....domain.errors import CapabilityNotSupported

AnyMcpServer = HttpMcpServer | SseMcpServer | AcpMcpServer | McpServerStdio

PROTOCOL = PROTOCOL_VERSION


def initialize(version: str) -> dict[str, Any]:
    """Greenroom lends the agent neither its files nor terminals: it works with what the machine has."""
    return _plain(
        InitializeRequest(
            protocol_version=PROTOCOL_VERSION,
            client_capabilities=ClientCapabilities(
                fs=FileSystemCapabilities(read_text_file=False, write_text_file=False), terminal=False
            ),
            client_info=Implementation(name="greenroom", version=version),
        )
    )


def new_session(cwd: str, servers: list[AnyMcpServer]) -> dict[str, Any]:
    return _plain(NewSessionRequest(cwd=cwd, mcp_servers=servers))


def load_session(session_id: str, cwd: str, servers: list[AnyMcpServer]) -> dict[str, Any]:
    return _plain(LoadSessionRequest(session_id=session_id, cwd=cwd, mcp_servers=servers))


def prompt(session_id: str, text: str) -> dict[str, Any]:
    return _plain(PromptRequest(session_id=session_id, prompt=[TextContentBlock(type="text", text=text)]))


def mcp_servers(given: Mapping[str, Mapping[str, Any]], capabilities: Mapping[str, Any]) -> list[AnyMcpServer]:
    """In the protocol's form. CapabilityNotSupported for a transport that the agent has not announced."""
    return [_mcp_server(name, server, capabilities) for name, server in given.items()]


def _mcp_server(name: str, server: Mapping[str, Any], capabilities: Mapping[str, Any]) -> AnyMcpServer:
    kind = server.get("type", "stdio")
    if kind == "stdio":
        env = [EnvVariable(name=key, value=value) for key, value in _texts(server.get("env"))]
        arguments = [str(argument) for argument in server.get("args") or ()]
        return McpServerStdio(name=name, command=server["command"], args=arguments, env=env)
    if not capabilities.get(kind):
        raise CapabilityNotSupported(
            f"mcp_servers.{name}: the agent takes no MCP servers over {kind}.",
            details={"field": f"mcp_servers.{name}.type"},
        )
    headers = [HttpHeader(name=key, value=value) for key, value in _texts(server.get("headers"))]
    if kind == "http":
        return HttpMcpServer(type="http", name=name, url=server["url"], headers=headers)
    return SseMcpServer(type="sse", name=name, url=server["url"], headers=headers)


def _texts(given: object) -> list[tuple[str, str]]:
    pairs = cast("dict[str, object]", given) if isinstance(given, dict) else {}
    return [(name, str(value)) for name, value in pairs.items()]


def _plain(request: BaseModel) -> dict[str, Any]:
    return request.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=False)
