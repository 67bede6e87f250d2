"""Rows of batches by themselves: which work is the same, and what is said of how it ended."""

import re
from typing import Any

import pytest
from hypothesis import given, strategies as st

from greenroom.domain.batch_options import BatchOptions
from greenroom.domain.batch_progress import Counts, Stop, Tally
from greenroom.domain.batch_row import RESULT_COLUMNS, fingerprint, result_columns, row_session_id
from greenroom.domain.batch_summary import BatchSummary
from greenroom.domain.errors import Cancelled, DeadlineExceeded, GreenroomError, ProviderOverloaded, ValidationError
from greenroom.domain.run import RunResult, RunStatus

TEXTS = st.text(max_size=20)


def result(content: str = "ok", **changed: Any) -> RunResult:
    values: dict[str, Any] = {
        "run_id": "run_1",
        "session_id": "ses_1",
        "status": RunStatus.COMPLETED,
        "output": {"content": content},
        "token_usage": {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5},
        "cost_usd": 0.5,
        "provider": "p",
        "model": "m",
        "attempts": 1,
        "stop_reason": "end_turn",
        "timings": {"queued_s": 1.0, "running_s": 2.0},
        "workspace": None,
        "policy": None,
        "routing": None,
        "last_seq": 9,
    }
    return RunResult(**{**values, **changed})


@given(st.tuples(TEXTS, TEXTS, TEXTS, st.integers(0, 3)), st.tuples(TEXTS, TEXTS, TEXTS, st.integers(0, 3)))
def test_the_same_work_has_the_same_session_and_other_work_another(
    one: tuple[str, str, str, int], other: tuple[str, str, str, int]
) -> None:
    def session(job: str, key: str, content: str, attempt: int) -> str:
        return row_session_id(job, key, content, job_started_ms=1_790_000_000_000, attempt=attempt)

    plain = [tuple(part.replace("\0", "") if isinstance(part, str) else part for part in each) for each in (one, other)]
    first, second = (session(*each) for each in plain)  # pyright: ignore[reportArgumentType]

    assert (plain[0] == plain[1]) == (first == second)
    assert re.fullmatch(r"ses_[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}", first)
    assert session(*plain[0]) == first  # pyright: ignore[reportArgumentType]


def test_rows_of_a_job_stand_where_the_job_began() -> None:
    early, late = (row_session_id("j", "k", "c", job_started_ms=ms) for ms in (1_000, 2_000))

    assert early < late


@pytest.mark.parametrize(
    ("changed", "is_same"),
    [
        ({"concurrency": 3}, True),
        ({"priority": 5}, True),
        ({"max_failures": 5}, True),
        ({"model": "other"}, False),
        ({"system_prompt": "Be brief."}, False),
        ({"provider": "other"}, False),
        ({"options": {"provider_options": {"max_tokens": 5}}}, False),
        ({"options": {"retry_budget_s": 5.0}}, True),
    ],
)
def test_what_says_how_a_row_is_answered_makes_it_other_work_and_what_says_when_does_not(
    changed: dict[str, Any], is_same: bool
) -> None:
    before, after = (fingerprint(BatchOptions(**given).config(), ("x",)) for given in ({}, changed))

    assert is_same == (before == after)
    assert before != fingerprint(BatchOptions().config(), ("y",))


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"concurrency": 0}, "batch.concurrency"),
        ({"limit": 0}, "batch.limit"),
        ({"max_failures": -1}, "batch.max_failures"),
        ({"drain_s": -1}, "batch.drain_s"),
        ({"job": "../x"}, "batch.job"),
        ({"prompt": "a", "template": "b"}, "batch.template"),
        ({"options": {"provider": "x"}}, "batch.options.provider"),
        ({"options": {"priority": 1}}, "batch.options.priority"),
    ],
)
def test_a_bad_option_is_named(given: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        BatchOptions(**given)

    assert field == caught.value.details["field"]


def test_a_row_that_completed_has_all_columns_in_their_order() -> None:
    columns = result_columns("ses_1", [result()])

    assert list(RESULT_COLUMNS) == list(columns)
    assert ("completed", "ok", None, None) == tuple(
        columns[name] for name in ("status", "output", "turn_outputs", "error_code")
    )
    assert (5, 0.5, 1.0, 2.0) == tuple(columns[name] for name in ("total_tokens", "cost_usd", "queued_s", "running_s"))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (
            ProviderOverloaded("busy", details={"run_id": "run_2", "token_usage": {"total_tokens": 7}}),
            "failed",
        ),
        (Cancelled(details={"reason": "enough"}), "cancelled"),
        (DeadlineExceeded(), "timeout"),
    ],
)
def test_a_row_that_did_not_complete_says_why_and_what_it_used(error: GreenroomError, status: str) -> None:
    columns = result_columns("ses_1", [error])

    assert (status, error.code, error.message) == (columns["status"], columns["error_code"], columns["error_message"])
    assert columns["total_tokens"] == (7 if status == "failed" else 0)
    assert list(RESULT_COLUMNS) == list(columns)


