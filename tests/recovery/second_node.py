"""A second Ray node on this machine: `python -m tests.recovery.second_node ADDRESS [LABEL=VALUE]...`."""

import sys
import threading

import ray._private.ray_constants as constants
from ray._private.node import Node
from ray._private.parameter import RayParams


def main() -> None:
    constants.ENABLE_RAY_CLUSTER = False  # else Ray asks for an address that other machines reach; see ray_cluster
    parameters = RayParams(
        gcs_address=sys.argv[1],
        node_ip_address="127.0.0.1",
        num_cpus=2,
        object_store_memory=150 * 1024 * 1024,
        memory=4 * 1024**3,
        include_log_monitor=False,  # pyright: ignore[reportArgumentType]  its annotation is not what it takes
        node_manager_port=0,
        min_worker_port=0,
        max_worker_port=0,
        labels=dict(label.split("=") for label in sys.argv[2:]),
    )
    node = Node(parameters, head=False, shutdown_at_exit=False, spawn_reaper=False)
    sys.stdout.write(f"{node.unique_id}\n")
    sys.stdout.flush()
    threading.Event().wait()


if __name__ == "__main__":
    main()
