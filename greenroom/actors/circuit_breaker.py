"""The actor of one provider account: its breaker, its rate budget, and the line of those who wait for it."""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import ray.exceptions

from ..adapters.logs import log_to_stderr
from ..adapters.providers.registry import BUILT_IN_DECLARATIONS
from ..domain.account import Account, AccountState, AttemptEnd, AttemptReport, Permit, PermitAsk, Refusal, WaitReason
from ..domain.circuit import Admission, BreakerOptions, CircuitState
from ..domain.provider import ProviderDeclaration
from ..domain.rate_budget import RateOptions
from .holders import Holders

WATCH_S = 1.0
"""How long a server may let attempts begin unasked before it has to ask again: if this actor dies, that is how long
nobody hears of a breaker that would be open."""


def account_options(declared: ProviderDeclaration) -> tuple[BreakerOptions, RateOptions]:
    """How the account of a provider is kept that is declared so."""
    return declared.breaker or BreakerOptions(), declared.rate or RateOptions()


class CircuitBreaker:
    """Lets attempts begin at the account, over all sessions of the cluster. No data flows through it.

    What it knows it can lose. One that was started anew lets nothing through for half a lease, until the servers have
    said what they have under way, and if they know the breaker to be open; its budget of a minute has to fill up first.
    """

    def __init__(
        self, provider: str, breaker: BreakerOptions, rate: RateOptions, lease_s: float, directory: Any
    ) -> None:
        log_to_stderr()
        self._loop = asyncio.get_running_loop()
        self._account = Account(provider, breaker, rate)
        self._holders = Holders(lease_s, self._drop)
        self._waiting: dict[str, asyncio.Future[Permit | Refusal]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._no_longer_free: asyncio.Future[None] = self._loop.create_future()
        self._lease_s = lease_s
        self._opens_at = 0.0
        if ray.get_runtime_context().was_current_actor_reconstructed:
            self._opens_at = self._loop.time() + lease_s / 2
            self._account.budget.drain(self._loop.time())
            self._reloading = self._loop.create_task(self._reload(provider, directory))

    async def _reload(self, provider: str, directory: Any) -> None:
        """What it was made with may have been declared anew since."""
        with contextlib.suppress(ray.exceptions.RayError):  # the runtime ends
            settings: Mapping[str, Any] = await directory.settings.remote()
            declared = settings["providers"].get(provider) or BUILT_IN_DECLARATIONS[provider]
            await self.configure(*account_options(declared))

    async def acquire(self, ask: PermitAsk, waits: bool) -> Permit | Refusal:
        """Leave to begin. What `waits` stands in line for it, and is refused only when the breaker opens meanwhile."""
        self._holders.heard(ask.holder)
        held = self._account.permit_of(ask.key)
        if held is not None:  # the call has come before
            return held
        waiting = self._waiting.get(ask.key)
        if waiting is None:
            answer = self._answer_now(ask)
            if isinstance(answer, Permit) or not waits:
                return answer
            waiting = self._waiting[ask.key] = self._loop.create_future()
            self._account.stand(ask)
            self._look()
        return await asyncio.shield(waiting)

    async def ended(self, key: str, report: AttemptReport) -> None:
        """The attempt has ended, or waits no more."""
        was_open = self._account.circuit.state is CircuitState.OPEN
        self._account.end(key, report, self._loop.time())
        self._answer(key, Refusal(WaitReason.LINE, None))
        if self._account.circuit.state is CircuitState.OPEN and not was_open:
            self._send_away()
        self._look()

    async def watch(self, holder: str) -> bool:
        """False as soon as attempts may not begin unasked any more, True after a while if they still may."""
        self._holders.heard(holder)
        if not self._account.is_free(self._loop.time()):
            return False
        await asyncio.wait([self._no_longer_free], timeout=WATCH_S)
        return self._account.is_free(self._loop.time())

    async def note(
        self, holder: str, under_way: int, succeeded: int, failed: Sequence[tuple[Permit, AttemptReport]]
    ) -> None:
        """How attempts ended that began unasked, and how many are under way."""
        now = self._loop.time()
        self._account.tally(holder, under_way)
        well = AttemptReport(end=AttemptEnd.SUCCEEDED)
        for _ in range(succeeded):
            self._account.note(Admission(self._account.circuit.cycle, is_probe=False), well, now)
        was_open = self._account.circuit.state is CircuitState.OPEN
        for permit, report in failed:
            self._account.note(permit.admission, report, now)
        if self._account.circuit.state is CircuitState.OPEN and not was_open:
            self._send_away()
        self._look()

    async def renew(self, holder: str, held: Sequence[tuple[PermitAsk, Permit]], open_for_s: float) -> None:
        """The holder is alive, has these under way, and knows the breaker to be open for so long, or not (0)."""
        self._holders.heard(holder)
        now = self._loop.time()
        for ask, permit in held:
            self._account.hold(ask, permit)
        self._account.reconcile(holder, {ask.key for ask, _ in held}, now, older_than_s=self._lease_s / 2)
        if open_for_s > 0 and now < self._opens_at:
            self._account.circuit.reopen(now, open_for_s)
        self._look()

    async def configure(self, breaker: BreakerOptions, rate: RateOptions) -> None:
        """Hold from now on; what is known of the account stays."""
        if (breaker, rate) != (self._account.circuit.options, self._account.budget.options):
            self._account.configure(breaker, rate)
            self._look()

    async def state(self) -> AccountState:
        """As it is now."""
        return self._account.state(self._loop.time())

    def _answer_now(self, ask: PermitAsk) -> Permit | Refusal:
        now = self._loop.time()
        if now < self._opens_at:
            return Refusal(WaitReason.CIRCUIT_OPEN, self._opens_at - now)
        return self._account.ask(ask, now)

    def _drop(self, holder: str) -> None:
        for key in self._account.drop(holder, self._loop.time()):
            self._answer(key, Refusal(WaitReason.LINE, None))
        self._look()

    def _look(self) -> None:
        """Let in who may begin; look again when somebody may be next."""
        now = self._loop.time()
        if not self._account.is_free(now) and not self._no_longer_free.done():
            self._no_longer_free.set_result(None)
            self._no_longer_free = self._loop.create_future()
        if now >= self._opens_at:
            for key, permit in self._account.grant(now):
                self._answer(key, permit)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wait_s = self._account.next_look_s(now)
        if wait_s is not None:
            self._timer = self._loop.call_later(max(wait_s, self._opens_at - now), self._look)

    def _send_away(self) -> None:
        """The breaker has opened: those in line are told, and may go elsewhere or stand in line again."""
        for key, why in self._account.refused(self._loop.time()).items():
            self._account.leave(key)
            self._answer(key, why)

    def _answer(self, key: str, answer: Permit | Refusal) -> None:
        waiting = self._waiting.pop(key, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)
