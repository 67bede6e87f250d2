"""Slots of the whole runtime: who gets one, in what order, and when they come back."""

from hypothesis import given, strategies as st

from greenroom.domain.budget import BudgetAnswer
from greenroom.domain.slots import Slot, SlotLimits, SlotTable


def slot(run_id: str, *, holder: str = "h", provider: str = "p", tenant: str | None = None, priority: int = 0) -> Slot:
    return Slot(run_id=run_id, holder=holder, provider=provider, tenant=tenant, priority=priority)


def asked(table: SlotTable, *slots: Slot) -> list[str]:
    for one in slots:
        table.ask(one)
    return granted(table)


def granted(table: SlotTable) -> list[str]:
    return [run_id for run_id, decision in table.grant() if decision.answer is BudgetAnswer.GRANTED]


def test_slots_are_given_in_the_order_in_which_they_were_asked_for() -> None:
    table = SlotTable(SlotLimits(total=2))

    assert ["r1", "r2"] == asked(table, slot("r1"), slot("r2"), slot("r3"), slot("r4"))
    table.release("r1")
    assert ["r3"] == granted(table)
    assert ("r4",) == table.waiting


def test_a_higher_priority_goes_first() -> None:
    table = SlotTable(SlotLimits(total=1))
    asked(table, slot("r1"))

    asked(table, slot("low", priority=-1), slot("normal"), slot("high", priority=1))

    assert ("high", "normal", "low") == table.waiting


def test_a_provider_at_its_limit_holds_up_nobody_else() -> None:
    table = SlotTable(SlotLimits(per_provider={"claude": 1}))

    assert ["r1", "r3"] == asked(table, slot("r1", provider="claude"), slot("r2", provider="claude"), slot("r3"))
    table.release("r1")
    assert ["r2"] == granted(table)


def test_each_tenant_has_its_share() -> None:
    table = SlotTable(SlotLimits(per_tenant=1))

    given = asked(table, slot("r1", tenant="a"), slot("r2", tenant="a"), slot("r3", tenant="b"), slot("r4"))

    assert ["r1", "r3", "r4"] == given


def test_asking_again_keeps_the_place_and_the_slot() -> None:
    table = SlotTable(SlotLimits(total=1))
    asked(table, slot("r1"), slot("r2"), slot("r3"))

    assert [] == asked(table, slot("r2"), slot("r1"))
    assert (("r1",), ("r2", "r3")) == (table.held, table.waiting)


def test_slots_of_a_holder_that_is_gone_come_back() -> None:
    table = SlotTable(SlotLimits(total=2))
    asked(table, slot("r1", holder="dead"), slot("r2"), slot("r3", holder="dead"), slot("r4"))

    assert ["r1", "r3"] == table.drop("dead")
    assert ["r4"] == granted(table)
    assert ("r2", "r4") == table.held


def test_a_slot_that_was_held_before_the_table_was_made_counts() -> None:
    table = SlotTable(SlotLimits(total=1))
    table.hold(slot("r1"))

    assert [] == asked(table, slot("r2"))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ask", "release", "drop"]),
            st.integers(0, 9),
            st.sampled_from(["p", "q"]),
            st.sampled_from([None, "a", "b"]),
            st.integers(-1, 1),
        ),
        max_size=80,
    )
)
def test_no_limit_is_ever_passed_and_no_free_slot_is_kept(
    steps: list[tuple[str, int, str, str | None, int]],
) -> None:
    limits = SlotLimits(total=4, per_provider={"p": 2}, per_tenant=2)
    table = SlotTable(limits)
    known: dict[str, Slot] = {}
    for step, number, provider, tenant, priority in steps:
        run_id = f"r{number}"
        if step == "ask":
            if run_id not in {*table.held, *table.waiting}:
                known[run_id] = slot(
                    run_id, holder=f"h{number % 3}", provider=provider, tenant=tenant, priority=priority
                )
            table.ask(known[run_id])
        elif step == "release":
            table.release(run_id)
        else:
            table.drop(f"h{number % 3}")
        granted(table)

        held = [known[one] for one in table.held]
        assert len(held) <= 4
        assert sum(one.provider == "p" for one in held) <= 2
        assert all(sum(one.tenant == name for one in held) <= 2 for name in ("a", "b"))
        assert [] == granted(table), "what could be granted has been"
