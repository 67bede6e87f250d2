"""Sessions under load while their processes are killed at random: `python -m tests.chaos.sessions [--seconds N]`.

Whatever is killed: every acknowledged run ends exactly once, every sequence is without gap, nobody gets an error
without a type, nobody waits for ever, and no process of a provider is left.
"""

import argparse
import os
import random
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import ray
from rich.console import Console
from rich.table import Table

import greenroom
from greenroom import Event, EventType, GreenroomError, Runtime, SessionHandle
from greenroom.adapters.process_trees import OWNER_VARIABLE
from greenroom.domain.event import RUN_ENDINGS

CALL_S = 120.0
"""A call that has no answer after this long counts as hanging."""

SETTLE_S = 180.0
SESSIONS, CALLERS, FOLLOWERS = 8, 4, 2
SETTINGS: dict[str, Any] = {
    "lease_s": 2.0,
    "idle_after_s": 1.0,
    "warm_pool": 2,
    "max_running_runs": 6,
    "approval_expires_s": 5.0,
}

_STREAMS = {"provider_options": {"chunks": 20, "chunk_delay_s": 0.02, "reply": "x" * 20}}
_COMMAND = "sleep 0.3; echo done; sleep 8651 & wait $!"


@dataclass
class Report:
    """What was done, and what was wrong."""

    kills: Counter[str] = field(default_factory=Counter[str])
    calls: Counter[str] = field(default_factory=Counter[str])
    errors: Counter[str] = field(default_factory=Counter[str])
    """Typed ones, by code."""
    problems: list[str] = field(default_factory=list[str])
    acknowledged: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """Run ids by session."""
    ends: Counter[str] = field(default_factory=Counter[str])
    events: int = 0

    def print(self, console: Console) -> None:
        table = Table("what", "how often")
        for title, counts in (("kill", self.kills), ("call", self.calls), ("error", self.errors), ("end", self.ends)):
            for name, count in sorted(counts.items()):
                table.add_row(f"{title}: {name}", f"{count:,}")
        table.add_row("acknowledged runs", f"{sum(map(len, self.acknowledged.values())):,}")
        table.add_row("events", f"{self.events:,}")
        console.print(table)
        for problem in self.problems:
            console.print(f"BROKEN: {problem}")


