"""A batch from beginning to end: what there is to do, the pipeline that does it, and what came of it."""

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from ...actors.batch_job import start_job
from ...actors.ray_errors import RAY_TROUBLE, raise_bare
from ...actors.runtime import Runtime
from ...actors.starting import start
from ...adapters.batch.arrow import extra_module
from ...adapters.batch.output import MIN_ROWS_PER_FILE, Output, results_in, write_jsonl
from ...adapters.batch.own_columns import (
    ROW_NUMBER,
    Columns,
    Kind,
    columns_of,
    join_columns,
    table_of,
    values_of,
)
from ...adapters.batch.source_files import Chunk, Format, SourceFiles, SourceRow, chunks_of, find_files
from ...adapters.native_stderr import RAY_LOG_LINE, native_lines_dropped
from ...adapters.option_parsing import parse_options
from ...domain.batch_input import DEFAULT_KEY
from ...domain.batch_options import BatchOptions
from ...domain.batch_progress import Progress, Stop
from ...domain.batch_row import RESULT_COLUMNS
from ...domain.batch_summary import BatchSummary
from ...domain.errors import AlreadyExists, GreenroomError, InternalError, ValidationError
from .runner import BatchRunner
from .setup import Setup, job_name, prepare, refuse_same_columns

if TYPE_CHECKING:
    from .dry_run import DryRun

MAX_ROWS_PER_BLOCK = 1_000
ROWS_PER_RUNNER = 512
"""Rows that one process of the pipeline has under way; each of them costs it 0.1 ms and some kilobytes."""

