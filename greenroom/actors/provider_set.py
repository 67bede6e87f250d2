"""The providers that a session can run on: declared by name, made when first used."""

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..adapters.providers.registry import BUILT_IN_DECLARATIONS, ProviderClass, provider_class
from ..domain.errors import CapabilityNotSupported, ValidationError
from ..domain.permission_mode import PermissionMode
from ..domain.provider import Provider, ProviderDeclaration
from ..domain.run_options import Continuation, RunOptions
from ..domain.secret_names import secret_names_in
from ..domain.token_usage import TokenUsage

if TYPE_CHECKING:
    from ..domain.capability_negotiation import Manifest
    from ..domain.routing import RouterOptions

MAX_MERGED = 256
"""Different options of runs that are kept merged with the declared ones."""


class ProviderSet:
    """Providers of one session, by name."""

    are_shared = False
    """Whether sessions come and go, and they stay."""

    def __init__(
        self,
        declarations: Mapping[str, ProviderDeclaration],
        routers: "Mapping[str, RouterOptions] | None" = None,
    ) -> None:
        self._declarations = {**BUILT_IN_DECLARATIONS, **declarations}
        self._routers = dict(routers or {})
        self._instances: dict[str, Provider] = {}
        self._replaced: list[Provider] = []
        """Instances of former declarations: runs may be under way at them, and they may keep clients."""
        self._in_process: dict[str, bool] = {}
        self._manifests: dict[tuple[str, str | None], Manifest] = {}
        # Provider and identity of a run's options -> those options (so that the identity stays theirs), and the merged.
        self._merged: dict[tuple[str, int], tuple[Mapping[str, Any], Mapping[str, Any]]] = {}

    def declare(
        self, declarations: Mapping[str, ProviderDeclaration], routers: "Mapping[str, RouterOptions] | None" = None
    ) -> None:
        """Take over new declarations; they hold for the runs that start from now on.

        An instance stays, since runs may be under way at it: it is given its options with each of them. Only one of
        another kind is made anew.
        """
        for name, declared in {**BUILT_IN_DECLARATIONS, **declarations}.items():
            known = self._declarations.get(name)
            if known != declared:
                self._declarations[name] = declared
                self._merged.clear()
            if known is not None and known.kind != declared.kind and name in self._instances:
                self._replaced.append(self._instances.pop(name))
        self._routers = dict(routers or {})
        self._manifests.clear()
        self._in_process.clear()

    def router(self, name: str | None) -> "RouterOptions | None":
        """The router of this name, if it is one."""
        return self._routers.get(name) if name is not None else None

    def manifest(self, name: str, model: str | None) -> "Manifest":
        """What the provider can do with the model."""
        found = self._manifests.get((name, model))
        if found is None:
            from ..adapters.providers.manifests import manifest  # noqa: PLC0415  few runs ask

            found = manifest(self._declared(name), model)
            if len(self._manifests) < MAX_MERGED:
                self._manifests[name, model] = found
        return found

    def price_usd(self, name: str, model: str | None, usage: TokenUsage) -> float | None:
        """What so many tokens of the model cost; None: nobody knows."""
        kind = provider_class(self._declared(name).kind)
        price_list: str | None = getattr(kind, "PRICE_LIST", None)
        if price_list is None or (model := model or self.manifest(name, None).model) is None:
            return None
        from ..adapters.prices import price_usd  # noqa: PLC0415  the price list takes 60 ms and 10 MB

        return price_usd(model, usage, price_list)

    def counts_turns(self, name: str) -> bool:
        """Whether the provider can keep to a number of turns."""
        return bool(getattr(provider_class(self._declared(name).kind), "COUNTS_TURNS", True))

    def check(self, name: str, run: RunOptions) -> None:
        """Refuse a run that the provider cannot carry out as its options say: ValidationError where there is no such
        provider or it does not take its options, CapabilityNotSupported for what it cannot do."""
        declared = self._declared(name)
        if run.permission_mode is not PermissionMode.DEFAULT or run.continuation is Continuation.NATIVE:
            _check_abilities(name, provider_class(declared.kind), run)
        options = run.provider_options
        if options and (name, id(options)) not in self._merged:
            refuse_secrets(options, field="options.provider_options")
            merged = {**declared.options, **options}
            provider_class(declared.kind).check_options(merged, field="options.provider_options")
            self._merged[name, id(options)] = (options, merged)
            if len(self._merged) > MAX_MERGED:
                del self._merged[next(iter(self._merged))]

    def runs_in_process(self, name: str) -> bool:
        """Whether the provider, or all of the router, starts no processes and keeps no working directory, so that
        sessions can share one."""
        found = self._in_process.get(name)
        if found is None:
            router = self._routers.get(name)
            kinds = [self._declared(one).kind for one in (router.providers if router else (name,))]
            found = all(getattr(provider_class(kind), "RUNS_IN_PROCESS", False) for kind in kinds)
            self._in_process[name] = found
        return found

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
        released = [*self._replaced, *self._instances.values()]
        self._replaced, self._instances = [], {}
        for provider in released:
            await provider.aclose()

    def _declared(self, name: str) -> ProviderDeclaration:
        declared = self._declarations.get(name)
        if declared is None:
            known = [*self._declarations, *self._routers]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"declared are: {', '.join(sorted(known))}."
            raise ValidationError(f"Provider {name!r} is not declared; {hint}", details={"field": "provider"})
        return declared


class SharedProviders(ProviderSet):
    """Those of all rows of batches in a process: they stay when a session leaves."""

    are_shared = True

    async def aclose(self) -> None:
        """Nothing: others use them."""


def _check_abilities(name: str, kind: ProviderClass, run: RunOptions) -> None:
    modes: frozenset[PermissionMode] = getattr(kind, "PERMISSION_MODES", frozenset({PermissionMode.DEFAULT}))
    if run.permission_mode not in modes:
        raise CapabilityNotSupported(
            f"Provider {name!r} cannot honour permission_mode {run.permission_mode.value!r}; it can:"
            f" {', '.join(sorted(modes))}.",
            details={"field": "options.permission_mode", "provider": name},
        )
    if run.continuation is Continuation.NATIVE and not getattr(kind, "CONTINUES_NATIVELY", False):
        raise CapabilityNotSupported(
            f"Provider {name!r} has no conversations of its own; use continuation='replay' or 'auto'.",
            details={"field": "options.continuation", "provider": name},
        )


def refuse_secrets(options: Mapping[str, Any], *, field: str) -> None:
    """ValidationError for options of a run that hold what looks like a secret: they are kept in the session's log."""
    if found := secret_names_in(options, field):
        raise ValidationError(
            f"{found[0]} looks like a secret, and this is kept in the session's log. Declare it on the provider, or"
            " name the variable with the provider option 'pass_env'.",
            details={"field": found[0]},
        )