class Chaos:
    """One run of it on a runtime that it has for itself."""

    def __init__(self, runtime: Runtime, dice: random.Random) -> None:
        self.report = Report()
        self._runtime = runtime
        self._dice = dice
        self._sessions = [
            runtime.open_session(
                f"ses_chaos_{number}",
                max_concurrent_runs=1 + number % 3,
                max_queued_runs=1_000,
                run_defaults={"on_crash": "retry" if number % 2 else "fail", "deadline_s": 30.0},
            )
            for number in range(SESSIONS)
        ]
        self._stopped = threading.Event()
        self._lock = threading.Lock()

    def go(self, seconds: float) -> Report:
        """Load and kills for so long, then the reckoning."""
        self.report.acknowledged = {session.session_id: [] for session in self._sessions}
        followed = {session.session_id: list[Event]() for session in self._sessions[:FOLLOWERS]}
        callers = [
            threading.Thread(target=self._call, args=(random.Random(self._dice.random()),)) for _ in range(CALLERS)
        ]
        followers = [
            threading.Thread(target=self._follow, args=(session, followed[session.session_id]))
            for session in self._sessions[:FOLLOWERS]
        ]
        killer = threading.Thread(target=self._kill)
        for thread in (*callers, *followers, killer):
            thread.start()
        self._stopped.wait(seconds)
        self._stopped.set()
        for thread in (killer, *callers):
            thread.join()
        self._reckon(followed, followers)
        return self.report

    # Load

    def _call(self, dice: random.Random) -> None:
        calls: list[tuple[str, Callable[[SessionHandle, random.Random], object]]] = [
            ("submit", self._submit),
            ("submit", self._submit),
            ("command", self._command),
            ("execute", self._execute),
            ("cancel", self._cancel),
            ("status", self._status),
            ("pause", self._pause),
            ("read", self._read),
            ("list", self._list),
        ]
        while not self._stopped.is_set():
            session = dice.choice(self._sessions)
            name, call = dice.choice(calls)
            self._guarded(name, partial(call, session, dice))
            self._stopped.wait(dice.uniform(0.0, 0.1))

    def _guarded(self, name: str, call: Callable[[], object]) -> None:
        try:
            call()
        except GreenroomError as exc:
            with self._lock:
                self.report.errors[exc.code] += 1
        except Exception as exc:  # noqa: BLE001  what this is here to find
            with self._lock:
                self.report.problems.append(f"{name} raised {type(exc).__name__}: {str(exc)[:300]}")
        with self._lock:
            self.report.calls[name] += 1

    def _acknowledge(self, session: SessionHandle, run_id: str) -> str:
        with self._lock:
            self.report.acknowledged[session.session_id].append(run_id)
        return run_id

    def _submit(self, session: SessionHandle, dice: random.Random) -> None:
        key = secrets.token_hex(8)
        options = dice.choice([_STREAMS, {}, {"provider_options": {"latency_s": 0.1}}])
        first = self._acknowledge(
            session, ray.get(session.submit_run.remote("x", options, idempotency_key=key), timeout=CALL_S)
        )
        if dice.random() < 0.2:
            again = ray.get(session.submit_run.remote("x", options, idempotency_key=key), timeout=CALL_S)
            if again != first:
                self.report.problems.append(f"key {key} gave {first}, and then {again}")

    def _command(self, session: SessionHandle, dice: random.Random) -> None:
        options = {"provider": "shell", "deadline_s": dice.uniform(0.5, 2.0)}
        self._acknowledge(session, ray.get(session.submit_run.remote(_COMMAND, options), timeout=CALL_S))

    def _execute(self, session: SessionHandle, dice: random.Random) -> None:
        result = ray.get(session.execute_run.remote("x"), timeout=CALL_S)
        self._acknowledge(session, result.run_id)

    def _cancel(self, session: SessionHandle, dice: random.Random) -> None:
        with self._lock:
            known = self.report.acknowledged[session.session_id][-20:]
        if known:
            ray.get(session.cancel_run.remote(dice.choice(known)), timeout=CALL_S)

    def _status(self, session: SessionHandle, dice: random.Random) -> None:
        ray.get(session.status.remote(), timeout=CALL_S)

    def _read(self, session: SessionHandle, dice: random.Random) -> None:
        ray.get(session.read_events.remote(limit=50), timeout=CALL_S)

    def _list(self, session: SessionHandle, dice: random.Random) -> None:
        self._runtime.list_runs(session_id=session.session_id, limit=50)

    def _pause(self, session: SessionHandle, dice: random.Random) -> None:
        self._guarded("pause", lambda: ray.get(session.pause.remote(), timeout=CALL_S))
        self._resume(session)

    def _resume(self, session: SessionHandle) -> None:
        ray.get(session.resume.remote(), timeout=CALL_S)

    def _complete(self, session: SessionHandle) -> None:
        ray.get(session.complete.remote(), timeout=CALL_S)

    def _follow(self, session: SessionHandle, seen: list[Event]) -> None:
        self._guarded("follow", lambda: seen.extend(session.follow()))

    # Kills

    def _kill(self) -> None:
        while not self._stopped.wait(self._dice.uniform(0.3, 2.5)):
            self._guarded("kill", self._kill_one)

    def _kill_one(self) -> None:
        what = self._dice.choice(
            ["SessionServer", "SessionServer", "EventStore", "Directory", "Limiter", "command", "freeze"]
        )
        if what == "command":
            victims = [one.pid for one in _provider_processes()]
        else:
            kind = "SessionServer" if what == "freeze" else what
            victims = [row["pid"] for row in self._runtime.stats().actors if row["kind"] == kind and row["pid"]]
        if not victims:
            return
        try:
            os.kill(self._dice.choice(victims), signal.SIGSTOP if what == "freeze" else signal.SIGKILL)
        except ProcessLookupError:
            return
        self.report.kills[what] += 1

    # The reckoning

    def _reckon(self, followed: dict[str, list[Event]], followers: list[threading.Thread]) -> None:
        deadline = time.monotonic() + SETTLE_S
        for session in self._sessions:
            self._guarded("resume", partial(self._resume, session))
        open_runs = self._await_ends(deadline)
        if open_runs:
            self.report.problems.append(f"{len(open_runs)} runs never ended: {open_runs[:3]}")
        for session in self._sessions:
            self._guarded("complete", partial(self._complete, session))
        for follower in followers:
            follower.join(max(1.0, deadline - time.monotonic()))
            if follower.is_alive():
                self.report.problems.append("a follower hears of no end")
        for session in self._sessions:
            self._check(session, followed.get(session.session_id))
        left = self._until(lambda: not _provider_processes(), deadline)
        if not left:
            self.report.problems.append(f"processes are left: {_provider_processes()}")

    def _await_ends(self, deadline: float) -> list[str]:
        def still_open() -> list[str]:
            return [
                run.id
                for session in self._sessions
                for run_id in self.report.acknowledged[session.session_id]
                if not (run := self._runtime.get_run(run_id)).status.is_terminal
            ]

        self._until(lambda: not still_open(), deadline)
        return still_open()

    def _until(self, holds: Callable[[], bool], deadline: float) -> bool:
        tick = threading.Event()
        while not holds():
            if time.monotonic() > deadline:
                return False
            tick.wait(0.2)
        return True

    def _check(self, session: SessionHandle, seen: list[Event] | None) -> None:
        events = list(session.follow(follow=False))
        self.report.events += len(events)
        name = session.session_id
        if [event.seq for event in events] != list(range(1, len(events) + 1)):
            self.report.problems.append(f"{name}: its sequence has gaps or repeats")
        if seen is not None and [event.seq for event in seen] != [event.seq for event in events]:
            self.report.problems.append(f"{name}: a follower saw {len(seen)} events of {len(events)}, or not in order")
        ends = Counter(event.run_id for event in events if event.type in RUN_ENDINGS)
        self.report.ends.update(event.type.value for event in events if event.type in RUN_ENDINGS)
        queued = {event.run_id for event in events if event.type is EventType.RUN_QUEUED}
        for run_id in {*self.report.acknowledged[name], *queued}:
            if ends[run_id] != 1:
                self.report.problems.append(f"{name}: run {run_id} has {ends[run_id]} ends")
        lost = set(self.report.acknowledged[name]) - queued
        if lost:
            self.report.problems.append(f"{name}: {len(lost)} acknowledged runs are not there")
        if not self._runtime.verify_session(name).ok:
            self.report.problems.append(f"{name}: its chain does not hold")


def _provider_processes() -> list[psutil.Process]:
    """Whatever bears the mark of a provider's process."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if OWNER_VARIABLE in process.environ() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def run_chaos(data_dir: Path, *, seconds: float, seed: int) -> Report:
    """Chaos on a runtime of its own, whose processes are gone afterwards."""
    runtime = greenroom.start(data_dir=data_dir, **SETTINGS)
    try:
        report = Chaos(runtime, random.Random(seed)).go(seconds)
        pids = [row["pid"] for row in runtime.stats().actors if row["pid"]]
    finally:
        runtime.shutdown()
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=30)
    report.problems += [f"an actor's process is left: {process}" for process in alive]
    return report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.sessions", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args()
    seed = secrets.randbelow(1 << 30) if given.seed is None else given.seed
    console = Console(width=140, soft_wrap=True)
    console.print(f"seed {seed}, {given.seconds:.0f} s")
    with tempfile.TemporaryDirectory(prefix="chaos-sessions-") as folder:
        report = run_chaos(Path(folder), seconds=given.seconds, seed=seed)
    report.print(console)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
