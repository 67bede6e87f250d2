"""Routing: who is tried on a run, and in which order."""

from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from greenroom.domain.capability import Capability, CapabilityType
from greenroom.domain.errors import ValidationError
from greenroom.domain.routing import (
    Candidate,
    Requirement,
    RouterOptions,
    RoutingOverrides,
    RoutingRequest,
    Strategy,
    route,
)

NAMES = ("a", "b", "c")
BASH = Capability(name="bash", type=CapabilityType.TOOL)


def names(
    options: RouterOptions,
    candidates: list[Candidate],
    draw: float = 0.0,
    *,
    sticky: str | None = None,
    prefer: tuple[str, ...] = (),
    **request: object,
) -> list[str]:
    wanted = RoutingRequest(options=options, overrides=RoutingOverrides(prefer=prefer), **request)  # pyright: ignore[reportArgumentType]
    return [one.name for one in route(candidates, wanted, draw=draw, sticky=sticky)]


def options(strategy: Strategy = Strategy.PREFER, **more: object) -> RouterOptions:
    return RouterOptions(providers=NAMES, strategy=strategy, **more)  # pyright: ignore[reportArgumentType]


def candidates(**changed: dict[str, object]) -> list[Candidate]:
    return [replace(Candidate(name=name), **changed.get(name, {})) for name in NAMES]  # pyright: ignore[reportArgumentType]


def test_by_default_they_are_tried_in_the_order_in_which_they_stand() -> None:
    assert names(options(), candidates()[::-1]) == ["a", "b", "c"]


def test_a_run_may_prefer_and_exclude() -> None:
    assert names(options(), candidates(), prefer=("c",), exclude=frozenset({"a"})) == ["c", "b"]


def test_only_those_that_can_do_what_is_required_are_tried() -> None:
    given = candidates(b={"capabilities": (BASH,)})

    assert names(options(), given, required=(Requirement(type=CapabilityType.TOOL, name="bash"),)) == ["b"]
    assert names(options(), given, required=(Requirement(name="bash"),)) == ["b"]
    assert names(options(), given, required=(Requirement(type=CapabilityType.PROMPT),)) == []


def test_a_session_stays_with_who_served_it_unless_the_run_prefers_another() -> None:
    assert names(options(), candidates(), sticky="b") == ["b", "a", "c"]
    assert names(options(), candidates(), sticky="b", prefer=("c",)) == ["c", "a", "b"]


def test_no_more_are_tried_than_may_be() -> None:
    assert names(options(max_attempts=2), candidates()) == ["a", "b"]


def test_those_whose_breaker_is_open_come_last_the_soonest_first() -> None:
    given = candidates(a={"is_open": False, "retry_at_s": 20.0}, b={"is_open": False, "retry_at_s": 10.0})

    assert names(options(), given) == ["c", "b", "a"]
    assert names(options(), given, exclude=frozenset({"c"}), sticky="a") == ["b", "a"]


def test_the_least_loaded_is_measured_by_its_weight() -> None:
    given = candidates(a={"under_way": 4}, b={"under_way": 3}, c={"under_way": 1})

    assert names(options(Strategy.LEAST_LOADED), given) == ["c", "b", "a"]
    assert names(options(Strategy.LEAST_LOADED, weights={"a": 10.0}), given) == ["a", "c", "b"]


def test_the_cheapest_comes_first_and_who_has_no_price_last() -> None:
    given = candidates(a={"price": None}, b={"price": 3.0}, c={"price": 1.0})

    assert names(options(Strategy.CHEAPEST), given) == ["c", "b", "a"]


def test_weights_are_shares_and_failures_make_them_smaller() -> None:
    weighted = options(Strategy.WEIGHTED, weights={"a": 1.0, "b": 3.0, "c": 0.0})
    draws = [number / 100 for number in range(100)]

    first = [names(weighted, candidates(), draw)[0] for draw in draws]
    after = [names(weighted, candidates(b={"failures": 2}), draw)[0] for draw in draws]

    assert (first.count("a"), first.count("b"), first.count("c")) == (25, 75, 0)
    assert after.count("b") < after.count("a")


@given(
    st.sampled_from(Strategy),
    st.floats(0, 1, exclude_max=True),
    st.sets(st.sampled_from(NAMES)),
    st.sets(st.sampled_from(NAMES)),
    st.lists(st.sampled_from(NAMES), unique=True),
    st.sampled_from([None, *NAMES]),
    st.sets(st.sampled_from(NAMES)),
)
def test_nobody_excluded_or_incapable_is_ever_tried_and_nobody_twice(
    strategy: Strategy,
    draw: float,
    able: set[str],
    excluded: set[str],
    preferred: list[str],
    sticky: str | None,
    closed: set[str],
) -> None:
    given = [
        Candidate(name=name, capabilities=(BASH,) if name in able else (), is_open=name not in closed) for name in NAMES
    ]
    request = RoutingRequest(
        options=options(strategy),
        required=(Requirement(name="bash"),),
        overrides=RoutingOverrides(prefer=tuple(preferred)),
        exclude=frozenset(excluded),
    )

    chosen = [one.name for one in route(given, request, draw=draw, sticky=sticky)]

    assert set(chosen) == able - excluded
    assert len(set(chosen)) == len(chosen)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"providers": ()}, "providers"),
        ({"providers": ("a", "a")}, "providers"),
        ({"weights": {"x": 1.0}}, "weights.x"),
        ({"weights": {"a": -1.0}}, "weights.a"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"sticky_ttl_s": -1.0}, "sticky_ttl_s"),
    ],
)
def test_a_router_that_makes_no_sense_is_refused_by_name(given: dict[str, object], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        RouterOptions(**{"providers": NAMES, **given})  # pyright: ignore[reportArgumentType]

    assert caught.value.details["field"] == field
