"""The providers of a session: made when first used, anew when their kind changes, all released in the end."""

from typing import Any

import pytest

from greenroom.actors import provider_set
from greenroom.actors.provider_set import ProviderSet
from greenroom.domain.provider import ProviderDeclaration


class Kind:
    """A provider that counts those of its kind that are there."""

    alive = 0

    def __init__(self, name: str) -> None:
        Kind.alive += 1

    @staticmethod
    def check_options(options: dict[str, Any], *, field: str) -> None:
        return None

    async def aclose(self) -> None:
        Kind.alive -= 1


def declared(kind: str = "kind", **options: Any) -> dict[str, ProviderDeclaration]:
    return {"a": ProviderDeclaration(name="a", kind=kind, options=options)}


async def test_an_instance_outlives_new_options_and_is_replaced_by_one_of_another_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def kind_of(kind: str) -> type[Kind]:
        return Kind

    monkeypatch.setattr(provider_set, "provider_class", kind_of)
    providers = ProviderSet(declared(model="one"))
    first = providers.get("a")
    providers.declare(declared(model="two"))
    assert providers.get("a") is first
    assert providers.options("a", {}) == {"model": "two"}

    providers.declare(declared("another", model="two"))
    assert providers.get("a") is not first
    assert Kind.alive == 2

    await providers.aclose()
    assert Kind.alive == 0
