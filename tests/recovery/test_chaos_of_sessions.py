"""Half a minute of what `make chaos` does for five."""

from pathlib import Path

import pytest

from tests.chaos.sessions import run_chaos

SECONDS = 25.0


@pytest.mark.timeout(420)
def test_sessions_keep_their_promises_while_processes_are_killed_at_random(cluster: str, tmp_path: Path) -> None:
    report = run_chaos(tmp_path, seconds=SECONDS, seed=4)

    assert [] == report.problems
    assert report.kills.total() > 4
    assert sum(map(len, report.acknowledged.values())) > 20
