"""The audit log: lines of several processes, put aside when there are many."""

import json
from pathlib import Path

import pytest

from greenroom.adapters import audit_log
from greenroom.adapters.audit_log import AuditLog


def lines(folder: Path) -> list[int]:
    return sorted(
        json.loads(line)["n"] for path in folder.glob("audit*.jsonl") for line in path.read_text().splitlines()
    )


def test_no_line_is_lost_when_the_file_is_put_aside_by_one_of_several_writers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_log, "_LOOK_EVERY", 3)
    first, second = (AuditLog(tmp_path, max_bytes=500) for _ in range(2))
    for number in range(100):
        (first, second)[number % 2].write(n=number)

    assert list(range(100)) == lines(tmp_path)
    assert len(list(tmp_path.glob("audit-*.jsonl"))) > 3
    for log in (first, second):
        log.close()


def test_a_disk_that_takes_no_line_holds_up_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(tmp_path)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(audit_log.os, "write", full)
    log.write(n=1)
    monkeypatch.undo()
    log.write(n=2)
    log.close()

    assert [2] == lines(tmp_path)


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    AuditLog(tmp_path).close()
    assert 0o600 == (tmp_path / "audit.jsonl").stat().st_mode & 0o777
