"""The Runtime: what a process holds of a runtime that it has started or joined."""

import asyncio
import contextlib
import os
import secrets
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import ray
import ray.exceptions

from ..adapters.data_dir import MEMORY_DATA_DIR, prepare_backup
from ..adapters.json_safety import require_json_safe
from ..adapters.option_parsing import parse_options
from ..adapters.providers.manifests import manifest
from ..adapters.providers.registry import BUILT_IN_DECLARATIONS
from ..adapters.query_rows import DEFAULT_QUERY_LIMIT, unpack_rows
from ..adapters.run_option_parsing import parse_run_options
from ..adapters.session_homes import homes_folder, remove_homes
from ..domain.account import AccountState
from ..domain.approval import BY_CALLER
from ..domain.budget import BudgetState
from ..domain.capability_negotiation import Manifest
from ..domain.errors import (
    GreenroomError,
    NotFound,
    RunNotFound,
    RuntimeGone,
    SessionNotFound,
    Timeout,
    ValidationError,
)
from ..domain.event_log import MAX_READ_LIMIT, parse_types
from ..domain.provider import ProviderDeclaration
from ..domain.routing import RouterOptions, RouterState
from ..domain.run import Run, RunResult, RunStatus
from ..domain.session import Session, SessionSpec, SessionState
from ..domain.verification import Verification
from ..domain.webhook import WebhookTarget
from . import ray_cluster
from .account_actors import start_accounts, start_routers
from .actor_states import actor_is_dead, named_actors
from .address import BREAKER_PREFIX, LIMITER, ROUTER_PREFIX, WEBHOOKS, RuntimeAddress
from .event_stream import EventStream
from .ray_errors import raise_bare
from .runtime_file import RuntimeRecord, remove_record
from .runtime_watch import RuntimeWatch
from .session_handle import SessionHandle
from .store_shards import StoreShards
from .tenant_feed import TenantFeed
from .webhook_actor import webhook_sender, webhooks_exist

ResultT = TypeVar("ResultT")

_STOP_S = 10.0

_PENDING_APPROVALS = """
    SELECT session_id, run_id, json_object('id', data->>'approval_id', 'tool_name', data->>'tool_name',
           'input', data->'tool_input', 'expires_at', data->>'expires_at') AS request
    FROM events AS asked
    WHERE type = 'tool_approval_requested' AND NOT EXISTS (
        SELECT 1 FROM events AS said
        WHERE said.type IN ('tool_approval_granted', 'tool_approval_denied') AND said.session_id = asked.session_id
          AND said.data->>'approval_id' = asked.data->>'approval_id')
    QUALIFY row_number() OVER (PARTITION BY data->>'approval_id' ORDER BY seq DESC) = 1
    ORDER BY data->>'approval_id'
"""

