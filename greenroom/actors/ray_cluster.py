"""Ray itself: started or joined, on loopback, and quiet."""

import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import ray
import ray._private.authentication.authentication_token_setup as token_setup
import ray._private.worker as ray_worker
from ray._private import ray_constants

_AUTH_MODE = "RAY_AUTH_MODE"
_MARK = "_greenroom_wrapped"
_debug = threading.Event()


def show_chatter() -> None:
    """Bring back what Ray says, on stderr (`--debug`)."""
    _debug.set()


def start_cluster() -> None:
    """Start Ray in this process: it listens on loopback only, needs its token, and ends with this process."""
    quiet()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves the machine
    _on_loopback(
        lambda: ray.init(include_dashboard=False, log_to_driver=_debug.is_set(), logging_level=_logging_level())
    )


def auth_mode() -> str | None:
    """How the cluster of this process tells friend from foe."""
    return os.environ.get(_AUTH_MODE)


def join_cluster(address: str, *, auth_mode: str | None = None) -> None:
    """Connect this process to a cluster that runs. ConnectionError if there is none.

    A new local cluster uses a token by itself, but one who joins must be told so (Ray 2.60); the token is read from
    the user's home.
    """
    quiet()
    if auth_mode == "token" and _AUTH_MODE not in os.environ:
        token_setup._enable_token_auth()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  the environment alone is read too late

    def connect() -> Any:
        return ray.init(address=address, log_to_driver=_debug.is_set(), logging_level=_logging_level())

    if address.startswith("127."):
        _on_loopback(connect)
    else:
        connect()


def current_address() -> str:
    """Address of the cluster that this process is connected to."""
    return ray.get_runtime_context().gcs_address


def _on_loopback(init: Callable[[], Any]) -> None:
    # Ray listens on every interface unless it believes that it cannot be part of a cluster of several machines; this
    # constant is how it decides that on macOS and Windows (ray#18730). There is no option for it.
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        init()
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _logging_level() -> int:
    return logging.INFO if _debug.is_set() else logging.ERROR


def quiet() -> None:
    """Keep what the raylet says of our actors off the user's stdout; log settings do not reach these messages.

    Worker output that the user asked Ray for, in a cluster of their own, still comes through.
    """
    original = ray_worker.print_to_stdstream
    if getattr(original, _MARK, False):
        return

    def filtered(data: dict[str, Any], ignore_prefix: bool) -> None:
        if data.get("pid") != "raylet":
            original(data, ignore_prefix)
        elif _debug.is_set():
            sys.stderr.write("\n".join(data["lines"]) + "\n")

    setattr(filtered, _MARK, True)
    ray_worker.print_to_stdstream = filtered
