"""What callers from afar may ask for: nothing that runs code here, or sends keys elsewhere, unless it was granted."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, cast

from ...adapters.http_settings import HttpSettings
from ...adapters.providers.registry import provider_class
from ...domain.errors import ValidationError
from ...domain.provider import ProviderDeclaration
from ...domain.routing import RouterOptions


class Grants:
    """By the configuration of the service. What is refused is refused as if it did not exist."""

    def __init__(self, settings: HttpSettings) -> None:
        self._settings = settings

    def check_tools(self, tools: Iterable[str]) -> None:
        """Tools are imported and called in this cluster: only those that the configuration names."""
        for tool in tools:
            if not any(fnmatchcase(tool, pattern) for pattern in self._settings.tools):
                raise ValidationError(
                    f"Tool {tool!r} is not one that may be used here; name it under http.tools.",
                    details={"field": "tools"},
                )

    def check_provider(
        self,
        name: str,
        tenant: str,
        providers: Mapping[str, ProviderDeclaration],
        routers: Mapping[str, RouterOptions],
    ) -> None:
        """Providers that start processes on this cluster (commands, coding agents) need a grant for the tenant."""
        router = routers.get(name)
        for member in router.providers if router else (name,):
            declared = providers.get(member)
            granted = self._settings.tenants.get(tenant)
            if declared is None or (
                not getattr(provider_class(declared.kind), "RUNS_IN_PROCESS", False)
                and (granted is None or member not in granted.providers)
            ):
                raise ValidationError(
                    f"Provider {name!r} is not one that may be used here.", details={"field": "provider"}
                )

    def check_options(self, options: Mapping[str, Any], *, field: str) -> None:
        """Options of providers could send a key to another address: only those that the configuration names."""
        given = options.get("provider_options")
        if not isinstance(given, dict):
            return  # nothing, or what the session refuses
        for name in cast("dict[str, Any]", given):
            if name not in self._settings.provider_options:
                raise ValidationError(
                    f"{field}.provider_options.{name[:80]} may not be given here; name it under http.provider_options.",
                    details={"field": f"{field}.provider_options"},
                )
