"""Which rows are sent with one call."""

from typing import Any

import pytest

from greenroom.actors import row_sender
from greenroom.actors.address import RuntimeAddress
from greenroom.actors.row_sender import RowSender
from greenroom.domain.batch_row import RowsPlan, RowWork
from greenroom.domain.session import SessionSpec

ADDRESS = RuntimeAddress(ray_address="", namespace="", data_dir="", shards=1)


def groups_of(inputs: list[Any], *, per_server: int) -> list[list[str]]:
    plan = RowsPlan(
        job="j", spec=SessionSpec(), options={}, needs_own_server=False, per_server=per_server, stops_at_failure=True
    )
    sender = RowSender(ADDRESS, plan)
    sender._waiting.extend(  # pyright: ignore[reportPrivateUsage]
        RowWork(str(number), (str(number),), (one,)) for number, one in enumerate(inputs)
    )
    groups: list[list[str]] = []
    while group := sender._next_group():  # pyright: ignore[reportPrivateUsage]
        groups.append([row.session_id for row in group])
    return groups


def test_as_many_rows_go_together_as_share_a_server_and_some_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_sender, "FEWEST_TOGETHER", 2)
    assert [["0", "1", "2"], ["3", "4", "5"], ["6"]] == groups_of(["x"] * 7, per_server=3)
    assert [["0", "1"], ["2"]] == groups_of(["x"] * 3, per_server=1)


def test_large_rows_go_with_few_others_and_one_that_is_too_large_goes_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(row_sender, "MAX_TOGETHER_CHARACTERS", 100)
    messages = {"messages": [{"role": "user", "content": "x" * 99}]}

    groups = groups_of(["x" * 200, "x" * 50, "x" * 50, "x", messages, "y"], per_server=10)

    assert [["0"], ["1", "2"], ["3"], ["4"], ["5"]] == groups
