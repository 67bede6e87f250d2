"""The configuration of the HTTP service."""

from pydantic import BaseModel, ConfigDict, Field

from ..domain.event import EventType

MAX_BODY_BYTES = 1 << 20
MAX_STREAMS = 5_000


class HttpGrant(BaseModel):
    """What a tenant may do beyond what every tenant may."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    providers: tuple[str, ...] = ()
    """Providers that start processes (commands, coding agents) and that its sessions may name."""


class WebhookSettings(BaseModel):
    """Where events of a tenant are sent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(pattern=r"^https?://", max_length=2_000)
    tenant: str
    types: tuple[EventType, ...] | None = None
    """Which events; None: all but pieces of messages, which come again whole."""
    secret_env: str
    """Name of the environment variable with the secret that deliveries are signed with: `whsec_` and base64."""


class HttpSettings(BaseModel):
    """Loopback, and nothing that runs code here, unless it says so."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65_535)
    max_body_bytes: int = Field(default=MAX_BODY_BYTES, ge=1_024)
    body_timeout_s: float = Field(default=30.0, gt=0)
    """A body that is not all there by then is not waited for."""
    max_streams: int = Field(default=MAX_STREAMS, ge=1)
    """Streams and long polls that one replica holds open at once."""
    max_stream_s: float = Field(default=3_600.0, gt=0)
    """A stream of events is ended after this long; its client goes on with its cursor, at whatever replica."""
    drain_s: float = Field(default=10.0, ge=0)
    """How long `greenroom serve` waits, when it is to end, for runs under way in the runtime that it has started."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """Of each key at one replica; a minute's worth may come at once. None: as many as there are."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call the service from a browser."""
    tools: tuple[str, ...] = ()
    """`package.module:function`, or patterns of it: what sessions may have as tools."""
    provider_options: tuple[str, ...] = ("max_tokens", "temperature", "thinking", "max_turns")
    """Names of provider options that runs may give."""
    tenants: dict[str, HttpGrant] = Field(default_factory=dict[str, HttpGrant])
    webhooks: dict[str, WebhookSettings] = Field(default_factory=dict[str, WebhookSettings])
    """By a name of yours, which says where a delivery was after a restart."""
