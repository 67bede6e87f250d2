"""The layer between a process and its files (faulty_files.c): compiled when needed, ordered about by environment."""

import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_SOURCE = Path(__file__).with_name("faulty_files.c")


def build(folder: Path) -> Path:
    """The library, compiled. CalledProcessError or FileNotFoundError where there is no C compiler."""
    library = folder / "faulty_files.so"
    if not library.exists():
        command = ["gcc", "-shared", "-fPIC", "-O2", "-o", str(library), str(_SOURCE), "-ldl", "-lpthread"]
        subprocess.run(command, check=True, capture_output=True)
    return library


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What is to go wrong, by the count of operations on files under the root."""

    kinds: str = "swn"
    """Which operations count: s syncs, w writes, n names and sizes (rename, unlink, truncate)."""
    kill_at: int = 0
    kill_parent: bool = False
    fail_at: int = 0
    fail_count: int = 1
    fail_errno: int = 0
    kill_after_fail: int = 0

    def environment(self, library: Path, root: Path, trace: Path) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(library),
            "CHAOS_ROOT": str(root),
            "CHAOS_TRACE": str(trace),
            "CHAOS_KINDS": self.kinds,
            "CHAOS_KILL_AT": str(self.kill_at),
            "CHAOS_KILL_PARENT": str(int(self.kill_parent)),
            "CHAOS_FAIL_AT": str(self.fail_at),
            "CHAOS_FAIL_COUNT": str(self.fail_count),
            "CHAOS_FAIL_ERRNO": str(self.fail_errno),
            "CHAOS_KILL_AFTER_FAIL": str(self.kill_after_fail),
        }


@dataclass(slots=True)
class Trace:
    """What the processes made last, by inode."""

    synced: dict[int, int] = field(default_factory=dict[int, int])
    failed: list[str] = field(default_factory=list[str])
    """Operations that were made to fail, and files."""
    killed: list[str] = field(default_factory=list[str])

    @classmethod
    def begun(cls, folder: Path) -> "Trace":
        """Before a life: what is there counts as lasting."""
        return cls({path.stat().st_ino: path.stat().st_size for path in _files(folder)})

    def read(self, path: Path) -> None:
        for line in path.read_text().splitlines() if path.exists() else ():
            match line.split(" "):
                case ["S", inode, size]:
                    self.synced[int(inode)] = int(size)
                case ["T", inode, size]:
                    self.synced[int(inode)] = min(self.synced.get(int(inode), 0), int(size))
                case ["U", inode]:
                    self.synced.pop(int(inode), None)
                case ["F", what, name]:
                    self.failed.append(f"{what} {Path(name).name}")
                case ["K", what, name]:
                    self.killed.append(f"{what} {Path(name).name}")
                case _:
                    pass

    def lose_power(self, folder: Path, dice: random.Random, *, how: str = "cut") -> list[str]:
        """Take from each file some of what was never made to last: cut off, or in its place zeros or garbage. Returns
        the names of the files that changed."""
        changed: list[str] = []
        for path in _files(folder):
            size, synced = path.stat().st_size, self.synced.get(path.stat().st_ino, 0)
            if size <= synced:
                continue
            keep = dice.choice((synced, dice.randint(synced, size), size - 1))
            with path.open("r+b") as file:
                if how == "cut":
                    file.truncate(keep)
                else:
                    file.seek(keep)
                    file.write(bytes(size - keep) if how == "zeros" else dice.randbytes(size - keep))
            changed.append(path.name)
        return changed


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(("damaged-", "artifacts"))]
        yield from (Path(parent) / name for name in names if not Path(parent, name).is_symlink())
