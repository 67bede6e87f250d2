"""No orphans: whoever of actor, guard and supervisor is killed, the command's processes are gone within 5 s."""

import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress

import psutil
import pytest

GONE_WITHIN_S = 5.0

COMMAND = """
trap "" TERM
setsid tail -f /dev/null & echo $!
nohup setsid sh -c '(setsid tail -f /dev/null & echo $!)'
echo $$
while :; do tail -f /dev/null; done
"""
"""Prints the pids of two daemons and its own, and does not end by SIGTERM."""

ACTOR = f"""
import asyncio
from greenroom.adapters.supervised_process import SupervisedProcess, scrubbed_environment

async def main():
    process = await SupervisedProcess.start({COMMAND!r}, env=scrubbed_environment({{}}))
    for _ in range(3):
        print((await process.stdout.readline()).decode().strip(), flush=True)
    await process.wait()
    await process.aclose()

asyncio.run(main())
"""


FORK = """
    import os, signal
    fork = os.fork()
    if fork == 0:
        signal.pause()
    print(fork, flush=True)
"""
"""A copy of the actor that holds every pipe that it holds."""


@contextmanager
def running(program: str) -> Generator["subprocess.Popen[str]"]:
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def actor() -> Iterator["subprocess.Popen[str]"]:
    """A process that stands for the actor, with a command under way."""
    with running(ACTOR) as process:
        yield process


def command_pids(actor: "subprocess.Popen[str]") -> list[int]:
    assert actor.stdout is not None
    return [int(actor.stdout.readline()) for _ in range(3)]


def tree(actor: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Guard, supervisor, command and everything below, the nearest first."""
    return psutil.Process(actor.pid).children(recursive=True)


def is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def wait_until_gone(processes: list[psutil.Process]) -> list[psutil.Process]:
    """What is left of them after 5 s."""
    deadline = time.monotonic() + GONE_WITHIN_S
    left = processes
    while left and time.monotonic() < deadline:
        left = [process for process in left if is_alive(process)]
        time.sleep(0.01)
    return left


def test_an_actor_killed_with_kill_9_leaves_no_process(actor: "subprocess.Popen[str]") -> None:
    pids = command_pids(actor)
    processes = tree(actor)
    assert set(pids) <= {process.pid for process in processes}

    actor.kill()

    assert wait_until_gone(processes) == []


def kill_actor_and_guard(actor: "subprocess.Popen[str]") -> None:
    """As Ray does when a worker exits: its direct children are killed first."""
    for child in psutil.Process(actor.pid).children():
        child.kill()
    actor.kill()


def kill_supervisor(actor: "subprocess.Popen[str]") -> None:
    (guard,) = psutil.Process(actor.pid).children()
    (supervisor,) = guard.children()
    supervisor.kill()


def kill_supervisor_and_actor(actor: "subprocess.Popen[str]") -> None:
    kill_supervisor(actor)
    actor.kill()


def terminate_supervisor(actor: "subprocess.Popen[str]") -> None:
    (guard,) = psutil.Process(actor.pid).children()
    guard.children()[0].terminate()


@pytest.mark.parametrize(
    "kill", [kill_actor_and_guard, kill_supervisor, kill_supervisor_and_actor, terminate_supervisor]
)
def test_the_supervisors_may_be_killed_too(
    actor: "subprocess.Popen[str]", kill: Callable[["subprocess.Popen[str]"], None]
) -> None:
    pids = command_pids(actor)
    processes = tree(actor)
    assert set(pids) <= {process.pid for process in processes}

    kill(actor)

    assert wait_until_gone(processes) == []


def test_a_fork_of_the_actor_that_holds_its_pipes_does_not_keep_the_tree_alive() -> None:
    with running(ACTOR.replace("    await process.wait()", f"{FORK}    await process.wait()")) as actor:
        pids = command_pids(actor)
        assert actor.stdout is not None
        fork = psutil.Process(int(actor.stdout.readline()))
        processes = [process for process in tree(actor) if process != fork]
        assert set(pids) <= {process.pid for process in processes}

        try:
            actor.kill()

            assert wait_until_gone(processes) == []
        finally:
            fork.kill()
