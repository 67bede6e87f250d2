"""Which server has which session, and how many servers there should be. Pure bookkeeping: no clock, no I/O."""

import math
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from .priority import usable


class SessionGroup(NamedTuple):
    """Sessions of which only so many may be on servers at once."""

    kind: str
    name: str
    limit: int


class Pool(StrEnum):
    """Sessions of different pools never share a server."""

    SESSIONS = "sessions"
    ROWS = "rows"
    """Rows of batches: many to a server, and never on all servers, so that others find a place."""


class Need(NamedTuple):
    """What a session needs of a server."""

    alone: bool = False
    """It may not share one."""
    groups: tuple[SessionGroup, ...] = ()
    """The limited groups that it belongs to."""
    pool: Pool = Pool.SESSIONS
    per_server: int | None = None
    """How many that need the same may share a server at most; None: as many as the pool lets."""


ANY = Need()

ROWS_PER_SERVER = 512
"""Rows of batches that share a server at most: what a crash interrupts, against 60 MB of memory for each server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """How many sessions may be on servers at once; None: any number."""

    total: int | None = None
    per_provider: Mapping[str, int] = field(default_factory=dict[str, int])
    per_tenant: int | None = None

    @property
    def has_groups(self) -> bool:
        return bool(self.per_provider) or self.per_tenant is not None

    def groups(self, *, provider: str, tenant: object) -> tuple[SessionGroup, ...]:
        """The limited groups that a session with this default provider and this tenant belongs to."""
        found: list[SessionGroup] = []
        if provider in self.per_provider:
            found.append(SessionGroup("provider", provider, self.per_provider[provider]))
        if isinstance(tenant, str) and self.per_tenant is not None:
            found.append(SessionGroup("tenant", tenant, self.per_tenant))
        return tuple(found)


@dataclass(slots=True)
class PlacedServer:
    """A process that can serve sessions."""

    name: str
    node_id: str
    empty_since: float
    sessions: set[str] = field(default_factory=set[str])
    is_alone: bool = False
    """It serves one session, and takes no other until that one has left."""
    pool: Pool = Pool.SESSIONS
    """Of the sessions that it has."""


class Placement:
    """Servers and the sessions that they have. Times are seconds of any clock that does not go back.

    A server takes up to `sessions_per_server` sessions (`rows_per_server` rows of batches), or one that must be alone.
    There are never more than `max_servers`, and never more than `max_sessions` on them, nor more of a group than its
    limit; `warm_servers` empty ones are kept for sessions to come, as far as that allows. A quarter of the servers has
    no rows. Servers on a closed node take no more sessions.
    """

    def __init__(
        self,
        *,
        sessions_per_server: int,
        max_servers: int,
        warm_servers: int,
        max_sessions: int | None = None,
        rows_per_server: int = ROWS_PER_SERVER,
    ) -> None:
        self._per_server = {Pool.SESSIONS: sessions_per_server, Pool.ROWS: rows_per_server}
        self._max_in_pool = {Pool.SESSIONS: max_servers, Pool.ROWS: servers_for_rows(max_servers)}
        self.max_servers = max_servers
        self.max_sessions = max_sessions
        self.closed_nodes: set[str] = set()
        self.warm_servers = warm_servers
        self._servers: dict[str, PlacedServer] = {}
        self._places: dict[str, PlacedServer] = {}
        self._needs: dict[str, Need] = {}
        self._in_group: Counter[SessionGroup] = Counter()

    @property
    def names(self) -> tuple[str, ...]:
        """All servers."""
        return tuple(self._servers)

    @property
    def busy(self) -> tuple[str, ...]:
        """Servers that have sessions."""
        return tuple(server.name for server in self._servers.values() if server.sessions)

    def __contains__(self, name: object) -> bool:
        return name in self._servers

    def sessions_of(self, name: str) -> frozenset[str]:
        """The sessions of a server; none for one that is not here."""
        server = self._servers.get(name)
        return frozenset(server.sessions) if server else frozenset()

    def server_of(self, session_id: str) -> str | None:
        """The server that has the session."""
        server = self._places.get(session_id)
        return server.name if server else None

    def is_shared(self, name: str) -> bool:
        """Whether the server may take more sessions beside those it has."""
        server = self._servers[name]
        return self._per_server[server.pool] > 1 and not server.is_alone

    def servers_on(self, node_id: str) -> list[str]:
        """The servers on a node."""
        return [server.name for server in self._servers.values() if server.node_id == node_id]

    def add(self, name: str, node_id: str, *, now: float) -> None:
        """A server that is ready and has no session."""
        self._servers[name] = PlacedServer(name, node_id, now)

    def remove(self, name: str) -> frozenset[str]:
        """The server is gone; returns the sessions that it had, which are nowhere now."""
        server = self._servers.pop(name, None)
        if server is None:
            return frozenset()
        for session_id in server.sessions:
            self._forget(session_id)
        return frozenset(server.sessions)

    def room_in(self, need: Need) -> int:
        """How many more such sessions its groups let there be; as good as any number where there are none."""
        rooms = (max(0, _limit(group.limit, need) - self._in_group[group]) for group in need.groups)
        return min(rooms, default=sys.maxsize)

    def full_groups(self, need: Need) -> frozenset[SessionGroup]:
        """Those of its groups that can have no more sessions like it."""
        return frozenset(group for group in need.groups if self._in_group[group] >= _limit(group.limit, need))

    def need_of(self, session_id: str) -> Need:
        """What the session was put with."""
        return self._needs.get(session_id, ANY)

    def groups_of(self, session_id: str) -> tuple[SessionGroup, ...]:
        """The groups that the session was put with."""
        return self.need_of(session_id).groups

    def choose(self, need: Need = ANY) -> str | None:
        """A server that can take one more such session: the fullest, so that others stay empty; on the idlest node."""
        may_spread = self._room_in_pool(need.pool) > 0
        able = [
            server
            for server in self._servers.values()
            if self._can_take(server, need) and (server.sessions or may_spread)
        ]
        if not able or self._room_for_sessions(need) == 0:
            return None
        load: Counter[str] = Counter()
        for server in self._servers.values():
            load[server.node_id] += len(server.sessions)
        if need.pool is Pool.ROWS:  # so that all nodes have some
            return min(able, key=lambda server: (load[server.node_id], -len(server.sessions))).name
        return min(able, key=lambda server: (-len(server.sessions), load[server.node_id])).name

    def share_of(self, name: str, need: Need, count: int) -> int:
        """How many of so many such sessions the server that was chosen can take at once, before one is chosen anew; 1
        at least."""
        server = self._servers[name]
        room = min(self._density(need) - len(server.sessions), self.room_in(need), self._room_for_sessions(need))
        nodes = len({one.node_id for one in self._servers.values()})
        return max(1, min(int(room), math.ceil(count / nodes)))

    def _room_for_sessions(self, need: Need) -> float:
        if self.max_sessions is None:
            return math.inf
        return max(0, _limit(self.max_sessions, need) - len(self._places))

    def _room_in_pool(self, pool: Pool) -> int:
        """How many more servers may have sessions of the pool."""
        used = sum(1 for server in self._servers.values() if server.sessions and server.pool is pool)
        return self._max_in_pool[pool] - used

    def _can_take(self, server: PlacedServer, need: Need) -> bool:
        if server.node_id in self.closed_nodes:
            return False
        if not server.sessions:
            return True
        if need.alone or server.is_alone:
            return False
        return server.pool is need.pool and len(server.sessions) < self._density(need)

    def _density(self, need: Need) -> int:
        if need.alone:
            return 1
        most = self._per_server[need.pool]
        return most if need.per_server is None else min(most, need.per_server)

    def put(self, session_id: str, name: str, need: Need = ANY) -> None:
        """The server has the session now; what had it before has not."""
        if session_id in self._places:
            self._leave(session_id)
        server = self._servers[name]
        server.is_alone = need.alone or (server.is_alone and bool(server.sessions))
        if not server.sessions:
            server.pool = need.pool
        server.sessions.add(session_id)
        self._places[session_id] = server
        self._needs[session_id] = need
        self._in_group.update(need.groups)

    def take(self, session_id: str, *, now: float) -> str | None:
        """The session has left; returns the server that it was on."""
        if session_id not in self._places:
            return None
        server = self._leave(session_id)
        if not server.sessions:
            server.empty_since = now
        return server.name

    def _leave(self, session_id: str) -> PlacedServer:
        server = self._forget(session_id)
        server.sessions.remove(session_id)
        if not server.sessions:
            server.is_alone = False
        return server

    def _forget(self, session_id: str) -> PlacedServer:
        for group in self._needs.pop(session_id).groups:
            self._in_group[group] -= 1
            if not self._in_group[group]:
                del self._in_group[group]  # there may be any number of tenants
        return self._places.pop(session_id)

    def servers_for(self, waiting: Mapping[Need, int]) -> int:
        """How many servers more so many sessions could have, that wait for one and not for others to leave."""
        wanted: Counter[Pool] = Counter()
        taken = 0
        for need, count in waiting.items():
            placeable = min(count, self.room_in(need), max(0, self._room_for_sessions(need) - taken))
            taken += placeable
            wanted[need.pool] += math.ceil(placeable / self._density(need))
        return sum(min(count, max(0, self._room_in_pool(pool))) for pool, count in wanted.items())

    def to_start(self, *, wanted: int, starting: int) -> int:
        """How many servers more should be started, when so many are wanted and so many are starting."""
        empty = sum(self._can_take(server, Need(alone=True)) for server in self._servers.values())
        room = self.max_servers - len(self._servers) - starting
        return max(0, min(self.warm_servers + wanted - empty - starting, room))

    def to_retire(self, *, now: float, grace_s: float) -> list[str]:
        """Servers that have been empty for that long and are more than are kept warm, the longest empty first."""
        empty = sorted(
            (server for server in self._servers.values() if not server.sessions), key=lambda one: one.empty_since
        )
        surplus = empty[: max(0, len(empty) - self.warm_servers)]
        return [server.name for server in surplus if now - server.empty_since >= grace_s]


def _limit(limit: int, need: Need) -> int:
    """What of a limit on sessions they may use: rows leave some of it to others."""
    return usable(limit, -1) if need.pool is Pool.ROWS else limit


def servers_for_rows(max_servers: int) -> int:
    """How many of so many servers may have rows."""
    return max(1, max_servers - math.ceil(max_servers / 4))
