"""Rows of batches in the process that serves them, over a log in memory."""

import asyncio
import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from greenroom.actors.activation import Activation
from greenroom.actors.live_session import LiveSession
from greenroom.actors.provider_set import ProviderSet
from greenroom.actors.row_desk import RowDesk, RowEnd
from greenroom.actors.run_outcomes import Outcome
from greenroom.adapters.clock import id_factory, now_us
from greenroom.adapters.memory_event_log import MemoryEventLog
from greenroom.domain.batch_row import RowsPlan, RowWork
from greenroom.domain.errors import Cancelled, ProviderOverloaded
from greenroom.domain.event import EventType
from greenroom.domain.event_log import EventQuery
from greenroom.domain.run import RunResult
from greenroom.domain.session import SessionSpec
from greenroom.domain.tool import Toolbox

LONG_S = 20.0


class Desk:
    """One server's desk; rows whose sessions exist are taken over as another server would."""

    def __init__(self, log: MemoryEventLog | None = None) -> None:
        self.log = log or MemoryEventLog()
        self.left: list[str] = []
        self.lives: dict[str, LiveSession] = {}
        self.elsewhere: list[str] = []
        self.saw: Callable[[LiveSession], None] = lambda _: None
        self._activation = Activation(
            "server",
            log=self.log,
            default_provider="scripted",
            max_input_bytes=1_000,
            approval_expires_s=60,
            ids=id_factory(),
            now_us=now_us,
        )
        settings: dict[str, Any] = {"providers": {}, "routers": {}}
        self.desk = RowDesk(settings, begin=self._begin, elsewhere=self._elsewhere, leave=self._leave)

    async def _begin(
        self, rows: Sequence[RowWork], plan: RowsPlan, providers: ProviderSet, tools: Callable[[RowWork], Toolbox]
    ) -> dict[str, LiveSession]:
        begun = await self._activation.begin(
            rows,
            plan,
            providers=providers,
            tools=tools,
            on_lost=lambda _: None,
            on_idle=lambda _: None,
            home=lambda _: "",
            shared=not plan.needs_own_server,
        )
        self.lives |= begun
        for live in begun.values():
            self.saw(live)
        return begun

    async def _elsewhere(self, row: RowWork, plan: RowsPlan) -> list[Outcome]:
        self.elsewhere.append(row.session_id)
        live = self.lives.get(row.session_id) or await self._activation.activate(
            row.session_id,
            spec=plan.spec_of(row),
            idempotency_key=None,
            providers=ProviderSet({}),
            unpack_tools=lambda _: self.desk._toolbox(None),  # pyright: ignore[reportPrivateUsage]
            on_lost=lambda: None,
        )
        return await self.desk.run(live, row, plan)

    def _leave(self, live: LiveSession) -> None:
        self.left.append(live.session_id)
        self.lives.pop(live.session_id, None)
        live.close()

    async def execute(self, rows: list[RowWork], plan: RowsPlan) -> dict[str, list[Outcome]]:
        found: dict[str, list[Outcome]] = {}
        async for ends in self.desk.execute(rows, plan):
            for end in ends:
                assert isinstance(end, RowEnd)
                assert end.session_id not in found
                found[end.session_id] = end.outcomes
        return found

    async def types(self, session_id: str) -> list[EventType]:
        return [event.type for event in await self.log.read(session_id, EventQuery(limit=1_000))]


def plan(*, stops: bool = True, **options: Any) -> RowsPlan:
    return RowsPlan(
        job="j",
        spec=SessionSpec(tags=("batch:j",)),
        options={"provider_options": options} if options else {},
        needs_own_server=False,
        per_server=8,
        stops_at_failure=stops,
    )


def row(number: int, *inputs: str) -> RowWork:
    return RowWork(f"ses_{number}", (str(number),), inputs or ("x",))


@pytest.fixture
async def desk() -> Desk:
    return Desk()


