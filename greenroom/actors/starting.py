"""start(): the one place where everything is wired. Joins the runtime of a data_dir, or starts it."""

import hashlib
import os
import secrets
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import filelock
import ray
import ray.exceptions
import ray.util.scheduling_strategies

from ..adapters.data_dir import MEMORY_DATA_DIR, recorded_shards
from ..adapters.providers.registry import BUILT_IN_DECLARATIONS
from ..adapters.session_homes import homes_folder
from ..adapters.settings import Settings, load_settings
from ..domain.errors import (
    GreenroomError,
    InvalidOperation,
    RuntimeGone,
    StorageConnectionFailed,
    ValidationError,
)
from ..domain.policy import OnViolation
from . import ray_cluster
from .account_actors import SHARED_ACTOR
from .address import DIRECTORY, LIMITER, RuntimeAddress, event_store_name
from .directory import Directory
from .event_store import EventStore
from .limiter import Limiter
from .ray_errors import raise_bare
from .runtime import Runtime
from .runtime_file import RuntimeRecord, read_record, write_record
from .server_launcher import SERVER_MEMORY_BYTES
from .shard_count import prepared_shards
from .store_shards import StoreShards

START_LOCK_S = 60.0
"""How long to wait for another process that starts a runtime on the same data_dir right now."""

_started: dict[str, Runtime] = {}
"""Runtimes of this process by data_dir: starting twice gives the same one."""


def start(config: Mapping[str, Any] | Settings | None = None, **overrides: Any) -> Runtime:
    """The runtime of a data_dir: joins the one that lives there, else starts it, with Ray if that is needed.

    Configuration comes from greenroom.toml in the working directory, then the environment (GREENROOM_DATA_DIR and so
    on), then the arguments. Idempotent: in one process the same data_dir gives the same Runtime. Waits up to 15 s for
    a dying owner of the event store's file.

    Raises ValidationError for a bad setting, StorageConnectionFailed when another process holds the file,
    StorageError or InvalidFormat when the file does not open, InvalidOperation when a runtime of another version lives
    there.
    """
    settings = load_settings(config, overrides)
    declarations, routers = settings.declarations(), settings.router_options()
    if settings.default_provider not in {*declarations, *BUILT_IN_DECLARATIONS, *routers}:
        raise ValidationError(
            f"default_provider {settings.default_provider!r} is not declared under providers or routers.",
            details={"field": "default_provider"},
        )
    data_dir = MEMORY_DATA_DIR if settings.is_memory else str(_prepared(Path(settings.data_dir)))
    known = _started.get(data_dir)
    if known is not None and known.is_alive:
        known.declare(declarations, routers)
        return known
    runtime = _start_in_memory(settings) if settings.is_memory else _start_on_disk(settings, Path(data_dir))
    runtime.declare(declarations, routers)
    _started[data_dir] = runtime
    return runtime


def _prepared(data_dir: Path) -> Path:
    """The data_dir, absolute; made for this user alone when it is missing."""
    data_dir = data_dir.expanduser()
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise ValidationError(
            f"data_dir {data_dir} cannot be used: {exc.strerror}. Choose a directory that this user can write.",
            details={"field": "data_dir"},
        ) from exc
    return data_dir.resolve()


def _start_in_memory(settings: Settings) -> Runtime:
    owns_ray = _connect(settings.ray_address)
    address = RuntimeAddress(
        ray_address=ray_cluster.current_address(),
        namespace=f"greenroom-memory-{secrets.token_hex(8)}",
        data_dir=MEMORY_DATA_DIR,
        shards=settings.event_store.shards or 1,
    )
    return _wire(address, settings, owns_ray=owns_ray)


def _start_on_disk(settings: Settings, data_dir: Path) -> Runtime:
    lock = filelock.FileLock(data_dir / "start.lock", timeout=START_LOCK_S)
    try:
        with lock:
            return _join_or_start(settings, data_dir)
    except filelock.Timeout as exc:
        raise StorageConnectionFailed(
            f"Another process has been starting a runtime on {data_dir} for {START_LOCK_S} s; stop it, or use another"
            " data_dir.",
            details={"data_dir": str(data_dir)},
        ) from exc


def _join_or_start(settings: Settings, data_dir: Path) -> Runtime:
    record = read_record(data_dir)
    lives = record is not None and record.is_alive
    if record is not None and lives:
        _check_same_cluster(record, data_dir)
    if record is not None and lives:
        owns_ray = _connect(record.ray_address, auth_mode=record.auth_mode)
    else:
        owns_ray = _connect(settings.ray_address)
    address = RuntimeAddress(
        ray_address=ray_cluster.current_address(),
        namespace=_namespace(data_dir),
        data_dir=str(data_dir),
        shards=recorded_shards(data_dir) if lives else prepared_shards(data_dir, settings.event_store),
    )
    runtime = _wire(address, settings, owns_ray=owns_ray)
    if record is None or not lives:
        write_record(data_dir, runtime.record())
    return runtime


def _check_same_cluster(record: RuntimeRecord, data_dir: Path) -> None:
    if ray.is_initialized() and ray_cluster.current_address() != record.ray_address:
        raise InvalidOperation(
            f"The runtime on {data_dir} lives on the Ray cluster at {record.ray_address}, and this process is connected"
            f" to {ray_cluster.current_address()}. Use another data_dir, or call ray.shutdown() first.",
            details={"data_dir": str(data_dir), "ray_address": record.ray_address},
        )


