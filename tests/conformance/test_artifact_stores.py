"""The artifact store suite over a folder, and what only a folder can suffer: kills, full disks, changed files."""

import errno
import fcntl
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from greenroom.adapters import artifact_folder
from greenroom.adapters.artifact_folder import DEFAULT_MAX_ARTIFACT_BYTES, ArtifactFolder
from greenroom.domain.errors import (
    GreenroomError,
    NotFound,
    StorageConnectionFailed,
    StorageFull,
    StorageReadFailed,
    StorageWriteFailed,
)

from .artifact_store_suite import ArtifactStoreSuite, check_against_the_model, reference_of, run_in_threads

KILLED_WHILE_PUTTING = """
import itertools, sys
from pathlib import Path
from greenroom.adapters.artifact_folder import ArtifactFolder

store = ArtifactFolder(Path(sys.argv[1]))
for number in itertools.count():
    print(store.put("ses_1", str(number % 50).encode() * 100_000), flush=True)
    if number % 7 == 6:
        store.delete_owner("ses_2")
    store.put("ses_2", str(number % 5).encode() * 100_000)
"""
"""Prints the reference of every artifact of ses_1 after it was put, until it is killed."""

PUTTING_AND_DELETING = """
import random, sys
from pathlib import Path
from greenroom.adapters.artifact_folder import ArtifactFolder

store, owner = ArtifactFolder(Path(sys.argv[1])), sys.argv[2]
keeper = store.references("keeper")[0]
choose = random.Random(owner)
sys.stdin.readline()
for _ in range(200):
    if choose.random() < 0.5:
        store.delete_owner(owner)
        assert [] == store.references(owner)
    content = choose.choice([b"0", b"11", b"222"])
    assert content == store.get(owner, store.put(owner, content))
    assert b"0" == store.get("keeper", keeper)
"""
"""Waits for a line, then fails if anything that its owner or the keeper refers to is lost."""

