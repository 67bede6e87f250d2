"""A disk that fills: a file system of its own, filled by the store, and by somebody else's file."""

import contextlib
import os
import random
import subprocess
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from .lives import Life, Lives
from .tally import Tally

MEBIBYTE = 1024 * 1024
SIZE = 40 * MEBIBYTE
RESUME_S = 30


def disk(base: Path, dice: random.Random, tally: Tally, rounds: int) -> None:
    """Fills, and is emptied again: what was acknowledged is there, and appending goes on without a restart, or after
    the one that the store asked for."""
    with _file_system(base) as mount:
        if mount is None:
            tally.add("disk", "no file system could be mounted here", "skipped")
            return
        for number in range(rounds):
            _round(mount, dice, tally, number)


@contextlib.contextmanager
def _file_system(base: Path) -> Generator[Path | None]:
    mount = base / "disk"
    mount.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(mount)], check=True, capture_output=True
        )
    except (subprocess.CalledProcessError, FileNotFoundError):
        yield None
        return
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


LEFT = 10 * MEBIBYTE
"""Room that the store has to fill by itself."""


def _round(mount: Path, dice: random.Random, tally: Tally, number: int) -> None:
    suddenly = number % 2 == 1
    home = mount / f"round-{number}"
    home.mkdir()
    lives = Lives(home, dice)
    # the ledger lies on the same disk: 4 MiB are set aside for it
    options: dict[str, Any] = {"min_free_bytes": 8 * MEBIBYTE, "reserve_bytes": 4 * MEBIBYTE} if not suddenly else {}
    ballast, ledger_room = home / "ballast", 256 * 1024
    ballast.write_bytes(bytes(12 * MEBIBYTE))
    elsewhere = mount.parent / f"disk-notes-{number}"
    elsewhere.mkdir()
    lives.home = elsewhere
    life = lives.start(pause_s=0.002, log_bytes=2 * MEBIBYTE, log_batches=400, sessions=8, **options)
    opened = life.wait_until_open()
    if not suddenly:  # little is left: sealing and compacting give room back, and must not keep up for ever
        _fill(home / "filler", keep=LEFT)
    else:
        life.wait(dice.uniform(0.3, 2.0))
        _fill(home / "filler", keep=dice.choice((0, 4096, dice.randint(0, ledger_room))))
    stopped = _until(lambda: life.process.poll() is not None or _stalled(life), RESUME_S)
    ballast.unlink()
    (home / "filler").unlink(missing_ok=True)
    target = "filled suddenly by another" if suddenly else "filled by the store"
    before = life.noted
    resumed = (
        _until(lambda: life.process.poll() is not None or life.has_noted(b"ack ", start=before), RESUME_S)
        and life.process.poll() is None
    )
    life.end()
    was_fatal = lives.ledger.was_fatal
    verdict = lives.judged(probe=True)
    tally.acknowledged += lives.acknowledged
    problems = list(verdict.of_a_crash())
    if not (opened and stopped):
        problems.append("it did not open, or never filled")
    if not resumed and not was_fatal:
        problems.append("there is room again, and nothing is acknowledged")
    went = "went on when there was room" if resumed else "ended itself"
    tally.settle("disk", target, f"{went}; {verdict.outcome}", problems)
    subprocess.run(["rm", "-rf", str(home)], check=True)


def _stalled(life: Life) -> bool:
    """Nothing was acknowledged for a second."""
    before = life.noted
    time.sleep(1.0)
    return not life.has_noted(b"ack ", start=before)


def _fill(path: Path, *, keep: int) -> None:
    """Take all the room there is but so many bytes."""
    with path.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(256 * 1024))
        os.ftruncate(file.fileno(), max(0, file.tell() - keep))


def _until(holds: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.05)
    return False
