"""A server's way to the accounts and routers of the runtime: who may begin, and on whom to try."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ray
import ray.exceptions

from ..adapters.logs import get_logger
from ..domain.account import AttemptEnd, AttemptReport, Permit, PermitAsk, Refusal
from ..domain.provider import ProviderDeclaration
from ..domain.routing import RouterOptions, RoutingRequest
from .address import BREAKER_PREFIX, ROUTER_PREFIX

_log = get_logger(__name__)

BLOCK = 8
"""Decisions of a router that a server takes at once, where sessions do not stay with a provider."""

BLOCK_S = 1.0
"""How long they hold."""

MAX_BINDINGS = 10_000

_FREE = AttemptReport(end=AttemptEnd.GIVEN_UP, input_tokens=0, output_tokens=0)


def managed(providers: Mapping[str, ProviderDeclaration], routers: Mapping[str, RouterOptions]) -> set[str]:
    """The providers that have an account: by their declaration, or because a router chooses them."""
    members = {name for router in routers.values() for name in router.providers}
    return members | {name for name, declared in providers.items() if declared.has_account}


class Accounts:
    """Serves all sessions of its process. What it holds it says again and again, so that it comes back if it dies.

    An actor that is gone for good limits nobody: the run goes on, and the log of the process says so.
    """

    def __init__(self, holder: str, namespace: str) -> None:
        self.holder = holder
        self._namespace = namespace
        self._names: frozenset[str] = frozenset()
        self._actors: dict[str, Any] = {}
        self._held: dict[str, tuple[str, PermitAsk, Permit]] = {}
        """By the key of the attempt: where, what was asked, what was given."""
        self._blocks: dict[tuple[str, str], tuple[float, deque[tuple[str, ...]]]] = {}
        self._bindings: OrderedDict[tuple[str, str], tuple[str, float]] = OrderedDict()
        """By router and session: who served it last, and until when that counts."""
        self._loop = asyncio.get_running_loop()

    def manage(self, names: set[str]) -> None:
        """These providers have an account."""
        self._names = frozenset(names)

    def __contains__(self, provider: object) -> bool:
        return provider in self._names

    # Permits

    async def acquire(self, provider: str, ask: PermitAsk, *, waits: bool) -> Permit | Refusal | None:
        """Leave to begin an attempt, or why not; None: the provider has no account."""
        if provider not in self._names:
            return None
        ask = replace(ask, holder=self.holder)
        actor = await self._actor(BREAKER_PREFIX + provider)
        if actor is None:
            return None
        try:
            answer: Permit | Refusal = await actor.acquire.remote(ask, waits)
        except ray.exceptions.RayError:
            _log.warning("account_does_not_answer", provider=provider, exc_info=True)
            self._actors.pop(BREAKER_PREFIX + provider, None)
            return None
        except asyncio.CancelledError:
            actor.ended.remote(ask.key, _FREE)
            raise
        if isinstance(answer, Permit):
            self._held[ask.key] = (provider, ask, answer)
        return answer

    def ended(self, key: str, report: AttemptReport) -> None:
        """The attempt has ended. Nothing happens to one that is not known."""
        held = self._held.pop(key, None)
        actor = self._actors.get(BREAKER_PREFIX + held[0]) if held else None
        if actor is not None:
            actor.ended.remote(key, report)

    async def renew(self) -> None:
        """Tell the accounts that this process lives, and what it has under way at them."""
        by_provider: dict[str, list[tuple[PermitAsk, Permit]]] = {}
        for provider, ask, permit in self._held.values():
            by_provider.setdefault(provider, []).append((ask, permit))
        for provider in self._names:
            actor = self._actors.get(BREAKER_PREFIX + provider)
            if actor is not None:
                actor.renew.remote(self.holder, by_provider.get(provider, []))

    # Decisions

    async def decide(self, router: str, request: RoutingRequest) -> tuple[str, ...]:
        """Whom to try, first to last. A session that stays with a provider asks nobody while that holds, and what is
        not bound to a session is decided in blocks."""
        bound, until = self._bindings.get((router, request.session_id), (None, 0.0))
        options = request.options
        is_sticky = request.overrides.sticky and options.sticky_ttl_s > 0
        if bound is not None and is_sticky and not request.exclude and self._loop.time() < until:
            return (bound,)
        if is_sticky or request.exclude:
            decided = await self._ask(router, request, 1)
            return decided[0]
        return await self._from_block(router, replace(request, session_id=""))

    def bind(self, router: str, options: RouterOptions, session_id: str, provider: str) -> None:
        """The provider has served the session. The router is told when that is news."""
        now, key = self._loop.time(), (router, session_id)
        bound, until = self._bindings.get(key, (None, 0.0))
        if not options.sticky_ttl_s or (bound == provider and until - now > options.sticky_ttl_s / 2):
            return
        self._bindings[key] = (provider, now + options.sticky_ttl_s)
        self._bindings.move_to_end(key)
        if len(self._bindings) > MAX_BINDINGS:
            self._bindings.popitem(last=False)
        actor = self._actors.get(ROUTER_PREFIX + router)
        if actor is not None:
            actor.bind.remote(session_id, provider, options.sticky_ttl_s)

    def unbind(self, router: str, session_id: str) -> None:
        """The provider that served the session last cannot take it: it is decided anew."""
        self._bindings.pop((router, session_id), None)
        self._blocks.clear()

    async def _from_block(self, router: str, request: RoutingRequest) -> tuple[str, ...]:
        key = (router, repr(request))
        until, orders = self._blocks.get(key, (0.0, deque[tuple[str, ...]]()))
        if not orders or self._loop.time() >= until:
            orders = deque(await self._ask(router, request, BLOCK))
            self._blocks = {key: (self._loop.time() + BLOCK_S, orders)}
        return orders.popleft()

    async def _ask(self, router: str, request: RoutingRequest, count: int) -> list[tuple[str, ...]]:
        actor = await self._actor(ROUTER_PREFIX + router)
        if actor is not None:
            try:
                return await actor.decide.remote(request, count)
            except ray.exceptions.RayError:
                _log.warning("router_does_not_answer", router=router, exc_info=True)
                self._actors.pop(ROUTER_PREFIX + router, None)
        excluded = {*request.exclude, *request.overrides.exclude}
        return [tuple(name for name in request.options.providers if name not in excluded)] * count

    async def _actor(self, name: str) -> Any:
        actor = self._actors.get(name)
        if actor is None:
            try:
                actor = await asyncio.to_thread(ray.get_actor, name, self._namespace)
            except ValueError:
                _log.warning("actor_is_gone", name=name)
                return None
            self._actors[name] = actor
        return actor
