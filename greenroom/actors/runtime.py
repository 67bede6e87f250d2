"""The Runtime: what a process holds of a runtime that it has started or joined."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from ..adapters.json_safety import require_json_safe
from ..adapters.option_parsing import parse_options
from ..adapters.providers.registry import BUILT_IN_DECLARATIONS
from ..adapters.run_option_parsing import parse_run_options
from ..domain.approval import BY_CALLER
from ..domain.errors import (
    GreenroomError,
    NotFound,
    RunNotFound,
    SessionNotFound,
    Timeout,
    ValidationError,
)
from ..domain.event_log import MAX_READ_LIMIT
from ..domain.provider import ProviderDeclaration
from ..domain.routing import RouterOptions
from ..domain.run import Run, RunResult, RunStatus
from ..domain.session import Session, SessionSpec, SessionState
from .account_actors import start_accounts, start_routers
from .event_stream import EventStream
from .runtime_data import RuntimeData
from .runtime_overview import RuntimeOverview
from .session_handle import SessionHandle

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


class Runtime(RuntimeData, RuntimeOverview):
    """A runtime. Every method has a twin for event loops with `a` in front.

    The plain ones may be called from any thread, also while a loop runs in it. Errors are the bare classes of
    greenroom; RuntimeGone when the runtime has ended.
    """

    def declare(self, providers: dict[str, ProviderDeclaration], routers: dict[str, RouterOptions]) -> None:
        """Add providers and routers to the runtime, in place of those of the same names."""
        if providers or routers:
            self._wait(self._declare(providers, routers))

    async def _declare(self, providers: dict[str, ProviderDeclaration], routers: dict[str, RouterOptions]) -> None:
        settings = await self.asettings()
        merged = {**settings["providers"], **providers}, {**settings["routers"], **routers}
        namespace = self._address.namespace
        for answer in await asyncio.to_thread(
            start_accounts,
            *merged,
            namespace=namespace,
            lease_s=settings["lease_s"],
            directory=self._directory,
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
        settings = await self.asettings()
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
