"""Runtimes: one for the tests of a module, and those that a test starts itself."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import greenroom

Starts = Callable[..., greenroom.Runtime]


@pytest.fixture(scope="module")
def runtime(cluster: str, data_dir: Path) -> Iterator[greenroom.Runtime]:
    """A runtime on the session's cluster with a data_dir of the module's own."""
    runtime = greenroom.start(data_dir=data_dir)
    yield runtime
    runtime.shutdown()


@pytest.fixture
def starts(cluster: str, tmp_path: Path) -> Iterator[Starts]:
    """Starts a runtime of the test's own."""
    runtimes: list[greenroom.Runtime] = []

    def start(**settings: Any) -> greenroom.Runtime:
        runtimes.append(greenroom.start(data_dir=tmp_path / "data", **settings))
        return runtimes[-1]

    yield start
    runtimes[-1].shutdown()
