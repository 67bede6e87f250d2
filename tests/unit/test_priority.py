"""What runs of batches leave to runs that somebody waits for."""

import pytest
from hypothesis import given, settings, strategies as st

from greenroom.domain.account import Account, AttemptEnd, AttemptReport, Permit, PermitAsk, Refusal, WaitReason
from greenroom.domain.circuit import BreakerOptions
from greenroom.domain.priority import usable
from greenroom.domain.rate_budget import RateOptions
from greenroom.domain.slots import Slot, SlotLimits, SlotTable

BATCH = -10


def slot(name: str, priority: int) -> Slot:
    return Slot(run_id=name, provider="p", tenant="t", priority=priority)


@given(st.integers(1, 1_000))
def test_a_batch_leaves_something_of_every_limit_that_can_be_shared(limit: int) -> None:
    assert usable(limit, 0) == limit
    assert 1 <= usable(limit, BATCH) <= limit
    assert limit == 1 or usable(limit, BATCH) < limit


@pytest.mark.parametrize(
    "limits", [SlotLimits(total=4), SlotLimits(per_provider={"p": 4}), SlotLimits(per_tenant=4)], ids=str
)
def test_a_run_that_somebody_waits_for_finds_a_slot_while_a_batch_has_all_that_it_may(limits: SlotLimits) -> None:
    table = SlotTable(limits)
    for number in range(10):
        table.ask(slot(f"row {number}", BATCH))
    assert 3 == len(table.grant())

    table.ask(slot("now", 0))

    assert ["now"] == [run_id for run_id, _ in table.grant()]
    table.release("row 0")
    table.ask(slot("also now", 0))
    assert ["also now"] == [run_id for run_id, _ in table.grant()]
    assert not table.grant()


def ask(key: str, priority: int, tokens: int = 0) -> PermitAsk:
    return PermitAsk(key=key, holder="h", priority=priority, input_tokens=tokens)


def test_an_account_keeps_a_place_for_a_run_that_somebody_waits_for() -> None:
    account = Account("p", BreakerOptions(), RateOptions(max_concurrent=3))
    answers = [account.ask(ask(f"row {number}", BATCH), 0.0) for number in range(3)]
    account.stand(ask("row 2", BATCH))

    assert [Permit, Permit, Refusal] == [type(answer) for answer in answers]
    account.stand(ask("now", 0))
    assert ["now"] == [key for key, _ in account.grant(0.0)]


@settings(deadline=None, max_examples=20)
@given(st.integers(60, 5_000), st.integers(5, 50), st.integers(60, 130))
def test_no_minute_sees_more_than_a_twentieth_above_the_budget_by_a_batch(
    per_minute: int, tokens: int, seconds: int
) -> None:
    """An attempt may go beyond by what it takes itself: what is in the bucket is looked at before it begins."""
    account = Account("p", BreakerOptions(), RateOptions(input_tokens_per_minute=per_minute))
    taken: list[tuple[float, int]] = []
    for tick in range(seconds * 4):
        now = tick / 4
        while isinstance(account.ask(ask(f"{len(taken)}", BATCH, tokens), now), Permit):
            report = AttemptReport(end=AttemptEnd.SUCCEEDED, input_tokens=tokens, output_tokens=0)
            account.end(f"{len(taken)}", report, now)
            taken.append((now, tokens))

    for start, _ in taken:
        within = sum(amount for at, amount in taken if start <= at < start + 60)
        assert within <= per_minute * 1.05 + tokens + 1


def test_a_run_that_somebody_waits_for_finds_the_budget_of_a_minute_nearly_whole() -> None:
    account = Account("p", BreakerOptions(), RateOptions(input_tokens_per_minute=1_000))
    rows = [account.ask(ask(f"row {number}", BATCH, 10), 0.0) for number in range(20)]
    refused = next(one for one in rows if isinstance(one, Refusal))

    assert 5 == sum(isinstance(one, Permit) for one in rows)
    assert WaitReason.RATE is refused.reason
    assert isinstance(account.ask(ask("now", 0, 900), 0.0), Permit)
