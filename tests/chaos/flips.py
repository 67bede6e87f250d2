"""Single bits that flip in the files of a store that nobody has open, and tails that are cut off or overwritten."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from .lives import NAMES, Lives
from .looking import OPENED, RECOVERED, judge
from .tally import Tally

_REDUNDANT = {"log's heads", "part's heads", "records", "records' WAL", "manifest"}
"""Whatever happens to one of these, nothing is lost."""

_FEW = 20
"""For no more rounds than that one store is enough: making one takes as long as ten of them."""


def flips(base: Path, dice: random.Random, tally: Tally, rounds: int) -> None:
    """One bit of one file; evenly over the kinds of files. Some of the parts' flips leave the time of the file as it
    was, as a disk that rots does."""
    _each(base, dice, tally, rounds, "flip", _flip)


def cuts(base: Path, dice: random.Random, tally: Tally, rounds: int) -> None:
    """The end of a file that was made to last is cut off, zeroed or garbled."""
    _each(base, dice, tally, rounds, "cut", _cut)


def _flip(content: bytearray, dice: random.Random) -> bytearray:
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    return content


def _cut(content: bytearray, dice: random.Random) -> bytearray:
    count = min(len(content), dice.choice((1, dice.randint(1, 200), dice.randint(1, len(content)), len(content))))
    kept = content[:-count]
    return dice.choice((kept, kept, kept + bytes(count), kept + dice.randbytes(count)))


Damage = Callable[[bytearray, random.Random], bytearray]


def _each(base: Path, dice: random.Random, tally: Tally, rounds: int, fault: str, damage: Damage) -> None:
    stores = [
        _made(base / f"{fault}-{closes}", dice, closes=closes)
        for closes in ((False, True) if rounds > _FEW else (True,))
    ]
    for lives in stores:
        tally.acknowledged += lives.acknowledged
    targets = sorted({(kind, index) for index, lives in enumerate(stores) for kind in _by_kind(lives.folder)})
    for number in range(rounds):
        kind, index = targets[number % len(targets)]
        lives = stores[index]
        work = base / f"{fault}-{number}"  # never the same path: DuckDB may still have an abandoned one open
        shutil.copytree(lives.folder, work)
        file = dice.choice(_by_kind(work)[kind])
        content = bytearray(file.read_bytes())
        damaged = damage(bytearray(content), dice)
        stat = file.stat()
        file.write_bytes(damaged)
        if kind == "part" and dice.random() < 0.4:
            os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
            kind = "part, its time unchanged"
        if damaged == content:
            continue
        verdict = judge(work, lives.ledger, names=NAMES, probe=True)
        place = next((at for at, pair in enumerate(zip(content, damaged, strict=False)) if pair[0] != pair[1]), -1)
        problems = list(verdict.problems)
        if kind in _REDUNDANT and verdict.outcome not in {OPENED, RECOVERED}:
            problems.append("something is lost, though it was in other files")
        where = f"{file.name} at {place} of {len(content)}, now {len(damaged)}"
        tally.settle(fault, kind, verdict.outcome, [f"{where}: {problem}" for problem in problems])
        shutil.rmtree(work)


def _made(base: Path, dice: random.Random, *, closes: bool) -> Lives:
    """A store with every kind of file: killed, or closed as it should be and then opened once more and killed."""
    base.mkdir()
    lives = Lives(base, dice)
    for batches, closing in ((150, False), (120, closes), (40, False)):
        life = lives.start(batches=batches, closes=closing, log_batches=100, sessions=5, pause_s=0.005)
        life.wait(60)
        life.end()
    verdict = judge(lives.folder, lives.ledger, names=NAMES)
    if verdict.problems:
        raise AssertionError(f"the store was broken before anything was done to it: {verdict.problems}")
    lives.acknowledged += lives.ledger.acknowledged
    lives.ledger.take_as_given(verdict.events)
    _append_more(lives)
    return lives


def _append_more(lives: Lives) -> None:
    """So that the write-ahead logs, which closing folded away, are there again."""
    life = lives.start(batches=40, log_batches=1000, sessions=5, pause_s=0.005, chores=False)
    life.wait(60)
    life.end()
    # read in a copy: reading the store itself would fold them away again
    copy = lives.home / "copy"
    shutil.copytree(lives.folder, copy)
    verdict = judge(copy, lives.ledger, names=NAMES)
    lives.ledger.take_as_given(verdict.events)
    shutil.rmtree(copy)


def _by_kind(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        kind = _kind(path.name)
        if kind is not None and path.stat().st_size:
            found.setdefault(kind, []).append(path)
    return found


def _kind(name: str) -> str | None:
    stem, _, suffix = name.partition(".")
    family = stem.partition("-")[0]
    if family in {"log", "part", "records"}:
        return {"duckdb": family, "heads": f"{family}'s heads", "duckdb.wal": _wal(family)}.get(suffix)
    return "manifest" if name == "manifest.json" else None


def _wal(family: str) -> str:
    return "records' WAL" if family == "records" else f"{family}'s WAL"