_DYING_S = 15.0
"""How long to wait for a job of the same name whose process has just died."""
_LOOK_S = 0.5
_CANCEL_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Rows to be done."""

    dataset: Any
    total: int | None
    columns: Columns | None
    """Their own columns, where they come from files; None: they come as a table has them."""
    names: tuple[str, ...]
    """Of the own columns."""
    shown: str


class Batch:
    """One run of a job. `stop` may be called from anywhere, also from a signal handler's thread."""

    def __init__(
        self,
        source: Any,
        output: str | Path | None,
        *,
        options: BatchOptions,
        tools: Sequence[Any] = (),
        split: str | None = None,
    ) -> None:
        self._given = source
        self._split = split
        self._options = options
        self._tools = tools
        self._job: Any = None
        self._asked: tuple[Stop, str] | None = None
        self._error: BaseException | None = None
        self._over = threading.Event()
        self._job_name = options.job or job_name(output)
        self.output = None if output is None else Output(output, self._job_name)

    @property
    def name(self) -> str:
        """The name of the job."""
        return self._job_name

    def run(self, runtime: Runtime, progress: Callable[[Progress], None] | None = None) -> BatchSummary:
        """Do it. `progress` is called twice a second. A KeyboardInterrupt lets what is under way end and nothing else
        begin; a second one cancels that; what is done is written in any case."""
        began = time.monotonic()
        runners = self._runners()
        source = self._source(runs=True)
        refuse_same_columns(source.names, [self._options.prefix + name for name in RESULT_COLUMNS])
        self._job = self._claim(runtime, source)
        try:
            setup = self._prepared(runtime, source, runners)
            summary = BatchSummary(
                job=self.name, output=None if self.output is None else str(self.output.path), total=source.total
            )
            work = threading.Thread(target=self._guarded, args=(source, setup, runners, summary), daemon=True)
            with native_lines_dropped(RAY_LOG_LINE):  # of how Ray Data starts its actors
                work.start()
                last = self._wait(source.total, progress)
            if self._error is not None:
                if self.output is not None:
                    self.output.give_up()
                raise _translated(self._error)
            return self._finished(summary, last, time.monotonic() - began)
        finally:
            with suppress(*RAY_TROUBLE, ValueError):  # it may have gone with Ray
                ray.kill(self._job)

    def stop(self, stop: Stop, reason: str) -> None:
        """End sooner than the rows do."""
        self._asked = (stop, reason)
        if self._job is not None:
            self._job.stop.remote(stop, reason)

    def dry_run(self, runtime: Runtime) -> "DryRun":
        """Say what would be done; nothing changes."""
        from .dry_run import dry_run  # noqa: PLC0415  few ask

        source = self._source(runs=False)
        refuse_same_columns(source.names, [self._options.prefix + name for name in RESULT_COLUMNS])
        with quiet_data():
            return dry_run(runtime, source.dataset, self._prepared(runtime, source, 1, begins=False))

    def _source(self, *, runs: bool) -> Source:
        return find_source(
            self._given, options=self._options, split=self._split, rows=self._rows_per_block(), runs=runs
        )

    def _runners(self) -> int:
        return max(1, math.ceil(self._options.concurrency / ROWS_PER_RUNNER))

    def _rows_per_block(self) -> int:
        return max(16, min(MAX_ROWS_PER_BLOCK, math.ceil(self._options.concurrency / self._runners() / 2)))

    def _claim(self, runtime: Runtime, source: Source) -> Any:
        """The job is this process's from now on. AlreadyExists while another one drives it."""
        about = {"source": source.shown, "output": None if self.output is None else str(self.output.path)}
        deadline = time.monotonic() + _DYING_S
        while True:
            try:
                job = start_job(
                    runtime.address,
                    self.name,
                    max_failures=self._options.max_failures,
                    about={**about, "pid": os.getpid(), "concurrency": self._options.concurrency},
                )
                _ask(job.about.remote())
            except ValueError:
                pass
            else:
                return job
            if time.monotonic() > deadline:
                raise AlreadyExists(
                    f"Job {self.name!r} is under way already; see `greenroom batch status {self.name}`.",
                    details={"job": self.name},
                )
            time.sleep(_LOOK_S)

    def _prepared(self, runtime: Runtime, source: Source, runners: int, *, begins: bool = True) -> Setup:
        preparing = prepare(
            runtime,
            self._options,
            job=self.name,
            tools=self._tools,
            about={"source": source.shown, "output": None if self.output is None else str(self.output.path)},
            now_ms=time.time_ns() // 1_000_000,
            slots=math.ceil(self._options.concurrency / runners),
            columns=source.columns,
            begins=begins,
        )
        return replace(runtime.wait(preparing), keeps_numbers=self.output is None or self.output.is_jsonl)

    # Doing it

    def _guarded(self, source: Source, setup: Setup, runners: int, summary: BatchSummary) -> None:
        try:
            with quiet_data():
                self._execute(source, setup, runners, summary)
        except BaseException as exc:  # noqa: BLE001  raised by whoever waits
            self._error = exc
        finally:
            self._over.set()

    def _execute(self, source: Source, setup: Setup, runners: int, summary: BatchSummary) -> None:
        data: Any = extra_module("ray.data")
        calls = 2 + math.ceil(setup.slots / self._rows_per_block())
        rows = source.dataset.map_batches(
            BatchRunner,
            batch_size=None,
            batch_format="pyarrow",
            compute=data.ActorPoolStrategy(
                size=runners, max_tasks_in_flight_per_actor=calls + 1, max_concurrent_calls_per_actor=calls
            ),
            num_cpus=0,
            fn_constructor_kwargs={"setup": setup},
        )
        if self.output is None:
            summary.rows = _kept(rows, setup, summary)
        elif self.output.is_jsonl:
            write_jsonl(
                _tables(rows), self.output.begin(), columns=setup.columns, prefix=setup.prefix, see=summary.counts.add
            )
        else:
            path = self.output.begin()
            rows.write_parquet(str(path), min_rows_per_file=MIN_ROWS_PER_FILE)
            results_in(path, prefix=setup.prefix, see=summary.counts.add)

    def _wait(self, total: int | None, progress: Callable[[Progress], None] | None) -> Progress | None:
        """Until it is done, whatever comes between."""
        asked, last, cancel_at = Stop.NO, None, math.inf
        while True:
            try:
                # Not join: interrupted in it, Python 3.11 takes a thread for ended that is not (bpo-45274).
                is_over = self._over.wait(_LOOK_S)
                found: Progress = _ask(self._job.progress.remote())
                if found.total != total:  # it does not know yet, or was started anew
                    self._job.expect.remote(total)
                if self._asked is not None and found.stop is Stop.NO:
                    self.stop(*self._asked)
                if found.stop is Stop.DRAIN and cancel_at == math.inf:
                    cancel_at = time.monotonic() + self._options.drain_s
                if time.monotonic() > cancel_at:
                    self.stop(Stop.CANCEL, found.stop_reason or "")
                    cancel_at = time.monotonic() + _CANCEL_S
                last = found
                if progress is not None:
                    progress(found)
                if is_over:
                    return last
            except KeyboardInterrupt:
                if asked is Stop.CANCEL:
                    raise
                asked = Stop.DRAIN if asked is Stop.NO else Stop.CANCEL
                self.stop(asked, "interrupted")

    def _finished(self, summary: BatchSummary, last: Progress | None, seconds: float) -> BatchSummary:
        summary.seconds = seconds
        if last is not None:
            summary.counts.found = last.counts.found
            is_whole = summary.total is None or summary.ended == summary.total
            summary.stopped = last.stop_reason if last.stop_reason or is_whole else "not all rows have ended"
            if summary.ended == summary.total:
                summary.stopped = None  # whatever was asked for came too late
        if self.output is not None:
            self.output.finish(summary.to_dict())
        return summary


