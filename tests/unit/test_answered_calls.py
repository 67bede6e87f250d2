"""Calls that come more than once."""

import asyncio

import pytest

from greenroom.actors.answered_calls import CallsOnce


async def test_what_comes_again_while_it_is_under_way_has_its_effect_once_and_gets_the_same_answer() -> None:
    calls, gate, effects = CallsOnce(10), asyncio.Event(), 0

    async def work() -> int:
        nonlocal effects
        effects += 1
        await gate.wait()
        return effects

    first, again = (asyncio.create_task(calls.do("one", work)) for _ in range(2))
    await asyncio.sleep(0)
    gate.set()

    assert [1, 1, 1] == [await first, await again, await calls.do("one", work)]
    assert 2 == await calls.do("two", work)


async def test_a_call_that_failed_may_come_again() -> None:
    calls, outcomes = CallsOnce(10), iter([ValueError("no room"), None])

    async def work() -> str:
        failure = next(outcomes)
        if failure is not None:
            raise failure
        return "done"

    with pytest.raises(ValueError, match="no room"):
        await calls.do("one", work)
    assert "one" not in calls
    assert "done" == await calls.do("one", work)


async def test_the_oldest_call_is_forgotten_when_there_are_too_many() -> None:
    calls = CallsOnce(2)

    async def work() -> None:
        return None

    for call_id in ("one", "two", "three"):
        await calls.do(call_id, work)
    assert [False, True, True] == [call_id in calls for call_id in ("one", "two", "three")]
