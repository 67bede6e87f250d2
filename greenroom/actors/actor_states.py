"""What Ray knows of actors without asking them."""

from typing import Any

import ray
import ray._private.state as ray_state
import ray.util

_DEAD = 4  # ActorTableData.ActorState.DEAD
_LIVE = ("ALIVE", "RESTARTING", "PENDING_CREATION", "DEPENDENCIES_UNREADY")


def actor_is_dead(actor: Any) -> bool:
    """Whether this process has heard that the actor is gone for good; about a microsecond."""
    return actor._get_local_state() == _DEAD  # noqa: SLF001  no public way to ask without a round trip


def process_of(actor: Any) -> tuple[str, int] | None:
    """Node and pid of the actor's process, from Ray's control store; None if it has none now."""
    row = ray_state.actors(actor_id=actor._actor_id.hex())  # noqa: SLF001  no public way without a dashboard
    return (row["Address"]["NodeID"], row["Pid"]) if row and row["State"] == "ALIVE" else None


def named_actors(namespace: str, prefix: str) -> list[str]:
    """Names in the namespace that begin so, of actors that live or are being restarted."""
    listed: Any = ray.util.list_named_actors(all_namespaces=True)
    return [row["name"] for row in listed if row["namespace"] == namespace and row["name"].startswith(prefix)]


def actor_table(*, actor_ids: set[str], names: set[str]) -> list[dict[str, Any]]:
    """Kind, name, pid and node of those live actors that have one of the ids or one of the names.

    From Ray's control store: waits for none of the actors. Names are only asked for where they are unique over all
    namespaces, since the table does not tell the namespace.
    """
    return [
        {
            "kind": row["ActorClassName"],
            "name": row["Name"],
            "pid": row["Pid"],
            "node_id": row["Address"]["NodeID"],
            "state": row["State"],
        }
        for row in ray_state.actors().values()
        if row["State"] in _LIVE and (row["ActorID"] in actor_ids or row["Name"] in names)
    ]
