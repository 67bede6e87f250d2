"""The budget tree: reserve, then commit, in all scopes at once."""

from hypothesis import given, strategies as st

from greenroom.domain.amount import Amount
from greenroom.domain.budget import BudgetAnswer, BudgetTree
from greenroom.domain.budget_options import BudgetOptions

NOTHING_KNOWN = Amount()


def tree(**caps_usd: float) -> BudgetTree:
    return BudgetTree({name: BudgetOptions(max_cost_usd=cap) for name, cap in caps_usd.items()})


def answer(one: BudgetTree, *scopes: str, most: Amount = NOTHING_KNOWN) -> BudgetAnswer:
    return one.decide(scopes, "kind", most).answer


def run(one: BudgetTree, key: str, *scopes: str, cost_usd: float = 0.05) -> None:
    one.reserve(key, scopes, "kind", NOTHING_KNOWN)
    one.commit(key, Amount.of(cost_usd, 10))


def test_the_first_run_of_its_kind_goes_alone() -> None:
    one = tree(acme=1.0)
    one.reserve("first", ["acme"], "kind", NOTHING_KNOWN)

    assert BudgetAnswer.WAIT == answer(one, "acme")

    one.commit("first", Amount.of(0.05, 10))
    assert BudgetAnswer.GRANTED == answer(one, "acme")


def test_twenty_runs_at_five_cents_use_up_a_dollar_exactly() -> None:
    one = tree(acme=1.0)
    for number in range(20):
        assert BudgetAnswer.GRANTED == answer(one, "acme")
        run(one, str(number), "acme")

    assert BudgetAnswer.EXCEEDED == answer(one, "acme")
    assert Amount(1_000_000, None) == one.spent("acme")


def test_the_tightest_scope_decides_and_is_named() -> None:
    one = tree(acme=1.0, site=0.1)
    run(one, "first", "acme", "site")
    run(one, "second", "acme", "site")

    decision = one.decide(["acme", "site"], "kind", NOTHING_KNOWN)
    assert (BudgetAnswer.EXCEEDED, "site") == (decision.answer, decision.scope)
    assert BudgetAnswer.GRANTED == answer(one, "acme")


def test_a_limit_of_the_run_itself_is_the_most_that_it_sets_aside() -> None:
    one = tree(acme=1.0)
    for number in range(20):
        assert BudgetAnswer.GRANTED == answer(one, "acme", most=Amount.of(0.05, None))
        one.reserve(str(number), ["acme"], "kind", Amount.of(0.05, None))

    assert BudgetAnswer.WAIT == answer(one, "acme", most=Amount.of(0.05, None))


def test_runs_without_a_price_do_not_use_up_money() -> None:
    one = tree(acme=1.0)
    one.reserve("first", ["acme"], "kind", NOTHING_KNOWN)
    one.commit("first", Amount(None, 10))
    one.reserve("second", ["acme"], "kind", NOTHING_KNOWN)

    assert BudgetAnswer.GRANTED == answer(one, "acme")
    assert Amount(0, None) == one.spent("acme")


def test_a_run_that_nobody_knows_the_end_of_counts_what_its_kind_needs() -> None:
    one = tree(acme=1.0)
    run(one, "first", "acme")
    one.reserve("lost", ["acme"], "kind", NOTHING_KNOWN)
    one.forfeit("lost")

    assert Amount(100_000, None) == one.spent("acme")


@given(
    st.lists(st.tuples(st.sampled_from(["start", "end"]), st.integers(1, 300_000)), max_size=60),
    st.integers(1, 1_000_000),
)
def test_runs_that_need_no_more_than_they_say_never_pass_the_cap(steps: list[tuple[str, int]], cap: int) -> None:
    one = BudgetTree({"acme": BudgetOptions(max_cost_usd=cap / 1_000_000)})
    under_way: dict[str, int] = {}
    for number, (what, cost) in enumerate(steps):
        most = Amount(cost, None)
        if what == "start" and one.decide(["acme"], number, most).answer is BudgetAnswer.GRANTED:
            one.reserve(str(number), ["acme"], number, most)
            under_way[str(number)] = cost
        elif what == "end" and under_way:
            key, used = under_way.popitem()
            one.commit(key, Amount(used, None))
        spent = one.spent("acme").micro_usd
        assert spent is not None
        assert spent + sum(under_way.values()) <= cap
