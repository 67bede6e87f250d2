"""A provider account: breaker, rate budget and fair shares together."""

from hypothesis import given, strategies as st

from greenroom.domain.account import (
    Account,
    AttemptEnd,
    AttemptReport,
    Permit,
    PermitAsk,
    Refusal,
    WaitReason,
)
from greenroom.domain.circuit import BreakerOptions, CircuitState
from greenroom.domain.rate_budget import RateLevel, RateLevels, RateOptions

WELL = AttemptReport(end=AttemptEnd.SUCCEEDED, input_tokens=0, output_tokens=0)
BROKEN = AttemptReport(end=AttemptEnd.FAILED)
GIVEN_UP = AttemptReport(end=AttemptEnd.GIVEN_UP)


def account(*, failures: int = 2, cooldown_s: float = 10.0, probes: int = 1, **rate: int) -> Account:
    breaker = BreakerOptions(failure_threshold=failures, cooldown_s=cooldown_s, half_open_probes=probes)
    return Account("p", breaker, RateOptions(**rate))


def ask(key: str, tenant: str = "", **more: object) -> PermitAsk:
    return PermitAsk(key=key, holder="h", shares=(tenant,), **more)  # pyright: ignore[reportArgumentType]


def refusal(answer: Permit | Refusal) -> tuple[WaitReason, float | None]:
    assert isinstance(answer, Refusal)
    return answer.reason, answer.retry_in_s


def broken_at(now_s: float, **options: int) -> Account:
    one = account(**options)
    for key in ("a", "b"):
        one.ask(ask(key), now_s)
        one.end(key, BROKEN, now_s)
    return one


def test_an_account_without_limits_is_free_until_something_happens() -> None:
    one = account()
    answer = one.ask(ask("a"), 0.0)

    assert isinstance(answer, Permit)
    assert answer.is_free
    one.note(answer.admission, BROKEN, 0.0)
    one.note(answer.admission, BROKEN, 0.0)
    assert (False, CircuitState.OPEN) == (one.is_free(0.0), one.circuit.state)


def test_an_account_with_a_limit_is_never_free() -> None:
    answer = account(max_concurrent=5).ask(ask("a"), 0.0)

    assert isinstance(answer, Permit)
    assert not answer.is_free


def test_a_permit_that_is_asked_for_again_is_the_same() -> None:
    one = account(max_concurrent=1)
    permit = one.ask(ask("a"), 0.0)

    assert permit == one.permit_of("a")
    assert (WaitReason.CONCURRENCY, None) == refusal(one.ask(ask("b"), 0.0))


def test_a_refusal_for_the_rate_pauses_the_account_and_begins_slowly_again() -> None:
    one = account()
    for key in ("a", "b", "c"):
        one.ask(ask(key), 0.0)
    one.end("a", AttemptReport(end=AttemptEnd.RATE_LIMITED, retry_after_s=30.0), 1.0)
    one.end("b", WELL, 2.0)  # it began before: that it ended well is no news
    one.end("c", WELL, 2.0)

    assert (WaitReason.PAUSED, 26.0) == refusal(one.ask(ask("d"), 5.0))
    assert isinstance(one.ask(ask("d"), 31.0), Permit)
    assert (WaitReason.CONCURRENCY, None) == refusal(one.ask(ask("e"), 31.0))
    one.end("d", WELL, 32.0)
    assert isinstance(one.ask(ask("e"), 32.0), Permit)
    assert isinstance(one.ask(ask("f"), 32.0), Permit)


def test_the_services_own_counts_lower_ours_and_limit_what_nobody_configured() -> None:
    one = account()
    one.ask(ask("a"), 0.0)
    levels = RateLevels(requests=RateLevel(per_minute=60, remaining=0))
    one.end("a", AttemptReport(end=AttemptEnd.SUCCEEDED, levels=levels), 0.0)

    reason, wait_s = refusal(one.ask(ask("b"), 0.0))
    assert WaitReason.RATE is reason
    assert wait_s is not None
    assert isinstance(one.ask(ask("b"), wait_s), Permit)


def test_tokens_are_corrected_by_what_was_used() -> None:
    one = account(input_tokens_per_minute=600)
    one.ask(ask("a", input_tokens=600), 0.0)
    assert WaitReason.RATE is refusal(one.ask(ask("b", input_tokens=300), 0.0))[0]
    one.end("a", AttemptReport(end=AttemptEnd.SUCCEEDED, input_tokens=100, output_tokens=0), 0.0)

    assert isinstance(one.ask(ask("b", input_tokens=300), 0.0), Permit)


