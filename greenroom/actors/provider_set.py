"""The providers that a session can run on: declared by name, made when first used."""

import difflib
from collections.abc import Mapping
from typing import Any

from ..adapters.providers.registry import BUILT_IN_DECLARATIONS, provider_class
from ..domain.errors import ValidationError
from ..domain.provider import Provider, ProviderDeclaration

MAX_MERGED = 256
"""Different options of runs that are kept merged with the declared ones."""


class ProviderSet:
    """Providers of one session, by name."""

    def __init__(self, declarations: Mapping[str, ProviderDeclaration]) -> None:
        self._declarations = {**BUILT_IN_DECLARATIONS, **declarations}
        self._instances: dict[str, Provider] = {}
        # Provider and identity of a run's options -> those options (so that the identity stays theirs), and the merged.
        self._merged: dict[tuple[str, int], tuple[Mapping[str, Any], Mapping[str, Any]]] = {}

    def declare(self, declarations: Mapping[str, ProviderDeclaration]) -> None:
        """Take over new declarations; a provider that changed is made anew for the runs that start from now on."""
        for name, declared in {**BUILT_IN_DECLARATIONS, **declarations}.items():
            if self._declarations.get(name) != declared:
                self._declarations[name] = declared
                self._instances.pop(name, None)
                self._merged.clear()

    def check(self, name: str, options: Mapping[str, Any], *, field: str) -> None:
        """Raise ValidationError unless there is such a provider and it takes these options."""
        declared = self._declared(name)
        if options and (name, id(options)) not in self._merged:
            merged = {**declared.options, **options}
            provider_class(declared.kind).check_options(merged, field=field)
            self._merged[name, id(options)] = (options, merged)
            if len(self._merged) > MAX_MERGED:
                del self._merged[next(iter(self._merged))]

    def runs_in_process(self, name: str) -> bool:
        """Whether the provider starts no processes and keeps no working directory, so that sessions can share one."""
        return bool(getattr(provider_class(self._declared(name).kind), "RUNS_IN_PROCESS", False))

    def get(self, name: str) -> Provider:
        """The provider, made now if this is its first use."""
        provider = self._instances.get(name)
        if provider is None:
            provider = self._instances[name] = provider_class(self._declared(name).kind)(name)
        return provider

    def options(self, name: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """A run's options over the declared ones: the same mapping for the same options, so that it is parsed once."""
        declared = self._declared(name).options
        if not options:
            return declared
        kept = self._merged.get((name, id(options)))
        return kept[1] if kept is not None else {**declared, **options}

    async def aclose(self) -> None:
        """Release all that were made."""
        instances, self._instances = self._instances, {}
        for provider in instances.values():
            await provider.aclose()

    def _declared(self, name: str) -> ProviderDeclaration:
        declared = self._declarations.get(name)
        if declared is None:
            near = difflib.get_close_matches(name, self._declarations, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"declared are: {', '.join(sorted(self._declarations))}."
            raise ValidationError(f"Provider {name!r} is not declared; {hint}", details={"field": "provider"})
        return declared
