"""Keys of the HTTP service."""

import json
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from greenroom.adapters.key_file import KeyFile
from greenroom.domain.api_key import ApiKey, Keyring, Scope, digest_of
from greenroom.domain.errors import InvalidFormat, NotFound, ValidationError

NOW = datetime(2026, 11, 26, tzinfo=UTC)


@pytest.fixture
def key_file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path)


def test_a_key_is_found_by_its_token_and_by_nothing_else(key_file: KeyFile) -> None:
    key, token = key_file.create("acme", Scope.RUN)
    other, _ = key_file.create("other", Scope.READ)
    keyring = key_file.keyring()

    assert key == keyring.find(token)
    for wrong in ("", "gk_", token[:-1], token + "x", token.upper(), token.replace(key.id, other.id), "gk_" + "0" * 16):
        assert keyring.find(wrong) is None


def test_nothing_that_is_kept_opens_anything(key_file: KeyFile, tmp_path: Path) -> None:
    _, token = key_file.create("acme", Scope.ADMIN)
    kept = (tmp_path / "keys.json").read_text()

    assert token.rsplit("_", 1)[-1] not in kept
    assert 0o600 == stat.S_IMODE((tmp_path / "keys.json").stat().st_mode)
    assert all(
        key_file.keyring().find(f"gk_{one['id']}_{one['digest'][:43]}") is None for one in json.loads(kept)["keys"]
    )


def test_a_revoked_key_is_good_for_nothing_at_once_and_everywhere(key_file: KeyFile, tmp_path: Path) -> None:
    key, token = key_file.create("acme", Scope.RUN)
    elsewhere = KeyFile(tmp_path)
    assert elsewhere.keyring().find(token)

    key_file.revoke(key.id)

    assert elsewhere.keyring().find(token) is None
    assert elsewhere.keyring().is_empty
    with pytest.raises(NotFound):
        key_file.revoke("nobody")


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [(Scope.READ, {"read"}), (Scope.RUN, {"read", "run"}), (Scope.ADMIN, {"read", "run", "admin"})],
)
def test_a_scope_includes_those_below_it(scope: Scope, allowed: set[str]) -> None:
    key = ApiKey(id="1", tenant="acme", scope=scope, digest=digest_of("x"), created_at=NOW)

    assert allowed == {one.value for one in Scope if key.allows(one)}


@pytest.mark.parametrize("tenant", ["", "a b", "../x", "x" * 65, "-x", "a\n"])
def test_a_tenant_that_is_no_name_is_refused_and_nothing_is_kept(key_file: KeyFile, tenant: str) -> None:
    with pytest.raises(ValidationError):
        key_file.create(tenant, Scope.READ)
    assert () == key_file.keyring().keys


def test_a_file_that_is_damaged_lets_nobody_in(key_file: KeyFile, tmp_path: Path) -> None:
    key_file.create("acme", Scope.READ)
    (tmp_path / "keys.json").write_text("{")

    with pytest.raises(InvalidFormat):
        key_file.keyring()


@given(st.text(max_size=80))
def test_what_is_no_key_is_never_one(token: str) -> None:
    keyring = Keyring([ApiKey(id="0" * 16, tenant="a", scope=Scope.READ, digest=digest_of("secret"), created_at=NOW)])

    assert keyring.find(token) is None
