"""What is shipped: every floor, its data files, and nothing else; the links at the top; one version."""

import importlib.metadata
import tomllib
from pathlib import Path
from typing import Any

import pytest
from setuptools import find_packages

import greenroom

TOP = Path(greenroom.__file__).parent.parent
FLOORS = ("serve", "actors", "adapters", "domain")

pytestmark = pytest.mark.skipif(not (TOP / "pyproject.toml").exists(), reason="only in a checkout")


@pytest.fixture
def project() -> dict[str, Any]:
    return tomllib.loads((TOP / "pyproject.toml").read_text())


@pytest.fixture
def packages(project: dict[str, Any]) -> set[str]:
    """What setuptools finds with the configuration of the project."""
    return set(find_packages(str(TOP), **project["tool"]["setuptools"]["packages"]["find"]))


def test_every_floor_is_found_and_nothing_else_at_the_top(packages: set[str]) -> None:
    assert {"greenroom", "greenroom.testing", *(f"greenroom.{floor}" for floor in FLOORS)} <= packages
    assert {"greenroom"} == {package.split(".", maxsplit=1)[0] for package in packages}


def test_every_module_lies_in_a_package_that_is_found(packages: set[str]) -> None:
    modules = [path.relative_to(TOP) for path in (TOP / "greenroom").rglob("*.py")]

    missing = {str(path) for path in modules if ".".join(path.parent.parts) not in packages}

    assert set() == missing


def test_every_data_file_is_shipped(project: dict[str, Any]) -> None:
    patterns = project["tool"]["setuptools"]["package-data"]["greenroom"]
    home = TOP / "greenroom"

    shipped = {path for pattern in patterns for path in home.glob(pattern)}

    assert {home / "py.typed", home / "adapters" / "duckdb" / "log_schema.sql"} <= shipped
    others = {path for path in home.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc", ".so")}
    assert set() == others - shipped


@pytest.mark.parametrize("floor", FLOORS)
def test_the_links_at_the_top_point_into_the_package(floor: str) -> None:
    link = TOP / floor

    assert link.is_symlink()
    assert Path("greenroom") / floor == link.readlink()
    assert (link / "__init__.py").is_file()


def test_the_installed_version_is_that_of_the_project(project: dict[str, Any]) -> None:
    assert project["project"]["version"] == importlib.metadata.version("greenroom")


def test_the_command_points_at_a_function(project: dict[str, Any]) -> None:
    (point,) = importlib.metadata.entry_points(group="console_scripts", name="greenroom")

    assert project["project"]["scripts"]["greenroom"] == point.value
    assert callable(point.load())
