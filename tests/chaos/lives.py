"""Lives of one store's process, one after another on the same folder, each ended by a fault."""

import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from .faulty_files import Faults, Trace, build
from .ledger import Ledger
from .looking import Verdict, judge
from .workload import Order

NAMES = [f"ses_{index}" for index in range(20)]
MAX_EVENTS = 4_000
"""A store with more is left, and a new one begun: reading all of it takes the time of more lives."""

END_S = 60

HERE = Path(__file__).parents[2].resolve()
_MAINTENANCE = "greenroom.adapters.duckdb.maintenance_process"


class Lives:
    """A folder, what was acknowledged in it, and the processes that wrote it."""

    def __init__(self, base: Path, dice: random.Random, *, prunes: bool = False) -> None:
        self.base = base
        self.dice = dice
        self.acknowledged = 0
        self._prunes = prunes
        self._stores = 0
        self._begin()

    def _begin(self) -> None:
        self._stores += 1
        self.home = self.base / f"store-{self._stores}"
        self.home.mkdir()
        self.folder = self.home / "store"
        self.folder.mkdir()
        self.ledger = Ledger(prunes=self._prunes)
        self.life = 0

    def start(
        self, *, faults: Faults | None = None, maintenance: Faults | None = None, traced: bool = False, **order: Any
    ) -> "Life":
        """A process that works on the store."""
        self.life += 1
        files = {name: self.home / f"{name}-{self.life}" for name in ("ledger", "trace", "stderr")}
        environment: Mapping[str, str] = {}
        if faults is not None or maintenance is not None or traced:
            library = build(self.base)
            environment = (faults or Faults()).environment(library, self.folder, files["trace"])
            for_maintenance = (maintenance or Faults()).environment(library, self.folder, files["trace"])
            order["maintenance"] = for_maintenance
        given = Order(
            folder=str(self.folder),
            ledger=str(files["ledger"]),
            life=self.life,
            seed=self.dice.randrange(1 << 30),
            prunes=self._prunes,
            **order,
        )
        return Life(self, given, files, environment)

    def judged(self, *, probe: bool = False) -> Verdict:
        """How the store came through; what is in it now counts from here on."""
        seals = self.dice.random() < 0.5
        verdict = judge(self.folder, self.ledger, names=NAMES, probe=probe, seals=seals)
        self.acknowledged += self.ledger.acknowledged
        self.ledger.acknowledged = 0
        if probe or verdict.problems or sum(map(len, verdict.events.values())) > MAX_EVENTS:
            self._begin()
        else:
            self.ledger.take_as_given(verdict.events)
        return verdict


class Life:
    """One process."""

    def __init__(self, lives: Lives, order: Order, files: Mapping[str, Path], environment: Mapping[str, str]) -> None:
        self._lives = lives
        self._files = files
        self.trace = Trace.begun(lives.folder)
        with files["stderr"].open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.workload", order.encoded()],
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=os.environ | environment,
                cwd=HERE,
            )

    def wait_until_open(self) -> bool:
        """False if it ended before."""
        assert self.process.stdout is not None
        return self.process.stdout.readline() == b"open\n"

    def wait(self, timeout_s: float) -> bool:
        """Whether it ended by itself."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def has_noted(self, line: bytes, *, start: int = 0) -> bool:
        """Whether it wrote a line that begins like this behind that place in its ledger."""
        path = self._files["ledger"]
        return path.exists() and b"\n" + line in b"\n" + path.read_bytes()[start:]

    @property
    def noted(self) -> int:
        """Bytes in its ledger."""
        return self._files["ledger"].stat().st_size if self._files["ledger"].exists() else 0

    def end(self) -> int:
        """Kill it, if it still lives, wait for what it had started, and read what they left; the exit code."""
        self.process.kill()
        self.process.wait(END_S)
        _, left = psutil.wait_procs(_maintenance_processes(), END_S)
        assert not left, "a maintenance process outlives its store"
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._lives.ledger.read(self._files["ledger"])
        self.trace.read(self._files["trace"])
        if self.process.returncode not in {-9, 0, 3, 4}:
            said = self._files["stderr"].read_text().strip().splitlines()
            self._lives.ledger.problems.append(
                f"the process ended with status {self.process.returncode}: {said[-1] if said else 'and said nothing'}"
            )
        return self.process.returncode


def _maintenance_processes() -> list[psutil.Process]:
    """Those of the stores of this folder of Greenroom: they have a session of their own, and no parent any more."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "cwd"])
        if _MAINTENANCE in (process.info["cmdline"] or ()) and process.info["cwd"] == str(HERE)
    ]
