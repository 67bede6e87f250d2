"""What every event log must do. `test_event_logs.py` runs it over each adapter."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from greenroom.adapters.clock import now_us
from greenroom.domain.errors import InvalidCursor, SessionNotFound, ValidationError, WriterFenced
from greenroom.domain.event import Event, EventType, NewEvent
from greenroom.domain.event_log import MAX_READ_LIMIT, CommittedBatch, EventLog, EventQuery, Ownership
from greenroom.domain.run import RunStatus
from greenroom.domain.session import SessionState

OpenLog = Callable[[], Awaitable[EventLog]]

NOW_US = now_us()
"""Idempotency keys are found for some days only."""

LONG_S = 30.0
"""A wait that a test must not have to sit out."""


def event(
    text: str = "x", *, type: EventType = EventType.MESSAGE_STREAMED, run_id: str | None = None, at_us: int = 1
) -> NewEvent:
    return NewEvent(f"evt_{text}", type, at_us, run_id, 1 if run_id else None, None, {"content": text}, {})


def created(**changes: Any) -> NewEvent:
    data: dict[str, Any] = {
        "agent_id": "agent",
        "provider": "scripted",
        "context": {},
        "metadata": {"deep": [1, {"ü": None}]},
        "tags": ["a"],
        "parent_session_id": None,
        "max_concurrent_runs": 1,
        "max_queued_runs": 100,
        "run_defaults": {},
    }
    return NewEvent(
        "evt_c", EventType.SESSION_CREATED, NOW_US + 1, None, None, None, data | changes, {"idempotency_key": "s"}
    )


def queued(run_id: str, *, key: str | None = None, call_id: str = "call_1") -> NewEvent:
    metadata = {"call_id": call_id} if key is None else {"call_id": call_id, "idempotency_key": key}
    data = {"options": {"metadata": {"n": 1}}, "message_count": 1}
    return NewEvent(f"evt_{run_id}", EventType.RUN_QUEUED, NOW_US + 5, run_id, 1, "scripted", data, metadata)


def sent(run_id: str, text: str = "Hi.") -> NewEvent:
    data = {"role": "user", "content": text}
    return NewEvent(f"evt_m_{run_id}", EventType.MESSAGE_SENT, NOW_US + 6, run_id, 1, "scripted", data, {})


def started(run_id: str) -> NewEvent:
    return NewEvent(f"evt_s_{run_id}", EventType.RUN_STARTED, NOW_US + 7, run_id, 1, "scripted", {"model": "m"}, {})


def completed(run_id: str) -> NewEvent:
    data = {
        "output": {"content": "ok"},
        "token_usage": {"total_tokens": 3},
        "cost_usd": 0.25,
        "stop_reason": "end_turn",
        "turn_count": 2,
        "model": "m-2",
    }
    return NewEvent(f"evt_e_{run_id}", EventType.RUN_COMPLETED, NOW_US + 9, run_id, 1, "scripted", data, {})


class Writer:
    """One epoch of one session, and what its listener heard."""

    def __init__(self, log: EventLog, session_id: str) -> None:
        self.log = log
        self.session_id = session_id
        self.heard: list[CommittedBatch] = []
        self.ownership = Ownership(epoch=0, last_seq=0)

    @classmethod
    async def of(cls, log: EventLog, session_id: str = "ses_1", *, owner: str = "owner") -> "Writer":
        writer = cls(log, session_id)
        writer.ownership = await log.acquire(session_id, owner, writer.heard.append)
        return writer

    def append(self, *events: NewEvent) -> "asyncio.Future[Any]":
        return self.log.append(self.session_id, self.ownership.epoch, events)

    def record(self, *events: NewEvent) -> None:
        self.log.record(self.session_id, self.ownership.epoch, events)

    async def read(self, *, wait_s: float = 0, **query: Any) -> list[Event]:
        query.setdefault("limit", MAX_READ_LIMIT)
        return await self.log.read(self.session_id, EventQuery(**query), wait_s=wait_s)

    async def texts(self, **query: Any) -> list[str]:
        return [found.data["content"] for found in await self.read(**query)]


async def _spin(turns: int = 20) -> None:
    """Let the loop turn, so that a wait that would wrongly end has ended."""
    for _ in range(turns):
        await asyncio.sleep(0)


class EventLogSuite:
    """The laws. A subclass gives the fixture `log`."""

    # Appending

    async def test_the_seqs_of_a_session_count_from_one_without_a_gap(self, log: EventLog) -> None:
        writer = await Writer.of(log)

        first_seqs = [(await writer.append(*[event()] * count)).first_seq for count in (1, 3, 1, 2)]

        assert [1, 2, 5, 6] == first_seqs
        assert [1, 2, 3, 4, 5, 6, 7] == [found.seq for found in await writer.read()]

    async def test_another_session_counts_from_one_again(self, log: EventLog) -> None:
        first, second = await Writer.of(log), await Writer.of(log, "ses_2")
        await first.append(event("a"), event("b"))

        assert 1 == (await second.append(event("c"))).first_seq
        assert 3 == (await first.append(event("d"))).first_seq
        assert (["a", "b", "d"], ["c"]) == (await first.texts(), await second.texts())

    async def test_an_event_comes_back_as_it_was_given(self, log: EventLog) -> None:
        writer = await Writer.of(log)
        data = {"ü\x00": [1, -(1 << 63), (1 << 64) - 1, 0.1, None, True, {"": "\U0001f600"}], "text": "x" * 100_000}
        given = NewEvent("evt_1", EventType.TURN_COMPLETED, 1_800_000_000_123_457, "run_1", 2, "p", data, {"a": "b"})

        committed = await writer.append(given)

        (found,) = await writer.read()
        assert given == NewEvent(
            *(found.id, found.type, round(found.timestamp.timestamp() * 1e6), found.run_id, found.attempt),
            *(found.provider, found.data, found.metadata),
        )
        assert ("ses_1", committed.recorded_at_us) == (
            found.session_id,
            round(found.recorded_at.timestamp() * 1e6),
        )

    async def test_a_batch_gets_consecutive_seqs_and_one_time(self, log: EventLog) -> None:
        first, second = await Writer.of(log), await Writer.of(log, "ses_2")

        for _ in range(5):
            await asyncio.gather(first.append(event("a"), event("b"), event("c")), second.append(event()))

        found = await first.read()
        assert ["a", "b", "c"] * 5 == [one.data["content"] for one in found]
        assert all(1 == len({one.recorded_at for one in found[at : at + 3]}) for at in range(0, 15, 3))

    async def test_batches_are_stored_in_the_order_of_the_calls(self, log: EventLog) -> None:
        writer = await Writer.of(log)
        names = [str(index) for index in range(200)]
        answers: list[asyncio.Future[Any]] = []

        for index, name in enumerate(names):
            if index % 3:
                answers.append(writer.append(event(name)))
            else:
                writer.record(event(name))

        first_seqs = [(await answer).first_seq for answer in answers]
        assert names == await writer.texts()
        assert [index + 1 for index in range(200) if index % 3] == first_seqs

    async def test_many_appends_at_once_lose_nothing(self, log: EventLog) -> None:
        writers = [await Writer.of(log, f"ses_{index}") for index in range(8)]

        async def write(writer: Writer, name: str) -> int:
            await asyncio.sleep(0)
            return (await writer.append(event(name), event(name))).first_seq

        first_seqs = await asyncio.gather(*(write(writer, str(at)) for at in range(50) for writer in writers))

        for index, writer in enumerate(writers):
            texts = await writer.texts()
            assert sorted([str(at) for at in range(50)] * 2) == sorted(texts)
            assert list(range(1, 101, 2)) == sorted(first_seqs[index::8])
            assert all(texts[first - 1] == texts[first] == str(at) for at, first in enumerate(first_seqs[index::8]))

    async def test_the_listener_hears_every_batch_in_order_before_its_append_is_answered(self, log: EventLog) -> None:
        writer = await Writer.of(log)
        heard_when_answered: list[int] = []
        answers = [writer.append(event(str(index)), event(str(index))) for index in range(20)]
        for answer in answers:
            answer.add_done_callback(lambda _: heard_when_answered.append(writer.heard[-1].last_seq))

        committed = await asyncio.gather(*answers)
        await _spin()

        assert all(heard >= one.first_seq + 1 for heard, one in zip(heard_when_answered, committed, strict=True))
        assert [found for batch in writer.heard for found in batch.events()] == await writer.read()
        assert [1, *(batch.last_seq + 1 for batch in writer.heard[:-1])] == [one.first_seq for one in writer.heard]
        assert all(batch.size > 0 for batch in writer.heard)

    @pytest.mark.parametrize("value", [b"x", float("nan"), "\ud800", {1: 2}, 1 << 64, object()])
    async def test_what_is_not_json_safe_is_refused_at_the_call_and_stores_nothing(
        self, log: EventLog, value: Any
    ) -> None:
        writer = await Writer.of(log)
        bad = event()._replace(data={"content": value})

        for write in (writer.append, writer.record):
            with pytest.raises(ValidationError):
                write(event("good"), bad)
        await writer.append(event("a"))

        assert ["a"] == await writer.texts()

    async def test_room_is_there_when_nothing_is_under_way(self, log: EventLog) -> None:
        await asyncio.wait_for(log.room(), LONG_S)

    # Ownership

    async def test_every_owner_gets_the_next_epoch_and_the_end_of_the_log(self, log: EventLog) -> None:
        first = await Writer.of(log)
        await first.append(event(), event())

        second = await Writer.of(log)

        assert (Ownership(epoch=1, last_seq=0), Ownership(epoch=2, last_seq=2)) == (first.ownership, second.ownership)
        assert 3 == (await second.append(event())).first_seq

    async def test_many_new_sessions_get_their_first_owner_at_once_and_those_that_exist_stay_as_they_are(
        self, log: EventLog
    ) -> None:
        heard: dict[str, list[int]] = {name: [] for name in ("ses_1", "ses_2", "ses_3")}
        listeners: dict[str, Callable[[CommittedBatch], None]] = {
            name: lambda batch, seqs=seqs: seqs.append(batch.last_seq) for name, seqs in heard.items()
        }
        old = await log.acquire("ses_2", "before", lambda _: None)

        found = await log.acquire_new(listeners, "owner")
        await log.append("ses_2", old.epoch, [event("still mine")])
        for name in ("ses_1", "ses_3"):
            await log.append(name, 1, [created(), event()])

        assert [1, None, 1] == [one and one.epoch for one in found]
        assert {"ses_1": [2], "ses_2": [], "ses_3": [2]} == heard
        assert [None, None, None] == await log.acquire_new(listeners, "again")
        assert 2 == (await log.acquire("ses_1", "next", lambda _: None)).epoch

    async def test_an_earlier_owner_is_fenced_and_writes_nothing(self, log: EventLog) -> None:
        old = await Writer.of(log)
        await old.append(event("a"))
        new = await Writer.of(log)

        old.record(event("b"))
        for _ in range(2):
            with pytest.raises(WriterFenced):
                await old.append(event("c"))
        await new.append(event("d"))

        assert ["a", "d"] == await new.texts()
        assert [1] == [batch.last_seq for batch in old.heard]
        assert [2] == [batch.last_seq for batch in new.heard]

    async def test_all_that_an_earlier_owner_has_under_way_is_stored_or_refused(self, log: EventLog) -> None:
        old = await Writer.of(log)
        answers = [old.append(event(str(index))) for index in range(50)]

        new = await Writer.of(log)
        outcomes = await asyncio.gather(*answers, return_exceptions=True)

        stored = [str(index) for index, one in enumerate(outcomes) if not isinstance(one, BaseException)]
        assert stored == await new.texts()
        assert new.ownership.last_seq == len(stored)
        assert {WriterFenced} >= {type(one) for one in outcomes if isinstance(one, BaseException)}

    async def test_who_released_its_epoch_writes_no_more(self, log: EventLog) -> None:
        writer = await Writer.of(log)
        await writer.append(event("a"))

        log.release("ses_1", writer.ownership.epoch)

        with pytest.raises(WriterFenced):
            await writer.append(event("b"))
        assert ["a"] == await writer.texts()
        assert 2 == (await (await Writer.of(log)).append(event("c"))).first_seq

    async def test_who_never_owned_a_session_cannot_write_it(self, log: EventLog) -> None:
        writer = await Writer.of(log)

        with pytest.raises(WriterFenced):
            await log.append("ses_1", writer.ownership.epoch + 1, [event()])

        assert [] == await writer.read()

    # Reading

    async def test_bounds_are_exclusive_and_the_lowest_come_first(self, log: EventLog) -> None:
        writer = await Writer.of(log)
        for size in (1, 4, 1, 4):
            await writer.append(*[event()] * size)

        async def seqs(**query: Any) -> list[int]:
            return [found.seq for found in await writer.read(**query)]

        assert [4, 5, 6, 7, 8, 9, 10] == await seqs(after=3)
        assert [1, 2, 3] == await seqs(before=4)
        assert [4, 5, 6] == await seqs(after=3, before=7)
        assert [4, 5] == await seqs(after=3, before=7, limit=2)
        assert [] == await seqs(after=10)
        assert [] == await seqs(after=5, before=4)
        assert [] == await seqs(after=5, before=6)
        assert list(range(1, 11)) == await seqs(before=99)

    async def test_filters_compose_and_the_limit_comes_last(self, log: EventLog) -> None:
        writer = await Writer.of(log)
        kinds = [EventType.MESSAGE_STREAMED, EventType.TURN_COMPLETED]
        for at in range(0, 24, 4):
            await writer.append(
                *(event(str(one), type=kinds[one % 2], run_id=f"run_{one % 3}", at_us=one) for one in range(at, at + 4))
            )
        every = await writer.read()

        for query in (
            EventQuery(run_id="run_1"),
            EventQuery(types=frozenset([EventType.TURN_COMPLETED])),
            EventQuery(types=frozenset(kinds), run_id="run_2"),
            EventQuery(types=frozenset([EventType.RUN_QUEUED])),
            EventQuery(types=frozenset()),
            EventQuery(since_us=17),
            EventQuery(since_us=3, run_id="run_0", types=frozenset(kinds[:1]), limit=2),
            EventQuery(since_us=3, run_id="run_0", types=frozenset(kinds[:1]), after=7, before=20),
            EventQuery(run_id="run_1", after=5, before=19, limit=3),
            EventQuery(run_id="run_unknown"),
        ):
            expected = [
                one
                for one in every
                if one.seq > query.after and (query.before is None or one.seq < query.before) and query.matches(one)
            ]
            assert expected[: query.limit] == await log.read("ses_1", query)

    async def test_a_cursor_beyond_the_end_is_refused_with_the_end(self, log: EventLog) -> None:
        writer = await Writer.of(log)
        await writer.append(event(), event())

        with pytest.raises(InvalidCursor) as refused:
            await writer.read(after=3, wait_s=LONG_S)

        assert {"field": "after", "last_seq": 2} == refused.value.details

    @pytest.mark.parametrize("query", [{"after": -1}, {"before": 0}, {"limit": 0}, {"limit": 10_001}])
    async def test_a_query_that_cannot_be_is_refused_by_its_field(self, log: EventLog, query: dict[str, int]) -> None:
        writer = await Writer.of(log)

        with pytest.raises(ValidationError) as refused:
            await writer.read(**query)

        assert {"field": next(iter(query))} == refused.value.details

    async def test_a_session_that_never_was_is_not_found(self, log: EventLog) -> None:
        with pytest.raises(SessionNotFound):
            await log.read("ses_unknown", EventQuery(), wait_s=LONG_S)
        with pytest.raises(SessionNotFound):
            await log.load("ses_unknown")

    async def test_a_session_without_events_is_empty(self, log: EventLog) -> None:
        writer = await Writer.of(log)

        assert [] == await writer.read()
        assert (None, (), 0) == (
            (records := await log.load("ses_1")).session,
            tuple(records.open_runs),
            records.run_count,
        )

    # Long polls

    async def test_a_long_poll_returns_at_once_when_there_is_something(self, log: EventLog) -> None:
        writer = await Writer.of(log)
        await writer.append(event("a"))

        assert ["a"] == [found.data["content"] for found in await writer.read(wait_s=LONG_S)]

    async def test_a_long_poll_wakes_on_a_match_and_on_nothing_else(self, log: EventLog) -> None:
        writer, other = await Writer.of(log), await Writer.of(log, "ses_2")
        await writer.append(event(run_id="run_1"))
        query = EventQuery(after=1, run_id="run_1", types=frozenset([EventType.TURN_COMPLETED]))
        polling = asyncio.create_task(log.read("ses_1", query, wait_s=LONG_S))

        await other.append(event(type=EventType.TURN_COMPLETED, run_id="run_1"))
        await writer.append(event(type=EventType.TURN_COMPLETED, run_id="run_2"))
        await writer.append(event(run_id="run_1"))
        await _spin()
        assert not polling.done()
        await writer.append(event("match", type=EventType.TURN_COMPLETED, run_id="run_1"))

        assert [(4, "match")] == [(one.seq, one.data["content"]) for one in await polling]

    async def test_all_long_polls_of_a_session_wake(self, log: EventLog) -> None:
        writer = await Writer.of(log)
        polling = [asyncio.create_task(writer.read(wait_s=LONG_S)) for _ in range(5)]
        await _spin()

        await writer.append(event("a"))

        assert [["a"]] * 5 == [[one.data["content"] for one in found] for found in await asyncio.gather(*polling)]

    async def test_a_long_poll_that_was_given_up_harms_nobody(self, log: EventLog) -> None:
        writer = await Writer.of(log)
        given_up = asyncio.create_task(writer.read(wait_s=LONG_S))
        polling = asyncio.create_task(writer.read(wait_s=LONG_S))
        await _spin()

        given_up.cancel()
        await asyncio.wait([given_up])
        await writer.append(event("a"))

        assert 1 == len(await polling)

    async def test_a_long_poll_without_a_match_ends_empty_after_its_time(self, log: EventLog) -> None:
        writer = await Writer.of(log)
        await writer.append(event("a"))
        loop = asyncio.get_running_loop()
        began = loop.time()

        found = await writer.read(after=1, wait_s=0.1)

        assert [] == found
        assert 0.09 <= loop.time() - began < LONG_S / 3

    # Records

    async def test_records_tell_what_was_committed(self, log: EventLog) -> None:
        writer = await Writer.of(log)
        await writer.append(created(), event()._replace(type=EventType.SESSION_STARTED, data={}))
        await writer.append(queued("run_1", key="k", call_id="call_1"), sent("run_1"), sent("run_1", "And?"))
        await writer.append(started("run_1"), queued("run_2", call_id="call_2"), sent("run_2"))
        await writer.append(event(run_id="run_1"), completed("run_1"), started("run_2"))
        await writer.append(queued("run_3", call_id="call_2"))

        records = await log.load("ses_1")
        run = await log.find_run("run_1")

        assert records.session is not None
        assert (SessionState.ACTIVE, "agent", 1, "s", {"deep": [1, {"ü": None}]}) == (
            records.session.status,
            records.session.agent_id,
            records.session.epoch,
            records.session.idempotency_key,
            records.session.metadata,
        )
        assert [("run_2", RunStatus.RUNNING), ("run_3", RunStatus.PENDING)] == [
            (one.id, one.status) for one in records.open_runs
        ]
        assert (3, [("call_1", "run_1"), ("call_2", "run_2"), ("call_2", "run_3")]) == (
            records.run_count,
            [*records.recent_calls],
        )
        assert run is not None
        assert (RunStatus.COMPLETED, {"content": "ok"}, {"total_tokens": 3}, 0.25, 2, "m-2", 10, 3) == (
            *(run.status, run.output, run.token_usage, run.cost_usd),
            *(run.turn_count, run.model, run.last_seq, run.queued_seq),
        )
        assert ["Hi.", "And?"] == [message["content"] for message in run.input["messages"]]
        assert {"n": 1} == run.metadata

    async def test_a_record_is_there_as_soon_as_its_append_is_answered(self, log: EventLog) -> None:
        writer = await Writer.of(log)
        await writer.append(created())

        for index in range(20):
            await writer.append(queued(f"run_{index}", key=f"k{index}"))
            found = await log.find_run(f"run_{index}")

            assert found is not None
            assert f"run_{index}" == await log.find_run_by_key("ses_1", f"k{index}")

    async def test_keys_belong_to_their_session(self, log: EventLog) -> None:
        first, second = await Writer.of(log), await Writer.of(log, "ses_2")
        await first.append(created(), queued("run_1", key="k"))
        await second.append(created(), queued("run_2", key="k"))

        assert "run_1" == await log.find_run_by_key("ses_1", "k")
        assert "run_2" == await log.find_run_by_key("ses_2", "k")
        assert await log.find_run_by_key("ses_1", "other") is None

    async def test_a_run_that_never_was_is_nothing(self, log: EventLog) -> None:
        await Writer.of(log)

        assert await log.find_run("run_unknown") is None
        assert await log.find_run_by_key("ses_1", "k") is None

    async def test_a_new_owner_finds_the_records_of_the_old_one(self, log: EventLog) -> None:
        old = await Writer.of(log)
        await old.append(created(), queued("run_1"), started("run_1"))

        await Writer.of(log)

        records = await log.load("ses_1")
        assert ["run_1"] == [one.id for one in records.open_runs]
        assert records.session is not None
        assert 1 == records.session.epoch
