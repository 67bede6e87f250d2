"""Finding a place for a run that has something to ask: the order of its router, permits of accounts, and waiting."""

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..domain.account import PermitAsk, Refusal, WaitReason
from ..domain.errors import ProviderRateLimited, ProviderUnavailable
from ..domain.event import EventType
from ..domain.routing import AllOpen, RoutingRequest
from ..domain.session import Session
from .live_run import LiveRun
from .placement import DEFAULT_RETRY_BUDGET_S
from .run_route import RunRoute
from .session_writer import SessionWriter

if TYPE_CHECKING:
    from .placement import Placer

SHOWN_AFTER_S = 1.0
"""A run that waits longer than this for an account says so in the log."""

LOOK_AGAIN_S = 1.0
"""A run that stands in line at one of several accounts looks at the others no more often than this."""

CHARACTERS_PER_TOKEN = 4
"""What an input is thought to need; corrected by what it used. Anthropic's own rule of thumb is 3.5 to 4."""

BATCH = "batch"
"""Key in a session's metadata: the batch that it belongs to, which shares what its tenant gets with the others."""


class PlaceFinder:
    """For one search."""

    def __init__(self, session: Session, *, placer: "Placer", writer: SessionWriter) -> None:
        self._session = session
        self._placer = placer
        self._writer = writer
        self._loop = asyncio.get_running_loop()

    async def find(self, run: LiveRun) -> str:
        """The provider at which the run holds a permit now. The log tells of a search that is not over in a moment."""
        began_s, route = self._loop.time(), run.route
        shown = self._loop.call_later(SHOWN_AFTER_S, self._show_waiting, run)
        try:
            provider: str | None = None
            while provider is None:
                provider = await self._permitted(run)
        finally:
            shown.cancel()
        if route.waits_for is not None and route.waits_for.get("shown"):
            waited_s = round(self._loop.time() - began_s, 3)
            self._record(run, EventType.ERROR_RECOVERED, {"provider": provider, "waited_s": waited_s})
        return provider

    async def _permitted(self, run: LiveRun) -> str | None:
        """The provider that the run may begin at; None if everything has to be asked anew."""
        ask, refusals = self._ask(run), dict[str, Refusal]()
        for again in (False, True):
            if again:
                if run.route.router is None or run.route.stays or self._placer.accounts is None:
                    break
                self._placer.accounts.unbind(run.route.router, self._session.id)
            for name in await self.order(run):
                if name in refusals:
                    continue
                answer = await self._acquire(run, name, ask, waits=False)
                if not isinstance(answer, Refusal):
                    return name
                refusals[name] = answer
        return await self._wait(run, ask, refusals)

    async def order(self, run: LiveRun) -> tuple[str, ...]:
        """Whom the run is to be tried on."""
        route, accounts = run.route, self._placer.accounts
        if route.router is None or route.options is None or accounts is None:
            return (run.provider,)
        if route.stays:
            return (run.provider,)
        request = RoutingRequest(
            options=route.options,
            session_id=self._session.id,
            overrides=route.overrides,
            required=route.required,
            exclude=frozenset(name for name in route.options.providers if name not in self._left(route)),
        )
        decided = await accounts.decide(route.router, request)
        route.candidates = tuple(name for name in decided if name in self._left(route))
        if not route.candidates:
            raise ProviderUnavailable(
                f"Router {route.router!r} has no provider left for this run. Try again later, or give it more.",
                details={"router": route.router, "given_up": list(route.given_up)},
            )
        return route.candidates

    def _left(self, route: RunRoute) -> list[str]:
        """Those of the router's providers that the run may still go to."""
        return [name for name in route.able if name not in route.given_up]

    async def _wait(self, run: LiveRun, ask: PermitAsk, refusals: dict[str, Refusal]) -> str | None:
        """Stand in line at the one that is likely to let it in first."""
        route = run.route
        is_open = all(one.reason is WaitReason.CIRCUIT_OPEN for one in refusals.values())
        if is_open and route.stays and route.can_fail_over:
            self._placer.give_up_here(run, WaitReason.CIRCUIT_OPEN.value)
            return None
        name, why = min(refusals.items(), key=lambda item: _likely_wait_s(item[1]))
        if route.waits_for is None:
            route.waits_for = {"provider": name, "since_us": self._writer.now_us()}
        route.waits_for |= {"provider": name, "reason": why.reason.value, "retry_in_s": why.retry_in_s}
        if not is_open:
            others = [_likely_wait_s(other)[1] for one, other in refusals.items() if one != name]
            answer = await self._stand_in_line(run, name, ask, look_again_s=min(others, default=None))
        elif why.retry_in_s is None:  # a probe is under way, and may be a long run: that is no fault of the account
            answer = await self._acquire(run, name, ask, waits=True)
        else:
            is_early = route.options is not None and route.options.all_open is AllOpen.PROBE
            answer = await self._await_closing(run, name, replace(ask, early=is_early))
        return name if not isinstance(answer, Refusal) else None

    async def _stand_in_line(self, run: LiveRun, name: str, ask: PermitAsk, *, look_again_s: float | None) -> object:
        """Wait for the account. Where there are others, it looks again when one of them may be free; a run that has
        failed here and could go elsewhere waits no longer than it may be tried here."""
        route = run.route
        is_last_chance = route.stays and route.can_fail_over and route.first_failed_s is not None
        patience_s = None if look_again_s is None else max(look_again_s, LOOK_AGAIN_S)
        if is_last_chance:
            patience_s = (route.first_failed_s or 0.0) + self._placer.retry_budget_s(run) - self._loop.time()
        try:
            async with asyncio.timeout(patience_s):
                return await self._acquire(run, name, ask, waits=True)
        except TimeoutError:
            if is_last_chance:
                self._placer.give_up_here(run, WaitReason.RATE.value)
            return Refusal(WaitReason.RATE, None)

    async def _await_closing(self, run: LiveRun, name: str, ask: PermitAsk) -> object:
        """Wait for an account that is left alone, as long as the run has time for that."""
        began_s, route = self._loop.time(), run.route
        patience_s = DEFAULT_RETRY_BUDGET_S if run.options.retry_budget_s is None else run.options.retry_budget_s
        try:
            async with asyncio.timeout(patience_s - route.open_s):
                return await self._acquire(run, name, ask, waits=True)
        except TimeoutError:
            raise ProviderUnavailable(
                f"Provider {name!r} has failed too often and is left alone for a while; the run waited {patience_s:g} s"
                " for it. Submit it again later, or give it more time with retry_budget_s.",
                details={"provider": name, "reason": WaitReason.CIRCUIT_OPEN.value},
            ) from None
        finally:
            route.open_s += self._loop.time() - began_s

    async def _acquire(self, run: LiveRun, name: str, ask: PermitAsk, *, waits: bool) -> object:
        accounts = self._placer.accounts
        if accounts is None:
            return None
        answer = await accounts.acquire(name, ask, waits=waits)
        if not isinstance(answer, Refusal):
            run.route.permit_key = ask.key
        return answer

    def _ask(self, run: LiveRun) -> PermitAsk:
        characters = sum(len(message.content) for message in run.messages)
        characters += len(str(self._session.context.get("system_prompt") or ""))
        return PermitAsk(
            key=f"{run.run_id}/{run.attempt}",
            holder="",
            shares=(self._session.tenant or "", str(self._session.metadata.get(BATCH) or ""), self._session.id),
            priority=run.options.priority,
            input_tokens=max(1, characters // CHARACTERS_PER_TOKEN),
        )

    def _show_waiting(self, run: LiveRun) -> None:
        waits = run.route.waits_for
        if waits is None or run.ended:  # a router or an account that does not answer: Ray starts it again
            return
        waits["shown"] = True
        is_open = waits["reason"] == WaitReason.CIRCUIT_OPEN
        error = ProviderUnavailable if is_open else ProviderRateLimited
        self._record(
            run,
            EventType.ERROR_OCCURRED,
            {
                "error_code": error.code,
                "error_message": f"The run waits for provider {waits['provider']!r} ({waits['reason']}).",
                "retryable": True,
                "waits_for": waits["provider"],
                "reason": waits["reason"],
                "retry_in_s": waits["retry_in_s"],
            },
        )

    def _record(self, run: LiveRun, event_type: EventType, data: dict[str, Any]) -> None:
        if not run.ended:
            self._writer.record(self._writer.event(event_type, run, data))


def _likely_wait_s(refusal: Refusal) -> tuple[bool, float]:
    """The open ones last; what nobody knows the length of is taken for a second."""
    return refusal.reason is WaitReason.CIRCUIT_OPEN, 1.0 if refusal.retry_in_s is None else refusal.retry_in_s
