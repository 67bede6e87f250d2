"""The HTTP service on Ray Serve: replicas that keep nothing, over the runtime of a data_dir.

    serve run greenroom.serve.app:build data_dir=/srv/greenroom

Replicas run where the data_dir can be read: the keys lie in it. The deployment is named `greenroom`; a config file of
Serve sets its replicas, autoscaling and resources.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .ingress import keep_replica_on_loopback

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

    from ..actors.runtime import Runtime

NAME = "greenroom"
"""Of the application, and of its one deployment."""

MAX_ONGOING_REQUESTS = 20_000
"""Of one replica: nearly all of them are streams that wait."""

_GRACE_S = 10.0
"""For requests under way when a replica is to go. Streams go on until then, and are taken up again elsewhere."""

_HEALTH_PERIOD_S = 5.0


def build(args: Mapping[str, Any] | None = None) -> "Application":
    """The application; `args` are settings of the runtime, as `greenroom.start` takes them, and `replicas`; `local` for
    a cluster of one machine, nothing of which listens beyond the loopback.

    Reads greenroom.toml and the environment where it is called. ValidationError for a setting that is none.
    """
    from ..adapters.settings import load_settings  # noqa: PLC0415  whoever imports this module may only want a name

    given = dict(args or {})
    replicas, local = int(given.pop("replicas", 1)), bool(given.pop("local", False))
    settings = load_settings(given, {})
    data_dir = settings.data_dir if settings.is_memory else str(Path(settings.data_dir).expanduser().resolve())
    serve: Any = importlib.import_module("ray.serve")  # takes a second, and its types are not whole
    deployment = serve.deployment(serve.ingress()(Replica))
    return deployment.options(
        name=NAME,
        num_replicas=replicas,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=_GRACE_S,
        health_check_period_s=_HEALTH_PERIOD_S,
        logging_config={"enable_access_log": False},  # there is a line of our own, which says whose request it was
    ).bind({**settings.model_dump(), "data_dir": data_dir}, local=local)


class Replica:
    """One process that answers: it joins the runtime, or starts it when there is none."""

    def __init__(self, settings: Mapping[str, Any], *, local: bool) -> None:
        self._settings = settings
        self._local = local
        self._runtime: Runtime | None = None

    def __serve_build_asgi_app__(self) -> "FastAPI":
        """What Ray Serve calls once the replica is there."""
        from ..actors.starting import start  # noqa: PLC0415  this process pays for it, not who deploys
        from ..adapters.audit_log import AuditLog  # noqa: PLC0415
        from ..adapters.key_file import KeyFile  # noqa: PLC0415
        from ..adapters.logs import log_to_stderr  # noqa: PLC0415
        from ..adapters.settings import load_settings  # noqa: PLC0415
        from .http.api import create_app  # noqa: PLC0415

        log_to_stderr()
        settings = load_settings(self._settings, {})
        if self._local:
            keep_replica_on_loopback()
        self._runtime = start(settings)
        data_dir = Path(self._runtime.data_dir)
        audit = AuditLog(data_dir)
        return create_app(self._runtime, KeyFile(data_dir), audit, settings.http, is_local=self._local)

    async def check_health(self) -> None:
        """Ray Serve replaces a replica whose runtime has ended."""
        if self._runtime is not None and not self._runtime.is_alive:
            message = "The runtime has ended."
            raise RuntimeError(message)
