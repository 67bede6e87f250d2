"""A stage of a Ray Data pipeline that carries rows out as runs."""

import asyncio
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import ray

from ...actors.batch_job import find_job
from ...actors.live_session import WOUND_DOWN
from ...actors.row_sender import RowSender
from ...actors.runtime import Runtime
from ...actors.starting import joined, runtime_namespace
from ...adapters.batch.arrow import arrow
from ...adapters.batch.own_columns import ROW_ERROR, ROW_NUMBER, values_of
from ...adapters.batch.templates import renderer
from ...adapters.collector import collect_seldom
from ...adapters.logs import get_logger
from ...adapters.option_parsing import parse_options
from ...domain.batch_input import RowInput, RowReader, unreadable
from ...domain.batch_options import JOB_NAME_LENGTH, BatchOptions
from ...domain.batch_progress import Counts, Stop
from ...domain.batch_row import (
    RESULT_COLUMNS,
    LedgerEntry,
    RowWork,
    fingerprint,
    result_columns,
    row_session_id,
)
from ...domain.errors import (
    Cancelled,
    GreenroomError,
    RuntimeGone,
    SessionDraining,
    StorageFull,
    ValidationError,
)
from ...domain.run import RunResult
from .setup import Setup, prepare, refuse_same_columns

_log = get_logger(__name__)

STOPPED = "the batch was stopped"
"""Why runs are cancelled that were under way when a job was stopped: they count as not done."""

REPORT_S = 0.25
_FULL_RETRY_S = 1.0
LEDGER_PAGE = 512
"""Rows that are looked up with one call."""

Outcome = RunResult | GreenroomError


class _Unit(NamedTuple):
    """Rows that are carried out in one session: one, or a group."""

    places: list[int]
    """Where they stand in the table."""
    inputs: list[RowInput]