async def test_rows_are_sessions_that_are_begun_run_and_ended_in_two_appends(desk: Desk) -> None:
    ends = await desk.execute([row(number) for number in range(20)], plan(echo=True))

    assert {f"ses_{number}" for number in range(20)} == set(ends) == set(desk.left)
    assert all(isinstance(one, RunResult) for (one,) in ends.values())
    types = await desk.types("ses_3")
    assert [EventType.SESSION_CREATED, EventType.SESSION_STARTED, EventType.RUN_QUEUED] == types[:3]
    assert [EventType.RUN_COMPLETED, EventType.SESSION_COMPLETED] == types[-2:]
    record = (await desk.log.load("ses_3")).session
    assert record is not None
    assert {"job": "j", "keys": ["3"], "stops_at_failure": True} == dict(record.row or {})


async def test_what_rows_leave_behind_goes_without_the_collector(desk: Desk) -> None:
    begun: list[weakref.ref[LiveSession]] = []
    desk.saw = lambda live: begun.append(weakref.ref(live))
    gc.collect()
    gc.disable()
    try:
        await desk.execute([row(number) for number in range(5)], plan())
        async with asyncio.timeout(LONG_S):
            while any(live() is not None for live in begun):
                await asyncio.sleep(0)
    finally:
        gc.enable()
    assert 5 == len(begun)


async def test_rows_that_come_again_are_not_done_again(desk: Desk) -> None:
    first = await desk.execute([row(1), row(2)], plan())
    again = await desk.execute([row(1), row(2), row(3)], plan())

    assert {"ses_1", "ses_2"} == set(desk.elsewhere)
    for name in ("ses_1", "ses_2"):
        (one,), (other,) = first[name], again[name]
        assert isinstance(one, RunResult)
        assert isinstance(other, RunResult)
        assert one.run_id == other.run_id
    assert 1 == (await desk.types("ses_1")).count(EventType.RUN_STARTED)


async def test_when_a_turn_fails_those_after_it_are_not_begun_and_the_session_fails(desk: Desk) -> None:
    script = [{"reply": "a"}, {"fail_with": "provider_overloaded"}, {"reply": "c"}]

    ends = await desk.execute([row(1, "1", "2", "3")], plan(script=script))

    outcomes = ends["ses_1"]
    assert [RunResult, ProviderOverloaded, Cancelled] == [type(one) for one in outcomes]
    types = await desk.types("ses_1")
    assert (2, EventType.SESSION_FAILED) == (types.count(EventType.RUN_STARTED), types[-1])


async def test_rows_that_share_a_session_go_on_after_one_that_failed(desk: Desk) -> None:
    script = [{"reply": "a"}, {"fail_with": "provider_overloaded"}, {"reply": "c"}]

    ends = await desk.execute([row(1, "1", "2", "3")], plan(stops=False, script=script))

    assert [RunResult, ProviderOverloaded, RunResult] == [type(one) for one in ends["ses_1"]]
    assert EventType.SESSION_COMPLETED is (await desk.types("ses_1"))[-1]


async def test_a_row_whose_options_are_refused_ends_with_that_and_so_does_its_session(desk: Desk) -> None:
    ends = await desk.execute([row(1), row(2)], plan(no_such_option=1))

    assert ["validation_error"] * 2 == [one.code for (one,) in ends.values() if not isinstance(one, RunResult)]
    assert EventType.SESSION_FAILED is (await desk.types("ses_1"))[-1]
    assert ["ses_1", "ses_2"] == sorted(desk.left)


async def test_rows_whose_provider_starts_processes_are_carried_out_too(desk: Desk) -> None:
    own = RowsPlan(
        job="j",
        spec=SessionSpec(provider="shell"),
        options={},
        needs_own_server=True,
        per_server=8,
        stops_at_failure=True,
    )

    ends = await desk.execute([row(1, "echo hello")], own)

    ((one,),) = ends.values()
    assert isinstance(one, RunResult)
    assert "hello" in one.output["content"]


async def test_what_is_under_way_goes_on_when_its_caller_is_gone(desk: Desk) -> None:
    ends = desk.desk.execute([row(1), row(2)], plan(latency_s=0.02))
    asking = asyncio.ensure_future(anext(ends))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)

    again = await desk.execute([row(1), row(2)], plan(latency_s=0.02))

    assert {"ses_1", "ses_2"} == set(again)
    assert all(isinstance(one, RunResult) for (one,) in again.values())
