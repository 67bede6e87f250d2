"""The session servers there are: kept warm, handed to sessions, given back, and missed when they fall silent."""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from typing import Any, NamedTuple, Protocol

from ..adapters.logs import get_logger
from ..domain.errors import GreenroomError, MaxSessionsExceeded
from ..domain.placement import ANY, Need, Placement, Pool, SessionGroup
from .standing import IdleSession
from .waiting_line import Waiting, WaitingLine

_log = get_logger(__name__)

MAX_WAITING = 10_000
"""Sessions that may wait for a server; one more is refused with max_sessions_exceeded."""

MAX_STARTING = 8
"""Servers started at once: each is a new process, and more of them only slow each other down."""

RETIRE_GRACE_S = 30.0
"""How long a server that is not needed is kept: calls for sessions that it had find their way through it."""

ASK_IDLE_S = 0.5
"""How long a server may take to say which of its sessions are idle."""

_RETRY_AFTER_S = 1.0

_RELIEVE_PAUSE_S = 0.01
"""Between two rounds of asking all servers, while much changes."""


class Started(NamedTuple):
    """A server that has just been started."""

    name: str
    actor: Any
    node_id: str


class PlacedSession(NamedTuple):
    """A session that a server has already."""

    session_id: str
    need: Need


class Launcher(Protocol):
    """What the pool does to servers."""

    async def start(self) -> Started:
        """A new server, ready. A GreenroomError if there can be none now."""
        ...

    async def idle_sessions(self, actor: Any) -> list[IdleSession]:
        """Its idle sessions; it tells when it has another one."""
        ...

    async def hibernate(self, actor: Any, session_id: str) -> None:
        """Let the session leave, if it is still idle."""
        ...

    def end(self, actor: Any) -> None:
        """End a server that has no session, for good."""
        ...

    async def kill(self, actor: Any) -> None:
        """Kill the process of a server that does not answer; it comes back empty."""
        ...


