"""`python -m tests.chaos [--seed N] [--quick] [--scale X] [--keep] [fault ...]`: exit 1 if a promise was broken."""

import argparse
import random
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console

from .deaths import fsync, kill, torn
from .flips import cuts, flips
from .full_disk import disk
from .tally import Tally

FAULTS: Mapping[str, tuple[Callable[[Path, random.Random, Tally, int], None], int, int]] = {
    "kill": (kill, 24, 3),
    "torn": (torn, 16, 2),
    "fsync": (fsync, 20, 4),
    "disk": (disk, 4, 1),
    "flips": (flips, 210, 10),
    "cuts": (cuts, 36, 4),
}
"""What there is, with the rounds of a whole run and of a quick one."""

_MEMORY = "/dev/shm"
"""Where the stores are kept: no fault here depends on a disk, and most of the time would go into waiting for it."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("faults", nargs="*", metavar="fault", help=f"of {', '.join(FAULTS)}; all if none is named")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--quick", action="store_true", help="a few rounds of each, in less than a minute")
    parser.add_argument("--scale", type=float, default=1.0, help="times as many rounds")
    parser.add_argument("--keep", action="store_true", help="leave the stores where they are")
    given = parser.parse_args()
    unknown = set(given.faults) - set(FAULTS)
    if unknown:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    seed = secrets.randbelow(1 << 30) if given.seed is None else given.seed
    console = Console(width=140, soft_wrap=True)
    console.print(f"seed {seed}")
    tally = Tally()
    base = Path(tempfile.mkdtemp(prefix="chaos-", dir=_MEMORY if Path(_MEMORY).is_dir() else None))
    try:
        for name in given.faults or FAULTS:
            work, rounds, few = FAULTS[name]
            began = time.monotonic()
            home = base / name
            home.mkdir()
            dice = random.Random(f"{seed} {name}")
            work(home, dice, tally, max(1, round((few if given.quick else rounds) * given.scale)))
            console.print(f"{name}: {time.monotonic() - began:.0f} s")
    finally:
        if given.keep:
            console.print(f"kept in {base}")
        else:
            shutil.rmtree(base, ignore_errors=True)
    tally.print(console)
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
