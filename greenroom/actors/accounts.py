"""A server's way to the accounts and routers of the runtime: who may begin, and on whom to try."""

import asyncio
import secrets
from collections import OrderedDict, deque
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.exceptions

from ..adapters.logs import get_logger
from ..domain.account import AttemptEnd, AttemptReport, Permit, PermitAsk, Refusal, WaitReason
from ..domain.routing import RouterOptions, RoutingRequest
from ..domain.routing_overrides import NO_OVERRIDES
from .address import BREAKER_PREFIX, ROUTER_PREFIX

_log = get_logger(__name__)

BLOCK = 8
"""Decisions of a router that a server takes at once, where sessions do not stay with a provider."""

BLOCK_S = 1.0
"""How long they hold."""

MAX_BINDINGS = 10_000

TALLY_S = 0.2
"""How old what an account knows of attempts that began unasked may get, unless one of them fails."""

MISSING_S = 5.0
"""An actor that is not there for so long is gone for good."""
_LOOK_S = 0.05

MAX_UNASKED_S = 3.0
"""For how long attempts begin unasked at an account that has stopped answering."""

_FREE = AttemptReport(end=AttemptEnd.GIVEN_UP, input_tokens=0, output_tokens=0)


@dataclass(slots=True)
class _Unasked:
    """Attempts at an account of which nothing is counted."""

    actor: Any = None
    permit: Permit | None = None
    """What each of them gets; None: they have to ask."""
    watching: "asyncio.Task[None] | None" = None
    under_way: int = 0
    succeeded: int = 0
    """Since the account was told last."""
    timer: asyncio.TimerHandle | None = None


class Accounts:
    """Serves all sessions of its process. What it holds it says again and again, so that it comes back if it dies.

    An actor that is gone for good limits nobody: the run goes on, and the log of the process says so.
    """

    def __init__(self, server: str, namespace: str) -> None:
        # A server that was started again has the name of the one that died, and nothing of what that one had.
        self.holder = f"{server}/{secrets.token_hex(4)}"
        self._namespace = namespace
        self._names: frozenset[str] = frozenset()
        self._actors: dict[str, Any] = {}
        self._held: dict[str, tuple[str, Any, PermitAsk, Permit]] = {}
        """By the key of the attempt: where, of which actor, what was asked, what was given."""
        self._missing_since: dict[str, float] = {}
        """Since when an actor was looked for and not found."""
        self._open_until: dict[str, float] = {}
        """By provider: until when its breaker is open, as this server was told last."""
        self._unasked: dict[str, _Unasked] = {}
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
        unasked = self._unasked.get(provider)
        if unasked is not None and unasked.permit is not None:
            unasked.under_way += 1
            self._held[ask.key] = (provider, unasked.actor, ask, unasked.permit)
            return unasked.permit
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
            self._held[ask.key] = (provider, actor, ask, answer)
            self._open_until.pop(provider, None)
            if answer.is_free:
                self._watch(provider, actor, answer)
        elif answer.reason is WaitReason.CIRCUIT_OPEN and answer.retry_in_s is not None:
            self._open_until[provider] = self._loop.time() + answer.retry_in_s
        return answer

    def ended(self, key: str, report: AttemptReport) -> None:
        """The attempt has ended. Nothing happens to one that is not known."""
        held = self._held.pop(key, None)
        if held is None:
            return
        provider, actor, _, permit = held
        if not permit.is_unasked:
            actor.ended.remote(key, report)
            return
        unasked = self._unasked[provider]
        unasked.under_way -= 1
        if report.end is AttemptEnd.SUCCEEDED and report.levels is None:
            unasked.succeeded += 1
            if unasked.timer is None:
                unasked.timer = self._loop.call_later(TALLY_S, self._note, provider)
        elif report.end is not AttemptEnd.GIVEN_UP:
            if report.end is not AttemptEnd.SUCCEEDED:
                unasked.permit = None  # the next one asks
            self._note(provider, (permit, report))

    def _watch(self, provider: str, actor: Any, permit: Permit) -> None:
        """Until the account says otherwise attempts begin there unasked."""
        unasked = self._unasked.setdefault(provider, _Unasked())
        unasked.actor = actor
        if unasked.watching is None:
            unasked.permit = permit._replace(is_unasked=True)
            unasked.watching = self._loop.create_task(self._keep_free(provider, actor, unasked))

    async def _keep_free(self, provider: str, actor: Any, unasked: "_Unasked") -> None:
        try:
            async with asyncio.timeout(MAX_UNASKED_S):
                await actor.watch.remote(self.holder)
        except (ray.exceptions.RayError, TimeoutError):
            _log.warning("account_does_not_answer", provider=provider)
        finally:
            unasked.permit = unasked.watching = None

    def _note(self, provider: str, *failed: tuple[Permit, AttemptReport]) -> None:
        unasked = self._unasked[provider]
        succeeded, unasked.succeeded = unasked.succeeded, 0
        if unasked.timer is not None:
            unasked.timer.cancel()
            unasked.timer = None
        if unasked.actor is not None:
            unasked.actor.note.remote(self.holder, unasked.under_way, succeeded, failed)

    async def renew(self) -> None:
        """Tell the accounts that this process lives, and what it has under way at them."""
        by_provider: dict[str, list[tuple[PermitAsk, Permit]]] = {}
        for provider, _, ask, permit in self._held.values():
            if permit.is_unasked:
                continue
            by_provider.setdefault(provider, []).append((ask, permit))
        for provider in self._names:
            actor = self._actors.get(BREAKER_PREFIX + provider)
            if actor is not None:
                open_for_s = max(0.0, self._open_until.get(provider, 0.0) - self._loop.time())
                actor.renew.remote(self.holder, by_provider.get(provider, []), open_for_s)

    # Decisions

    async def decide(self, router: str, request: RoutingRequest) -> tuple[str, ...]:
        """Whom to try, first to last. A session that stays with a provider asks nobody while that holds, and what is
        not bound to a session is decided in blocks."""
        bound, until = self._bindings.get((router, request.session_id), (None, 0.0))
        options = request.options
        is_sticky = request.overrides.sticky and options.sticky_ttl_s > 0
        is_plain = request.overrides == NO_OVERRIDES and not request.exclude and not request.required
        if bound is not None and is_sticky and is_plain and self._loop.time() < until:
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
            now = self._loop.time()
            self._blocks = {other: block for other, block in self._blocks.items() if block[0] > now}
            self._blocks[key] = (now + BLOCK_S, orders)
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
        """The actor of this name; None if it is gone for good. Runs of a runtime that has just been started wait for it
        to be there."""
        actor = self._actors.get(name)
        if actor is not None:
            return actor
        missing_s = self._missing_since.setdefault(name, self._loop.time())
        while actor is None:
            try:
                actor = self._actors[name] = await asyncio.to_thread(ray.get_actor, name, self._namespace)
            except ValueError:
                if self._loop.time() - missing_s > MISSING_S:
                    _log.warning("actor_is_gone", name=name)
                    return None
                await asyncio.sleep(_LOOK_S)
        self._missing_since.pop(name, None)
        return actor
