"""How a run finds its provider: routers and accounts in memory, a live session over them."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

from greenroom.domain.account import Account, AttemptEnd, AttemptReport, Permit, PermitAsk, Refusal
from greenroom.domain.circuit import BreakerOptions, CircuitState
from greenroom.domain.errors import ProviderAuthenticationFailed, ProviderOverloaded, ProviderUnavailable
from greenroom.domain.event import EventType
from greenroom.domain.provider import ProviderRequest as Request
from greenroom.domain.rate_budget import RateOptions
from greenroom.domain.routing import AllOpen, Candidate, RouterOptions, RoutingRequest, route
from tests.unit.live_session_world import Answers, GivenProviders, PlayProvider, World, error_of, outcome, settled

NAMES = ("a", "b", "c")


@pytest.fixture
async def world() -> AsyncGenerator[World]:
    made = World()
    yield made
    await made.aclose()


class LocalAccounts:
    """The accounts of one process, by the real rules, with nobody else at them."""

    def __init__(self, names: Sequence[str] = NAMES, **rates: RateOptions) -> None:
        breaker = BreakerOptions(failure_threshold=2, cooldown_s=0.2)
        self.by_name = {name: Account(name, breaker, rates.get(name, RateOptions())) for name in names}
        self.asked: list[tuple[str, bool]] = []
        self.bound: list[str] = []

    def __contains__(self, name: object) -> bool:
        return name in self.by_name

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def acquire(self, provider: str, ask: PermitAsk, *, waits: bool) -> Permit | Refusal | None:
        account = self.by_name[provider]
        self.asked.append((provider, waits))
        answer = account.ask(ask, self.now())
        if isinstance(answer, Permit) or not waits:
            return answer
        account.stand(ask)
        try:
            while (permit := account.permit_of(ask.key)) is None:
                await asyncio.sleep(0.002)
                account.grant(self.now())
        except asyncio.CancelledError:
            account.end(ask.key, AttemptReport(end=AttemptEnd.GIVEN_UP), self.now())
            raise
        return permit

    def ended(self, key: str, report: AttemptReport) -> None:
        for account in self.by_name.values():
            account.end(key, report, self.now())

    async def decide(self, router: str, request: RoutingRequest) -> tuple[str, ...]:
        candidates = [
            Candidate(name=name, is_open=account.circuit.state is not CircuitState.OPEN)
            for name, account in self.by_name.items()
            if name in request.options.providers
        ]
        return tuple(one.name for one in route(candidates, request, draw=0.0))

    def bind(self, router: str, options: RouterOptions, session_id: str, provider: str) -> None:
        self.bound.append(provider)

    def unbind(self, router: str, session_id: str) -> None:
        return None

    def under_way(self) -> int:
        return sum(account.state(self.now()).under_way for account in self.by_name.values())

    def break_(self, *names: str) -> None:
        for name in names:
            for number in range(2):
                self.by_name[name].ask(PermitAsk(key=f"{number}", holder=""), self.now())
                self.by_name[name].end(f"{number}", AttemptReport(end=AttemptEnd.FAILED), self.now())


class Named(PlayProvider):
    """Fails with what it is given as long as there is any, then answers with its name."""

    def __init__(self, name: str, *failures: Exception) -> None:
        super().__init__(self._answer)
        self.name = name
        self.failures = list(failures)
        self.served = 0

    async def _answer(self, _: Request) -> Answers:
        self.served += 1
        if self.failures:
            raise self.failures.pop(0)
        yield outcome(self.name)


def router(*names: str, **options: Any) -> RouterOptions:
    return RouterOptions(providers=names or NAMES, **options)


async def opened(world: World, accounts: LocalAccounts, options: RouterOptions, *providers: Named, **more: Any) -> Any:
    given = GivenProviders({one.name: one for one in providers}, {"main": options})
    return await world.open(providers=given, accounts=accounts, run_defaults={"router": "main", **more})


async def test_the_first_that_lets_it_in_is_taken_and_everything_is_given_back(world: World) -> None:
    accounts = LocalAccounts()
    accounts.break_("a")
    live = await opened(world, accounts, router(), *map(Named, NAMES))
    (run_id,) = await world.submit(live, "x")

    result = await live.await_run(run_id)

    assert ("b", ["b"], 0) == (result.output["content"], accounts.bound, accounts.under_way())
    assert [("b", False)] == accounts.asked
    assert {None, "b"} == {event.provider for event in await world.events(run_id)}


@pytest.mark.parametrize(("max_attempts", "served"), [(3, "c"), (2, None)])
async def test_a_router_tries_no_more_providers_than_it_may(
    world: World, max_attempts: int, served: str | None
) -> None:
    no = ProviderAuthenticationFailed("no")
    live = await opened(
        world, LocalAccounts(), router(max_attempts=max_attempts), Named("a", no), Named("b", no), Named("c")
    )
    (run_id,) = await world.submit(live, "x")

    if served:
        assert served == (await live.await_run(run_id)).provider
    else:
        assert isinstance(await error_of(live, run_id), ProviderAuthenticationFailed)
    overs = [event.data for event in await world.events(run_id) if event.type is EventType.PROVIDER_FAILED_OVER]
    assert [("a", "b"), ("b", "c")][: len(overs)] == [(one["from"], one["to"]) for one in overs]


async def test_a_run_stays_at_its_provider_while_its_time_lasts_and_then_goes_elsewhere(world: World) -> None:
    busy = [ProviderOverloaded("busy") for _ in range(10)]
    sick, well = Named("a", *busy), Named("b")
    accounts = LocalAccounts(("a", "b"))
    accounts.by_name["a"].circuit.options = BreakerOptions(failure_threshold=100)
    live = await opened(world, accounts, router("a", "b"), sick, well, retry_budget_s=1.0)
    (run_id,) = await world.submit(live, "x")

    result = await live.await_run(run_id)

    assert "b" == result.provider
    assert sick.served > 1
    assert result.attempts == sick.served + 1


async def test_a_run_leaves_a_provider_whose_breaker_opens_while_it_backs_off(world: World) -> None:
    sick, accounts = Named("a", *(ProviderOverloaded("busy") for _ in range(10))), LocalAccounts(("a", "b"))
    accounts.by_name["a"].circuit.options = BreakerOptions(failure_threshold=2, cooldown_s=600.0)
    live = await opened(world, accounts, router("a", "b"), sick, Named("b"), retry_budget_s=60.0)
    (run_id,) = await world.submit(live, "x")

    result = await live.await_run(run_id)

    assert ("b", 2) == (result.provider, sick.served), "two failures open it"


async def test_with_all_breakers_open_a_run_waits_or_tries_the_least_bad(world: World) -> None:
    waits, probes = LocalAccounts(), LocalAccounts()
    for accounts in (waits, probes):
        accounts.break_(*NAMES)
    patient = await opened(world, waits, router(), *map(Named, NAMES))
    (run_id,) = await world.submit(patient, "x")
    await settled()
    assert "circuit_open" == patient.state().waiting[run_id]["reason"]
    result = await patient.await_run(run_id)
    assert ("a", True) == (result.provider, waits.asked[-1][1])

    other = World()
    eager = await opened(other, probes, router(all_open=AllOpen.PROBE), *map(Named, NAMES))
    (run_id,) = await other.submit(eager, "x")
    assert "completed" == (await eager.await_run(run_id)).status
    assert {False} == {waits for _, waits in probes.asked}
    await other.aclose()


async def test_a_run_that_waited_too_long_for_broken_providers_fails_and_says_so(world: World) -> None:
    accounts = LocalAccounts()
    accounts.break_(*NAMES)
    live = await opened(world, accounts, router(), *map(Named, NAMES), retry_budget_s=0.05)
    (run_id,) = await world.submit(live, "x")

    error = await error_of(live, run_id)

    assert (ProviderUnavailable, "circuit_open") == (type(error), error.details["reason"])
    assert "run_started" not in await world.types(run_id)
    assert 0 == sum(account.state(accounts.now()).waiting for account in accounts.by_name.values())


async def test_a_run_in_line_looks_at_the_others_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greenroom.actors.place_finding.LOOK_AGAIN_S", 0.05)
    accounts = LocalAccounts(("a", "b"), a=RateOptions(requests_per_minute=1), b=RateOptions(max_concurrent=1))
    accounts.by_name["a"].ask(PermitAsk(key="used up", holder=""), accounts.now())
    accounts.by_name["a"].budget.pause(accounts.now() + 600)
    accounts.by_name["b"].ask(PermitAsk(key="busy", holder=""), accounts.now())
    live = await opened(world, accounts, router("a", "b"), Named("a"), Named("b"))
    (run_id,) = await world.submit(live, "x")
    await settled()
    accounts.ended("busy", AttemptReport(end=AttemptEnd.SUCCEEDED))

    assert "b" == (await live.await_run(run_id)).provider


async def test_a_cancelled_run_leaves_the_line_and_one_under_way_its_place(world: World) -> None:
    accounts = LocalAccounts(("a",), a=RateOptions(max_concurrent=1))

    async def hang(_: Request) -> Answers:
        await asyncio.Event().wait()
        yield outcome()

    hanging = Named("a")
    hanging.play = hang
    given = GivenProviders({"a": hanging})
    defaults = {"provider": "a"}
    live = await world.open(providers=given, accounts=accounts, run_defaults=defaults, max_concurrent_runs=2)
    first, second = await world.submit(live, "x", "y")
    await settled()
    assert [second] == list(live.state().waiting)

    await live.cancel_run(second, None, world.call())
    await live.cancel_run(first, None, world.call())
    await settled()

    state = accounts.by_name["a"].state(accounts.now())
    assert (0, 0, {}) == (state.under_way, state.waiting, live.state().waiting)


async def test_a_paused_session_keeps_nothing_for_a_run_that_may_not_start(world: World) -> None:
    accounts = LocalAccounts(("a",), a=RateOptions(max_concurrent=1))
    accounts.by_name["a"].ask(PermitAsk(key="busy", holder=""), accounts.now())
    given = GivenProviders({"a": Named("a")})
    live = await world.open(providers=given, accounts=accounts, run_defaults={"provider": "a"})
    (run_id,) = await world.submit(live, "x")
    await settled()

    await live.pause(world.call())
    accounts.ended("busy", AttemptReport(end=AttemptEnd.SUCCEEDED))
    async with asyncio.timeout(5):
        while live.state().waiting:
            await asyncio.sleep(0.001)

    assert 0 == accounts.under_way()
    await live.resume(world.call())
    assert "a" == (await live.await_run(run_id)).provider


async def test_the_status_of_a_session_can_be_asked_for_while_its_run_fails_over(world: World) -> None:
    accounts = LocalAccounts(("a", "b"), b=RateOptions(max_concurrent=1))
    accounts.by_name["b"].ask(PermitAsk(key="busy", holder=""), accounts.now())
    sick = Named("a", ProviderAuthenticationFailed("no"))
    live = await opened(world, accounts, router("a", "b"), sick, Named("b"))
    (run_id,) = await world.submit(live, "x")
    async with asyncio.timeout(5):
        while not live.state().waiting:
            await asyncio.sleep(0.001)

    assert "b" == live.state().waiting[run_id]["provider"]
    accounts.ended("busy", AttemptReport(end=AttemptEnd.SUCCEEDED))
    assert "b" == (await live.await_run(run_id)).provider
