"""The tests that every provider passes, as a class to derive from. Needs pytest and pytest-asyncio."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
import pytest_asyncio

from ...domain.errors import (
    GreenroomError,
    ProviderAuthenticationFailed,
    ProviderError,
    ProviderInvalidRequest,
    ProviderOverloaded,
    ProviderRateLimited,
    ProviderUnavailable,
)
from ...domain.event import EventType
from ...domain.run import RunResult
from .. import answers
from .rig import NATIVE, Rig
from .stage import GONE_WITHIN_S, Stage, check_run, nothing_left, types_of

MEGABYTES = 10

FAULTS = {
    400: ProviderInvalidRequest,
    401: ProviderAuthenticationFailed,
    429: ProviderRateLimited,
    500: ProviderUnavailable,
    529: ProviderOverloaded,
}

TestT = TypeVar("TestT", bound=Callable[..., Any])


def needs(*abilities: str) -> Callable[[TestT], TestT]:
    """The test is about these abilities: kinds without one of them do not have it."""

    def mark(test: TestT) -> TestT:
        test.needs = abilities  # pyright: ignore[reportFunctionMemberAccess]  read by ProviderSuite below
        return test

    return mark


async def nothing_of_the_run_left(stage: Stage) -> None:
    """Where each run has a client of its own, that is gone although the session goes on."""
    if not stage.rig.can.keeps_client:
        await nothing_left()


class ProviderSuite:
    """Derive a class whose name begins with Test, give it a `rig_class`, and pytest runs all that applies.

    What a run gives is looked at where users look: in the session's events and in the answer of await_run. After each
    test none of the provider's processes is left.
    """

    rig_class: ClassVar[type[Rig]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name, test in vars(ProviderSuite).items():
            if not all(getattr(cls.rig_class.can, ability) for ability in getattr(test, "needs", ())):
                setattr(cls, name, None)

    @pytest.fixture
    def rig(self, tmp_path: Path) -> Iterator[Rig]:
        if reason := self.rig_class.missing():
            pytest.skip(f"NOT RUN: {self.rig_class.name}: {reason}")
        made = self.rig_class(tmp_path)
        made.start()
        yield made
        made.release()
        made.stop()

    @pytest_asyncio.fixture
    async def stage(self, rig: Rig) -> AsyncIterator[Stage]:
        made = await Stage.open(rig)
        yield made
        await made.aclose()

    async def test_text_is_given_once_and_whole(self, stage: Stage) -> None:
        run_id = await stage.submit(stage.rig.text("Hello from the model."))

        result = await stage.live.await_run(run_id, 60)

        assert result.output["content"] == "Hello from the model."
        events = await stage.events(run_id)
        check_run(events)
        received = [event.data for event in events if event.type is EventType.MESSAGE_RECEIVED]
        assert [data["content"] for data in received] == ["Hello from the model."]
        if stage.rig.can.counts:
            assert result.token_usage["total_tokens"] > 0

    @needs("streams")
    async def test_text_is_streamed_as_it_comes(self, stage: Stage) -> None:
        delay_s = 0.2
        run_id = await stage.submit(stage.rig.text("One two three four five six.", chunks=6, chunk_delay_s=delay_s))
        await stage.live.await_run(run_id, 60)

        pieces = await stage.events(run_id, EventType.MESSAGE_STREAMED)
        assert "".join(event.data["content"] for event in pieces) == "One two three four five six."
        spread_s = (pieces[-1].timestamp - pieces[0].timestamp).total_seconds()
        assert spread_s >= delay_s, "they came in a second, and one after the other"

    @needs("tools")
    async def test_a_tool_call_begins_ends_and_has_its_effect(self, stage: Stage) -> None:
        made = stage.rig.cwd / "made.txt"

        run_id = await stage.submit(stage.rig.call(f"echo made > {made}; cat {made}"), **stage.rig.freely())
        result = await stage.live.await_run(run_id, 60)

        assert made.read_text() == "made\n"
        assert result.output["content"] == "Done."
        events = await stage.events(run_id)
        check_run(events)
        (completed,) = [event.data for event in events if event.type is EventType.TOOL_CALL_COMPLETED]
        assert "made" in str(completed["tool_output"])
        assert str(made) in str(completed["tool_input"])

    @needs("tools", "tells_failures")
    async def test_a_tool_that_fails_is_a_failed_call_and_not_the_end_of_the_run(self, stage: Stage) -> None:
        run_id = await stage.submit(stage.rig.call("echo broken >&2; exit 3"), **stage.rig.freely())

        result = await stage.live.await_run(run_id, 60)

        assert result.output["content"] == "Done."
        events = await stage.events(run_id)
        check_run(events)
        (failed,) = [event.data for event in events if event.type is EventType.TOOL_CALL_FAILED]
        assert failed["outcome"] == "error"

    @needs("asks")
    async def test_a_call_that_a_person_approves_runs(self, stage: Stage) -> None:
        made = stage.rig.outside() / "made.txt"
        run_id = await stage.submit(stage.rig.asked(f"touch {made}"))
        requested = await stage.seen(run_id, EventType.TOOL_APPROVAL_REQUESTED)
        assert not made.exists()

        await stage.live.decide_approval(requested.data["approval_id"], "approve", None, stage.call())
        await stage.live.await_run(run_id, 60)

        assert made.exists()
        events = await stage.events(run_id)
        check_run(events)
        assert types_of(events).count("tool_approval_requested") == types_of(events).count("tool_approval_granted") == 1

    @needs("asks")
    async def test_a_call_that_a_person_denies_never_runs(self, stage: Stage) -> None:
        made = stage.rig.outside() / "made.txt"
        run_id = await stage.submit(stage.rig.asked(f"touch {made}"))
        requested = await stage.seen(run_id, EventType.TOOL_APPROVAL_REQUESTED)

        await stage.live.decide_approval(requested.data["approval_id"], "deny", "not today", stage.call())
        outcome = (await stage.live.await_runs([run_id], 60))[0]

        assert not made.exists()
        events = await stage.events(run_id)
        check_run(events)
        (failed,) = [event.data for event in events if event.type is EventType.TOOL_CALL_FAILED]
        assert failed["outcome"] == "denied"
        if stage.rig.can.denial_ends_turn:
            assert isinstance(outcome, GreenroomError)
            assert events[-1].type is EventType.RUN_CANCELLED
        else:
            assert isinstance(outcome, RunResult)

    @pytest.mark.parametrize("status", FAULTS)
    @needs("errors")
    async def test_an_error_of_the_api_ends_the_run_once_with_its_own_class(self, stage: Stage, status: int) -> None:
        error = await stage.error(stage.rig.fault(answers.error(status)))

        assert isinstance(error, stage.rig.fault_class(status, FAULTS[status])), repr(error)
        check_run(await stage.events(error.details["run_id"]))
        assert stage.rig.secret not in str(error.to_record())

    @needs("errors")
    async def test_an_error_in_the_middle_of_a_stream_is_told_or_got_over(self, stage: Stage) -> None:
        prompt, options = stage.rig.breaking(answers.midstream_error())

        run_id = await stage.submit((prompt, options))
        (outcome,) = await stage.live.await_runs([run_id], 60)

        check_run(await stage.events(run_id))
        if isinstance(outcome, RunResult):
            assert outcome.output["content"].endswith("Whole.")
        else:
            assert isinstance(outcome, ProviderOverloaded | ProviderUnavailable | ProviderError), repr(outcome)

    @needs("errors")
    async def test_a_stream_that_is_cut_is_told_or_got_over(self, stage: Stage) -> None:
        run_id = await stage.submit(stage.rig.breaking(answers.cut()))
        (outcome,) = await stage.live.await_runs([run_id], 60)

        check_run(await stage.events(run_id))
        if isinstance(outcome, RunResult):
            assert outcome.output["content"].endswith("Whole.")
        else:
            assert isinstance(outcome, ProviderUnavailable | ProviderError), repr(outcome)

    async def test_a_run_that_hangs_ends_at_its_deadline(self, stage: Stage) -> None:
        run_id = await stage.submit(stage.rig.silence(), deadline_s=1.5)

        (outcome,) = await stage.live.await_runs([run_id], 60)

        assert isinstance(outcome, GreenroomError)
        events = await stage.events(run_id)
        check_run(events)
        assert events[-1].type is EventType.RUN_TIMEOUT
        await nothing_of_the_run_left(stage)

    async def test_a_run_is_cancelled_before_the_first_byte(self, stage: Stage) -> None:
        run_id = await stage.submit(stage.rig.silence())
        await stage.seen(run_id, EventType.RUN_STARTED)
        async with asyncio.timeout(60):
            while not stage.rig.has_been_asked:
                await asyncio.sleep(0.01)

        await stage.cancel(run_id)

        check_run(await stage.events(run_id))
        assert types_of(await stage.events(run_id))[-1] == "run_cancelled"
        await nothing_of_the_run_left(stage)

    @needs("streams")
    async def test_a_run_is_cancelled_in_the_middle_of_its_text(self, stage: Stage) -> None:
        run_id = await stage.submit(stage.rig.stall("Half a "))
        await stage.seen(run_id, EventType.MESSAGE_STREAMED)

        await stage.cancel(run_id)

        events = await stage.events(run_id)
        check_run(events)
        assert events[-1].data["output"]["content"].startswith("Half a")
        await nothing_of_the_run_left(stage)

    @needs("tools")
    async def test_a_run_is_cancelled_in_the_middle_of_a_tool_and_nothing_of_it_is_left(self, stage: Stage) -> None:
        pid_file = stage.rig.cwd / "pid"
        run_id = await stage.submit(stage.rig.call(f"echo $$ > {pid_file}; tail -f /dev/null"), **stage.rig.freely())
        async with asyncio.timeout(60):
            while not (pid_file.exists() and pid_file.read_text().strip()):
                await asyncio.sleep(0.01)
        pid = int(pid_file.read_text())

        await stage.cancel(run_id)

        check_run(await stage.events(run_id))
        async with asyncio.timeout(GONE_WITHIN_S):
            while stage.rig.is_alive(pid, pid_file):
                await asyncio.sleep(0.02)

    @needs("interrupts", "native")
    async def test_after_an_interrupt_the_next_run_goes_on_with_the_conversation(self, stage: Stage) -> None:
        stage.rig.answer(answers.text("I know your name."))
        await stage.run(("My name is Ada.", NATIVE))
        run_id = await stage.submit((stage.rig.stall("Half a ")[0], NATIVE))
        await stage.seen(run_id, *stage.rig.first_sign)
        assert await stage.live.interrupt_run(run_id, stage.call())
        stage.rig.always(answers.text("Ada."))

        result = await stage.run(("What is my name?", NATIVE))

        assert result.output["content"] == "Ada."
        assert "My name is Ada." in stage.rig.heard()
        assert types_of(await stage.events(run_id))[-1] == "run_cancelled"

    @needs("native")
    async def test_the_next_process_goes_on_with_the_conversation_natively(self, stage: Stage) -> None:
        stage.rig.answer(answers.text("I know your name."))
        await stage.run(("My name is Ada.", NATIVE))
        stage.rig.answer(answers.text("Ada."))

        later = await stage.reopened()
        result = await later.run(("What is my name?", NATIVE))

        assert result.output["content"] == "Ada."
        assert "My name is Ada." in stage.rig.heard()
        assert "What was said in this session before" not in stage.rig.heard()

    @needs("native")
    async def test_a_conversation_that_is_gone_is_an_error_natively_and_a_replay_by_itself(self, stage: Stage) -> None:
        stage.rig.answer(answers.text("I know your name."))
        await stage.run(("My name is Ada.", NATIVE))
        await stage.live.aclose()
        await asyncio.to_thread(shutil.rmtree, stage.rig.home)

        later = await stage.reopened()
        error = await later.error(("What is my name?", NATIVE))
        assert isinstance(error, ProviderInvalidRequest), repr(error)
        assert error.details["field"] == "continuation"

        stage.rig.answer(answers.text("Ada."))
        result = await later.run(("What is my name?", {"continuation": "auto"}))
        assert result.output["content"] == "Ada."
        assert "My name is Ada." in stage.rig.heard()

    async def test_two_runs_of_a_session_go_on_at_the_same_time(self, rig: Rig) -> None:
        stage = await Stage.open(rig, max_concurrent_runs=2)
        try:
            run_ids = [await stage.submit(rig.stall("One of two.")) for _ in range(2)]

            for run_id in run_ids:  # neither ends before both have begun to answer
                await stage.seen(run_id, *rig.first_sign)

            assert stage.live.state().in_flight == run_ids
            for run_id in run_ids:
                await stage.cancel(run_id)
                check_run(await stage.events(run_id))
        finally:
            await stage.aclose()

    @needs("native")
    async def test_two_runs_at_once_leave_the_conversation_that_both_go_on_with_whole(self, rig: Rig) -> None:
        stage = await Stage.open(rig, max_concurrent_runs=2)
        try:
            rig.answer(answers.text("I know your name."))
            await stage.run(("My name is Ada.", NATIVE))
            later = await stage.reopened()  # no client has it loaded
            rig.always(answers.text("Noted."))
            run_ids = [await later.submit((f"Also note {word}.", NATIVE)) for word in ("this", "that")]
            outcomes = await later.live.await_runs(run_ids, 60)
            assert all(isinstance(outcome, RunResult) for outcome in outcomes), outcomes

            await later.run(("What is my name?", NATIVE))

            assert "My name is Ada." in rig.heard()
            assert rig.heard().count("I know your name.") == 1
        finally:
            await stage.aclose()

    async def test_huge_output_does_not_break_a_run(self, stage: Stage) -> None:
        command = f"head -c {MEGABYTES * 1_000_000} /dev/zero | tr '\\0' x"

        run_id = await stage.submit(stage.rig.call(command), **stage.rig.freely())
        await stage.live.await_run(run_id, 60)

        check_run(await stage.events(run_id))

    async def test_output_that_is_no_utf_8_does_not_break_a_run(self, stage: Stage) -> None:
        run_id = await stage.submit(stage.rig.call(r"printf 'a\377\376b'"), **stage.rig.freely())

        await stage.live.await_run(run_id, 60)

        check_run(await stage.events(run_id))