class BatchRunner:
    """For `ds.map_batches(greenroom.BatchRunner, fn_constructor_kwargs={"provider": "claude"}, concurrency=2)`.

    Each row becomes a session with one run (or one for each of its turns), and comes out with its own columns and those
    of its result (`greenroom.domain.batch_row.RESULT_COLUMNS`). A row that cannot be carried out, or fails, comes out
    too, with `status`, `error_code` and `error_message`. Takes the options of `greenroom.batch` that are not about
    files: `provider`, `model`, `system_prompt`, `options`, `tools`, `key`, `prompt`, `turns`, `template`, `session`
    (groups must be whole within a batch), `concurrency` (of each actor of the stage), `priority`, `job`,
    `retry_failed`, `metadata`, `tags`, `prefix`.

    With a `job`, rows that it has finished are not done again, whatever happened to the pipeline; without one, the
    driver is the job: a block that Ray Data does over is found, and so are equal rows of its other executions. The
    runtime must live on the same Ray cluster: `greenroom.start()` before. Not guaranteed: the order of rows that end.
    """

    def __init__(self, setup: Setup | None = None, *, data_dir: str | None = None, **options: Any) -> None:
        self._setup = setup
        self._data_dir = data_dir
        self._options = options
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._counts = Counts()
        self._stop = Stop.NO
        self._ready: asyncio.Task[None] | None = None
        self._reporting: asyncio.Task[None] | None = None
        self._under_way: set[str] = set()

    async def __call__(self, batch: Any) -> Any:
        """The rows with their results: those of a job that was stopped only as far as they were done."""
        if self._ready is None:
            self._ready = asyncio.get_running_loop().create_task(self._join())
        await asyncio.shield(self._ready)
        pa = arrow()
        table = _table(batch)
        if table.num_rows == 0:
            return table
        rows = cast("list[dict[str, Any]]", table.to_pylist())
        results = await self._results(rows)
        await self._say()  # so that what is said last is right
        done = [place for place, result in enumerate(results) if result is not None]
        marks = (ROW_ERROR,) if self._own().keeps_numbers else (ROW_ERROR, ROW_NUMBER)
        table = table.drop_columns([name for name in marks if name in table.column_names])
        if len(done) < len(rows):
            table = table.take(pa.array(done, pa.int64()))
        return _with_results(table, [results[place] for place in done], self._own().prefix)

    # Joining

    def _own(self) -> Setup:
        assert self._setup is not None, "it has joined"
        return self._setup

    async def _join(self) -> None:
        collect_seldom()
        if self._setup is None:
            options = parse_options(
                BatchOptions, {k: v for k, v in self._options.items() if k != "tools"}, field="batch"
            )
            if not options.resume:
                raise ValidationError(
                    "A stage of a pipeline cannot begin a job anew; give it another job.",
                    details={"field": "batch.resume"},
                )
            namespace = None if self._data_dir is None else runtime_namespace(self._data_dir)
            self._runtime = await asyncio.to_thread(joined, namespace)
            self._setup = await prepare(
                self._runtime,
                options,
                job=options.job or _driver_name(),
                tools=self._options.get("tools", ()),
                about={},
                now_ms=_now_ms(),
                slots=options.concurrency,
                columns=None,
            )
        else:
            self._runtime: Runtime = await asyncio.to_thread(joined, self._setup.address.namespace)
        setup = self._setup
        self._job: Any = find_job(setup.address, setup.plan.job)
        self._slots = asyncio.Semaphore(setup.slots)
        self._sender = RowSender(setup.address, setup.plan)
        self._turns_sender = RowSender(setup.address, _with_options(setup))
        render = None if setup.template is None else renderer(setup.template)
        self._reader = RowReader(
            setup.layout, render=render, tool_names=list(setup.tools), max_input_bytes=setup.max_input_bytes
        )
        self._reporting = asyncio.get_running_loop().create_task(self._report())

    async def _report(self) -> None:
        """Say how far it is, and hear whether to stop, for as long as the process lives."""
        while self._job is not None:
            try:
                await self._say()
            except ray.exceptions.RayError:
                return  # whoever drives the job has gone, and takes this process along
            await asyncio.sleep(REPORT_S)

    async def _say(self) -> None:
        if self._job is None:
            return
        stop: Stop = await self._job.report.remote(self._name, self._counts)
        if self._stop is not Stop.CANCEL:
            self._stop = stop
        if self._stop is not Stop.NO:
            for sender in (self._sender, self._turns_sender):
                sender.give_up(STOPPED)
        if self._stop is Stop.CANCEL:
            await self._cancel_all()  # again and again: some may only just have begun

    async def _cancel_all(self) -> None:
        handles = [self._runtime.handle(session_id) for session_id in self._under_way]
        answers = [handle.cancel_all.remote(STOPPED) for handle in handles]
        await asyncio.gather(*answers, return_exceptions=True)

    # Rows

    async def _results(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | None]:
        """The columns of results of each row; None of one that was not done because the job was stopped."""
        results: list[dict[str, Any] | None] = [None] * len(rows)
        units = self._units(rows, results)
        works = [self._work(unit, attempt=0) for unit in units]
        entries = {} if self._own().is_new and not self._is_again() else await self._ledger(works)
        left = zip(units, works, strict=True)

        async def carry_on() -> None:
            for unit, work in left:
                await self._settle(unit, work, entries, results)

        await asyncio.gather(*(carry_on() for _ in range(min(len(units), self._own().slots))))
        return results

    def _is_again(self) -> bool:
        """Whether this process may be there in place of one that died in the middle of its rows."""
        return bool(ray.get_runtime_context().was_current_actor_reconstructed)

    def _units(self, rows: Sequence[Mapping[str, Any]], results: list[dict[str, Any] | None]) -> list[_Unit]:
        """What there is to do; rows with which nothing can be done have their results with this."""
        setup = self._own()
        groups: dict[Any, _Unit] = {}
        for place, row in enumerate(rows):
            values = values_of(row, setup.columns)
            try:
                if row.get(ROW_ERROR) is not None:
                    raise unreadable(row[ROW_ERROR])
                read = self._reader.read(values)
            except GreenroomError as exc:
                results[place] = self._ended(None, [exc], found=False)
                continue
            shared = None if setup.session_column is None else values.get(setup.session_column)
            group: Any = place if shared is None else f"{type(shared).__name__} {shared}"
            unit = groups.setdefault(group, _Unit([], []))
            unit.places.append(place)
            unit.inputs.append(read)
        return list(groups.values())

    def _work(self, unit: _Unit, *, attempt: int) -> RowWork:
        setup = self._own()
        inputs = tuple(one for read in unit.inputs for one in read.inputs)
        keys = tuple(read.key for read in unit.inputs)
        names = unit.inputs[0].tools
        content = fingerprint({**setup.config, "row_tools": names}, inputs)
        session_id = row_session_id(
            setup.plan.job, "\0".join(keys), content, job_started_ms=setup.started_ms, attempt=attempt
        )
        return RowWork(session_id, keys, inputs, self._tools(names))

    def _tools(self, names: tuple[str, ...] | None) -> bytes | None:
        tools = self._own().tools
        wanted = tuple(tools) if names is None else names
        if not wanted:
            return None
        from ...adapters.tool_packing import join_toolboxes  # noqa: PLC0415  few batches have tools

        return join_toolboxes([tools[name] for name in wanted])

    async def _ledger(self, works: Sequence[RowWork]) -> dict[str, LedgerEntry]:
        """What became of those that were begun before."""
        ids = [work.session_id for work in works]
        pages = [ids[start : start + LEDGER_PAGE] for start in range(0, len(ids), LEDGER_PAGE)]
        found: dict[str, LedgerEntry] = {}
        for page in pages:
            found |= await self._runtime.aledger(page)
        return found

    async def _settle(
        self, unit: _Unit, work: RowWork, entries: Mapping[str, LedgerEntry], results: list[dict[str, Any] | None]
    ) -> None:
        outcomes, session_id, found = await self._outcomes(unit, work, entries)
        if outcomes is None:
            return
        if self._own().session_column is None:
            results[unit.places[0]] = self._ended(session_id, outcomes, found=found)
            return
        first = 0
        for place, read in zip(unit.places, unit.inputs, strict=True):
            mine = outcomes[first : first + len(read.inputs)] or outcomes[-1:]  # a session that was refused has one end
            first += len(read.inputs)
            if not any(map(_was_stopped, mine)):
                results[place] = self._ended(session_id, mine, found=found)

    async def _outcomes(
        self, unit: _Unit, work: RowWork, entries: Mapping[str, LedgerEntry]
    ) -> tuple[list[Outcome] | None, str, bool]:
        """How the unit's runs ended, in which session, and whether they had before; None if it was not done."""
        attempt = 0
        entry = entries.get(work.session_id)
        while entry is not None and (known := entry.outcomes) is not None:
            if not self._is_done_over(entry, known):
                return known, work.session_id, True
            attempt += 1
            work = self._work(unit, attempt=attempt)
            entry = (await self._runtime.aledger([work.session_id])).get(work.session_id)
        async with self._slots:
            while self._stop is Stop.NO:
                outcomes = await self._run(work)
                if outcomes is None or self._was_stopped(outcomes):
                    break
                if any(isinstance(outcome, SessionDraining) for outcome in outcomes):
                    await self._drain("the runtime is draining")
                    break
                if any(isinstance(outcome, StorageFull) for outcome in outcomes):
                    await asyncio.sleep(_FULL_RETRY_S)  # it goes on when there is room
                    continue
                if not any(_has_reason(outcome, WOUND_DOWN) for outcome in outcomes):
                    return outcomes, work.session_id, False
                attempt += 1  # its server was emptied: it begins anew elsewhere
                work = self._work(unit, attempt=attempt)
        return None, work.session_id, False

    def _was_stopped(self, outcomes: Sequence[Outcome]) -> bool:
        return self._own().session_column is None and any(map(_was_stopped, outcomes))

    def _is_done_over(self, entry: LedgerEntry, outcomes: Sequence[Outcome]) -> bool:
        if any(_was_stopped(outcome) or _has_reason(outcome, WOUND_DOWN) for outcome in outcomes):
            return True
        before_ms = self._own().retry_failed_before_ms
        failed = any(isinstance(outcome, GreenroomError) for outcome in outcomes)
        return failed and before_ms is not None and entry.session.updated_at.timestamp() * 1_000 < before_ms

    async def _run(self, work: RowWork) -> list[Outcome] | None:
        several = len(work.inputs) > 1
        sender = self._turns_sender if several else self._sender
        self._under_way.add(work.session_id)
        self._counts.running = len(self._under_way)
        try:
            return await sender.run(work)
        except SessionDraining as exc:
            await self._drain(exc.message)
            return None
        except RuntimeGone:
            raise
        except GreenroomError as exc:
            return [exc for _ in work.inputs]
        finally:
            self._under_way.discard(work.session_id)
            self._counts.running = len(self._under_way)

    async def _drain(self, reason: str) -> None:
        """Nothing else begins, here and elsewhere."""
        self._stop = Stop.DRAIN
        if self._job is not None:
            await self._job.stop.remote(Stop.DRAIN, reason)

    def _ended(self, session_id: str | None, outcomes: Sequence[Outcome], *, found: bool) -> dict[str, Any]:
        columns = result_columns(session_id, outcomes)
        self._counts.add(columns, found=found)
        return columns


