"""Which server a session gets, and how many servers there are."""

import pytest
from hypothesis import given, strategies as st

from greenroom.domain.errors import ValidationError
from greenroom.domain.placement import Placement, SessionLimits
from greenroom.domain.session import SessionSpec

NAMES = ("a", "b", "c", "d")


def placement(*names: str, node: str = "n1", **options: int | None) -> Placement:
    made = Placement(
        sessions_per_server=options.get("per_server") or 1,
        max_servers=options.get("max_servers") or 4,
        warm_servers=options.get("warm") or 0,
        max_sessions=options.get("max_sessions"),
    )
    for name in names:
        made.add(name, node, now=0.0)
    return made


def test_a_server_takes_one_session() -> None:
    placed = placement("a")
    placed.put("s1", "a")

    assert "a" == placed.server_of("s1")
    assert placed.choose(alone=False) is None
    assert "a" == placed.take("s1", now=1.0)
    assert "a" == placed.choose(alone=False)
    assert placed.take("s1", now=1.0) is None


def test_shared_servers_are_filled_before_empty_ones_are_begun() -> None:
    placed = placement("a", "b", per_server=2)
    placed.put("s1", "b")

    assert "b" == placed.choose(alone=False)
    placed.put("s2", "b")
    assert "a" == placed.choose(alone=False)


def test_a_session_that_must_be_alone_gets_an_empty_server_and_keeps_it_to_itself() -> None:
    placed = placement("a", "b", per_server=3)
    placed.put("s1", "a")

    assert "b" == placed.choose(alone=True)
    placed.put("s2", "b", alone=True)
    assert "a" == placed.choose(alone=False)
    assert not placed.is_shared("b")
    placed.take("s2", now=0.0)
    assert placed.is_shared("b")


def test_the_idlest_node_is_chosen() -> None:
    placed = placement("a", "b")
    placed.add("c", "n2", now=0.0)
    placed.put("s1", "a")

    assert "c" == placed.choose(alone=False)


def test_a_closed_node_takes_no_more_sessions_and_keeps_nothing_warm() -> None:
    placed = placement("a", warm=1)
    placed.closed_nodes.add("n1")

    assert placed.choose(alone=False) is None
    assert 1 == placed.to_start(waiting=0, starting=0)


def test_sessions_beyond_the_limit_find_no_server_and_start_none() -> None:
    placed = placement("a", "b", max_sessions=1)
    placed.put("s1", "a")

    assert placed.choose(alone=False) is None
    assert 0 == placed.to_start(waiting=5, starting=0)


def test_servers_are_started_for_those_who_wait_and_to_be_warm_but_never_more_than_may_be() -> None:
    assert 2 == placement(warm=2).to_start(waiting=0, starting=0)
    assert 3 == placement("a", warm=2).to_start(waiting=2, starting=0)
    assert 1 == placement("a", "b", warm=2).to_start(waiting=9, starting=1)
    assert 0 == placement("a", warm=1).to_start(waiting=0, starting=0)
    assert 2 == placement(per_server=10).to_start(waiting=11, starting=0)


def test_the_longest_empty_servers_beyond_the_warm_ones_are_retired_after_their_grace() -> None:
    placed = placement("a", "b", "c", warm=1)
    placed.put("s1", "a")
    placed.put("s2", "b")
    placed.take("s2", now=5.0)

    assert [] == placed.to_retire(now=9.0, grace_s=10.0)
    assert ["c"] == placed.to_retire(now=10.0, grace_s=10.0)


def test_what_a_server_had_is_nowhere_when_it_is_gone() -> None:
    placed = placement("a", per_server=2)
    placed.put("s1", "a")
    placed.put("s2", "a")

    assert frozenset({"s1", "s2"}) == placed.remove("a")
    assert placed.server_of("s1") is None
    assert frozenset() == placed.remove("a")


@given(
    st.integers(1, 3),
    st.lists(
        st.tuples(
            st.sampled_from(["claim", "alone", "leave", "lose", "add"]), st.sampled_from(NAMES), st.integers(0, 8)
        ),
        max_size=60,
    ),
)
def test_no_server_ever_has_more_than_it_may(per_server: int, steps: list[tuple[str, str, int]]) -> None:
    placed = placement("a", "b", per_server=per_server)
    alone: set[str] = set()
    for step, name, number in steps:
        session_id = f"s{number}"
        if step in {"claim", "alone"} and placed.server_of(session_id) is None:
            chosen = placed.choose(alone=step == "alone")
            if chosen is not None:
                placed.put(session_id, chosen, alone=step == "alone")
                alone.discard(session_id)
                if step == "alone":
                    alone.add(session_id)
        elif step == "leave":
            placed.take(session_id, now=0.0)
        elif step == "lose":
            placed.remove(name)
        elif step == "add" and name not in placed:
            placed.add(name, "n1", now=0.0)

        for server in placed.names:
            sessions = placed.sessions_of(server)
            assert len(sessions) <= per_server
            assert all(placed.server_of(one) == server for one in sessions)
            if sessions & alone:
                assert 1 == len(sessions)


def test_a_group_has_no_more_sessions_than_its_limit_and_a_session_that_leaves_makes_room() -> None:
    limits = SessionLimits(per_provider={"claude": 1}, per_tenant=2)
    groups = limits.groups(provider="claude", tenant="ada")
    placed = placement("a", "b")

    assert not placed.full_groups(groups)
    placed.put("s1", "a", groups=groups)
    assert {"claude"} == {group.name for group in placed.full_groups(groups)}
    assert not placed.full_groups(limits.groups(provider="scripted", tenant="ada"))
    placed.put("s1", "b", groups=groups)  # it has moved, and counts once
    placed.put("s2", "a", groups=limits.groups(provider="scripted", tenant="ada"))
    assert {"ada"} == {group.name for group in placed.full_groups(limits.groups(provider="scripted", tenant="ada"))}

    placed.take("s1", now=0.0)
    assert not placed.full_groups(groups)
    placed.remove("a")
    assert () == placed.groups_of("s2")


def test_only_limited_groups_count() -> None:
    assert () == SessionLimits(total=3).groups(provider="claude", tenant="ada")
    assert () == SessionLimits(per_tenant=3).groups(provider="claude", tenant=None)
    assert not SessionLimits(total=3).has_groups


def test_a_tenant_is_text() -> None:
    assert () == SessionLimits(per_tenant=1).groups(provider="scripted", tenant=["x"])
    with pytest.raises(ValidationError) as refused:
        SessionSpec(metadata={"tenant": ["x"]})
    assert "metadata.tenant" == refused.value.details["field"]