def test_nobody_overtakes_those_in_line_and_turns_are_fair() -> None:
    one = account(max_concurrent=1)
    one.ask(ask("running"), 0.0)
    for key, tenant in (("a1", "a"), ("a2", "a"), ("b1", "b")):
        one.stand(ask(key, tenant))
    one.end("running", WELL, 1.0)

    assert isinstance(one.ask(ask("pushy", "c"), 1.0), Refusal)
    order: list[str] = []
    while granted := one.grant(1.0):
        ((key, _),) = granted
        order.append(key)
        one.end(key, WELL, 1.0)
    assert ["a1", "b1", "a2"] == order


def test_who_has_nowhere_else_to_go_may_try_early_but_not_before_the_providers_time() -> None:
    one = account(cooldown_s=60.0)
    for key in ("a", "b"):
        one.ask(ask(key), 0.0)
    one.end("a", BROKEN, 0.0)
    one.end("b", AttemptReport(end=AttemptEnd.FAILED, retry_after_s=5.0), 0.0)

    assert (WaitReason.CIRCUIT_OPEN, 60.0) == refusal(one.ask(ask("c"), 0.0))
    assert (WaitReason.CIRCUIT_OPEN, 5.0) == refusal(one.ask(ask("c", early=True), 0.0))
    permit = one.ask(ask("c", early=True), 5.0)
    assert isinstance(permit, Permit)
    assert permit.is_probe


def test_a_holder_that_is_gone_gives_everything_back() -> None:
    one = broken_at(0.0)
    assert isinstance(one.ask(ask("probe"), 10.0), Permit)
    one.stand(ask("waits"))

    assert ["waits"] == one.drop("h", 11.0)

    assert (0, 0) == (one.state(11.0).under_way, one.state(11.0).waiting)
    assert isinstance(one.ask(ask("next"), 11.0), Permit), "the probe was given up, and another one may be made"


def test_what_a_holder_does_not_have_any_more_comes_back_unless_it_was_given_just_now() -> None:
    one = account(max_concurrent=3)
    for key, now_s in (("lost", 0.0), ("kept", 0.0), ("new", 9.0)):
        one.ask(ask(key), now_s)

    one.reconcile("h", {"kept"}, 10.0, older_than_s=5.0)

    assert [None, True, True] == [one.permit_of(key) and True for key in ("lost", "kept", "new")]


def test_attempts_of_before_are_counted_and_judged_by_nobody() -> None:
    one = account(max_concurrent=1)
    permit = Permit(account().circuit.admit(0.0))  # pyright: ignore[reportArgumentType]
    one.hold(ask("old"), permit)

    assert (WaitReason.CONCURRENCY, None) == refusal(one.ask(ask("new"), 0.0))
    one.end("old", BROKEN, 1.0)
    assert CircuitState.CLOSED is one.circuit.state
    assert isinstance(one.ask(ask("new"), 1.0), Permit)


Step = tuple[str, int, float]
steps = st.lists(
    st.tuples(
        st.sampled_from(["ask", "stand", "well", "broken", "given up", "drop"]), st.integers(0, 9), st.floats(0, 5)
    ),
    max_size=80,
)


@given(steps, st.integers(1, 3), st.integers(1, 3))
def test_never_more_at_once_than_may_be_and_never_more_probes(steps: list[Step], most: int, probes: int) -> None:
    one = account(probes=probes, max_concurrent=most)
    now_s, under_way = 0.0, dict[str, Permit]()
    for number, (what, which, after_s) in enumerate(steps):
        now_s += after_s
        key = f"{what} {number}"
        if what == "ask":
            answer = one.ask(ask(key), now_s)
            if isinstance(answer, Permit):
                under_way[key] = answer
        elif what == "stand":
            one.stand(ask(key, str(which)))
        elif what == "drop":
            one.drop("h", now_s)
            under_way.clear()
        elif under_way:
            ended = sorted(under_way)[which % len(under_way)]
            del under_way[ended]
            one.end(ended, {"well": WELL, "broken": BROKEN}.get(what, GIVEN_UP), now_s)
        under_way |= dict(one.grant(now_s))
        assert len(under_way) <= most
        assert sum(permit.is_probe for permit in under_way.values()) <= probes * (one.circuit.cycle + 1)
        current = [p for p in under_way.values() if p.is_probe and p.admission.cycle == one.circuit.cycle]
        assert len(current) <= probes


@given(steps)
def test_whoever_stands_in_line_has_a_time_to_look_again_or_somebody_to_wait_for(steps: list[Step]) -> None:
    one = account(max_concurrent=2)
    now_s, under_way = 0.0, list[str]()
    for number, (what, _, after_s) in enumerate(steps):
        now_s += after_s
        if what in {"ask", "stand"}:
            one.stand(ask(f"{number}"))
        elif under_way:
            one.end(under_way.pop(0), {"well": WELL, "broken": BROKEN}.get(what, GIVEN_UP), now_s)
        under_way += [key for key, _ in one.grant(now_s)]
        if one.state(now_s).waiting:
            assert one.next_look_s(now_s) is not None or under_way
