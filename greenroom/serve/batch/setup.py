"""What every process of a batch is given: the runtime, what the rows have in common, and which of them are known."""

import hashlib
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from ...actors.address import RuntimeAddress
from ...actors.provider_set import ProviderSet
from ...actors.runtime import Runtime
from ...adapters.batch.own_columns import Columns
from ...adapters.batch.templates import renderer, template_text
from ...adapters.json_safety import require_json_safe
from ...adapters.option_parsing import parse_options
from ...adapters.run_option_parsing import parse_run_options
from ...domain.batch_input import RowLayout
from ...domain.batch_options import TURN_DEFAULTS, BatchOptions
from ...domain.batch_row import JOB_PREFIX, RowsPlan
from ...domain.errors import InvalidTransition, SessionNotFound, ValidationError
from ...domain.placement import ROWS_PER_SERVER, servers_for_rows
from ...domain.session import TENANT, Session, SessionSpec

JOB = "greenroom.job"
"""The key of the metadata of the session that stands for a job: what the job does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Travels to every process that sends rows."""

    address: RuntimeAddress
    plan: RowsPlan
    layout: RowLayout
    template: str | None
    session_column: str | None
    config: Mapping[str, Any]
    """What makes a row another piece of work when it changes, beside its input."""
    tools: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    """By name: each packed by itself."""
    columns: Columns | None
    """The rows' own columns; None: they come as they are."""
    prefix: str
    slots: int
    """Rows that one process may have under way."""
    started_ms: int
    """When the job was first started."""
    is_new: bool
    """Whether the job has begun nothing before."""
    retry_failed_before_ms: int | None
    """Rows that had failed before this time are done over; None: none are."""
    max_input_bytes: int
    keeps_numbers: bool = False
    """Whether rows come out with what they are numbered."""

    @property
    def turn_options(self) -> dict[str, Any]:
        """Run options of rows with several turns."""
        return {**TURN_DEFAULTS, **self.plan.options}


_FEWEST_PER_SERVER = 8


def job_tag(job: str) -> str:
    """The tag of the sessions of a job's rows."""
    return JOB_PREFIX + job


async def prepare(
    runtime: Runtime,
    options: BatchOptions,
    *,
    job: str,
    tools: Sequence[Any],
    about: Mapping[str, Any],
    now_ms: int,
    slots: int,
    columns: Columns | None,
    begins: bool = True,
) -> Setup:
    """Check everything that can be checked, and find the job or begin it. ValidationError and its like; nothing has
    changed then. Without `begins` nothing changes at all."""
    settings = await runtime.asettings()
    provider = options.provider or settings["default_provider"]
    providers = ProviderSet(settings["providers"], settings["routers"])
    needs_own = not providers.runs_in_process(provider)  # ValidationError for one that is not declared
    run_options = options.run_options()
    parsed = parse_run_options({}, run_options, field="batch.options")
    if providers.router(provider) is None:
        providers.check(provider, parsed)
    packed = _packed(tools)
    template = None if options.template is None else template_text(options.template)
    if template is not None:
        renderer(template)  # ValidationError for one that is wrong
    if begins:
        session, is_new = await _job_session(runtime, job, options, about)
    else:
        session = await find_job(runtime, job) if options.resume else None
        is_new = session is None
    metadata = {**options.metadata, **({TENANT: options.tenant} if options.tenant else {})}
    require_json_safe(metadata, field="batch.metadata")
    spec = parse_options(
        SessionSpec,
        {
            "agent_id": options.agent_id,
            "provider": provider,
            "context": {"system_prompt": options.system_prompt} if options.system_prompt else {},
            "metadata": metadata,
            "tags": (job_tag(job), *options.tags),
            "parent_session_id": session.id if session else None,
        },
        field="batch",
    )
    return Setup(
        address=runtime.address,
        plan=RowsPlan(
            job=job,
            spec=spec,
            options=run_options,
            needs_own_server=needs_own,
            per_server=_per_server(options.concurrency, max_servers=settings["max_live_actors"]),
            stops_at_failure=options.session is None,
        ),
        layout=RowLayout(
            key=options.key,
            prompt=options.prompt,
            turns=options.turns,
        ),
        template=template,
        session_column=options.session,
        config={**options.config(), "provider": provider, "tools": sorted(packed)},
        tools=packed,
        columns=columns,
        prefix=options.prefix,
        slots=slots,
        started_ms=round(session.created_at.timestamp() * 1_000) if session else 0,
        is_new=is_new,
        retry_failed_before_ms=now_ms if options.retry_failed else None,
        max_input_bytes=settings["max_input_bytes"],
    )