class ServerPool:
    """Belongs to one event loop.

    A session that finds no server waits in line; first come, first served, but that those whose group is full hold up
    nobody else. While there is a line and no more servers may be started, sessions that have nothing to do are asked to
    leave theirs, the longest idle first.
    """

    def __init__(
        self,
        placement: Placement,
        launcher: Launcher,
        *,
        lease_s: float,
        on_lost: Callable[[str, frozenset[str]], None],
    ) -> None:
        """`on_lost` hears of servers that fell silent or died, with the sessions that they had."""
        self.placement = placement
        self._launcher = launcher
        self._lease_s = lease_s
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._actors: dict[str, Any] = {}
        self._heard: dict[str, float] = {}
        self._line = WaitingLine()
        self._starting = 0
        self._relieving = False
        self._relieve_again = False
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def waiting(self) -> int:
        """Sessions in line."""
        return len(self._line)

    def actor(self, name: str) -> Any:
        """The handle of a server that is here."""
        return self._actors[name]

    def actors(self) -> list[Any]:
        """The handles of all servers."""
        return list(self._actors.values())

    # Servers

    def warm_up(self) -> None:
        """Start what is missing, end what is too much, and look again whether those in line can be helped."""
        self._hand_out()
        for name in self.placement.to_retire(now=self._loop.time(), grace_s=RETIRE_GRACE_S):
            self.placement.remove(name)
            self._heard.pop(name, None)
            self._launcher.end(self._actors.pop(name))
            _log.info("server_retired", server=name)

    def join(self, started: Started, sessions: Sequence[PlacedSession] = ()) -> None:
        """A server is here, with these sessions."""
        self._actors[started.name] = started.actor
        if started.name not in self.placement:
            self.placement.add(started.name, started.node_id, now=self._loop.time())
        for session in sessions:
            self.placement.put(session.session_id, started.name, session.need)
        self.heard(started.name)
        self._hand_out()

    def heard(self, name: str) -> bool:
        """The server has shown that it is alive; False if it does not belong here (any more)."""
        if name not in self.placement:
            return False
        self._heard[name] = self._loop.time()
        return True

    def lose(self, name: str) -> None:
        """The server is not to be had any more, or has lost its memory."""
        sessions = self.placement.remove(name)
        self._heard.pop(name, None)
        self._actors.pop(name, None)
        self._on_lost(name, sessions)
        self._hand_out()

    def drop(self, name: str) -> None:
        """Lose a server that does not answer, and kill what is left of it."""
        actor = self._actors.get(name)
        self.lose(name)
        if actor is not None:
            self._own(self._launcher.kill(actor))

    def reclaim_silent(self) -> list[str]:
        """Drop the servers whose lease has lapsed; returns their names."""
        now = self._loop.time()
        silent = [name for name, heard in self._heard.items() if now - heard > self._lease_s]
        for name in silent:
            _log.warning("lease_lapsed", server=name, silent_s=round(now - self._heard[name], 1))
            self.drop(name)
        return silent

    def renew_all(self) -> None:
        """Give everybody a full lease: it was this process that heard nothing for a while."""
        self._heard = dict.fromkeys(self._heard, self._loop.time())

    # Sessions

    def claim_now(self, session_ids: Sequence[str], need: Need) -> dict[str, str]:
        """Servers for as many of the sessions as there are places now that nobody waits for, from the first on."""
        heads = list(self._line.heads())
        if any(one.need == need for one in heads) or self._is_kept_from(need, heads):
            return {}
        claimed: dict[str, str] = {}
        left = deque(session_ids)
        while left and not self.placement.full_groups(need) and (name := self.placement.choose(need)) is not None:
            for _ in range(min(len(left), self.placement.share_of(name, need, len(left)))):
                self.placement.put(session_id := left.popleft(), name, need)
                claimed[session_id] = name
        return claimed

    async def claim(self, session_id: str, need: Need = ANY, *, behind: int = 0) -> str:
        """A server for the session, which has it from then on. MaxSessionsExceeded when too many wait already. So many
        others come `behind` it: servers are started for them too."""
        waiting = Waiting(session_id, need, self._loop.create_future(), behind)
        self._line.add(waiting)
        self._hand_out()
        if not waiting.placed.done() and len(self._line) > MAX_WAITING:
            self._line.remove(waiting)
            raise MaxSessionsExceeded(
                f"{len(self._line)} sessions wait for a place already; try again later.",
                details={"waiting": len(self._line), "retry_after_s": _RETRY_AFTER_S},
            )
        try:
            await waiting.placed
        except BaseException:
            if waiting in self._line:
                self._line.remove(waiting)
            elif waiting.placed.done():
                self.release(session_id)
            raise
        name = self.placement.server_of(session_id)
        return name if name is not None else await self.claim(session_id, need, behind=behind)

    def release(self, *session_ids: str) -> None:
        """The sessions are on no server any more."""
        for session_id in session_ids:
            self.placement.take(session_id, now=self._loop.time())
        self._hand_out()

    def _hand_out(self) -> None:
        full: set[Need] = set()
        while (waiting := self._next(full)) is not None:
            if not waiting.placed.done():
                name = self.placement.choose(waiting.need)
                if name is None:
                    full.add(waiting.need)
                    continue
                self.placement.put(waiting.session_id, name, waiting.need)
                waiting.placed.set_result(None)
            self._line.remove(waiting)
        self._grow()
        self.relieve()

    def _next(self, full: Collection[Need] = ()) -> Waiting | None:
        """The first in line for what is not known to be full."""
        heads = list(self._line.heads())
        for one in heads:
            is_full = one.need in full or self.placement.full_groups(one.need)
            if not is_full and not self._is_kept_from(one.need, heads):
                return one
        return None

    def _is_kept_from(self, need: Need, heads: Sequence[Waiting]) -> bool:
        """Whether rows must leave what there is to sessions that wait: where one server is all that there may be, it
        would never be empty."""
        is_all = need.pool is Pool.ROWS and self.placement.max_servers == 1
        return is_all and any(one.need.pool is Pool.SESSIONS for one in heads)

    def _grow(self) -> None:
        wanted = self.placement.servers_for(self._line.demand())
        count = self.placement.to_start(wanted=wanted, starting=self._starting)
        for _ in range(min(count, MAX_STARTING - self._starting)):
            self._starting += 1
            self._own(self._start())

    async def _start(self) -> None:
        try:
            started = await self._launcher.start()
        except GreenroomError as exc:
            self._starting -= 1
            _log.exception("server_not_started")
            waiting = self._next()
            if waiting is not None:  # its caller is told; the next one tries again
                self._line.remove(waiting)
                if not waiting.placed.done():
                    waiting.placed.set_exception(exc)
        else:
            self._starting -= 1
            self.join(started)

    # Making room

    def relieve(self) -> None:
        """Ask idle sessions to leave, if somebody waits and nothing else helps."""
        if self._relieving:
            self._relieve_again = True  # something has changed since the servers were asked
        elif self._line and self._wanted_places():
            self._relieving = True
            self._own(self._relieve())

    async def _relieve(self) -> None:
        try:
            while True:
                self._relieve_again = False
                await self._relieve_once()
                if not self._relieve_again or not self._wanted_places():
                    break
                await asyncio.sleep(_RELIEVE_PAUSE_S)
        finally:
            self._relieving = False

    async def _relieve_once(self) -> None:
        busy = self.placement.busy
        answers = await asyncio.gather(*(self._ask_idle(self._actors[name]) for name in busy))
        idle = sorted(
            (one.idle_s, one.session_id, name) for name, answer in zip(busy, answers, strict=True) for one in answer
        )
        leaving = self._chosen_to_leave([(session_id, name) for _, session_id, name in reversed(idle)])
        await asyncio.gather(*(self._let_leave(name, session_id) for session_id, name in leaving))

    def _wanted_places(self) -> Counter[SessionGroup | None]:
        """How many sessions must leave before those in line have their places: of full groups, and (None) of any."""
        wanted: Counter[SessionGroup | None] = Counter()
        for need, count in self._line.counts().items():
            wanted.update(dict.fromkeys(self.placement.full_groups(need), count))
        servers = self.placement.servers_for(self._line.counts())
        starting = self._starting or self.placement.to_start(wanted=servers, starting=0)
        if not starting and (waiting := self._waiting_for_servers()):
            wanted[None] = waiting
        return wanted

    def _waiting_for_servers(self) -> int:
        """How many in line wait for a server, and not for their group. A batch sends nobody away."""
        return sum(
            min(count, self.placement.room_in(need))
            for need, count in self._line.counts().items()
            if need.pool is Pool.SESSIONS
        )

    def _chosen_to_leave(self, idle: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Of idle sessions and their servers, the longest idle first, those that give somebody in line a place."""
        wanted = self._wanted_places()
        leaving: list[tuple[str, str]] = []
        for session_id, name in idle:
            helps = [group for group in (*self.placement.groups_of(session_id), None) if wanted[group] > 0]
            if helps:
                leaving.append((session_id, name))
                wanted.subtract(helps)
        return leaving

    async def _ask_idle(self, actor: Any) -> list[IdleSession]:
        return await self._asked(self._launcher.idle_sessions(actor)) or []

    async def _let_leave(self, name: str, session_id: str) -> None:
        if name in self._actors:
            await self._asked(self._launcher.hibernate(self._actors[name], session_id))

    async def _asked(self, answer: Awaitable[Any]) -> Any:
        """The answer of a server, or None from one that does not answer in time."""
        try:
            return await asyncio.wait_for(answer, ASK_IDLE_S)
        except (GreenroomError, TimeoutError):
            return None

    def _own(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
