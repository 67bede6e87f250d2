"""Which provider a run goes to, and when it may begin there: planned before anything is queued, asked of routers and
accounts before each attempt. What only those runs need that have something to ask is loaded for the first of them."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..domain.errors import GreenroomError, ValidationError
from ..domain.routing_overrides import NO_OVERRIDES
from ..domain.run_options import RunOptions
from ..domain.session import Session
from ..domain.token_usage import TokenUsage
from .live_run import LiveRun
from .provider_set import ProviderSet
from .run_route import RunRoute
from .session_writer import SessionWriter

if TYPE_CHECKING:
    from ..domain.routing import RouterOptions
    from .accounts import Accounts
    from .place_finding import PlaceFinder

DEFAULT_RETRY_BUDGET_S = 60.0
"""How long a run is tried again at a provider with an account (a breaker, a rate budget) where there is no other."""

DEFAULT_FAILOVER_BUDGET_S = 2.0
"""The same, where a router has another one."""

SUCCEEDED = "succeeded"
GIVEN_UP = "given_up"
"""How an attempt ended, by the names of AttemptEnd."""


def no_accounts() -> "Accounts | None":
    """Where no provider has an account."""
    return None


class Placer:
    """Belongs to one live session."""

    def __init__(
        self,
        session: Session,
        *,
        providers: ProviderSet,
        accounts: "Callable[[], Accounts | None]",
        writer: SessionWriter,
    ) -> None:
        """`accounts` gives those of the process, once there are any."""
        self._session = session
        self._providers = providers
        self._accounts_of_process = accounts
        self._writer = writer
        self._loop = asyncio.get_running_loop()

    @property
    def accounts(self) -> "Accounts | None":
        """Those of this process; None where no provider has one."""
        return self._accounts_of_process()

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
        route = _route_of(options)
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

    def _plan_routed(self, route: RunRoute, name: str, router: "RouterOptions", options: RunOptions) -> None:
        overrides = options.routing or NO_OVERRIDES
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
            from ..domain.capability_negotiation import negotiate  # noqa: PLC0415  most runs require nothing

            capabilities = self._providers.manifest(provider, options.model).capabilities
            route.negotiation = negotiate(capabilities, route.required, route.optional, whose=f"Provider {provider!r}")

    # Before an attempt

    def is_free(self, run: LiveRun) -> bool:
        """Whether there is nothing to decide and nothing to count."""
        if run.route.router is not None:
            return False
        accounts = self.accounts
        return accounts is None or run.provider not in accounts

    def retry_budget_s(self, run: LiveRun) -> float:
        """For how long the run may be tried again where it is."""
        if run.options.retry_budget_s is not None:
            return run.options.retry_budget_s
        if self.is_free(run):
            return 0.0
        return DEFAULT_FAILOVER_BUDGET_S if run.route.can_fail_over else DEFAULT_RETRY_BUDGET_S

    async def first_choice(self, run: LiveRun) -> str:
        """The provider that the run is likely to go to: its slot is one of that provider's."""
        return run.provider or (await self._finder().order(run))[0]

    async def place(self, run: LiveRun) -> None:
        """Choose the provider of the next attempt and wait until it may begin there; the run then holds a permit, until
        `settle`. ProviderUnavailable when no provider may be tried within the time that the run has for that."""
        if self.is_free(run):
            return
        route, began_s = run.route, self._loop.time()
        try:
            provider = await self._finder().find(run)
        finally:
            route.waited_s = self._loop.time() - began_s
            route.waits_for = None
        run.provider, route.open_s, route.is_undecided = provider, 0.0, False
        if route.required or route.optional:
            self._check(provider, run.options, route)

    def settle(self, run: LiveRun, end: str = GIVEN_UP, *, retry_after_s: float | None = None) -> None:
        """The attempt has ended, or will not be made: its permit goes back, and its account is told how it ended and
        what it has used. A second time nothing happens."""
        key, run.route.permit_key = run.route.permit_key, None
        levels, run.route.levels = run.route.levels, None
        accounts = self.accounts
        if key is None or accounts is None:
            return
        from ..domain.account import AttemptEnd, AttemptReport  # noqa: PLC0415

        usage = None if end == GIVEN_UP else TokenUsage.from_dict(run.token_usage)
        report = AttemptReport(
            end=AttemptEnd(end),
            input_tokens=None if usage is None else usage.input_tokens + usage.cache_write_tokens,
            output_tokens=None if usage is None else usage.output_tokens,
            retry_after_s=retry_after_s,
            levels=levels,
        )
        accounts.ended(key, report)

    def served(self, run: LiveRun) -> None:
        """The run was served well where it was: the session stays there."""
        route, accounts = run.route, self.accounts
        if route.router is None or route.options is None or accounts is None or not route.overrides.sticky:
            return
        accounts.bind(route.router, route.options, self._session.id, run.provider)

    def give_up_here(self, run: LiveRun, error_code: str) -> None:
        """The run has failed at its provider for good: it is not tried there again, and nobody knows yet where."""
        route, accounts = run.route, self.accounts
        route.failed_over = {"from": run.provider, "error_code": error_code}
        route.given_up.append(run.provider)
        route.is_undecided = True
        route.stays, route.failures_here, route.first_failed_s = False, 0, None
        if route.router is not None and accounts is not None:
            accounts.unbind(route.router, self._session.id)

    def _finder(self) -> "PlaceFinder":
        from .place_finding import PlaceFinder  # noqa: PLC0415

        return PlaceFinder(self._session, placer=self, writer=self._writer)


def _route_of(options: RunOptions) -> RunRoute:
    if not options.required_capabilities and not options.optional_capabilities:
        return RunRoute()
    from ..domain.capability_negotiation import parse_requirements  # noqa: PLC0415

    return RunRoute(
        required=parse_requirements(options.required_capabilities, field="options.required_capabilities"),
        optional=parse_requirements(options.optional_capabilities, field="options.optional_capabilities"),
    )
