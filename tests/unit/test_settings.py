"""The configuration: file, then environment, then arguments; refusals name the key and the nearest right one."""

from pathlib import Path
from typing import Any

import pytest

from greenroom.adapters.settings import Settings, load_settings
from greenroom.domain.errors import ValidationError
from greenroom.domain.run_input import MAX_INPUT_BYTES


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and an environment without Greenroom's names."""
    monkeypatch.chdir(tmp_path)
    for name in ("DATA_DIR", "RAY_ADDRESS", "PROVIDERS", "DEFAULT_PROVIDER", "LIMITS", "LIMITS__MAX_INPUT_BYTES"):
        monkeypatch.delenv(f"GREENROOM_{name}", raising=False)
    return tmp_path


def write(directory: Path, text: str) -> None:
    (directory / "greenroom.toml").write_text(text)


def test_without_any_source_there_are_the_defaults() -> None:
    settings = load_settings(None, {})

    assert ("./.greenroom", None, {}, "scripted", MAX_INPUT_BYTES) == (
        settings.data_dir,
        settings.ray_address,
        settings.providers,
        settings.default_provider,
        settings.limits.max_input_bytes,
    )
    assert not settings.is_memory


def test_the_environment_overrides_the_file_and_arguments_override_both(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(directory, 'data_dir = "file"\nray_address = "file"\ndefault_provider = "shell"\n')
    monkeypatch.setenv("GREENROOM_DATA_DIR", "environment")
    monkeypatch.setenv("GREENROOM_RAY_ADDRESS", "environment")

    settings = load_settings({"data_dir": "argument"}, {})

    assert ("argument", "environment", "shell") == (
        settings.data_dir,
        settings.ray_address,
        settings.default_provider,
    )


def test_keyword_overrides_come_before_the_given_mapping() -> None:
    assert "b" == load_settings({"data_dir": "a"}, {"data_dir": "b"}).data_dir


def test_a_data_dir_may_be_given_as_a_path() -> None:
    assert "some/where" == load_settings(None, {"data_dir": Path("some/where")}).data_dir


def test_memory_is_a_data_dir_of_its_own() -> None:
    assert load_settings({"data_dir": ":memory:"}, {}).is_memory


def test_settings_that_were_made_already_are_taken() -> None:
    settings = load_settings(None, {"data_dir": "x", "default_provider": "shell"})

    assert settings == load_settings(settings, {})
    assert ("y", "shell") == (
        (changed := load_settings(settings, {"data_dir": "y"})).data_dir,
        changed.default_provider,
    )


def test_limits_come_from_every_source(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(directory, "[limits]\nmax_input_bytes = 1\n")
    assert 1 == load_settings(None, {}).limits.max_input_bytes
    monkeypatch.setenv("GREENROOM_LIMITS__MAX_INPUT_BYTES", "2")
    assert 2 == load_settings(None, {}).limits.max_input_bytes

    assert 3 == load_settings({"limits": {"max_input_bytes": 3}}, {}).limits.max_input_bytes


@pytest.mark.parametrize("source", ["argument", "file"])
def test_an_unknown_key_is_refused_with_the_nearest_right_one(directory: Path, source: str) -> None:
    if source == "file":
        write(directory, 'data_dirr = "x"\n')

    with pytest.raises(ValidationError) as refused:
        load_settings({"data_dirr": "x"} if source == "argument" else None, {})

    assert {"field": "data_dirr", "nearest": ["data_dir"]} == refused.value.details
    assert "did you mean 'data_dir'?" in refused.value.message


def test_an_unknown_limit_is_refused_with_the_nearest_right_one() -> None:
    with pytest.raises(ValidationError) as refused:
        load_settings({"limits": {"max_input_byte": 3}}, {})

    assert {"field": "limits.max_input_byte", "nearest": ["max_input_bytes"]} == refused.value.details


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"data_dir": 7}, "data_dir"),
        ({"limits": {"max_input_bytes": 0}}, "limits.max_input_bytes"),
        ({"limits": 3}, "limits"),
        ({"providers": {"x": "anthropic"}}, "providers.x"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(given: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        load_settings(given, {})

    assert field == refused.value.details["field"]


def test_a_file_that_is_no_toml_is_refused_by_its_name(directory: Path) -> None:
    write(directory, "data_dir = = 1")

    with pytest.raises(ValidationError) as refused:
        load_settings(None, {})

    assert {"field": "greenroom.toml"} == refused.value.details


def test_an_environment_variable_that_cannot_be_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREENROOM_PROVIDERS", "{not json")

    with pytest.raises(ValidationError, match="providers"):
        load_settings(None, {})


def test_providers_are_declared_by_name_in_the_file(directory: Path) -> None:
    write(directory, '[providers.quick]\nkind = "scripted"\nreply = "fast"\n[providers.shell]\n')

    declared = load_settings(None, {}).declarations()

    assert ("scripted", {"reply": "fast"}) == (declared["quick"].kind, declared["quick"].options)
    assert ("shell", {}) == (declared["shell"].kind, declared["shell"].options)


@pytest.mark.parametrize(
    ("declared", "field"),
    [
        ({"reply": "x"}, "providers.mine.kind"),
        ({"kind": 3}, "providers.mine.kind"),
        ({"kind": "scriptd"}, "kind"),
        ({"kind": "no.such.module:Class"}, "kind"),
        ({"kind": "scripted", "replay": "x"}, "providers.mine.replay"),
        ({"kind": "scripted", "chunks": "many"}, "providers.mine.chunks"),
    ],
)
def test_a_wrong_declaration_is_refused_by_the_name_of_its_field(declared: dict[str, Any], field: str) -> None:
    settings = load_settings({"providers": {"mine": declared}}, {})

    with pytest.raises(ValidationError) as refused:
        settings.declarations()

    assert field == refused.value.details["field"]


def test_settings_cannot_be_changed() -> None:
    settings = load_settings(None, {})

    with pytest.raises(ValueError, match="frozen"):
        settings.data_dir = "x"

    assert isinstance(settings, Settings)
