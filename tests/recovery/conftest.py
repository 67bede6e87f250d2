"""A runtime for the tests of a module."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import greenroom


@pytest.fixture(scope="module")
def runtime(cluster: str, data_dir: Path) -> Iterator[greenroom.Runtime]:
    """A runtime on the session's cluster with a data_dir of the module's own."""
    runtime = greenroom.start(data_dir=data_dir)
    yield runtime
    runtime.shutdown()
