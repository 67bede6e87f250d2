"""The configuration of the HTTP service."""

from pydantic import BaseModel, ConfigDict, Field

MAX_BODY_BYTES = 1 << 20


class HttpGrant(BaseModel):
    """What a tenant may do beyond what every tenant may."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    providers: tuple[str, ...] = ()
    """Providers that start processes (commands, coding agents) and that its sessions may name."""


class HttpSettings(BaseModel):
    """Loopback, and nothing that runs code here, unless it says so."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65_535)
    max_body_bytes: int = Field(default=MAX_BODY_BYTES, ge=1_024)
    tools: tuple[str, ...] = ()
    """`package.module:function`, or patterns of it: what sessions may have as tools."""
    provider_options: tuple[str, ...] = ("max_tokens", "temperature", "thinking", "max_turns")
    """Names of provider options that runs may give."""
    tenants: dict[str, HttpGrant] = Field(default_factory=dict[str, HttpGrant])
