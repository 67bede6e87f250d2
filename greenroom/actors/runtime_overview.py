"""What there is in a runtime beside sessions: providers, accounts, routers, budgets, actors, and what they do."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..adapters.providers.manifests import manifest
from ..adapters.providers.registry import BUILT_IN_DECLARATIONS
from ..domain.account import AccountState
from ..domain.budget import BudgetState
from ..domain.capability_negotiation import Manifest
from ..domain.errors import (
    ValidationError,
)
from ..domain.event_log import parse_types
from ..domain.provider import ProviderDeclaration
from ..domain.routing import RouterOptions, RouterState
from ..domain.webhook import WebhookTarget
from .actor_states import named_actors
from .address import BREAKER_PREFIX, ROUTER_PREFIX
from .runtime_connection import RuntimeConnection
from .tenant_feed import TenantFeed
from .webhook_actor import webhook_sender, webhooks_exist


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeStats:
    """What there is, and who serves it."""

    actors: list[dict[str, Any]]
    """Kind (the class name), name, pid, node_id, state and session_ids of each."""
    sessions: int
    runs: int
    events: int
    bytes: int
    """Size of the event store on disk."""
    processes: int


class RuntimeOverview(RuntimeConnection):
    """What a runtime says of itself."""

    def feed(self, tenant: str, types: Sequence[str] | str | None = None) -> TenantFeed:
        """All events of the tenant's sessions as one feed: of those whose metadata has it as `tenant`. `types` picks
        some; ValidationError names one that is none.
        """
        return TenantFeed(self._stores, tenant, parse_types(types))

    async def aproviders(self) -> dict[str, ProviderDeclaration]:
        """The providers that there are, by name."""
        return await self._providers()

    def providers(self) -> dict[str, ProviderDeclaration]:
        """See aproviders."""
        return self._wait(self._providers())

    async def adefault_provider(self) -> str:
        """The provider, or router, of sessions that name none."""
        settings = await self._ask(self._directory.settings.remote())
        return settings["default_provider"]

    async def adeclared(self) -> tuple[dict[str, ProviderDeclaration], dict[str, RouterOptions]]:
        """All providers and routers, by name."""
        settings = await self._ask(self._directory.settings.remote())
        return {**BUILT_IN_DECLARATIONS, **settings["providers"]}, settings["routers"]

    async def _providers(self) -> dict[str, ProviderDeclaration]:
        settings = await self._ask(self._directory.settings.remote())
        return {**BUILT_IN_DECLARATIONS, **settings["providers"]}

    async def acapabilities(self, provider: str, model: str | None = None) -> Manifest:
        """What a provider can do with a model (its default one if none is named), and what that costs."""
        providers = await self._providers()
        if provider not in providers:
            raise ValidationError(
                f"Provider {provider!r} is not declared; declared are: {', '.join(sorted(providers))}.",
                details={"field": "provider"},
            )
        return await asyncio.to_thread(partial(manifest, providers[provider], model, priced=True))

    def capabilities(self, provider: str, model: str | None = None) -> Manifest:
        """See acapabilities."""
        return self._wait(self.acapabilities(provider, model))

    async def aaccounts(self) -> dict[str, AccountState]:
        """The provider accounts that are counted, by provider: breaker, attempts under way and in line."""
        names = await asyncio.to_thread(named_actors, self._address.namespace, BREAKER_PREFIX)
        states: list[AccountState] = await asyncio.gather(*(self._ask_named(name, "state") for name in names))
        return {state.provider: state for state in states}

    def accounts(self) -> dict[str, AccountState]:
        """See aaccounts."""
        return self._wait(self.aaccounts())

    async def arouter(self, name: str) -> RouterState:
        """A router as it is declared, and what it knows of its providers. ValidationError if there is none."""
        settings = await self._ask(self._directory.settings.remote())
        options: RouterOptions | None = settings["routers"].get(name)
        if options is None:
            known = ", ".join(sorted(settings["routers"])) or "none"
            raise ValidationError(f"Router {name!r} is not declared; declared are: {known}.", details={"field": "name"})
        accounts, bound = await self._ask_named(ROUTER_PREFIX + name, "state")
        return RouterState(name=name, options=options, accounts=accounts, bound_sessions=bound)

    def router(self, name: str) -> RouterState:
        """See arouter."""
        return self._wait(self.arouter(name))

    async def abudgets(self) -> dict[str, BudgetState]:
        """What was spent of the budgets of the runtime, its tenants and its projects, by scope."""
        settings = await self._ask(self._directory.settings.remote())
        return {} if settings["limiter"] is None else await self._ask(settings["limiter"].budgets.remote())

    def budgets(self) -> dict[str, BudgetState]:
        """See abudgets."""
        return self._wait(self.abudgets())

    async def astats(self) -> RuntimeStats:
        """What there is, and who serves it. Never waits on a session's actor."""
        actors, counts = await asyncio.gather(
            self._ask(self._directory.actors.remote()), self._ask(self._stores.counts())
        )
        return RuntimeStats(actors=actors, processes=len(actors), **counts)

    def stats(self) -> RuntimeStats:
        """See astats."""
        return self._wait(self.astats())

    async def aset_webhooks(self, targets: Sequence[WebhookTarget]) -> None:
        """Send events to these addresses and to no others, from now on, starting at what is new. ValidationError for a
        secret that is not there."""
        if targets or await asyncio.to_thread(webhooks_exist, self._address):
            sender = await asyncio.to_thread(webhook_sender, self._address, self._stores)
            await self._ask(sender.configure.remote(list(targets)))

    def set_webhooks(self, targets: Sequence[WebhookTarget]) -> None:
        """See aset_webhooks."""
        self._wait(self.aset_webhooks(targets))

    async def astatus_counts(self) -> dict[str, dict[str, int]]:
        """How many `sessions` and `runs` there are in each status."""
        return await self._ask(self._stores.status_counts())

    def status_counts(self) -> dict[str, dict[str, int]]:
        """See astatus_counts."""
        return self._wait(self.astatus_counts())

    async def aping(self) -> None:
        """Return when the event store, the directory and all routers have answered. Raises what they raise."""
        settings, _ = await asyncio.gather(
            self._ask(self._directory.settings.remote()), self._ask(self._stores.ask_all("end_of_feed"))
        )
        await asyncio.gather(*(self._ask_named(ROUTER_PREFIX + name, "state") for name in settings["routers"]))

    def ping(self) -> None:
        """See aping."""
        self._wait(self.aping())
