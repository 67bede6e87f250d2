"""`batch`: many rows through agents; `batch status` and `batch cancel` from anywhere."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ..domain.batch_options import BATCH_PRIORITY, DEFAULT_CONCURRENCY, BatchOptions
from ..domain.batch_progress import Stop
from ..domain.errors import NotFound, ValidationError
from .cli_errors import FAILED, INTERRUPTED, OK
from .cli_options import DataDir, Debug, invocation_of
from .cli_runtime import opened_runtime

if TYPE_CHECKING:
    from ..actors.runtime import Runtime
    from ..domain.batch_summary import BatchSummary
    from .batch.job import Batch

_RUN = "run"


class _RunByDefault(TyperGroup):
    """`greenroom batch INPUT` is `greenroom batch run INPUT`, unless INPUT is the name of a command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        first = next((one for one in args if not one.startswith("-")), None)
        asks_for_help = bool(args) and args[0] in ("-h", "--help")
        if first not in self.commands and not asks_for_help:
            args = [_RUN, *args]
        return super().parse_args(ctx, args)


batch = typer.Typer(
    cls=_RunByDefault,
    no_args_is_help=False,
    help="Carry out every row of a file as a run, and write them with their results: batch INPUT --output OUT.",
)

Job = Annotated[str, typer.Argument(metavar="JOB", help="The job's name.")]