def _connect(ray_address: str | None, *, auth_mode: str | None = None) -> bool:
    """Connect to Ray if this process is not; True if that started it."""
    if ray.is_initialized():
        ray_cluster.quiet()
        return False
    ray_address = ray_address or os.environ.get("RAY_ADDRESS")  # set where a job was submitted to a cluster
    if ray_address is None:
        ray_cluster.start_cluster()
        return True
    try:
        ray_cluster.join_cluster(ray_address, auth_mode=auth_mode)
    except (ConnectionError, ray.exceptions.RayError) as exc:
        raise StorageConnectionFailed(
            f"There is no Ray cluster at {ray_address} that this process can join ({exc}).",
            details={"field": "ray_address"},
        ) from exc
    return False


def _namespace(data_dir: Path) -> str:
    return "greenroom-" + hashlib.sha256(str(data_dir).encode()).hexdigest()[:16]


def joined(namespace: str | None = None) -> Runtime:
    """A runtime of the cluster that this process is connected to: the one in this namespace, or the only one there is.
    RuntimeGone where there is none, ValidationError where there are several."""
    if namespace is None:
        names: list[dict[str, str]] = ray.util.list_named_actors(all_namespaces=True)
        namespaces = sorted({one["namespace"] for one in names if one["name"] == DIRECTORY})
        if len(namespaces) > 1:
            raise ValidationError(
                f"There are several runtimes on this cluster ({', '.join(namespaces)}); say which with data_dir.",
                details={"field": "data_dir"},
            )
        namespace = namespaces[0] if namespaces else ""
    try:
        directory: Any = ray.get_actor(DIRECTORY, namespace=namespace)
        address: RuntimeAddress = _ask(directory.address.remote())
        stores = [ray.get_actor(event_store_name(shard), namespace=namespace) for shard in range(address.shards)]
    except ValueError as exc:
        raise RuntimeGone("There is no runtime on this cluster; call greenroom.start() first.") from exc
    return Runtime(address, stores=StoreShards(stores), directory=directory, owns_ray=False)


def runtime_namespace(data_dir: str) -> str:
    """The Ray namespace of the runtime on this data_dir."""
    return _namespace(Path(data_dir).expanduser().resolve())


def _wire(address: RuntimeAddress, settings: Settings, *, owns_ray: bool) -> Runtime:
    """Find the runtime's actors, or start them, all at once: each is a process that takes a second to start. The event
    store may refuse, and then there is none of them."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        node_id=ray.get_runtime_context().get_node_id(), soft=False
    )  # where the disk is: without the store the others can do nothing
    options = {**SHARED_ACTOR, "namespace": address.namespace, "scheduling_strategy": here}
    stores: list[Any] = [
        ray.remote(EventStore)
        .options(name=event_store_name(shard), **options)
        .remote(address.data_dir, shard, settings.event_store.options())
        for shard in range(address.shards)
    ]
    sharded = StoreShards(stores)
    limits = settings.slot_limits()
    limiter: Any = None
    if limits.are_set:
        limiter = ray.remote(Limiter).options(name=LIMITER, **options).remote(limits, settings.lease_s, sharded)
    directory: Any = (
        ray.remote(Directory)
        .options(name=DIRECTORY, **options)
        .remote(address, sharded, {**_server_settings(settings, address), "limiter": limiter})
    )
    try:
        for store in stores:
            _ask(store.hello.remote())
    except GreenroomError:
        for actor in (directory, limiter, *stores):
            if actor is not None:
                ray.kill(actor)
        if owns_ray:
            ray.shutdown()
        raise
    _check_version(_ask(directory.settings.remote())["version"], address)
    return Runtime(address, stores=sharded, directory=directory, owns_ray=owns_ray)


def _server_settings(settings: Settings, address: RuntimeAddress) -> dict[str, Any]:
    """What the Directory and the session servers go by."""
    return {
        "homes": str(homes_folder(address.data_dir, address.namespace)),
        "namespace": address.namespace,
        "providers": settings.declarations(),
        "routers": settings.router_options(),
        "scope_policies": settings.scope_policies(),
        "asks_before_start": any(
            budget.on_violation is OnViolation.ASK for budget in settings.slot_limits().budgets.values()
        ),
        "default_provider": settings.default_provider,
        "max_input_bytes": settings.limits.max_input_bytes,
        "spill_bytes": settings.event_store.spill_bytes,
        "retention": settings.event_store.retention,
        "warm_pool": settings.warm_pool,
        "idle_after_s": settings.idle_after_s,
        "max_live_actors": settings.max_live_actors or _fitting_servers(settings.warm_pool),
        "session_limits": settings.session_limits(),
        "sessions_per_actor": settings.sessions_per_actor,
        "lease_s": settings.lease_s,
        "approval_expires_s": settings.approval_expires_s,
        "placement_labels": settings.placement_labels,
        "draining": False,
        "revision": 0,
        "version": version("greenroom"),
    }


def _fitting_servers(warm_pool: int) -> int:
    """How many session servers Ray has memory for. ValidationError if the warm pool alone is more."""
    fitting = int(ray.cluster_resources().get("memory", 0) // SERVER_MEMORY_BYTES)
    if warm_pool > fitting:
        raise ValidationError(
            f"warm_pool is {warm_pool}, and the cluster has memory for {fitting} session servers of"
            f" {SERVER_MEMORY_BYTES // 1024**2} MiB; make it smaller, or add nodes.",
            details={"field": "warm_pool", "fitting": fitting},
        )
    return max(1, fitting)


def _check_version(found: str, address: RuntimeAddress) -> None:
    if found != version("greenroom"):
        raise InvalidOperation(
            f"The runtime on {address.data_dir} is Greenroom {found}, and this process has {version('greenroom')}."
            " Install the same version, or end that runtime with `greenroom down`.",
            details={"runtime_version": found},
        )


def _ask(answer: Any) -> Any:
    try:
        return ray.get(answer)
    except ray.exceptions.RayError as exc:
        raise_bare(exc)
