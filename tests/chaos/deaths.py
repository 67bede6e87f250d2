"""Faults that end the process: kill -9, power that fails, operations on files that fail."""

import errno
import random
from pathlib import Path

from .faulty_files import Faults
from .lives import Life, Lives
from .tally import Tally


def kill(base: Path, dice: random.Random, tally: Tally, rounds: int) -> None:
    """kill -9 at a random moment, at a random operation on a file (in the middle of it, if it writes), and of the
    maintenance process."""
    lives = Lives(base, dice, prunes=True)
    for number in range(rounds):
        how = ("at a moment", "at a file operation", "at a file operation of maintenance")[number % 3]
        life = _started(lives, how)
        if life.wait_until_open():
            life.wait(dice.uniform(0.0, 2.0))
        life.end()
        target = how if life.trace.killed or how == "at a moment" else "at a moment"
        verdict = lives.judged(probe=number == rounds - 1)
        tally.settle("kill", target, verdict.outcome, verdict.of_a_crash())
    tally.acknowledged += lives.acknowledged


def _started(lives: Lives, how: str) -> Life:
    dice = lives.dice
    if how == "at a file operation":
        return lives.start(faults=Faults(kill_at=dice.choice((dice.randint(1, 60), dice.randint(1, 1500)))))
    if how == "at a file operation of maintenance":
        return lives.start(maintenance=Faults(kill_at=dice.randint(1, 60), kill_parent=dice.random() < 0.7))
    return lives.start()


def torn(base: Path, dice: random.Random, tally: Tally, rounds: int) -> None:
    """The power fails: of what was written since the last fsync of each file some is gone, or zeros, or garbage."""
    lives = Lives(base, dice)
    for number in range(rounds):
        how = ("cut", "cut", "zeros", "garbage")[number % 4]
        faults = Faults(kill_at=dice.randint(40, 900), kinds=dice.choice(("w", "sw", "swn")))
        life = lives.start(faults=faults)
        if life.wait_until_open():
            life.wait(dice.uniform(0.2, 2.0))
        life.end()
        changed = life.trace.lose_power(lives.folder, dice, how=how)
        verdict = lives.judged(probe=number == rounds - 1)
        problems = verdict.of_a_crash(f" of {changed}") if how == "cut" or not changed else verdict.problems
        target = f"unsynced tail: {how}" if changed else "nothing was unsynced"
        tally.settle("torn", target, verdict.outcome, problems)
    tally.acknowledged += lives.acknowledged


def fsync(base: Path, dice: random.Random, tally: Tally, rounds: int) -> None:
    """fsync, write or rename fail; then the process goes on as it may, or is killed; and what no fsync covered is
    gone."""
    lives = Lives(base, dice)
    for number in range(rounds):
        kinds = ("s", "s", "w", "n")[number % 4]
        faults = Faults(
            kinds=kinds,
            fail_at=dice.choice((dice.randint(1, 30), dice.randint(1, 400 if kinds != "n" else 60))),
            fail_count=dice.choice((1, 1, 3, 1_000_000)),
            fail_errno=dice.choice((errno.EIO, errno.ENOSPC)),
            kill_after_fail=dice.choice((0, 0, 1, 5)),
        )
        in_maintenance = dice.random() < 0.2
        life = lives.start(maintenance=faults) if in_maintenance else lives.start(faults=faults)
        if life.wait_until_open():
            life.wait(dice.uniform(0.5, 2.0))
        life.end()
        life.trace.lose_power(lives.folder, dice)
        ends = "the store ended its process" if lives.ledger.was_fatal else (
            "it did not open" if lives.ledger.was_refused else "it went on, or was killed")  # fmt: skip
        what = {"s": "fsync", "w": "write", "n": "rename, unlink, truncate"}[kinds]
        target = f"{what}: {ends}" if life.trace.failed else "nothing failed in time"
        verdict = lives.judged(probe=number == rounds - 1)
        tally.settle("fsync", target, verdict.outcome, verdict.of_a_crash())
    tally.acknowledged += lives.acknowledged