@batch.command(_RUN)
def run(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="JSON Lines, CSV, Parquet, or a directory of such files or of texts.")
    ],
    *,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="OUT", help="A directory for Parquet files, or a .jsonl file."),
    ] = None,
    provider: Annotated[str | None, typer.Option("--provider", metavar="NAME", help="A provider or a router.")] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="NAME", help="Else the provider's.")] = None,
    system_prompt: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="The system prompt.")] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", metavar="N", help="Rows under way at once.")
    ] = DEFAULT_CONCURRENCY,
    job: Annotated[
        str | None,
        typer.Option("--job", metavar="ID", help="The job's name; else made of OUT."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with the job, or do all of its rows again.")
    ] = True,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Do rows over that have failed.")] = False,
    key: Annotated[
        str | None, typer.Option("--key", metavar="COLUMN", help="Names a row; else `id`, else what it holds.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="COLUMN", help="The input; else `prompt` or `messages`.")
    ] = None,
    turns: Annotated[
        str, typer.Option("--turns", metavar="COLUMN", help="A list of inputs for one session.")
    ] = "turns",
    template: Annotated[
        str | None, typer.Option("--template", metavar="TEXT|FILE", help="Jinja2: makes the input of the columns.")
    ] = None,
    session: Annotated[
        str | None, typer.Option("--session", metavar="COLUMN", help="Rows with the same value share a session.")
    ] = None,
    tool: Annotated[
        list[str] | None, typer.Option("--tool", metavar="MODULE:FUNCTION", help="A tool for the agent; repeatable.")
    ] = None,
    options: Annotated[str | None, typer.Option("--options", metavar="JSON", help="Run options of every row.")] = None,
    priority: Annotated[int, typer.Option("--priority", metavar="N", help="Interactive runs have 0.")] = BATCH_PRIORITY,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", help="Only the first N rows.")] = None,
    split: Annotated[str | None, typer.Option("--split", metavar="NAME", help="Of a directory: train ...")] = None,
    max_failures: Annotated[
        int | None, typer.Option("--max-failures", metavar="N", help="Stop when more rows than that have failed.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if a row has failed.")] = False,
    prefix: Annotated[str, typer.Option("--prefix", metavar="TEXT", help="Before the names of result columns.")] = "",
    tenant: Annotated[str | None, typer.Option("--tenant", metavar="T", help="Whose rows they are.")] = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and the cost.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as JSON on stdout.")] = False,
    data_dir: DataDir = None,
    debug: Debug = False,
) -> int:
    """Carry out every row of INPUT. Started again with the same job, it goes on where it was. Ctrl-C lets what is under
    way end, a second one cancels it; what is done is written."""
    given = {
        "provider": provider,
        "model": model,
        "system_prompt": system_prompt,
        "concurrency": concurrency,
        "job": job,
        "resume": resume,
        "retry_failed": retry_failed,
        "key": key,
        "prompt": prompt,
        "turns": turns,
        "template": template,
        "session": session,
        "options": _parsed(options),
        "priority": priority,
        "limit": limit,
        "max_failures": max_failures,
        "prefix": prefix,
        "tenant": tenant,
    }
    if output is None and not dry:
        raise typer.BadParameter("give --output OUT, or --dry-run", param_hint="--output")
    from ..adapters.option_parsing import parse_options  # noqa: PLC0415  these cost what `--help` must not
    from .batch.job import Batch  # noqa: PLC0415

    parsed = parse_options(BatchOptions, given, field="batch")
    made = Batch(source, output, options=parsed, tools=tool or (), split=split)
    with opened_runtime(invocation_of(context)) as runtime:
        if dry:
            return _show_dry_run(made, runtime, as_json=as_json)
        summary = _run_shown(made, runtime)
    return _ended(summary, strict=strict, as_json=as_json)


def _parsed(options: str | None) -> dict[str, Any]:
    if options is None:
        return {}
    try:
        given: Any = json.loads(options)
    except ValueError as exc:
        raise ValidationError(f"--options is not JSON: {exc}.", details={"field": "options"}) from exc
    if not isinstance(given, dict):
        raise ValidationError("--options must be a JSON object.", details={"field": "options"})
    return given  # pyright: ignore[reportUnknownVariableType]


def _run_shown(made: "Batch", runtime: "Runtime") -> "BatchSummary":
    from ..adapters.native_stderr import RAY_LOG_LINE, native_lines_dropped  # noqa: PLC0415
    from .batch.progress import shown  # noqa: PLC0415

    with native_lines_dropped(RAY_LOG_LINE), shown(sys.stderr, runtime.accounts) as show:
        return made.run(runtime, show)


def _ended(summary: "BatchSummary", *, strict: bool, as_json: bool) -> int:
    if as_json:
        sys.stdout.write(json.dumps(summary.to_dict()) + "\n")
    sys.stderr.write(_described(summary))
    if summary.stopped is not None:
        go_on = f"greenroom: stopped ({summary.stopped}); start it again with --job {summary.job} to go on.\n"
        sys.stderr.write(go_on)
        return INTERRUPTED if summary.stopped == "interrupted" else FAILED
    return FAILED if strict and summary.failed else OK


def _described(summary: "BatchSummary") -> str:
    from .batch.progress import duration  # noqa: PLC0415

    total = "" if summary.total is None else f" of {summary.total}"
    errors = ", ".join(f"{code} {count}" for code, count in summary.errors.most_common())
    tokens = summary.counts.tokens["total_tokens"]
    lines = [
        f"{summary.ended}{total} rows in {duration(summary.seconds)}, {summary.found} of them done before",
        f"{summary.statuses['completed']} completed, {summary.failed} failed{f' ({errors})' if errors else ''}",
        f"{tokens:,} tokens, {summary.counts.cost_usd:.4f} USD; written to {summary.output}",
    ]
    return "".join(f"{line}\n" for line in lines)


def _show_dry_run(made: "Batch", runtime: "Runtime", *, as_json: bool) -> int:
    found = made.dry_run(runtime)
    if as_json:
        sys.stdout.write(json.dumps(found.to_dict()) + "\n")
        return OK
    cost = "no price is known for it" if found.cost_usd is None else f"at most about {found.cost_usd:.2f} USD"
    lines = [
        f"{found.rows} rows, {found.runs} runs; {found.invalid} rows would fail at once",
        *(f"  {count}x {message}" for message, count in found.errors.most_common()),
        f"about {found.input_tokens:,} input and {found.output_tokens:,} output tokens of {found.model}: {cost}",
    ]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return OK


@batch.command()
def status(
    context: typer.Context,
    job: Job,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    data_dir: DataDir = None,
    debug: Debug = False,
) -> int:
    """How far a job has come."""
    from .batch.looking import job_state  # noqa: PLC0415  loads Ray

    with opened_runtime(invocation_of(context)) as runtime:
        found = job_state(runtime, job)
    if as_json:
        sys.stdout.write(json.dumps(found.to_dict()) + "\n")
    else:
        sys.stdout.write("".join(f"{line}\n" for line in found.lines()))
    return OK


@batch.command()
def cancel(
    context: typer.Context,
    job: Job,
    *,
    now: Annotated[bool, typer.Option("--now", help="Cancel what is under way too, and not let it end.")] = False,
    data_dir: DataDir = None,
    debug: Debug = False,
) -> int:
    """Stop a job: what is under way may end, nothing else begins, and what is done is written."""
    from .batch.looking import stop_job  # noqa: PLC0415  loads Ray

    with opened_runtime(invocation_of(context)) as runtime:
        if not stop_job(runtime, job, Stop.CANCEL if now else Stop.DRAIN, "cancelled"):
            raise NotFound(f"Job {job!r} is not under way.", details={"job": job})
    sys.stdout.write(f"{job} stops\n")
    return OK
