"""The actor of one router: says on whom a run is tried. It only decides: no data flows through it."""

import asyncio
import contextlib
import random
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import ray.exceptions

from ..adapters.logs import log_to_stderr
from ..adapters.providers.manifests import manifest
from ..adapters.providers.registry import BUILT_IN_DECLARATIONS
from ..domain.account import AccountState, WaitReason
from ..domain.provider import ProviderDeclaration
from ..domain.routing import Candidate, RouterMember, RouterOptions, RoutingRequest, route
from .address import BREAKER_PREFIX

REFRESH_S = 0.5
"""How old what it knows of the accounts may get while it is asked. Whoever asks never waits for an account: its
breaker has the last word anyway."""

MAX_BINDINGS = 100_000
"""Sessions that stay with a provider; the ones that were served longest ago are forgotten first."""


class ProviderRouter:
    """Keeps what is known of its providers, and which sessions stay with which. Both can be lost: the first is asked
    for again, and a session that is not known is routed anew."""

    def __init__(self, name: str, namespace: str, directory: Any) -> None:
        log_to_stderr()
        self._name = name
        self._namespace = namespace
        self._directory = directory
        self._loop = asyncio.get_running_loop()
        self._members: dict[str, RouterMember] = {}
        self._breakers: dict[str, Any] = {}
        self._states: dict[str, AccountState] = {}
        self._seen_at = float("-inf")
        self._sent: Counter[str] = Counter()
        """Decisions since then, by the provider that came first."""
        self._bindings: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._refreshing: asyncio.Task[None] | None = None
        self._loaded = self._loop.create_task(self._load())

    async def reload(self) -> None:
        """Providers or routers have been declared anew."""
        self._loaded = self._loop.create_task(self._load())
        await asyncio.shield(self._loaded)

    async def decide(self, request: RoutingRequest, count: int = 1) -> list[tuple[str, ...]]:
        """Whom to try, first to last, so many times: a block of decisions for runs that need not ask one by one."""
        await asyncio.shield(self._loaded)
        self._refresh()
        candidates = [self._candidate(name) for name in request.options.providers]
        orders: list[tuple[str, ...]] = []
        for _ in range(count):
            found = route(candidates, request, sticky=self._bound(request), draw=random.random())  # noqa: S311  no secret
            orders.append(tuple(one.name for one in found))
            if found:
                self._sent[found[0].name] += 1
        return orders

    async def bind(self, session_id: str, provider: str, ttl_s: float) -> None:
        """The provider has served the session: its next runs stay there for so long."""
        self._bindings[session_id] = (provider, self._loop.time() + ttl_s)
        self._bindings.move_to_end(session_id)
        if len(self._bindings) > MAX_BINDINGS:
            self._bindings.popitem(last=False)

    async def state(self) -> tuple[dict[str, AccountState], int]:
        """The accounts as it saw them last, and how many sessions stay with a provider."""
        return dict(self._states), len(self._bindings)

    def _bound(self, request: RoutingRequest) -> str | None:
        provider, until = self._bindings.get(request.session_id, (None, 0.0))
        return provider if request.overrides.sticky and self._loop.time() < until else None

    def _candidate(self, name: str) -> Candidate:
        member, state = self._members.get(name, RouterMember()), self._states.get(name)
        if state is None:
            return Candidate(
                name=name, capabilities=member.capabilities, price=member.price_usd, under_way=self._sent[name]
            )
        return Candidate(
            name=name,
            capabilities=member.capabilities,
            price=member.price_usd,
            failures=state.failures,
            under_way=state.under_way + state.waiting + self._sent[name],
            is_open=state.wait_reason is not WaitReason.CIRCUIT_OPEN,
            retry_at_s=state.retry_in_s,
        )

    async def _load(self) -> None:
        """Who the members are by now, and where their accounts are."""
        settings: Mapping[str, Any] = await self._directory.settings.remote()
        options: RouterOptions = settings["routers"][self._name]
        declared = {**BUILT_IN_DECLARATIONS, **settings["providers"]}
        members = [declared[name] for name in options.providers]
        self._members = await asyncio.to_thread(_members, members)
        self._breakers = await asyncio.to_thread(self._accounts, options.providers)

    def _accounts(self, providers: Sequence[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in providers:
            with contextlib.suppress(ValueError):
                found[name] = ray.get_actor(BREAKER_PREFIX + name, self._namespace)
        return found

    def _refresh(self) -> None:
        stale = self._loop.time() - self._seen_at > REFRESH_S
        if stale and self._breakers and (self._refreshing is None or self._refreshing.done()):
            self._refreshing = self._loop.create_task(self._look())

    async def _look(self) -> None:
        """Ask all accounts at once; one that does not answer is taken as it was."""
        sent = self._sent.copy()
        asked = {name: asyncio.ensure_future(self._state_of(actor)) for name, actor in self._breakers.items()}
        await asyncio.wait(asked.values(), timeout=REFRESH_S)
        for name, answer in asked.items():
            if not answer.done():
                answer.cancel()
            elif (state := answer.result()) is not None:
                self._states[name] = state
                self._sent[name] -= sent[name]
        self._seen_at = self._loop.time()

    async def _state_of(self, actor: Any) -> AccountState | None:
        try:
            return await actor.state.remote()
        except ray.exceptions.RayError:
            return None


def _members(declared: Sequence[ProviderDeclaration]) -> dict[str, RouterMember]:
    found = [manifest(one, priced=True) for one in declared]
    return {one.provider: RouterMember(capabilities=one.capabilities, price_usd=one.price_usd) for one in found}
