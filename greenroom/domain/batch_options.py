"""The options of a batch, with their defaults in one place."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import ValidationError

DEFAULT_CONCURRENCY = 64
BATCH_PRIORITY = -10
"""Below that of runs that somebody waits for."""

RUN_DEFAULTS: Mapping[str, Any] = {"on_crash": "retry", "max_attempts": 5, "retry_budget_s": 600.0}
"""What runs of a batch are given beside what they are given: a process that dies, or an account that is at its limit,
is no reason to fail. What a run did before its process died may be done twice."""

TURN_DEFAULTS: Mapping[str, Any] = {"continuation": "auto"}
"""The same for those that follow each other in one session."""

JOB_NAME_LENGTH = 64
JOB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """How the rows of a batch are carried out. Checked when made: a bad value raises ValidationError that names the
    field."""

    provider: str | None = None
    """A provider, or a router, by its name; None: the runtime's default."""
    model: str | None = None
    system_prompt: str | None = None
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    """Run options of every row."""
    concurrency: int = DEFAULT_CONCURRENCY
    """How many rows may be under way at once, over all nodes."""
    priority: int = BATCH_PRIORITY
    job: str | None = None
    """The name of the job: rows that it has finished are not done again. None: made of where the output goes."""
    resume: bool = True
    """False: a job of this name begins anew, and does all rows again."""
    retry_failed: bool = False
    """Rows that have ended without completing are done over."""
    key: str | None = None
    """The column that names a row, for ever. None: `id`; where there is none, a row is named by what it holds."""
    prompt: str | None = None
    """The column with the input. None: `prompt`, or else `messages`."""
    turns: str = "turns"
    """The column with a list of inputs, which follow each other in one session."""
    template: str | None = None
    """A Jinja2 template that makes the input from the columns; or the path of one."""
    session: str | None = None
    """A column: rows with the same value in it share a session, and run in their order."""
    agent_id: str = "batch"
    tenant: str | None = None
    """Whose rows they are: limits of the tenant hold, and nobody else sees them over HTTP."""
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    """Of every row's session."""
    tags: tuple[str, ...] = ()
    prefix: str = ""
    """Goes before the names of the columns of results."""
    limit: int | None = None
    """Only so many rows, the first ones."""
    max_failures: int | None = None
    """The job stops when more rows than that have failed."""
    drain_s: float = 60.0
    """When it is stopped: how long rows that are under way may take to end."""

    def __post_init__(self) -> None:
        for name, least in (("concurrency", 1), ("limit", 1), ("max_failures", 0), ("drain_s", 0)):
            value = getattr(self, name)
            if value is not None and not least <= value < float("inf"):
                raise _refusal(name, f"is {value}; it must be at least {least}")
        if self.job is not None and not JOB_NAME.fullmatch(self.job):
            raise _refusal("job", f"{self.job!r} is no name; give letters, digits and . _ - (at most 64)")
        if self.template is not None and self.prompt is not None:
            raise _refusal("template", "and prompt are both given; give one of them")
        for name in ("model", "priority"):
            if name in self.options:
                raise _refusal(f"options.{name}", f"is given as {name}")
        for name in ("provider", "router"):
            if name in self.options:
                raise _refusal(f"options.{name}", "is given as provider")

    def run_options(self) -> dict[str, Any]:
        """The options of the runs, as they are given to them."""
        defaults = RUN_DEFAULTS if self.session is None else {**RUN_DEFAULTS, **TURN_DEFAULTS}
        found = {**defaults, **self.options, "priority": self.priority}
        return found if self.model is None else {**found, "model": self.model}

    def config(self) -> dict[str, Any]:
        """What of this makes a row another piece of work when it changes, beside its input."""
        ignored = {"priority", "retry_budget_s", "on_crash", "max_attempts"}
        options = {name: value for name, value in self.run_options().items() if name not in ignored}
        return {"provider": self.provider, "system_prompt": self.system_prompt, "options": options}


def _refusal(name: str, text: str) -> ValidationError:
    return ValidationError(f"batch.{name} {text}.", details={"field": f"batch.{name}"})