def _driver_name() -> str:
    """The same for all processes of one driver, and for no other driver on any cluster."""
    context = ray.get_runtime_context()
    return f"pipeline-{context.get_session_name()}-{context.get_job_id()}"[-JOB_NAME_LENGTH:].lstrip("-_.")


def _with_options(setup: Setup) -> Any:
    from dataclasses import replace  # noqa: PLC0415

    return replace(setup.plan, options=setup.turn_options)


def _was_stopped(outcome: Outcome) -> bool:
    return _has_reason(outcome, STOPPED)


def _has_reason(outcome: Outcome, reason: str) -> bool:
    return isinstance(outcome, Cancelled) and outcome.details.get("reason") == reason


def _table(batch: Any) -> Any:
    """The rows as a table of Arrow, in whatever form Ray Data gives them."""
    pa = arrow()
    if isinstance(batch, pa.Table):
        return batch
    if isinstance(batch, Mapping):
        arrays = cast("Mapping[str, Any]", batch)
        return pa.table({name: pa.array(list(values)) for name, values in arrays.items()})
    return pa.Table.from_pandas(batch, preserve_index=False)


def _with_results(table: Any, results: Sequence[Mapping[str, Any] | None], prefix: str) -> Any:
    pa = arrow()
    types = {str: pa.string(), int: pa.int64(), float: pa.float64(), list: pa.list_(pa.string())}
    refuse_same_columns(table.column_names, [prefix + name for name in RESULT_COLUMNS])
    for name, kind in RESULT_COLUMNS.items():
        values = [result[name] for result in results if result is not None]
        table = table.append_column(prefix + name, pa.array(values, types[kind]))
    return table


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