def _per_server(concurrency: int, *, max_servers: int) -> int:
    """How many rows share a server: so many that there is a server for each CPU, which is what a loop can use, as far
    as there may be so many and each has a few rows. More of them only get in each other's way: on two CPUs 10,000 rows,
    512 at once, took 0.82 ms of CPU each on two servers, and 1.0 ms on five."""
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    servers = min(cpus, servers_for_rows(max_servers))
    return max(_FEWEST_PER_SERVER, min(ROWS_PER_SERVER, math.ceil(concurrency / servers)))


def _packed(tools: Sequence[Any]) -> dict[str, bytes]:
    """By the tools' names."""
    if not tools:
        return {}
    from ...adapters.tool_packing import pack_toolbox  # noqa: PLC0415  few batches have tools
    from ...adapters.tools import as_tool  # noqa: PLC0415

    pack_toolbox(tools)  # refuses two of the same name
    found: dict[str, bytes] = {}
    for tool in map(as_tool, tools):
        packed = pack_toolbox([tool])
        assert packed is not None, "there is a tool"
        found[tool.spec.name] = packed
    return found


async def find_job(runtime: Runtime, job: str) -> Session | None:
    """The session that stands for the job, the newest one where it was begun anew; None if there is no such job."""
    found: Session | None = None
    number = 1
    while True:
        try:
            session = await runtime.asession(_job_session_id(job, number))
        except SessionNotFound:
            return found
        if JOB not in session.metadata:
            raise ValidationError(
                f"Session {session.id} is not of a batch; give the job another name.",
                details={"field": "batch.job"},
            )
        found = session
        number += 1


async def _job_session(
    runtime: Runtime, job: str, options: BatchOptions, about: Mapping[str, Any]
) -> tuple[Session, bool]:
    """The session that stands for the job, and whether it is new."""
    found = await find_job(runtime, job)
    if found is not None and options.resume:
        return found, False
    number = 1 if found is None else int(found.metadata[JOB]["number"]) + 1
    session_id = _job_session_id(job, number)
    metadata = {JOB: {**about, "job": job, "number": number}}
    handle = await runtime.aopen_session(
        session_id, agent_id=options.agent_id, metadata=metadata, idempotency_key=secrets.token_hex(12)
    )
    with suppress(InvalidTransition):  # it says that the job is there; nothing ever runs in it
        await runtime.answer(handle.complete.options(call_id=f"job:{session_id}").remote())
    return await runtime.asession(session_id), True


def _job_session_id(job: str, number: int) -> str:
    return f"{JOB_PREFIX}{job}" if number == 1 else f"{JOB_PREFIX}{job}:{number}"


def job_name(output: str | Path | None) -> str:
    """The name of a job that was given none: the same for the same place of its output, and new where it has none."""
    if output is None:
        return f"batch-{secrets.token_hex(8)}"
    path = Path(output).expanduser().resolve()
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", path.name).strip(".-_")[:40]
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    return f"{plain or 'batch'}-{digest}"


def refuse_same_columns(own: Sequence[str], results: Sequence[str]) -> None:
    """A result must not hide what a row has of its own."""
    clash = sorted(set(own) & set(results))
    if clash:
        raise ValidationError(
            f"The rows have a column {clash[0]!r} already; give a prefix for the columns of results.",
            details={"field": "batch.prefix", "columns": clash},
        )