_SESSION_OF_APPROVAL = """
    SELECT session_id FROM events WHERE type = 'tool_approval_requested' AND data->>'approval_id' = ?
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeStats:
    """What there is, and who serves it."""

    actors: list[dict[str, Any]]
    """Kind (the class name), name, pid, node_id, state and session_ids of each."""
    sessions: int
    runs: int
    events: int
    bytes: int
    """Size of the event store on disk."""
    processes: int


class Runtime:
    """A runtime. Every method has a twin for event loops with `a` in front.

    The plain ones may be called from any thread, also while a loop runs in it. Errors are the bare classes of
    greenroom; RuntimeGone when the runtime has ended.
    """

    def __init__(self, address: RuntimeAddress, *, stores: StoreShards, directory: Any, owns_ray: bool) -> None:
        self._address = address
        self._stores = stores
        self._directory = directory
        self._owns_ray = owns_ray
        self._ended = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_lock = threading.Lock()
        self._pending: set[Future[Any]] = set()
        self._watch = None if owns_ray else RuntimeWatch(address.ray_address, self._gone)

    @property
    def data_dir(self) -> str:
        """Where everything is kept."""
        return self._address.data_dir

    @property
    def is_alive(self) -> bool:
        """Whether this process is connected to it, and its store and directory are not gone for good."""
        if self._ended or not ray.is_initialized() or not _same_cluster(self._address):
            return False
        return not any(actor_is_dead(actor) for actor in (*self._stores.actors, self._directory))

    @property
    def owns_ray(self) -> bool:
        """Whether this process started the Ray cluster that the runtime lives on, and ends it with `shutdown`."""
        return self._owns_ray

    def record(self) -> RuntimeRecord:
        """What later processes need to join."""
        return RuntimeRecord(
            ray_address=self._address.ray_address,
            namespace=self._address.namespace,
            version=version("greenroom"),
            auth_mode=ray_cluster.auth_mode(),
            pid=os.getpid(),
        )

    def declare(self, providers: dict[str, ProviderDeclaration], routers: dict[str, RouterOptions]) -> None:
        """Add providers and routers to the runtime, in place of those of the same names."""
        if providers or routers:
            self._wait(self._declare(providers, routers))

    async def _declare(self, providers: dict[str, ProviderDeclaration], routers: dict[str, RouterOptions]) -> None:
        settings = await self._ask(self._directory.settings.remote())
        merged = {**settings["providers"], **providers}, {**settings["routers"], **routers}
        namespace = self._address.namespace
        for answer in await asyncio.to_thread(
            start_accounts, *merged, namespace=namespace, lease_s=settings["lease_s"]
        ):
            await self._ask(answer)
        await self._ask(self._directory.declare.remote(providers, routers))
        for answer in await asyncio.to_thread(start_routers, merged[1], namespace=namespace, directory=self._directory):
            await self._ask(answer)

    # Sessions

    async def aopen_session(
        self,
        session_id: str | None = None,
        *,
        agent_id: str = "agent",
        provider: str | None = None,
        context: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        parent_session_id: str | None = None,
        tools: Sequence[Any] = (),
        max_concurrent_runs: int = 1,
        max_queued_runs: int = 100,
        run_defaults: Mapping[str, Any] | None = None,
        budget: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> SessionHandle:
        """Open a session; with the id of one that exists, resume that one as it is.

        `provider` may be a router. `budget` is what all of its runs may use together: `max_cost_usd`,
        `max_total_tokens`, `on_violation`.

        `tools` are Python callables, or `"package.module:function"`. A repeated idempotency key gives the session that
        the first call opened. Raises ValidationError that names the argument; nothing is stored then.
        """
        values: dict[str, Any] = {
            "agent_id": agent_id,
            "provider": provider,
            "context": dict(context or {}),
            "metadata": dict(metadata or {}),
            "tags": tuple(tags),
            "parent_session_id": parent_session_id,
            "max_concurrent_runs": max_concurrent_runs,
            "max_queued_runs": max_queued_runs,
            "run_defaults": dict(run_defaults or {}),
            "budget": None if budget is None else dict(budget),
        }
        spec = parse_options(SessionSpec, values, field="open_session")
        for name in ("context", "metadata", "run_defaults"):
            require_json_safe(values[name], field=name)
        parse_run_options(spec.run_defaults, None, field="run_defaults")
        await self._check_provider(spec.provider)
        call_id = secrets.token_hex(12)
        placed = await self._ask(
            self._directory.open_session.remote(session_id, spec, _packed(tools), idempotency_key, call_id)
        )
        handle = SessionHandle(placed["session_id"], self._address, placed["actor"])
        handle.opened_as = placed["session"]
        return handle

    def open_session(self, session_id: str | None = None, **arguments: Any) -> SessionHandle:
        """See aopen_session."""
        return self._wait(self.aopen_session(session_id, **arguments))

    async def _check_provider(self, name: str | None) -> None:
        if name is None:
            return
        settings = await self._ask(self._directory.settings.remote())
        known = {*BUILT_IN_DECLARATIONS, *settings["providers"], *settings["routers"]}
        if name not in known:
            raise ValidationError(
                f"Provider {name!r} is not declared; declared are: {', '.join(sorted(known))}.",
                details={"field": "provider"},
            )

    def handle(self, session_id: str) -> SessionHandle:
        """A handle of a session, whether or not it exists: its calls say so. Asks nobody."""
        return SessionHandle(session_id, self._address)

    async def aget_session(self, session_id: str) -> SessionHandle:
        """A handle of a session that exists. SessionNotFound otherwise."""
        await self.asession(session_id)
        return SessionHandle(session_id, self._address)

    def get_session(self, session_id: str) -> SessionHandle:
        """See aget_session."""
        return self._wait(self.aget_session(session_id))

    async def asession(self, session_id: str) -> Session:
        """The session's record. SessionNotFound if there is none."""
        session: Session | None = await self._ask(self._stores.ask(session_id, "find_session"))
        if session is None:
            raise SessionNotFound(
                f"There is no session {session_id} in {self.data_dir}.", details={"session_id": session_id}
            )
        return session

    def session(self, session_id: str) -> Session:
        """See asession."""
        return self._wait(self.asession(session_id))

    async def alist_sessions(
        self,
        *,
        status: SessionState | str | None = None,
        agent_id: str | None = None,
        tag: str | None = None,
        tenant: str | None = None,
        newest_first: bool = False,
        after: str | None = None,
        limit: int = 100,
    ) -> list[Session]:
        """Sessions in the order in which they were made, or the newest first; `after` is the id of the last one of the
        page before."""
        filters = {
            "status": SessionState(_checked(status, SessionState, "status")).value if status else None,
            "agent_id": agent_id,
            "tag": tag,
            "tenant": tenant,
            "newest_first": newest_first,
            "after": after,
            "limit": _checked_limit(limit),
        }
        return await self._ask(self._stores.list_sessions(filters))

    def list_sessions(self, **filters: Any) -> list[Session]:
        """See alist_sessions."""
        return self._wait(self.alist_sessions(**filters))

    # The whole life of a session's data

    async def averify_session(self, session_id: str) -> Verification:
        """Read the session's whole log from the disk and prove it; `.ok` is true only when it is intact."""
        return await self._ask(self._stores.ask(session_id, "verify_session"))

    def verify_session(self, session_id: str) -> Verification:
        """See averify_session."""
        return self._wait(self.averify_session(session_id))

    async def adelete_session(self, session_id: str) -> None:
        """Cancel the session's runs and delete every trace of it. SessionNotFound if there is none.

        When this returns nothing shows it any more, and nothing brings it back; its bytes leave the files with the next
        `compact`.
        """
        await self._ask(self._directory.delete_session.remote(session_id))

    def delete_session(self, session_id: str) -> None:
        """See adelete_session."""
        self._wait(self.adelete_session(session_id))

    async def aexport_session(self, session_id: str, path: str | Path) -> Path:
        """Write the session as it is now to one self-contained file, and return its path. SessionNotFound.

        The store's process writes it, on the store's machine. Tools given as Python objects are not in it.
        """
        target = _absolute(path)
        await self._ask(self._stores.ask(session_id, "export_session", target))
        return target

    def export_session(self, session_id: str, path: str | Path) -> Path:
        """See aexport_session."""
        return self._wait(self.aexport_session(session_id, path))

    async def aimport_session(self, path: str | Path) -> SessionHandle:
        """Take in an exported session, once its whole chain was proven. InvalidFormat if it is not what was exported,
        AlreadyExists if there is a session of its name; then nothing was changed."""
        from ..adapters.duckdb.session_archive import read_head  # noqa: PLC0415  loads DuckDB

        source = _absolute(path)
        head = await asyncio.to_thread(read_head, source)
        await self._ask(self._stores.ask(head.session_id, "import_session", source))
        return SessionHandle(head.session_id, self._address)

    def import_session(self, path: str | Path) -> SessionHandle:
        """See aimport_session."""
        return self._wait(self.aimport_session(path))

    async def acompact(self) -> None:
        """Rewrite the store's files without what was deleted or may be pruned; everything is served meanwhile."""
        await self._ask(self._stores.ask_all("compact"))

    def compact(self) -> None:
        """See acompact."""
        self._wait(self.acompact())

    async def abackup(self, path: str | Path) -> Path:
        """Copy everything as it is now to a new folder, which `greenroom restore` puts back, or which is a data_dir by
        itself; everything is served meanwhile. Each shard is a moment of its own."""
        target = _absolute(path)
        await asyncio.to_thread(prepare_backup, target, len(self._stores.actors))
        await self._ask(self._stores.ask_all("back_up", target))
        return target

    def backup(self, path: str | Path) -> Path:
        """See abackup."""
        return self._wait(self.abackup(path))

    async def aquery(
        self,
        sql: str,
        params: Sequence[Any] | Mapping[str, Any] | None = None,
        limit: int = DEFAULT_QUERY_LIMIT,
        *,
        tenant: str | None = None,
    ) -> list[dict[str, Any]]:
        """At most `limit` rows of one SELECT over the views sessions, runs, events, tool_calls and usage.

        It sees everything that was committed before the call, and of one tenant only when `tenant` names it. It runs in
        a process of its own that can read nothing else, with bounded memory, and no longer than
        `event_store.query_timeout_s`. `params` are the values of `?` (a list) or of `$name` (a mapping). Values come
        back JSON-safe: times as ISO 8601 in UTC. ValidationError names what is wrong or forbidden; Timeout.
        """
        paths = await self._ask(self._stores.ask_all("refresh_mirror"))
        answer = await self._ask(self._stores.ask_first("query", paths, sql, params, limit, tenant))
        return unpack_rows(*answer)

    def query(
        self,
        sql: str,
        params: Sequence[Any] | Mapping[str, Any] | None = None,
        limit: int = DEFAULT_QUERY_LIMIT,
        *,
        tenant: str | None = None,
    ) -> list[dict[str, Any]]:
        """See aquery."""
        return self._wait(self.aquery(sql, params, limit, tenant=tenant))

    # Runs

    async def aget_run(self, run_id: str) -> Run:
        """The run's record. RunNotFound if there is none."""
        run: Run | None = await self._ask(self._stores.first("find_run", run_id))
        if run is None:
            raise RunNotFound(f"There is no run {run_id} in {self.data_dir}.", details={"run_id": run_id})
        return run

    def get_run(self, run_id: str) -> Run:
        """See aget_run."""
        return self._wait(self.aget_run(run_id))

    async def alist_runs(
        self,
        *,
        session_id: str | None = None,
        status: RunStatus | str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> list[Run]:
        """Runs in the order in which they were made; `after` is the id of the last one of the page before."""
        filters = {
            "session_id": session_id,
            "status": RunStatus(_checked(status, RunStatus, "status")).value if status else None,
            "after": after,
            "limit": _checked_limit(limit),
        }
        return await self._ask(self._stores.list_runs(filters))

    def list_runs(self, **filters: Any) -> list[Run]:
        """See alist_runs."""
        return self._wait(self.alist_runs(**filters))

    async def arun_once(self, input: object, **options: Any) -> RunResult:
        """Open a session, execute one run in it, end the session; the run's error is raised.

        `options` are arguments of open_session, and run options.
        """
        session_options, run_options = _split_options(options)
        session = await self.aopen_session(**session_options)
        try:
            result: RunResult = await self._ask(session.execute_run.remote(input, run_options))
        except GreenroomError as exc:
            await self._ask(session.fail.remote(exc))
            raise
        except BaseException:
            session.cancel.remote()
            raise
        await self._ask(session.complete.remote())
        return result

    def run_once(self, input: object, **options: Any) -> RunResult:
        """See arun_once."""
        return self._wait(self.arun_once(input, **options))

    @asynccontextmanager
    async def astream_session(self, input: object, **options: Any) -> AsyncGenerator[EventStream]:
        """One run in a session of its own, as a stream of events that ends with it; left early, the run is cancelled.

        Options as for arun_once. A run that fails ends the stream with its terminal event; nothing is raised for it.
        """
        session_options, run_options = _split_options(options)
        session = await self.aopen_session(**session_options)
        run_id: str = await self._ask(session.submit_run.remote(input, run_options))
        stream = session.follow(run_id=run_id)
        try:
            yield stream
        finally:
            stream.close()
            await self._ask(session.cancel_run.remote(run_id, "the stream was left"))
            await self._ask(session.complete.remote())

    @contextmanager
    def stream_session(self, input: object, **options: Any) -> Generator[EventStream]:
        """See astream_session."""
        context = self.astream_session(input, **options)
        stream = self._wait(context.__aenter__())
        try:
            yield stream
        finally:
            self._wait(context.__aexit__(None, None, None))

    # Control

    async def acancel_all(self, reason: str | None = None) -> list[str]:
        """Cancel every run that has not ended, in all sessions; the ids of those that this call cancelled."""
        session_ids: list[str] = await self._ask(self._stores.joined("sessions_with_open_runs"))
        handles = [SessionHandle(session_id, self._address) for session_id in session_ids]
        answers = await asyncio.gather(*(self._ask(handle.cancel_all.remote(reason)) for handle in handles))
        return [run_id for run_ids in answers for run_id in run_ids]

    def cancel_all(self, reason: str | None = None) -> list[str]:
        """See acancel_all."""
        return self._wait(self.acancel_all(reason))

    async def apending_approvals(self, *, tenant: str | None = None) -> list[dict[str, Any]]:
        """The tool calls that wait for a person, in all sessions (or those of a tenant), the oldest first: id,
        session_id, run_id, tool_name, input, expires_at."""
        return [
            {**row["request"], "session_id": row["session_id"], "run_id": row["run_id"]}
            for row in await self.aquery(_PENDING_APPROVALS, tenant=tenant)
        ]

    def pending_approvals(self, *, tenant: str | None = None) -> list[dict[str, Any]]:
        """See apending_approvals."""
        return self._wait(self.apending_approvals(tenant=tenant))

    async def adecide_approval(
        self, approval_id: str, decision: str, reason: str | None = None, *, by: str = BY_CALLER
    ) -> None:
        """`approve` or `deny` a waiting tool call, whatever session it is in; `by` is who the log says decided.

        NotFound; InvalidOperation when it was settled before, by somebody or by its time.
        """
        rows = await self.aquery(_SESSION_OF_APPROVAL, [approval_id], limit=1)
        if not rows:
            raise NotFound(f"There is no approval {approval_id}.", details={"approval_id": approval_id})
        session = SessionHandle(rows[0]["session_id"], self._address)
        await self._ask(session.decide_approval.remote(approval_id, decision, reason, by))

    def decide_approval(
        self, approval_id: str, decision: str, reason: str | None = None, *, by: str = BY_CALLER
    ) -> None:
        """See adecide_approval."""
        self._wait(self.adecide_approval(approval_id, decision, reason, by=by))

    async def adrain(self, timeout_s: float, *, node_id: str | None = None) -> bool:
        """Get ready to stop: refuse new sessions and runs (`session_draining`), wait for those there are, and let all
        sessions leave their servers. True when every run had ended.

        At the deadline the runs under way are cancelled, and Timeout says how many (`cancelled`), and how many wait in
        queues (`left`): those go on when the runtime takes work again, after `resume` or a new start. With a `node_id`
        only the servers of that node are emptied; sessions go on elsewhere, and nothing is refused.
        """
        counts = await self._ask(self._directory.drain.remote(timeout_s, node_id))
        if counts["cancelled"] or (counts["left"] and node_id is None):
            raise Timeout(
                f"{counts['cancelled']} runs were under way after {timeout_s} s and have been cancelled;"
                f" {counts['left']} wait in queues.",
                details=counts,
            )
        return True

    def drain(self, timeout_s: float, *, node_id: str | None = None) -> bool:
        """See adrain."""
        return self._wait(self.adrain(timeout_s, node_id=node_id))

    async def aresume(self) -> None:
        """Take new sessions and runs again after a drain, on all nodes; queued runs go on."""
        await self._ask(self._directory.resume.remote())

    def resume(self) -> None:
        """See aresume."""
        self._wait(self.aresume())

    # The runtime itself

    def feed(self, tenant: str, types: Sequence[str] | str | None = None) -> TenantFeed:
        """All events of the tenant's sessions as one feed: of those whose metadata has it as `tenant`. `types` picks
        some; ValidationError names one that is none.
        """
        return TenantFeed(self._stores, tenant, parse_types(types))

    async def aproviders(self) -> dict[str, ProviderDeclaration]:
        """The providers that there are, by name."""
        return await self._providers()

    def providers(self) -> dict[str, ProviderDeclaration]:
        """See aproviders."""
        return self._wait(self._providers())

    async def adefault_provider(self) -> str:
        """The provider, or router, of sessions that name none."""
        settings = await self._ask(self._directory.settings.remote())
        return settings["default_provider"]

    async def adeclared(self) -> tuple[dict[str, ProviderDeclaration], dict[str, RouterOptions]]:
        """All providers and routers, by name."""
        settings = await self._ask(self._directory.settings.remote())
        return {**BUILT_IN_DECLARATIONS, **settings["providers"]}, settings["routers"]

    async def _providers(self) -> dict[str, ProviderDeclaration]:
        settings = await self._ask(self._directory.settings.remote())
        return {**BUILT_IN_DECLARATIONS, **settings["providers"]}

    async def acapabilities(self, provider: str, model: str | None = None) -> Manifest:
        """What a provider can do with a model (its default one if none is named), and what that costs."""
        providers = await self._providers()
        if provider not in providers:
            raise ValidationError(
                f"Provider {provider!r} is not declared; declared are: {', '.join(sorted(providers))}.",
                details={"field": "provider"},
            )
        return await asyncio.to_thread(partial(manifest, providers[provider], model, priced=True))

    def capabilities(self, provider: str, model: str | None = None) -> Manifest:
        """See acapabilities."""
        return self._wait(self.acapabilities(provider, model))

    async def aaccounts(self) -> dict[str, AccountState]:
        """The provider accounts that are counted, by provider: breaker, attempts under way and in line."""
        names = await asyncio.to_thread(named_actors, self._address.namespace, BREAKER_PREFIX)
        states: list[AccountState] = await asyncio.gather(*(self._ask_named(name, "state") for name in names))
        return {state.provider: state for state in states}

    def accounts(self) -> dict[str, AccountState]:
        """See aaccounts."""
        return self._wait(self.aaccounts())

    async def arouter(self, name: str) -> RouterState:
        """A router as it is declared, and what it knows of its providers. ValidationError if there is none."""
        settings = await self._ask(self._directory.settings.remote())
        options: RouterOptions | None = settings["routers"].get(name)
        if options is None:
            known = ", ".join(sorted(settings["routers"])) or "none"
            raise ValidationError(f"Router {name!r} is not declared; declared are: {known}.", details={"field": "name"})
        accounts, bound = await self._ask_named(ROUTER_PREFIX + name, "state")
        return RouterState(name=name, options=options, accounts=accounts, bound_sessions=bound)

    def router(self, name: str) -> RouterState:
        """See arouter."""
        return self._wait(self.arouter(name))

    async def abudgets(self) -> dict[str, BudgetState]:
        """What was spent of the budgets of the runtime, its tenants and its projects, by scope."""
        settings = await self._ask(self._directory.settings.remote())
        return {} if settings["limiter"] is None else await self._ask(settings["limiter"].budgets.remote())

    def budgets(self) -> dict[str, BudgetState]:
        """See abudgets."""
        return self._wait(self.abudgets())

    async def _ask_named(self, name: str, method: str) -> Any:
        actor: Any = await asyncio.to_thread(ray.get_actor, name, self._address.namespace)
        return await self._ask(getattr(actor, method).remote())

    async def astats(self) -> RuntimeStats:
        """What there is, and who serves it. Never waits on a session's actor."""
        actors, counts = await asyncio.gather(
            self._ask(self._directory.actors.remote()), self._ask(self._stores.counts())
        )
        return RuntimeStats(actors=actors, processes=len(actors), **counts)

    def stats(self) -> RuntimeStats:
        """See astats."""
        return self._wait(self.astats())

    async def aset_webhooks(self, targets: Sequence[WebhookTarget]) -> None:
        """Send events to these addresses and to no others, from now on, starting at what is new. ValidationError for a
        secret that is not there."""
        if targets or await asyncio.to_thread(webhooks_exist, self._address):
            sender = await asyncio.to_thread(webhook_sender, self._address, self._stores)
            await self._ask(sender.configure.remote(list(targets)))

    def set_webhooks(self, targets: Sequence[WebhookTarget]) -> None:
        """See aset_webhooks."""
        self._wait(self.aset_webhooks(targets))

    async def astatus_counts(self) -> dict[str, dict[str, int]]:
        """How many `sessions` and `runs` there are in each status."""
        return await self._ask(self._stores.status_counts())

    def status_counts(self) -> dict[str, dict[str, int]]:
        """See astatus_counts."""
        return self._wait(self.astatus_counts())

    async def aping(self) -> None:
        """Return when the event store, the directory and all routers have answered. Raises what they raise."""
        settings, _ = await asyncio.gather(
            self._ask(self._directory.settings.remote()), self._ask(self._stores.ask_all("end_of_feed"))
        )
        await asyncio.gather(*(self._ask_named(ROUTER_PREFIX + name, "state") for name in settings["routers"]))

    def ping(self) -> None:
        """See aping."""
        self._wait(self.aping())

    async def ashutdown(self) -> None:
        """Stop the runtime's actors, for everybody who joined it; ends Ray if this process started it.

        Runs in flight are interrupted, and accounted for when a runtime starts on the data_dir again.
        """
        if self._watch is not None:
            self._watch.stop()
        if self._ended:
            return
        self._ended = True
        if ray.is_initialized() and _same_cluster(self._address):
            await self._stop_actors()
        if self.data_dir == MEMORY_DATA_DIR:
            await asyncio.to_thread(remove_homes, homes_folder(self.data_dir, self._address.namespace))
        else:
            remove_record(Path(self.data_dir))

    def shutdown(self) -> None:
        """See ashutdown."""
        self._wait(self.ashutdown())
        self._stop_loop()
        if self._owns_ray and ray.is_initialized():
            ray.shutdown()

    async def _stop_actors(self) -> None:
        try:
            async with asyncio.timeout(_STOP_S):  # Ray lets calls hang when its control store has died before us
                names: list[str] = await self._ask(self._directory.session_servers.remote())
        except (TimeoutError, GreenroomError):
            return
        ray.kill(self._directory)
        namespace = self._address.namespace
        deciding = [LIMITER, WEBHOOKS]
        for prefix in (BREAKER_PREFIX, ROUTER_PREFIX):
            deciding += await asyncio.to_thread(named_actors, namespace, prefix)
        for name in deciding:
            with contextlib.suppress(ValueError):
                ray.kill(await asyncio.to_thread(ray.get_actor, name, namespace))
        servers: list[Any] = []
        for name in names:
            with contextlib.suppress(ValueError):
                servers.append(await asyncio.to_thread(ray.get_actor, name, self._address.namespace))
        stops = [asyncio.wrap_future(server.stop.remote().future()) for server in servers]
        if stops:
            await asyncio.wait(stops, timeout=_STOP_S)
        for server in servers:
            ray.kill(server)
        with contextlib.suppress(GreenroomError, TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await self._stores.ask_all("close")
        for store in self._stores.actors:
            ray.kill(store)

    # Calls

    async def _ask(self, answer: Any) -> Any:
        """The answer of an actor, its errors bare."""
        if self._ended and not ray.is_initialized():
            raise RuntimeGone
        try:
            return await answer
        except (ray.exceptions.RayError, ConnectionError) as exc:
            raise_bare(exc)

    def _wait(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Run it to its end on this runtime's own loop, whatever loop the calling thread may be in."""
        if self._ended and work.__name__ != "ashutdown":
            work.close()
            raise RuntimeGone
        future = asyncio.run_coroutine_threadsafe(work, self._own_loop())
        self._pending.add(future)
        try:
            return future.result()
        except CancelledError as exc:
            raise RuntimeGone from exc
        except BaseException:
            future.cancel()
            raise
        finally:
            self._pending.discard(future)

    def _gone(self) -> None:
        """The runtime's cluster has ended: whoever waits is told, and so is whoever asks from now on."""
        self._ended = True
        for future in list(self._pending):
            future.cancel()

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        with self._loop_lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=_run_loop, args=(self._loop,), name="greenroom-runtime", daemon=True).start()
            return self._loop

    def _stop_loop(self) -> None:
        with self._loop_lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._loop = None


def _absolute(path: str | Path) -> Path:
    return Path(path).expanduser().absolute()


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _same_cluster(address: RuntimeAddress) -> bool:
    return ray.get_runtime_context().gcs_address == address.ray_address


def _packed(tools: Sequence[Any]) -> bytes | None:
    if not tools:
        return None
    from ..adapters.tool_packing import pack_toolbox  # noqa: PLC0415  most sessions have none

    return pack_toolbox(tools)


_SESSION_OPTIONS = frozenset(
    {
        *("session_id", "agent_id", "context", "tags", "parent_session_id", "tools"),
        *("max_concurrent_runs", "max_queued_runs", "run_defaults", "provider", "budget"),
    }
)


def _split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those for the session, and those for the run."""
    session = {name: value for name, value in options.items() if name in _SESSION_OPTIONS}
    run = {name: value for name, value in options.items() if name not in _SESSION_OPTIONS}
    parse_run_options(session.get("run_defaults") or {}, run)
    return session, run


def _checked(value: object, choices: type[SessionState] | type[RunStatus], field: str) -> str:
    if value not in set(choices):
        raise ValidationError(
            f"{field} is {value!r}; it must be one of {', '.join(choices)}.", details={"field": field}
        )
    return str(value)


def _checked_limit(limit: int) -> int:
    if not 1 <= limit <= MAX_READ_LIMIT:
        raise ValidationError(f"limit is {limit}; it must be from 1 to {MAX_READ_LIMIT}.", details={"field": "limit"})
    return limit
