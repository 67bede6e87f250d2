"""What all tests share: one Ray cluster a session, started when the first test asks for it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

API_KEY_VARIABLE = "GREENROOM_TEST_API_KEY"
"""This and the next one are set before Ray starts, since workers have the environment of that moment."""

API_KEY = "sk-test-8c1f-not-to-be-seen"

WEBHOOK_SECRET_VARIABLE = "GREENROOM_TEST_WEBHOOK_SECRET"
WEBHOOK_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

WITH_RAY = {"ray", "http", "recovery"}
WITHOUT_RAY = {"test_store_damage", "test_supervisor_kills_the_tree"}
"""The folders whose tests start Ray, and the modules in them that do not."""


class RayInOneProcess(LoadScopeScheduling):
    """How `pytest -n 2` shares out tests: whatever starts Ray goes to one process, so that there is one cluster at a
    time; the rest goes by module."""

    def _split_scope(self, nodeid: str) -> str:
        module = Path(nodeid.split("::", 1)[0])
        return "ray" if module.parent.name in WITH_RAY and module.stem not in WITHOUT_RAY else str(module)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> RayInOneProcess:
    """Used by pytest-xdist."""
    return RayInOneProcess(config, log)


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The address of the session's Ray cluster."""
    import ray

    from greenroom.actors import ray_cluster

    os.environ[API_KEY_VARIABLE] = API_KEY
    os.environ[WEBHOOK_SECRET_VARIABLE] = WEBHOOK_SECRET
    ray_cluster.start_cluster()
    yield ray_cluster.current_address()
    ray.shutdown()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_dir of the module's own."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def no_config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without a greenroom.toml."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