def batch(
    source: Any,
    output: str | Path | None = None,
    *,
    tools: Sequence[Any] = (),
    split: str | None = None,
    runtime: Runtime | None = None,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> BatchSummary:
    """Carry out every row of a source, each as a run in a session of its own, and write the rows with their results.

    `source`: a path (JSON Lines, CSV, Parquet, or a directory of such files or of text files), a list of mappings, or a
    Ray Dataset. `output`: a directory for Parquet files, or a path that ends in `.jsonl`; None: the summary holds the
    rows. `options` are those of BatchOptions; `tools` as for `open_session`.

    A row that fails is a row of the output, with its error. A job that was killed goes on where it was when it is
    started again with the same `job` (or the same output): no finished row is done twice, and the output has every row
    once. A changed row, or a changed configuration, is another piece of work. The output is put in its place when all
    of it is written. Raises ValidationError for a bad option, source or output, before anything is done; AlreadyExists
    while the job is under way elsewhere.
    """
    parsed = parse_options(BatchOptions, options, field="batch")
    return Batch(source, output, options=parsed, tools=tools, split=split).run(runtime or start(), progress)


# Sources


def find_source(given: Any, *, options: BatchOptions, split: str | None, rows: int, runs: bool) -> Source:
    """The rows of a source as a Dataset, in blocks of so many where they come from files; `runs`: it is to be run."""
    data: Any = extra_module("ray.data")
    if isinstance(given, data.Dataset):
        dataset: Any = given if options.limit is None else given.limit(options.limit)
        return _of_table(dataset, "a Ray Dataset", options)
    if isinstance(given, list | tuple):
        return _of_items(list(given)[: options.limit], options, rows)  # pyright: ignore[reportUnknownArgumentType]
    if not isinstance(given, str | Path):
        raise ValidationError(
            f"The source is a {type(given).__name__}; give a path, a list of mappings, or a Ray Dataset.",
            details={"field": "source"},
        )
    files = find_files(given, split=split)
    if files.format is Format.PARQUET:
        return _of_parquet(files, options, rows, str(given))
    chunks = chunks_of(files, rows=rows, limit=options.limit)
    return _of_chunks(chunks, str(given), options, fused=runs and options.session is None)


def _of_chunks(chunks: Sequence[Chunk], shown: str, options: BatchOptions, *, fused: bool) -> Source:
    from .chunk_source import dataset_of  # noqa: PLC0415  loads Ray Data

    if not chunks:
        raise _no_rows(shown)
    columns = columns_of(chunks)
    with quiet_data():
        dataset = _grouped(dataset_of(chunks, columns, fused=fused), columns, options, numbered=True)
    return Source(
        dataset=dataset,
        total=sum(chunk.rows for chunk in chunks),
        columns=columns,
        names=tuple(columns),
        shown=shown,
    )


def _of_items(items: Sequence[Any], options: BatchOptions, rows: int) -> Source:
    read = [_source_row(number, item) for number, item in enumerate(items)]
    columns: Columns = {}
    join_columns(columns, read)
    tables = [table_of(read[start : start + rows], columns) for start in range(0, len(read), rows)]
    if not tables:
        raise _no_rows("The list")
    with quiet_data():
        dataset = _grouped(extra_module("ray.data").from_arrow(tables), columns, options, numbered=True)
    return Source(dataset=dataset, total=len(read), columns=columns, names=tuple(columns), shown="a list")


def _no_rows(shown: str) -> ValidationError:
    return ValidationError(f"{shown} has no rows.", details={"field": "source"})


def _source_row(number: int, item: Any) -> SourceRow:
    if not isinstance(item, Mapping):
        return SourceRow(number, {}, f"is a {type(item).__name__}, not a mapping of columns")
    return SourceRow(number, {str(name): value for name, value in item.items()})  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _of_parquet(files: SourceFiles, options: BatchOptions, rows: int, shown: str) -> Source:
    parquet: Any = extra_module("pyarrow.parquet")
    try:
        total: int = sum(parquet.read_metadata(path).num_rows for path in files.paths)
    except (OSError, ValueError) as exc:  # ArrowInvalid is a ValueError
        raise ValidationError(f"{shown} cannot be read as Parquet: {exc}.", details={"field": "source"}) from exc
    with quiet_data():
        dataset: Any = extra_module("ray.data").read_parquet([str(path) for path in files.paths])
        if options.limit is not None:
            dataset, total = dataset.limit(options.limit), min(total, options.limit)
        dataset = dataset.repartition(target_num_rows_per_block=rows)
    return replace(_of_table(dataset, shown, options), total=total)


def _of_table(dataset: Any, shown: str, options: BatchOptions) -> Source:
    with quiet_data():
        names = tuple(dataset.schema().names)
        return Source(
            dataset=_grouped(dataset, dict.fromkeys(names, Kind.NULL), options, numbered=False),
            total=None,
            columns=None,
            names=names,
            shown=shown,
        )


def _grouped(dataset: Any, columns: Mapping[str, Any], options: BatchOptions, *, numbered: bool) -> Any:
    """Rows that share a session stand together, in the order of the source, or of their keys where it has none."""
    if options.session is None:
        return dataset
    if options.session not in columns:
        raise ValidationError(
            f"The rows have no column {options.session!r}; they have: {', '.join(columns)}.",
            details={"field": "batch.session"},
        )
    order = options.key or DEFAULT_KEY
    if order not in columns and ROW_NUMBER not in columns and not numbered:
        raise ValidationError(
            f"Rows that share a session need an order, and there is no column {order!r}; name one with key.",
            details={"field": "batch.key"},
        )

    def in_order(group: Any) -> Any:
        column = ROW_NUMBER if ROW_NUMBER in group.column_names else order
        return group.sort_by(column) if column in group.column_names else group

    return dataset.groupby(options.session).map_groups(in_order, batch_format="pyarrow")


# Ray Data


@contextmanager
def quiet_data() -> Generator[None]:
    """Ray Data without its bars, its log, and its idea of how long a row may take."""
    context: Any = extra_module("ray.data").DataContext.get_current()
    ours = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        "execution_no_progress_timeout_s": -1,
        "enable_auto_log_stats": False,
    }
    before = {name: getattr(context, name) for name in ours}
    logger = logging.getLogger("ray.data")
    level = logger.level
    try:
        for name, value in ours.items():
            setattr(context, name, value)
        logger.setLevel(logging.ERROR)
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)


