"""What a declared provider can do, with a model: from its class, and from what the declaration says of models."""

from ...domain.capability import capabilities_with
from ...domain.capability_negotiation import Manifest
from ...domain.permission_mode import PermissionMode
from ...domain.provider import ProviderDeclaration
from .registry import provider_class


def manifest(declared: ProviderDeclaration, model: str | None = None, *, priced: bool = False) -> Manifest:
    """The manifest; `priced` looks up what the model costs, which loads the price list."""
    kind = provider_class(declared.kind)
    model = model or declared.options.get("model") or getattr(kind, "DEFAULT_MODEL", None)
    modes: frozenset[PermissionMode] = getattr(kind, "PERMISSION_MODES", frozenset({PermissionMode.DEFAULT}))
    return Manifest(
        provider=declared.name,
        kind=declared.kind,
        model=model,
        capabilities=capabilities_with(kind(declared.name).capabilities(), declared.models, model),
        permission_modes=tuple(sorted(modes)),
        continues_natively=bool(getattr(kind, "CONTINUES_NATIVELY", False)),
        enforces_tool_rules=bool(getattr(kind, "ENFORCES_TOOL_RULES", True)),
        price_usd=_price(model, getattr(kind, "PRICE_LIST", None)) if priced else None,
    )


def _price(model: str | None, price_list: str | None) -> float | None:
    if model is None:
        return None
    from ..prices import million_token_price_usd  # noqa: PLC0415  the price list takes 60 ms and 10 MB

    return million_token_price_usd(model, price_list)
