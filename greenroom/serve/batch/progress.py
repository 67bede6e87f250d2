"""Progress of a batch for people: bars on a terminal, plain lines in a log."""

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from ...domain.batch_progress import Progress, Stop

if TYPE_CHECKING:
    from ...domain.account import AccountState

LINE_EVERY_S = 5.0
_MOST_SHOWN = 4


def described(progress: Progress, accounts: Mapping[str, "AccountState"]) -> str:
    """All of it on one line."""
    counts = progress.counts
    total = "" if progress.total is None else f"/{progress.total}"
    parts = [f"{counts.ended}{total} rows"]
    if counts.failed:
        parts.append(f"{counts.failed} failed ({_most(counts.errors)})")
    if counts.found:
        parts.append(f"{counts.found} done before")
    parts.append(f"{counts.running} under way")
    waits = waiting_for(progress, accounts)
    if waits:
        parts.append(waits)
    if progress.waiting:
        parts.append(f"{progress.waiting} to come")
    if len(counts.providers) > 1:
        parts.append(_most(counts.providers))
    parts.append(f"{counts.tokens['total_tokens']:,} tokens")
    if counts.cost_usd:
        parts.append(f"{counts.cost_usd:.4f} USD")
    parts.append(f"{progress.rate:.1f} rows/s")
    if progress.left_s is not None and counts.ended != progress.total:
        parts.append(f"{duration(progress.left_s)} left")
    if progress.stop is not Stop.NO:
        parts.append(f"stopping: {progress.stop_reason}")
    return ", ".join(parts)


def waiting_for(progress: Progress, accounts: Mapping[str, "AccountState"]) -> str:
    """What rows under way wait for, where accounts of providers hold them up."""
    names = [name for name in accounts if not progress.counts.providers or name in progress.counts.providers]
    found: list[str] = []
    for name in names:
        account = accounts[name]
        if account.waiting and account.wait_reason is not None:
            soon = f", {duration(account.retry_in_s)}" if account.retry_in_s >= 1 else ""
            found.append(f"{account.waiting} of them wait for {name} ({account.wait_reason}{soon})")
    return "; ".join(found)


def duration(seconds: float) -> str:
    """As people say it: 42 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _most(counter: Mapping[str, int]) -> str:
    ordered = sorted(counter.items(), key=lambda one: -one[1])
    shown = ", ".join(f"{name} {count}" for name, count in ordered[:_MOST_SHOWN])
    return shown if len(ordered) <= _MOST_SHOWN else f"{shown}, ..."


@contextmanager
def shown(
    stream: TextIO, accounts: Callable[[], Mapping[str, "AccountState"]]
) -> Generator[Callable[[Progress], None]]:
    """A function that shows progress on the stream while the block lasts."""
    with _bars(stream, accounts) if stream.isatty() else _lines(stream, accounts) as show:
        yield show


@contextmanager
def _lines(
    stream: TextIO, accounts: Callable[[], Mapping[str, "AccountState"]]
) -> Generator[Callable[[Progress], None]]:
    """A line every few seconds, and where something is new that people want to know at once."""
    last_s, last_stop = time.monotonic(), Stop.NO

    def show(progress: Progress) -> None:
        nonlocal last_s, last_stop
        now = time.monotonic()
        if now - last_s < LINE_EVERY_S and progress.stop is last_stop:
            return
        last_s, last_stop = now, progress.stop
        stream.write(f"{progress.job}: {described(progress, accounts())}\n")
        stream.flush()

    yield show


@contextmanager
def _bars(
    stream: TextIO, accounts: Callable[[], Mapping[str, "AccountState"]]
) -> Generator[Callable[[Progress], None]]:
    from rich.console import Console  # noqa: PLC0415  a log needs none of it
    from rich.progress import BarColumn, Progress as Bars, TextColumn  # noqa: PLC0415

    columns = (TextColumn("{task.fields[job]}"), BarColumn(), TextColumn("{task.fields[text]}"))
    with Bars(*columns, console=Console(file=stream), transient=True) as bars:
        task = bars.add_task("", total=None, job="", text="")

        def show(progress: Progress) -> None:
            bars.update(
                task,
                total=progress.total,
                completed=progress.counts.ended,
                job=progress.job,
                text=described(progress, accounts()),
            )

        yield show
