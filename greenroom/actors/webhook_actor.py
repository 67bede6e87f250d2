"""The actor of webhooks: started where the data_dir is, once something is to be sent."""

from typing import Any

import ray
import ray.util.scheduling_strategies

from .account_actors import SHARED_ACTOR
from .actor_states import named_actors
from .address import WEBHOOKS, RuntimeAddress
from .store_shards import StoreShards


def webhooks_exist(address: RuntimeAddress) -> bool:
    """Whether it was started."""
    return bool(named_actors(address.namespace, WEBHOOKS))


def webhook_sender(address: RuntimeAddress, stores: StoreShards) -> Any:
    """The actor, started on this node if there is none."""
    from .webhook_sender import WebhookSender  # noqa: PLC0415  loads an HTTP client, which few runtimes need

    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        node_id=ray.get_runtime_context().get_node_id(), soft=False
    )
    return (
        ray.remote(WebhookSender)
        .options(name=WEBHOOKS, namespace=address.namespace, scheduling_strategy=here, **SHARED_ACTOR)
        .remote(address.data_dir, stores)
    )