HOLDING_THE_LOCK = """
import fcntl, sys
with open(sys.argv[1]) as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


def files_in(root: Path) -> set[str]:
    """Every file but the lock, and every folder of an owner."""
    found = {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()} - {"lock"}
    return found | {str(path.relative_to(root)) for path in (root / "owners").iterdir()}


def object_path(root: Path, content: bytes) -> Path:
    digest = reference_of(content).removeprefix("sha256:")
    return root / "objects" / digest[:2] / digest


def link_path(root: Path, owner: str, content: bytes) -> Path:
    return root / "owners" / owner / object_path(root, content).name


def assert_each_content_lies_there_once(root: Path, owners: list[str]) -> None:
    """Every link is a name of its object, every object has a link, and nothing else is there."""
    links = [path for owner in owners for path in (root / "owners" / owner).glob("*")]
    for link in links:
        assert (root / "objects" / link.name[:2] / link.name).samefile(link)
    assert {link.name for link in links} == {path.name for path in (root / "objects").glob("*/*")}
    assert [] == list((root / "tmp").iterdir())


@contextmanager
def running(program: str, *arguments: str) -> Generator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def failing(monkeypatch: pytest.MonkeyPatch, name: str, code: int, *, at: int = 1) -> list[str]:
    """Let that call of `os` fail the nth time, and every time after. What was called is in the list."""
    original: Callable[..., Any] = getattr(os, name)
    calls: list[str] = []

    def fail(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) >= at:
            raise OSError(code, os.strerror(code))
        return original(*args, **kwargs)

    monkeypatch.setattr(artifact_folder.os, name, fail)
    return calls


def before_the_next_lock(monkeypatch: pytest.MonkeyPatch, come_between: Callable[[], Any]) -> list[Any]:
    """Do that when the lock is next asked for, as another process might. The list gets what it returned."""
    original = fcntl.flock
    begun: list[int] = []
    outcomes: list[Any] = []

    def lock(descriptor: int, operation: int) -> None:
        if not begun:
            begun.append(descriptor)
            outcomes.append(come_between())
        original(descriptor, operation)

    monkeypatch.setattr(artifact_folder.fcntl, "flock", lock)
    return outcomes


class TestArtifactFolder(ArtifactStoreSuite):
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        return tmp_path / "artifacts"

    @pytest.fixture
    def store(self, root: Path) -> ArtifactFolder:
        return ArtifactFolder(root)

    def test_it_does_what_a_dict_does(self, tmp_path: Path) -> None:
        def open_store() -> ArtifactFolder:
            return ArtifactFolder(Path(tempfile.mkdtemp(dir=tmp_path)))

        check_against_the_model(open_store, examples=40, steps=30)

    # What lies on the disk

    def test_an_object_and_its_owners_are_one_file(self, root: Path, store: ArtifactFolder) -> None:
        for owner in ("a", "b", "a"):
            store.put(owner, b"same")

        assert 3 == object_path(root, b"same").stat().st_nlink
        assert_each_content_lies_there_once(root, ["a", "b"])

    def test_deleting_every_owner_leaves_nothing(self, root: Path, store: ArtifactFolder) -> None:
        for owner, content in (("a", b"1"), ("a", b"2"), ("b", b"2"), ("b", b"3")):
            store.put(owner, content)

        for owner in ("a", "b"):
            store.delete_owner(owner)

        assert set() == files_in(root)

    def test_only_this_user_can_look_inside(self, root: Path, store: ArtifactFolder) -> None:
        store.put("a", b"1")

        paths = [root, *root.rglob("*")]

        assert {0o700} == {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_dir()}
        assert {0o600} == {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_file()}

    def test_another_object_over_the_same_folder_sees_everything(self, root: Path, store: ArtifactFolder) -> None:
        reference = store.put("a", b"12")

        again = ArtifactFolder(root)

        assert (b"12", [reference], 2) == (again.get("a", reference), again.references("a"), again.total_bytes())

    def test_a_relative_folder_stays_where_it_was(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        store = ArtifactFolder(Path("here"))
        reference = store.put("a", b"1")

        monkeypatch.chdir("/")

        assert b"1" == store.get("a", reference)
        assert (tmp_path / "here" / "owners" / "a").is_dir()

    def test_a_folder_that_cannot_be_made_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()

        with pytest.raises(StorageWriteFailed):
            ArtifactFolder(tmp_path / "file" / "artifacts")

    # Changed files

    @pytest.mark.parametrize("changed", [b"contenT", b"conten", b"", b"content!"])
    def test_a_changed_file_is_refused_and_a_put_mends_it(
        self, root: Path, store: ArtifactFolder, changed: bytes
    ) -> None:
        references = {owner: store.put(owner, b"content") for owner in ("a", "b")}
        object_path(root, b"content").write_bytes(changed)

        with pytest.raises(StorageReadFailed) as refused:
            store.get("a", references["a"])
        assert {"owner": "a", "reference": references["a"]} == refused.value.details
        store.put("b", b"content")
        assert b"content" == store.get("b", references["b"])
        with pytest.raises(StorageReadFailed):
            store.get("a", references["a"])
        store.put("a", b"content")

        assert b"content" == store.get("a", references["a"])
        assert_each_content_lies_there_once(root, ["a", "b"])
        assert 7 == store.total_bytes() == ArtifactFolder(root).total_bytes()

    def test_a_large_content_is_compared_to_its_end(self, root: Path, store: ArtifactFolder) -> None:
        content = bytes(range(256)) * 10_000
        store.put("a", content)
        store.put("b", content)
        assert_each_content_lies_there_once(root, ["a", "b"])
        object_path(root, content).write_bytes(content[:-1] + b"x")

        assert content == store.get("c", store.put("c", content))

    def test_a_link_to_another_file_is_not_followed(self, root: Path, store: ArtifactFolder, tmp_path: Path) -> None:
        reference = store.put("a", b"content")
        (tmp_path / "elsewhere").write_bytes(b"content")
        link_path(root, "a", b"content").unlink()
        link_path(root, "a", b"content").symlink_to(tmp_path / "elsewhere")

        with pytest.raises(StorageReadFailed):
            store.get("a", reference)

    def test_a_folder_in_the_place_of_a_file_is_refused(self, root: Path, store: ArtifactFolder) -> None:
        link_path(root, "a", b"content").mkdir(parents=True)

        with pytest.raises(StorageReadFailed):
            store.get("a", reference_of(b"content"))
        with pytest.raises(StorageWriteFailed):
            store.put("a", b"content")

    def test_files_with_other_names_are_no_references(self, root: Path, store: ArtifactFolder) -> None:
        store.put("a", b"1")
        (root / "owners" / "a" / "note").touch()

        assert [reference_of(b"1")] == store.references("a")
        store.delete_owner("a")
        assert set() == files_in(root)

    # Limits

    def test_an_artifact_beyond_the_limit_is_refused_and_one_at_the_limit_kept(self, root: Path) -> None:
        store = ArtifactFolder(root, max_artifact_bytes=3)

        with pytest.raises(StorageFull) as refused:
            store.put("a", b"1234")

        assert {"bytes": 4, "max_artifact_bytes": 3} == refused.value.details
        assert set() == files_in(root)
        assert b"123" == store.get("a", store.put("a", b"123"))

    def test_the_limit_is_256_mib_unless_given(self) -> None:
        assert 268_435_456 == DEFAULT_MAX_ARTIFACT_BYTES

    def test_the_sum_is_bounded_and_deleting_makes_room(self, root: Path) -> None:
        store = ArtifactFolder(root, max_total_bytes=6)
        store.put("a", b"123")
        store.put("b", b"45")
        before = files_in(root)

        with pytest.raises(StorageFull) as refused:
            store.put("c", b"67")

        assert {"bytes": 2, "total_bytes": 5, "max_total_bytes": 6} == refused.value.details
        assert before == files_in(root)
        store.put("c", b"123")  # there already: needs no room
        store.put("c", b"6")
        store.delete_owner("b")
        store.put("d", b"78")
        assert 6 == store.total_bytes()

    def test_what_was_there_before_counts(self, root: Path, store: ArtifactFolder) -> None:
        store.put("a", b"123")

        with pytest.raises(StorageFull):
            ArtifactFolder(root, max_total_bytes=4).put("b", b"45")

    def test_room_that_another_process_made_is_found_before_a_put_is_refused(self, root: Path) -> None:
        store, other = ArtifactFolder(root, max_total_bytes=3), ArtifactFolder(root)
        store.put("a", b"123")

        other.delete_owner("a")
        store.put("b", b"45")

        assert 2 == store.total_bytes()

    def test_what_another_process_puts_is_counted_by_a_collection(self, root: Path, store: ArtifactFolder) -> None:
        assert 0 == store.total_bytes()
        ArtifactFolder(root).put("a", b"123")

        store.collect()

        assert 3 == store.total_bytes()

    def test_what_there_is_no_room_for_is_not_even_written(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = ArtifactFolder(root, max_total_bytes=3)
        writes = failing(monkeypatch, "write", errno.EIO)

        with pytest.raises(StorageFull):
            store.put("a", b"1234")

        assert [] == writes

    def test_threads_together_stay_below_the_limit(self, root: Path) -> None:
        store = ArtifactFolder(root, max_total_bytes=10)
        refused: list[int] = []

        def put(number: int) -> Callable[[], None]:
            def put_one() -> None:
                try:
                    store.put(f"ses_{number}", str(number).encode() * 3)
                except StorageFull:
                    refused.append(number)

            return put_one

        run_in_threads(*map(put, range(8)))

        assert (5, 9) == (len(refused), store.total_bytes())
        assert_each_content_lies_there_once(root, [f"ses_{number}" for number in range(8)])

    # Failures of the disk

    @pytest.mark.parametrize(
        ("name", "code", "error"),
        [
            ("write", errno.ENOSPC, StorageFull),
            ("write", errno.EDQUOT, StorageFull),
            ("write", errno.EIO, StorageWriteFailed),
            ("fsync", errno.EIO, StorageWriteFailed),
            ("fsync", errno.ENOSPC, StorageFull),
            ("link", errno.ENOSPC, StorageFull),
            ("link", errno.EIO, StorageWriteFailed),
        ],
    )
    def test_what_cannot_be_kept_leaves_nothing(
        self,
        root: Path,
        store: ArtifactFolder,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        code: int,
        error: type[GreenroomError],
    ) -> None:
        with monkeypatch.context() as patch:
            calls = failing(patch, name, code)
            with pytest.raises(error) as refused:
                store.put("a", b"content")

        assert calls
        assert error is type(refused.value)
        assert {"errno": code} == refused.value.details
        assert set() == files_in(root)
        assert ([], 0) == (store.references("a"), store.total_bytes())
        assert b"content" == store.get("a", store.put("a", b"content"))

    def test_whichever_write_of_a_put_fails_nothing_is_left_of_it(
        self, root: Path, store: ArtifactFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.put("b", b"there")
        before, total = files_in(root), store.total_bytes()
        at = 0

        for content in (b"there", b"new"):
            for at in range(1, 100):
                with monkeypatch.context() as patch:
                    calls = failing(patch, "fsync", errno.EIO, at=at)
                    try:
                        store.put("a", content)
                    except StorageWriteFailed:
                        assert (before, total) == (files_in(root), store.total_bytes())
                        assert [] == store.references("a")
                    else:
                        assert len(calls) < at
                        break
            store.delete_owner("a")

        assert at > 4
        assert b"there" == store.get("b", reference_of(b"there"))

    def test_a_put_that_fails_takes_nothing_from_an_earlier_one(
        self, store: ArtifactFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reference = store.put("a", b"content")

        with monkeypatch.context() as patch:
            failing(patch, "fsync", errno.EIO)
            with pytest.raises(StorageWriteFailed):
                store.put("a", b"content")

        assert b"content" == store.get("a", reference)

    def test_everything_is_on_the_disk_when_a_put_returns(
        self, root: Path, store: ArtifactFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: set[tuple[int, int]] = set()
        original = os.fsync

        def note(descriptor: int) -> None:
            status = os.fstat(descriptor)
            synced.add((status.st_dev, status.st_ino))
            original(descriptor)

        monkeypatch.setattr(artifact_folder.os, "fsync", note)
        store.put("a", b"content")

        kept, link = object_path(root, b"content"), link_path(root, "a", b"content")
        for path in (kept, kept.parent, kept.parent.parent, link.parent, link.parent.parent):
            assert (path.stat().st_dev, path.stat().st_ino) in synced, path

    def test_a_disk_that_writes_little_at_a_time_keeps_all(
        self, store: ArtifactFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = os.write

        def write_little(descriptor: int, content: memoryview) -> int:
            return original(descriptor, content[:7])

        with monkeypatch.context() as patch:
            patch.setattr(artifact_folder.os, "write", write_little)
            reference = store.put("a", b"content of more than seven bytes")

        assert b"content of more than seven bytes" == store.get("a", reference)

    def test_a_delete_that_fails_can_be_called_again(
        self, root: Path, store: ArtifactFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for content in (b"1", b"2"):
            store.put("a", content)

        with monkeypatch.context() as patch:
            failing(patch, "fsync", errno.EIO)
            with pytest.raises(StorageWriteFailed):
                store.delete_owner("a")
        store.delete_owner("a")

        assert set() == files_in(root)

    @pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP])
    def test_without_hard_links_every_owner_has_its_own(
        self, root: Path, store: ArtifactFolder, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        failing(monkeypatch, "link", code)

        references = [store.put(owner, b"same") for owner in ("a", "b", "a")]
        assert [b"same"] * 2 == [store.get(owner, references[0]) for owner in ("a", "b")]
        assert 8 == store.total_bytes() == ArtifactFolder(root).total_bytes()
        store.delete_owner("a")
        store.collect(stale_after_s=0)

        assert b"same" == store.get("b", references[0])
        store.delete_owner("b")
        assert set() == files_in(root)
        assert 0 == store.total_bytes()

    def test_owners_beyond_the_largest_number_of_links_share_another_copy(
        self, root: Path, store: ArtifactFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = os.link

        def link(source: Path, target: Path) -> None:
            if not target.exists() and source.stat().st_nlink >= 3:
                raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))
            original(source, target)

        monkeypatch.setattr(artifact_folder.os, "link", link)
        owners = [f"ses_{index}" for index in range(5)]

        references = [store.put(owner, b"same") for owner in owners]

        assert [b"same"] * 5 == [store.get(owner, references[0]) for owner in owners]
        inodes = {link_path(root, owner, b"same").stat().st_ino for owner in owners}
        assert (3, 12, 12) == (len(inodes), store.total_bytes(), ArtifactFolder(root).total_bytes())
        for owner in owners:
            store.delete_owner(owner)
        assert (set(), 0) == (files_in(root), store.total_bytes())

    # Others at the same time

    @pytest.mark.parametrize("owner", ["a", "b"])
    def test_an_object_that_goes_before_it_is_linked_is_written_again(
        self, root: Path, store: ArtifactFolder, monkeypatch: pytest.MonkeyPatch, owner: str
    ) -> None:
        store.put("a", b"content")
        came_between = before_the_next_lock(monkeypatch, lambda: ArtifactFolder(root).delete_owner("a"))

        reference = store.put(owner, b"content")

        assert came_between
        assert b"content" == store.get(owner, reference)
        assert_each_content_lies_there_once(root, [owner])

    def test_an_object_that_comes_while_it_is_written_is_shared(
        self, root: Path, store: ArtifactFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        came_between = before_the_next_lock(monkeypatch, lambda: ArtifactFolder(root).put("a", b"content"))

        reference = store.put("b", b"content")

        assert [reference] == came_between
        assert_each_content_lies_there_once(root, ["a", "b"])

    def test_processes_that_put_and_delete_lose_nothing_that_is_referred_to(
        self, root: Path, store: ArtifactFolder
    ) -> None:
        store.put("keeper", b"0")
        owners = [f"ses_{index}" for index in range(4)]
        processes: list[subprocess.Popen[str]] = []
        try:
            for owner in owners:
                command = [sys.executable, "-c", PUTTING_AND_DELETING, str(root), owner]
                processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, text=True))
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.close()
            assert [0] * len(owners) == [process.wait() for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()

        assert_each_content_lies_there_once(root, ["keeper", *owners])
        for owner in ("keeper", *owners):
            for reference in store.references(owner):
                assert reference == reference_of(store.get(owner, reference))
            store.delete_owner(owner)
        assert set() == files_in(root)

    def test_a_kill_in_the_middle_of_puts_leaves_nothing_half_visible(self, root: Path) -> None:
        for puts_before_the_kill in (1, 1, 2, 3, 4, 5, 6, 8, 10, 13, 21, 40):
            with running(KILLED_WHILE_PUTTING, str(root)) as process:
                assert process.stdout is not None
                told = {process.stdout.readline().strip() for _ in range(puts_before_the_kill)}
                process.kill()
                told |= {line.strip() for line in process.stdout if line.endswith("\n")}
            store = ArtifactFolder(root)

            assert told <= set(store.references("ses_1"))
            for owner in ("ses_1", "ses_2"):
                for reference in store.references(owner):
                    assert reference == reference_of(store.get(owner, reference))
            store.collect(stale_after_s=0)
            assert_each_content_lies_there_once(root, ["ses_1", "ses_2"])

        store = ArtifactFolder(root)
        for owner in ("ses_1", "ses_2"):
            store.delete_owner(owner)
        assert set() == files_in(root)

    def test_a_lock_that_stays_taken_is_told_and_its_holder_may_be_killed(
        self, root: Path, store: ArtifactFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reference = store.put("a", b"1")
        with running(HOLDING_THE_LOCK, str(root / "lock")) as process:
            assert process.stdout is not None
            assert "held\n" == process.stdout.readline()
            with monkeypatch.context() as patch:
                patch.setattr(artifact_folder, "LOCK_PATIENCE_S", 0.0)
                with pytest.raises(StorageConnectionFailed):
                    store.put("a", b"2")
            assert b"1" == store.get("a", reference)
            process.kill()
            process.wait()

            store.put("a", b"2")

        assert_each_content_lies_there_once(root, ["a"])

    # What kills leave

    def test_a_collection_removes_what_nobody_refers_to_and_nothing_else(
        self, root: Path, store: ArtifactFolder
    ) -> None:
        for content in (b"1", b"22"):
            store.put("a", content)
        store.put("b", b"333")
        link_path(root, "b", b"333").unlink()
        (root / "tmp" / "half").write_bytes(b"4")
        assert 6 == store.total_bytes()

        assert 1 == store.collect()
        assert 1 == store.collect(stale_after_s=0)
        assert 0 == store.collect(stale_after_s=0)

        assert_each_content_lies_there_once(root, ["a"])
        assert [root / "owners" / "a"] == list((root / "owners").iterdir())
        assert [b"1", b"22"] == sorted(store.get("a", reference) for reference in store.references("a"))
        assert 3 == store.total_bytes()

    def test_a_put_whose_temporary_file_was_collected_is_told(
        self, root: Path, store: ArtifactFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        came_between = before_the_next_lock(monkeypatch, lambda: ArtifactFolder(root).collect(stale_after_s=0))

        with pytest.raises(StorageWriteFailed):
            store.put("a", b"content")

        assert [1] == came_between
        assert set() == files_in(root)

    def test_an_object_that_a_kill_left_without_an_owner_is_used_again(self, root: Path, store: ArtifactFolder) -> None:
        store.put("a", b"content")
        link_path(root, "a", b"content").unlink()

        with pytest.raises(NotFound):
            store.get("a", reference_of(b"content"))
        store.put("a", b"content")

        assert_each_content_lies_there_once(root, ["a"])
        assert 7 == store.total_bytes()
