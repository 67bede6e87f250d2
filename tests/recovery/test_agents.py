"""Agents' own clients when the process that serves their session is killed: nothing of them is left, runs are
accounted for, and the session goes on."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

import greenroom
from greenroom import Runtime
from greenroom.adapters.process_trees import OWNER_VARIABLE
from greenroom.testing import answers
from greenroom.testing.conformance import Rig
from tests.conformance.provider_rigs import RIGS
from tests.ray.processes import kill_9, pid_of
from tests.waiting import wait_until

GONE_WITHIN_S = 5.0

AGENT_RIGS = [rig for rig in RIGS if rig.can.native]


@pytest.fixture
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    kind: type[Rig] = request.param
    if reason := kind.missing():
        pytest.skip(f"NOT RUN: {kind.name}: {reason}")
    made = kind(tmp_path)
    made.start()
    yield made
    made.release()
    made.stop()


def marked_with(pid: int) -> list[psutil.Process]:
    """Processes that this process has started, however far away they went."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            mark = process.environ().get(OWNER_VARIABLE, "")
            if mark.startswith(f"{pid}:") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


@pytest.mark.parametrize("rig", AGENT_RIGS, indirect=True, ids=lambda rig: rig.name)
def test_a_killed_session_leaves_no_process_of_its_agent_and_goes_on(runtime: Runtime, rig: Rig) -> None:
    declared = rig.declaration()
    options: dict[str, Any] = {"kind": declared.kind, **declared.options}
    name = f"agent-{rig.name}-{os.getpid()}"
    joined = greenroom.start(data_dir=runtime.data_dir, providers={name: options})
    session = joined.open_session(provider=name)
    pid_file = rig.cwd / "pid"
    prompt, own = rig.call(f"echo $$ > {pid_file}; tail -f /dev/null")
    run_id = ray.get(session.submit_run.remote(prompt, {**own, **rig.freely()}))
    wait_until(lambda: pid_file.exists() and pid_file.read_text().strip(), what="the agent's command runs")
    server = pid_of(runtime, "SessionServer", session.session_id)
    assert marked_with(server)

    kill_9(runtime, "SessionServer", session.session_id)

    wait_until(lambda: not marked_with(server), what="nothing of the agent is left", patience_s=GONE_WITHIN_S)
    with pytest.raises(greenroom.RunInterrupted):
        ray.get(session.await_run.remote(run_id, timeout_s=60))
    if rig.server is not None:
        rig.server.answers.clear()
    rig.answer(answers.text("Here again."))
    assert ray.get(session.execute_run.remote("Hello?", rig.freely())).output["content"] == "Here again."
