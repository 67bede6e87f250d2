"""The pool of session servers, over servers that a test makes up."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given, strategies as st

from greenroom.actors import server_pool
from greenroom.actors.server_pool import PlacedSession, ServerPool, Started
from greenroom.actors.standing import IdleSession
from greenroom.domain.errors import MaxSessionsExceeded, StorageConnectionFailed
from greenroom.domain.placement import ANY, Need, Placement, Pool, SessionGroup, SessionLimits


class Servers:
    """Starts servers when a test lets it; a server is its own name."""

    def __init__(self) -> None:
        self.started = 0
        self.ended: list[str] = []
        self.killed: list[str] = []
        self.idle: dict[str, list[IdleSession]] = {}
        self.asked: list[str] = []
        self.hibernated: list[str] = []
        self.broken = False
        self.pool: ServerPool

    async def start(self) -> Started:
        if self.broken:
            raise StorageConnectionFailed("no room")
        self.started += 1
        return Started(f"server-{self.started}", f"server-{self.started}", "node")

    async def idle_sessions(self, actor: str) -> list[IdleSession]:
        self.asked.append(actor)
        return self.idle.get(actor, [])

    async def hibernate(self, actor: str, session_id: str) -> None:
        self.hibernated.append(session_id)
        self.idle.pop(actor)
        self.pool.release(session_id)

    def end(self, actor: str) -> None:
        self.ended.append(actor)

    async def kill(self, actor: str) -> None:
        self.killed.append(actor)


class World:
    def __init__(self, *, max_servers: int = 2, warm: int = 0, lease_s: float = 60.0) -> None:
        self.servers = Servers()
        self.lost: dict[str, frozenset[str]] = {}
        placement = Placement(sessions_per_server=1, max_servers=max_servers, warm_servers=warm)
        self.pool = ServerPool(placement, self.servers, lease_s=lease_s, on_lost=self.lost.__setitem__)
        self.servers.pool = self.pool

    async def claim(self, session_id: str, groups: tuple[SessionGroup, ...] = ()) -> str:
        return await asyncio.wait_for(self.pool.claim(session_id, Need(groups=groups)), 5)


@pytest.fixture
async def world() -> World:
    return World()


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_session_gets_a_warm_server_and_another_is_warmed_up() -> None:
    world = World(max_servers=3, warm=1)
    world.pool.warm_up()
    await settled()
    assert 1 == world.servers.started

    assert "server-1" == await world.claim("s1")
    await settled()
    assert 2 == world.servers.started


async def test_without_a_warm_one_a_server_is_started(world: World) -> None:
    assert "server-1" == await world.claim("s1")
    assert "s1" in world.pool.placement.sessions_of("server-1")


async def test_sessions_that_wait_are_served_in_the_order_in_which_they_came(world: World) -> None:
    await world.claim("s1")
    await world.claim("s2")
    waiting = [asyncio.create_task(world.pool.claim(name)) for name in ("s3", "s4", "s5")]
    await settled()
    assert 3 == world.pool.waiting

    world.pool.release("s2")
    world.pool.release("s1")
    await settled()

    assert [True, True, False] == [one.done() for one in waiting]
    assert ["server-2", "server-1"] == [waiting[0].result(), waiting[1].result()]
    waiting[2].cancel()


async def test_whoever_gives_up_waiting_holds_up_nobody(world: World) -> None:
    await world.claim("s1")
    await world.claim("s2")
    first, second = (asyncio.create_task(world.pool.claim(name)) for name in ("s3", "s4"))
    await settled()

    first.cancel()
    await settled()
    world.pool.release("s1")

    assert "server-1" == await second
    assert world.pool.placement.server_of("s3") is None


async def test_when_nothing_else_helps_the_longest_idle_session_leaves_at_once(world: World) -> None:
    await world.claim("s1")
    await world.claim("s2")
    world.servers.idle = {"server-1": [IdleSession(3.0, "s1")], "server-2": [IdleSession(7.0, "s2")]}

    assert "server-2" == await world.claim("s3")
    assert ["s2"] == world.servers.hibernated


async def test_those_who_wait_are_served_when_a_session_becomes_idle_later(world: World) -> None:
    await world.claim("s1")
    await world.claim("s2")
    waiting = asyncio.create_task(world.claim("s3"))
    await settled()
    assert not waiting.done()

    world.servers.idle = {"server-1": [IdleSession(0.0, "s1")]}
    world.pool.relieve()

    assert "server-1" == await waiting


async def test_a_line_that_is_full_is_refused_with_a_hint(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_pool, "MAX_WAITING", 1)
    await world.claim("s1")
    await world.claim("s2")
    waiting = asyncio.create_task(world.claim("s3"))
    await settled()

    with pytest.raises(MaxSessionsExceeded) as refused:
        await world.claim("s4")

    assert refused.value.details["retry_after_s"] > 0
    waiting.cancel()


async def test_a_server_that_cannot_be_started_is_told_to_whoever_waits(world: World) -> None:
    world.servers.broken = True

    with pytest.raises(StorageConnectionFailed):
        await world.claim("s1")

    world.servers.broken = False
    assert "server-1" == await world.claim("s1")


async def test_a_server_that_is_silent_for_a_lease_is_killed_and_its_sessions_told_of() -> None:
    world = World(lease_s=0.0)
    await world.claim("s1")
    await asyncio.sleep(0.001)

    assert ["server-1"] == world.pool.reclaim_silent()
    await settled()

    assert ({"server-1": frozenset({"s1"})}, ["server-1"]) == (world.lost, world.servers.killed)
    assert not world.pool.heard("server-1")
    assert "server-2" == await world.claim("s1")


async def test_a_server_that_is_heard_of_keeps_its_sessions() -> None:
    world = World(lease_s=30.0)
    await world.claim("s1")
    world.pool.heard("server-1")

    assert [] == world.pool.reclaim_silent()
    assert "server-1" == world.pool.placement.server_of("s1")


async def test_servers_that_are_not_needed_are_ended_after_their_grace(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.claim("s1")
    world.pool.release("s1")
    world.pool.warm_up()
    assert [] == world.servers.ended

    monkeypatch.setattr(server_pool, "RETIRE_GRACE_S", 0.0)
    world.pool.warm_up()

    assert ["server-1"] == world.servers.ended
    assert () == world.pool.placement.names


async def test_a_server_that_is_lost_while_a_session_waits_is_replaced(world: World) -> None:
    await world.claim("s1")
    await world.claim("s2")
    waiting = asyncio.create_task(world.claim("s3"))
    await settled()

    world.pool.lose("server-1")

    assert "server-3" == await waiting


async def test_a_full_group_holds_up_its_own_and_nobody_else(world: World) -> None:
    ada = SessionLimits(per_tenant=1).groups(provider="scripted", tenant="ada")
    await world.claim("s1", ada)
    waiting = [asyncio.create_task(world.claim(name, ada)) for name in ("s2", "s3")]
    await settled()

    assert "server-2" == await world.claim("s4")
    assert [False, False] == [one.done() for one in waiting]
    world.pool.release("s1")

    assert "server-1" == await waiting[0]
    assert not waiting[1].done()
    waiting[1].cancel()


async def test_for_a_full_group_one_of_its_own_leaves_when_it_is_idle(world: World) -> None:
    ada = SessionLimits(per_tenant=1).groups(provider="scripted", tenant="ada")
    await world.claim("s1", ada)
    await world.claim("s2")
    world.servers.idle = {"server-1": [IdleSession(1.0, "s1")], "server-2": [IdleSession(9.0, "s2")]}

    assert "server-1" == await world.claim("s3", ada)
    assert ["s1"] == world.servers.hibernated


async def test_those_who_wait_for_their_group_start_no_servers() -> None:
    world = World(max_servers=9)
    ada = SessionLimits(per_tenant=1).groups(provider="scripted", tenant="ada")
    await world.claim("s1", ada)
    waiting = [asyncio.create_task(world.claim(name, ada)) for name in ("s2", "s3", "s4")]
    await settled()

    assert 1 == world.servers.started
    for one in waiting:
        one.cancel()


@given(
    st.lists(
        st.tuples(st.sampled_from(["claim", "release"]), st.integers(0, 9), st.sampled_from(["ada", "bob", None])),
        max_size=40,
    )
)
def test_no_group_is_ever_over_its_limit_and_nobody_waits_who_has_room(
    steps: list[tuple[str, int, str | None]],
) -> None:
    async def play() -> None:
        world = World(max_servers=3)
        limits = SessionLimits(per_tenant=1)
        tasks: dict[str, asyncio.Task[str]] = {}
        tenants: dict[str, str | None] = {}
        placement = world.pool.placement
        for action, number, tenant in steps:
            session_id = f"s{number}"
            if action == "claim" and session_id not in tasks:
                tenants[session_id] = tenant
                groups = limits.groups(provider="scripted", tenant=tenant)
                tasks[session_id] = asyncio.create_task(world.claim(session_id, groups))
            elif action == "release" and session_id in tasks and tasks[session_id].done():
                del tasks[session_id]
                world.pool.release(session_id)
            await settled()
            placed = [one for one in tasks if placement.server_of(one) is not None]
            for name in ("ada", "bob"):
                assert sum(tenants[one] == name for one in placed) <= 1
            waiting = [one for one in tasks if not tasks[one].done()]
            assert len(waiting) == world.pool.waiting
            if len(placed) < 3:  # else there is no server
                with_room = [
                    one for one in waiting if tenants[one] not in {tenants[other] for other in placed} - {None}
                ]
                assert not with_room
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)

    asyncio.run(play())


async def test_a_line_that_formed_while_servers_started_is_looked_at_again(world: World) -> None:
    waiting = [asyncio.create_task(world.claim(name)) for name in ("s1", "s2", "s3")]
    await settled()
    assert {"server-1", "server-2"} <= set(world.servers.asked)

    world.servers.idle = {"server-2": [IdleSession(0.0, "s2")]}
    world.pool.warm_up()  # as it does every now and then

    assert "server-2" == await waiting[2]


async def test_what_changes_while_servers_are_asked_is_asked_about_again(world: World) -> None:
    await world.claim("s1")
    await world.claim("s2")
    first = asyncio.create_task(world.claim("s3"))
    await asyncio.sleep(0)
    world.pool.relieve()  # s1 has become idle, and the server's answer is under way
    world.servers.idle = {"server-1": [IdleSession(0.0, "s1")]}

    assert "server-1" == await first


async def test_the_full_line_of_one_tenant_refuses_nobody_else(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_pool, "MAX_WAITING", 1)
    ada = SessionLimits(per_tenant=1).groups(provider="scripted", tenant="ada")
    await world.claim("s1")
    await world.claim("s2", ada)
    world.pool.release("s1")
    waiting = asyncio.create_task(world.claim("s3", ada))
    await settled()

    with pytest.raises(MaxSessionsExceeded):
        await world.claim("s4", ada)

    assert "server-1" == await world.claim("s5")
    assert 1 == world.pool.waiting
    waiting.cancel()


async def test_a_server_that_comes_with_sessions_is_given_no_others(world: World) -> None:
    await world.claim("s1")
    await world.claim("s2")
    waiting = asyncio.create_task(world.claim("s3"))
    await settled()

    world.pool.join(Started("old", "old", "node"), [PlacedSession("s9", ANY)])
    await settled()

    assert (False, "old") == (waiting.done(), world.pool.placement.server_of("s9"))
    waiting.cancel()


async def test_when_a_server_is_lost_the_place_in_its_group_is_given_to_who_waits() -> None:
    world = World(max_servers=3, warm=1)
    ada = SessionLimits(per_tenant=1).groups(provider="scripted", tenant="ada")
    lost = await world.claim("s1", ada)
    await settled()
    waiting = asyncio.create_task(world.claim("s2", ada))
    await settled()

    world.pool.lose(lost)

    assert lost != await waiting


async def test_no_more_sessions_leave_than_a_group_has_room_for(world: World) -> None:
    ada = SessionLimits(per_tenant=1).groups(provider="scripted", tenant="ada")
    await world.claim("s1")
    await world.claim("s2")
    world.servers.idle = {"server-1": [IdleSession(1.0, "s1")], "server-2": [IdleSession(2.0, "s2")]}
    waiting = [asyncio.create_task(world.claim(name, ada)) for name in ("s3", "s4")]
    await settled()

    assert ["s2"] == world.servers.hibernated
    for one in waiting:
        one.cancel()


# Rows of batches


ROWS = Need(pool=Pool.ROWS, per_server=3)


def rows_world(*, max_servers: int = 4) -> World:
    return World(max_servers=max_servers)


async def test_rows_share_servers_with_rows_and_with_nobody_else() -> None:
    world = rows_world()
    names = [await asyncio.wait_for(world.pool.claim(f"row {number}", ROWS), 5) for number in range(3)]

    other = await world.claim("session")

    assert 1 == len(set(names))
    assert other not in names
    assert world.pool.placement.is_shared(names[0])
    assert not world.pool.placement.is_shared(other)


async def test_rows_never_have_all_servers() -> None:
    world = rows_world()
    rows = [asyncio.create_task(world.pool.claim(f"row {number}", ROWS)) for number in range(12)]
    await settled()

    assert (9, 3) == (sum(one.done() for one in rows), world.servers.started)
    assert await world.claim("session") == "server-4"
    for one in rows:
        one.cancel()


async def test_sessions_that_wait_are_served_before_rows_that_came_before_them() -> None:
    world = rows_world(max_servers=2)
    await world.claim("a")
    await world.claim("b")
    row = asyncio.create_task(world.pool.claim("row", ROWS))
    session = asyncio.create_task(world.pool.claim("session"))
    await settled()

    world.pool.release("a")
    await settled()

    assert (False, True) == (row.done(), session.done())
    world.pool.release("b")
    assert "server-2" == await asyncio.wait_for(row, 5)


async def test_a_batch_sends_no_idle_session_away() -> None:
    world = rows_world(max_servers=2)
    await world.claim("a")
    await world.claim("b")
    world.servers.idle = {"server-1": [IdleSession(100.0, "a")]}

    row = asyncio.create_task(world.pool.claim("row", ROWS))
    await settled()

    assert ([], False) == (world.servers.hibernated, row.done())
    row.cancel()


async def test_a_row_finds_a_place_at_once_or_not_at_all_and_nobody_is_passed() -> None:
    world = rows_world(max_servers=2)
    assert world.pool.claim_now(["row 0"], ROWS) == {}
    await asyncio.wait_for(world.pool.claim("row 0", ROWS), 5)
    assert dict.fromkeys(["row 1", "row 2"], "server-1") == world.pool.claim_now(["row 1", "row 2"], ROWS)
    waiting = asyncio.create_task(world.pool.claim("row 3", ROWS))
    await settled()

    world.pool.release("row 0")
    await settled()

    assert waiting.done()
    assert world.pool.claim_now(["row 4"], ROWS) == {}


async def test_where_there_is_one_server_rows_join_it_no_more_while_a_session_waits() -> None:
    world = rows_world(max_servers=1)
    await asyncio.wait_for(world.pool.claim("row 0", ROWS), 5)
    assert world.pool.claim_now(["row 1"], ROWS) == {"row 1": "server-1"}
    session = asyncio.create_task(world.pool.claim("session"))
    await settled()

    assert world.pool.claim_now(["row 2"], ROWS) == {}
    for row in ("row 0", "row 1"):
        world.pool.release(row)
    assert "server-1" == await asyncio.wait_for(session, 5)


async def test_rows_leave_some_of_a_limit_on_sessions_to_others() -> None:
    world = rows_world()
    group = SessionGroup("tenant", "t", 4)
    need = Need(groups=(group,), pool=Pool.ROWS)
    rows = [asyncio.create_task(world.pool.claim(f"row {number}", need)) for number in range(6)]
    await settled()

    assert 3 == sum(one.done() for one in rows)
    assert await world.claim("session", (group,))
    for one in rows:
        one.cancel()


async def test_a_row_that_waits_for_a_server_of_its_own_does_not_hold_up_rows_that_share() -> None:
    world = rows_world(max_servers=2)
    await asyncio.wait_for(world.pool.claim("shared 1", ROWS), 5)
    alone = asyncio.create_task(world.pool.claim("alone", Need(alone=True, pool=Pool.ROWS)))
    await settled()

    assert not alone.done()
    assert world.pool.claim_now(["shared 2"], ROWS) == {"shared 2": "server-1"}
    assert "server-1" == await asyncio.wait_for(world.pool.claim("shared 3", ROWS), 5)
    alone.cancel()


async def test_rows_that_find_their_places_together_are_spread_over_the_nodes_and_keep_to_every_limit() -> None:
    world = rows_world(max_servers=8)
    for name, node in (("a", "node 1"), ("b", "node 2"), ("c", "node 2")):
        world.pool.join(Started(name, name, node))
    rows = [f"row {number}" for number in range(20)]
    need = Need(groups=(SessionGroup("tenant", "t", 20),), pool=Pool.ROWS, per_server=10)

    placed = Counter(world.pool.claim_now(rows, need).values())

    assert 18 == placed.total()  # nine tenths of what the group may have
    assert 10 >= max(placed.values())
    assert abs(placed["a"] - placed["b"] - placed["c"]) <= 3
    assert {} == world.pool.claim_now(["one more"], need)


async def test_places_that_come_back_together_are_given_to_those_who_wait() -> None:
    world = rows_world(max_servers=2)
    need = Need(pool=Pool.ROWS, per_server=3)
    first = await asyncio.wait_for(world.pool.claim("row 0", need), 5)
    assert dict.fromkeys(("row 1", "row 2"), first) == world.pool.claim_now(["row 1", "row 2", "row 3"], need)
    waiting = [asyncio.create_task(world.pool.claim(f"late {number}", need)) for number in range(2)]
    await settled()
    assert not any(one.done() for one in waiting)

    world.pool.release("row 0", "row 1", "row 2")

    assert [first, first] == [await asyncio.wait_for(one, 5) for one in waiting]


async def test_servers_are_started_for_all_rows_that_come_behind_the_one_that_waits() -> None:
    world = rows_world(max_servers=8)
    need = Need(pool=Pool.ROWS, per_server=2)

    first = await asyncio.wait_for(world.pool.claim("row 0", need, behind=5), 5)
    await settled()

    assert 3 == world.servers.started
    placed = Counter(world.pool.claim_now([f"row {number}" for number in range(1, 6)], need).values())
    assert {"server-1": 2, "server-2": 2, "server-3": 2} == placed + Counter([first])
