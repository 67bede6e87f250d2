"""Noticing that the Ray cluster of a joined runtime has ended, before Ray ends this process for it.

Ray (2.60) lets calls hang when its control store is gone, and after 60 s ends the process that made them.
"""

import socket
import threading
from collections.abc import Callable

import ray

from ..adapters.logs import get_logger
from .ray_cluster import current_address

_log = get_logger(__name__)

_INTERVAL_S = 1.0
_CONNECT_S = 2.0
_MISSES = 3


def answers(ray_address: str) -> bool:
    """Whether a cluster's control store can be reached at its address."""
    host, _, port = ray_address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=_CONNECT_S):
            return True
    except (OSError, ValueError):
        return False


class RuntimeWatch:
    """A daemon thread that looks once a second. When the cluster is gone: `on_gone`, then this process leaves Ray."""

    def __init__(self, ray_address: str, on_gone: Callable[[], None]) -> None:
        self._ray_address = ray_address
        self._on_gone = on_gone
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, name="greenroom-watch", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()

    def _watch(self) -> None:
        misses = 0
        while misses < _MISSES:
            if self._stopped.wait(_INTERVAL_S):
                return
            misses = 0 if answers(self._ray_address) else misses + 1
        _log.warning("runtime_gone", ray_address=self._ray_address)
        self._on_gone()
        if ray.is_initialized() and current_address() == self._ray_address:
            ray.shutdown()