def test_turns_are_added_up_and_the_first_that_failed_is_the_rows_error() -> None:
    both = result_columns("ses_1", [result("one"), result("two", run_id="run_2")])
    broken = result_columns("ses_1", [result("one"), ProviderOverloaded("busy"), Cancelled()])
    unpriced = result_columns("ses_1", [result(), result(cost_usd=None)])

    assert ("two", ["one", "two"], 10, 1.0, 4.0) == tuple(
        both[name] for name in ("output", "turn_outputs", "total_tokens", "cost_usd", "running_s")
    )
    assert ("failed", "provider_overloaded", ["one", None, None]) == tuple(
        broken[name] for name in ("status", "error_code", "turn_outputs")
    )
    assert unpriced["cost_usd"] is None


# Progress


def counts(ended: int, failed: int = 0, found: int = 0) -> Counts:
    made = Counts(found=found)
    made.statuses.update(completed=ended - failed, failed=failed)
    return made


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 50)), max_size=30))
def test_what_senders_report_is_added_up_however_often_they_report(reports: list[tuple[str, int]]) -> None:
    tally = Tally("j", total=200, max_failures=None, now_s=0.0)
    newest: dict[str, int] = {}
    for second, (sender, ended) in enumerate(reports):
        newest[sender] = ended
        tally.report(sender, counts(ended), float(second))

    progress = tally.progress(100.0)

    assert (sum(newest.values()), 200 - sum(newest.values())) == (progress.counts.ended, progress.waiting)


def test_the_rate_is_that_of_late_and_rows_that_were_found_do_not_count() -> None:
    tally = Tally("j", total=1_000, max_failures=None, now_s=0.0)
    tally.report("a", counts(500, found=500), 1.0)
    for second in range(2, 102):
        tally.report("a", counts(500 + 2 * (second - 1), found=500), float(second))

    progress = tally.progress(101.0)

    assert 1.9 < progress.rate < 2.1
    assert progress.left_s is not None
    assert 140 < progress.left_s < 160


def test_a_job_stops_when_too_many_have_failed_but_not_for_failures_of_before() -> None:
    tally = Tally("j", total=None, max_failures=2, now_s=0.0)
    tally.report("a", Counts(found=5, found_failed=5, statuses=counts(5, failed=5).statuses), 1.0)
    tally.report("b", counts(3, failed=2), 2.0)
    assert Stop.NO is tally.stop

    tally.report("b", counts(4, failed=3), 3.0)

    assert (Stop.DRAIN, True) == (tally.stop, "3 rows have failed" in (tally.stop_reason or ""))


def test_a_stop_only_ever_gets_harder() -> None:
    tally = Tally("j", total=None, max_failures=None, now_s=0.0)
    for stop in (Stop.DRAIN, Stop.CANCEL, Stop.DRAIN, Stop.NO):
        tally.ask_to_stop(stop, stop.value)

    assert (Stop.CANCEL, "drain") == (tally.stop, tally.stop_reason)


def test_a_summary_counts_what_came_out() -> None:
    summary = BatchSummary(job="j", total=3)
    for outcome in (result(), ProviderOverloaded("busy"), result(cost_usd=None)):
        summary.counts.add(result_columns("ses_1", [outcome]))

    assert (2, 1, True) == (summary.statuses["completed"], summary.failed, summary.is_complete)
    assert ({"provider_overloaded": 1}, 10, 0.5) == (
        summary.errors,
        summary.counts.tokens["total_tokens"],
        summary.counts.cost_usd,
    )
    assert summary.to_dict()["complete"] is True
