"""The provider port: what a session asks of an agent, and what the agent answers."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from .capability import Capability, CapabilityType, ModelAbilities
from .event import EventType
from .permission_mode import PermissionMode
from .policy import Policy
from .run_input import Message
from .secret_names import masked
from .token_usage import TokenUsage
from .tool import Toolbox
from .transcript import TranscriptMessage

if TYPE_CHECKING:  # every session server has this module, and few need those
    from .circuit import BreakerOptions
    from .rate_budget import RateLevels, RateOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderRequest:
    """One attempt at one run."""

    session_id: str
    run_id: str
    attempt: int
    run_number: int
    """Which run of the session this is, from 1, in the order in which they were queued."""
    messages: tuple[Message, ...]
    system_prompt: str | None
    model: str | None
    """None: the provider's own default."""
    max_turns: int | None
    options: Mapping[str, Any]
    """The declared options of the provider with the run's own laid over them."""
    tools: Toolbox
    policies: tuple[Policy, ...] = ()
    """What `tools` decides by, for a provider whose agent has to be told before it begins. Their limits are kept by the
    session; a provider that can keep them itself does so too."""
    permission_mode: PermissionMode = PermissionMode.DEFAULT
    history: tuple[TranscriptMessage, ...] = ()
    """What was said in the session before, where the run is to be told of it."""
    conversation: Mapping[str, str] | None = None
    """The provider's own conversation to go on with, as an earlier attempt reported it."""
    continues: bool = False
    """Whether later runs are likely to go on with the conversation of this one."""
    home: str | None = None
    """A directory that is the session's own and outlives its processes; it may not exist yet. None: there is none."""


@dataclass(frozen=True, slots=True)
class ProviderEvent:
    """Something that happened at the provider, already under Greenroom's names.

    Lifecycle events are not the provider's to give: run_* and session_* come from the session alone.
    """

    type: EventType
    data: dict[str, Any]
    timestamp_us: int | None = None
    """When the provider says that it happened; None: now."""
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class ProviderConversation:
    """What the provider needs to go on with this conversation in a later run: kept with the session, by provider."""

    handle: dict[str, str]


@dataclass(frozen=True, slots=True)
class ProviderLevels:
    """What an answer of the provider says of the rate limits of the account."""

    levels: "RateLevels"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderOutcome:
    """The last thing that a successful attempt gives."""

    content: str
    stop_reason: str
    token_usage: TokenUsage
    """Totals over the whole attempt."""
    model: str | None = None
    cost_usd: float | None = None
    turn_count: int = 1
    structured: Any = None
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])


class Provider(Protocol):
    """An agent, or a model behind an API. One instance serves one session; several runs may be under way at once."""

    def capabilities(self) -> tuple[Capability, ...]:
        """What it can do."""
        ...

    def execute(
        self, request: ProviderRequest
    ) -> "AsyncGenerator[ProviderEvent | ProviderConversation | ProviderLevels | ProviderOutcome]":
        """Carry out one attempt: any number of events, then exactly one outcome, then the end.

        A provider with conversations of its own tells of this one as soon as it knows, and again when its handle
        changes. One that is asked to go on with a conversation that is not there any more raises
        ProviderInvalidRequest with `details.field` "continuation", before any event.

        Failure is a raised GreenroomError (a foreign exception has been translated); Cancelled says that the provider
        ended its turn because somebody asked, and the run ends cancelled. A tool call that was reported
        started and not ended when the attempt fails or is cancelled is closed by the session. Cancellation is
        asyncio's: when the consuming task is cancelled, whatever the attempt started (connections, processes) is
        gone within 5 s.
        token_usage_updated carries totals of the attempt so far, never increments.
        """
        ...

    async def interrupt(self, run_id: str) -> None:
        """Ask the attempt politely to stop its turn; CapabilityNotSupported where it can only be cancelled."""
        ...

    async def steer(self, run_id: str, message: str) -> bool:
        """Hand a message to the running attempt: True if the agent has it, False if it gets it with its next turn.
        CapabilityNotSupported where that cannot be done."""
        ...

    def processes(self, run_id: str) -> list[dict[str, int]]:
        """The processes that the attempt has started: pid, count of the tree under it, memory_bytes of all of it."""
        ...

    async def aclose(self) -> None:
        """Release what the instance holds; no attempt is under way."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderDeclaration:
    """A provider under a name: its kind and the options of that kind. Holds names of secrets, never secrets."""

    name: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict[str, Any], repr=False)
    breaker: "BreakerOptions | None" = None
    rate: "RateOptions | None" = None
    models: Mapping[str, ModelAbilities] = field(default_factory=dict[str, ModelAbilities])
    """By the name of a model, or a pattern of names: what it adds to the provider's capabilities, or takes away."""

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "ProviderDeclaration":
        """The inverse of `dataclasses.asdict`."""
        from .circuit import BreakerOptions  # noqa: PLC0415
        from .rate_budget import RateOptions  # noqa: PLC0415

        breaker, rate = record.get("breaker"), record.get("rate")
        models = {
            name: ModelAbilities(
                add=tuple(Capability(**{**one, "type": CapabilityType(one["type"])}) for one in abilities["add"]),
                remove=tuple(abilities["remove"]),
            )
            for name, abilities in record.get("models", {}).items()
        }
        return cls(
            name=record["name"],
            kind=record["kind"],
            options=record["options"],
            breaker=None if breaker is None else BreakerOptions(**breaker),
            rate=None if rate is None else RateOptions(**rate),
            models=models,
        )

    @property
    def has_account(self) -> bool:
        """Whether its use is counted and limited over all sessions."""
        return self.breaker is not None or self.rate is not None

    def shown_options(self) -> dict[str, Any]:
        """The options without what is likely to be a secret, for people to look at."""
        return masked(self.options)
