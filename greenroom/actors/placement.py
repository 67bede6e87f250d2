"""Which provider a run goes to, and when it may begin there: asked of routers and accounts before each attempt."""

import asyncio
from dataclasses import replace
from typing import Any

from ..domain.account import AttemptEnd, AttemptReport, PermitAsk, Refusal, WaitReason
from ..domain.capability_negotiation import negotiate, parse_requirements
from ..domain.errors import GreenroomError, ProviderRateLimited, ProviderUnavailable, ValidationError
from ..domain.event import EventType
from ..domain.failover import DEFAULT_FAILOVER_BUDGET_S, DEFAULT_RETRY_BUDGET_S
from ..domain.routing import AllOpen, RouterOptions, RoutingOverrides, RoutingRequest
from ..domain.run_options import RunOptions
from ..domain.session import Session
from .accounts import Accounts
from .live_run import LiveRun
from .provider_set import ProviderSet
from .run_route import RunRoute
from .session_writer import SessionWriter

SHOWN_AFTER_S = 1.0
"""A run that waits longer than this for an account says so in the log."""

LOOK_AGAIN_S = 1.0
"""A run that stands in line at one of several accounts looks at the others no more often than this."""

CHARACTERS_PER_TOKEN = 4
"""What an input is thought to need; corrected by what it used. Anthropic's own rule of thumb is 3.5 to 4."""

BATCH = "batch"
"""Key in a session's metadata: the batch that it belongs to, which shares what its tenant gets with the others."""

_GIVEN_UP = AttemptReport(end=AttemptEnd.GIVEN_UP)


