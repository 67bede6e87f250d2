"""Which providers have an account. Light: every session server asks."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..domain.provider import ProviderDeclaration
    from ..domain.routing import RouterOptions


def managed(providers: "Mapping[str, ProviderDeclaration]", routers: "Mapping[str, RouterOptions]") -> set[str]:
    """The providers that have an account: by their declaration, or because a router chooses them."""
    members = {name for router in routers.values() for name in router.providers}
    return members | {name for name, declared in providers.items() if declared.has_account}
