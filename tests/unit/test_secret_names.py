"""Values under names of secrets are not shown."""

import pytest

from greenroom.domain.provider import ProviderDeclaration
from greenroom.domain.secret_names import is_secret_name, masked


@pytest.mark.parametrize("name", ["ANTHROPIC_API_KEY", "GITHUB_TOKEN", "DB_PASSWORD", "Authorization", "client_secret"])
def test_names_of_secrets_are_known(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["api_key_env", "api_key_file", "max_tokens", "PATH", "input_tokens"])
def test_names_that_point_elsewhere_or_count_are_no_secrets(name: str) -> None:
    assert not is_secret_name(name)


def test_values_are_masked_however_deep_they_lie() -> None:
    given = {"mcp_servers": {"a": {"env": {"X_TOKEN": "t"}, "args": [{"api_key": "k"}]}}, "model": "m", "max_tokens": 1}

    assert masked(given) == {
        "mcp_servers": {"a": {"env": {"X_TOKEN": "***"}, "args": [{"api_key": "***"}]}},
        "model": "m",
        "max_tokens": 1,
    }


def test_a_declaration_shows_its_options_without_secrets() -> None:
    declared = ProviderDeclaration(name="a", kind="claude-code", options={"env": {"ANTHROPIC_API_KEY": "sk-1"}})

    assert "sk-1" not in repr(declared)
    assert declared.shown_options() == {"env": {"ANTHROPIC_API_KEY": "***"}}