class Placer:
    """Belongs to one live session."""

    def __init__(
        self, session: Session, *, providers: ProviderSet, accounts: Accounts | None, writer: SessionWriter
    ) -> None:
        self._session = session
        self._providers = providers
        self._accounts = accounts
        self._writer = writer
        self._loop = asyncio.get_running_loop()

    # Before anything is queued

    def plan(self, options: RunOptions) -> tuple[str, RunRoute]:
        """The provider of a run, empty where a router will say, and what is known of its way there.

        ValidationError where there is no such provider or router, or it does not take the options;
        CapabilityNotSupported and MissingRequiredCapability for what it cannot do.
        """
        name = options.router or options.provider or self._session.provider
        router = self._providers.router(name)
        if options.router is not None and router is None:
            raise ValidationError(f"Router {name!r} is not declared.", details={"field": "options.router"})
        required = parse_requirements(options.required_capabilities, field="options.required_capabilities")
        optional = parse_requirements(options.optional_capabilities, field="options.optional_capabilities")
        route = RunRoute(required=required, optional=optional)
        if router is None:
            if options.routing is not None:
                raise ValidationError(
                    "options.routing is for runs on a router; name one as options.router.",
                    details={"field": "options.routing"},
                )
            self._check(name, options, route)
            return name, route
        self._plan_routed(route, name, router, options)
        return "", route

    def _plan_routed(self, route: RunRoute, name: str, router: RouterOptions, options: RunOptions) -> None:
        overrides = options.routing or RoutingOverrides()
        for field_name in ("prefer", "exclude"):
            unknown = [one for one in getattr(overrides, field_name) if one not in router.providers]
            if unknown:
                raise ValidationError(
                    f"options.routing.{field_name} names {unknown[0]!r}, which is not one of the router's providers:"
                    f" {', '.join(router.providers)}.",
                    details={"field": f"options.routing.{field_name}"},
                )
        route.router, route.options, route.overrides = name, router.for_run(overrides), overrides
        refusals: list[GreenroomError] = []
        able: list[str] = []
        for member in router.providers:
            if member in overrides.exclude:
                continue
            try:
                self._check(member, options, route)
                able.append(member)
            except GreenroomError as exc:
                refusals.append(exc)
        if not able:
            raise (
                refusals[0]
                if refusals
                else ValidationError(
                    f"options.routing.exclude leaves none of the providers of router {name!r}.",
                    details={"field": "options.routing.exclude"},
                )
            )
        route.able = tuple(able)

    def _check(self, provider: str, options: RunOptions, route: RunRoute) -> None:
        self._providers.check(provider, options)
        if route.required or route.optional:
            capabilities = self._providers.manifest(provider, options.model).capabilities
            route.negotiation = negotiate(capabilities, route.required, route.optional, whose=f"Provider {provider!r}")

    # Before an attempt

    def is_free(self, run: LiveRun) -> bool:
        """Whether there is nothing to decide and nothing to count."""
        return run.route.router is None and (self._accounts is None or run.provider not in self._accounts)

    def retry_budget_s(self, run: LiveRun) -> float:
        """For how long the run may be tried again where it is."""
        if run.options.retry_budget_s is not None:
            return run.options.retry_budget_s
        if self.is_free(run):
            return 0.0
        return DEFAULT_FAILOVER_BUDGET_S if run.route.can_fail_over else DEFAULT_RETRY_BUDGET_S

    async def first_choice(self, run: LiveRun) -> str:
        """The provider that the run is likely to go to: its slot is one of that provider's."""
        return run.provider or (await self._order(run))[0]

    async def place(self, run: LiveRun) -> None:
        """Choose the provider of the next attempt and wait until it may begin there; the run then holds a permit, until
        `settle`. ProviderUnavailable when no provider may be tried within the time that the run has for that."""
        if self.is_free(run):
            return
        route, began_s = run.route, self._loop.time()
        shown = self._loop.call_later(SHOWN_AFTER_S, self._show_waiting, run)
        try:
            provider: str | None = None
            while provider is None:
                provider = await self._permitted(run)
        finally:
            shown.cancel()
            route.waited_s = self._loop.time() - began_s
            was_shown = route.waits_for is not None and route.waits_for.get("shown")
            route.waits_for = None
        if was_shown:
            self._record(run, EventType.ERROR_RECOVERED, {"provider": provider, "waited_s": round(route.waited_s, 3)})
        run.provider, route.open_s, route.is_undecided = provider, 0.0, False
        if route.required or route.optional:
            self._check(provider, run.options, route)

    def settle(self, run: LiveRun, report: AttemptReport = _GIVEN_UP) -> None:
        """The attempt has ended, or will not be made: its permit goes back. A second time nothing happens."""
        key, run.route.permit_key = run.route.permit_key, None
        if key is not None and self._accounts is not None:
            self._accounts.ended(key, replace(report, levels=run.route.levels))
        run.route.levels = None

    def served(self, run: LiveRun) -> None:
        """The run was served well where it was: the session stays there."""
        route = run.route
        if route.router is None or route.options is None or self._accounts is None or not route.overrides.sticky:
            return
        self._accounts.bind(route.router, route.options, self._session.id, run.provider)

    def give_up_here(self, run: LiveRun, error_code: str) -> None:
        """The run has failed at its provider for good: it is not tried there again, and nobody knows yet where."""
        route = run.route
        route.failed_over = {"from": run.provider, "error_code": error_code}
        route.given_up.append(run.provider)
        route.is_undecided = True
        route.stays, route.failures_here, route.first_failed_s = False, 0, None
        if route.router is not None and self._accounts is not None:
            self._accounts.unbind(route.router, self._session.id)

    async def _permitted(self, run: LiveRun) -> str | None:
        """The provider that the run may begin at; None if everything has to be asked anew."""
        ask, refusals = self._ask(run), dict[str, Refusal]()
        for again in (False, True):
            if again:
                if run.route.router is None or run.route.stays or self._accounts is None:
                    break
                self._accounts.unbind(run.route.router, self._session.id)
            for name in await self._order(run):
                if name in refusals:
                    continue
                answer = await self._acquire(run, name, ask, waits=False)
                if not isinstance(answer, Refusal):
                    return name
                refusals[name] = answer
        return await self._wait(run, ask, refusals)

    async def _order(self, run: LiveRun) -> tuple[str, ...]:
        route = run.route
        if route.router is None or route.options is None or self._accounts is None:
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
        decided = await self._accounts.decide(route.router, request)
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
            self.give_up_here(run, WaitReason.CIRCUIT_OPEN.value)
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
            patience_s = (route.first_failed_s or 0.0) + self.retry_budget_s(run) - self._loop.time()
        try:
            async with asyncio.timeout(patience_s):
                return await self._acquire(run, name, ask, waits=True)
        except TimeoutError:
            if is_last_chance:
                self.give_up_here(run, WaitReason.RATE.value)
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
        if self._accounts is None:
            return None
        answer = await self._accounts.acquire(name, ask, waits=waits)
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