def _tables(rows: Any) -> Iterable[Any]:
    return rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)


def _kept(rows: Any, setup: Setup, summary: BatchSummary) -> list[dict[str, Any]]:
    """All rows in memory, in the order of the source where it has one."""
    found: list[tuple[int, dict[str, Any]]] = []
    for table in _tables(rows):
        for row in table.to_pylist():
            number = row.pop(ROW_NUMBER, len(found))
            results = {name: row.pop(setup.prefix + name) for name in RESULT_COLUMNS}
            summary.counts.add(results)
            own = values_of(row, setup.columns)
            found.append((number, {**own, **{setup.prefix + name: value for name, value in results.items()}}))
    return [row for _, row in sorted(found, key=lambda one: one[0])]


def _translated(error: BaseException) -> BaseException:
    """What went wrong in a pipeline, from under what Ray Data wraps around it."""
    known: BaseException | None = error
    while known is not None:
        if isinstance(known, GreenroomError):
            return type(known)(known.message, details=known.details)
        known = getattr(known, "cause", None) or known.__cause__
    if isinstance(error, RAY_TROUBLE):
        text = str(error).strip().splitlines() or [type(error).__name__]
        return InternalError(f"The pipeline of the batch failed: {text[-1]}")
    return error


def _ask(answer: Any) -> Any:
    """What the job's actor answers. RuntimeGone when there is none any more."""
    try:
        return ray.get(answer)
    except RAY_TROUBLE as exc:
        raise_bare(exc)
