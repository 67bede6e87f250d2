"""The actors of provider accounts and of routers: started where they are declared, by name, once each."""

from collections.abc import Mapping
from typing import Any

import ray

from ..adapters.providers.registry import BUILT_IN_DECLARATIONS
from ..domain.provider import ProviderDeclaration
from ..domain.routing import RouterOptions
from .account_names import managed
from .address import BREAKER_PREFIX, ROUTER_PREFIX
from .circuit_breaker import CircuitBreaker, account_options
from .provider_router import ProviderRouter

SHARED_ACTOR: Mapping[str, Any] = {
    "lifetime": "detached",
    "num_cpus": 0,
    "max_restarts": -1,
    "max_task_retries": -1,
    "max_concurrency": 100_000,  # at Ray's default of 1,000 waiting calls starve the others
    # Ray keeps the history of the newest 100,000 calls in its control store: 75 KB for each session that was opened and
    # run once, or 70 MB between the 500th and the 1,500th. Our own log has what happened.
    "enable_task_events": False,
    "get_if_exists": True,
}
"""How the named actors of a runtime are started."""


def start_accounts(
    providers: Mapping[str, ProviderDeclaration],
    routers: Mapping[str, RouterOptions],
    *,
    namespace: str,
    lease_s: float,
    directory: Any,
) -> list[Any]:
    """The actor of each account there is, told its options as they are by now; answers to wait for."""
    declared = {**BUILT_IN_DECLARATIONS, **providers}
    told: list[Any] = []
    for name in managed(providers, routers):
        breaker, rate = account_options(declared[name])
        actor: Any = (
            ray.remote(CircuitBreaker)
            .options(name=BREAKER_PREFIX + name, namespace=namespace, **SHARED_ACTOR)
            .remote(name, breaker, rate, lease_s, directory)
        )
        told.append(actor.configure.remote(breaker, rate))
    return told


def start_routers(routers: Mapping[str, RouterOptions], *, namespace: str, directory: Any) -> list[Any]:
    """The actor of each router; answers to wait for. The Directory knows of them."""
    told: list[Any] = []
    for name in routers:
        actor: Any = (
            ray.remote(ProviderRouter)
            .options(name=ROUTER_PREFIX + name, namespace=namespace, **SHARED_ACTOR)
            .remote(name, namespace, directory)
        )
        told.append(actor.reload.remote())
    return told
