"""What a batch would do, and about what that would cost; nothing is done and nothing changes."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ...actors.provider_set import ProviderSet
from ...actors.runtime import Runtime
from ...adapters.batch.own_columns import ROW_ERROR, values_of
from ...adapters.batch.templates import renderer
from ...domain.batch_input import RowReader, unreadable
from ...domain.errors import GreenroomError
from ...domain.run_input import parse_input
from ...domain.token_usage import TokenUsage
from ...domain.transcript import CHARACTERS_PER_TOKEN
from .setup import Setup

ASSUMED_OUTPUT_TOKENS = 500
"""What an answer is taken to be long where nothing says how long it may be."""


@dataclass(slots=True, kw_only=True)
class DryRun:
    """A forecast. Tokens are characters divided by four, for whole conversations: each turn of a row says again what
    was said before it."""

    job: str
    rows: int = 0
    invalid: int = 0
    """Rows that would fail at once."""
    errors: Counter[str] = field(default_factory=Counter[str])
    """Of those, by their message; the ten first ones."""
    runs: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    """At most, where the provider or the run has a limit; else 500 for each run."""
    model: str | None = None
    cost_usd: float | None = None
    """None: no price is known for the model."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON-safe values."""
        plain = ("job", "rows", "invalid", "runs", "input_tokens", "output_tokens", "model", "cost_usd")
        return {**{name: getattr(self, name) for name in plain}, "errors": dict(self.errors)}


def dry_run(runtime: Runtime, dataset: Any, setup: Setup) -> DryRun:
    """Read every row as it would be read."""
    found = DryRun(job=setup.plan.job)
    render = None if setup.template is None else renderer(setup.template)
    reader = RowReader(setup.layout, render=render, tool_names=list(setup.tools), max_input_bytes=setup.max_input_bytes)
    settings = runtime.wait(runtime.asettings())
    most = _most_output_tokens(settings, setup)
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in table.to_pylist():
            found.rows += 1
            try:
                if row.get(ROW_ERROR) is not None:
                    raise unreadable(row[ROW_ERROR])
                inputs = reader.read(values_of(row, setup.columns)).inputs
            except GreenroomError as exc:
                found.invalid += 1
                if exc.message in found.errors or len(found.errors) < 10:  # noqa: PLR2004  as the docstring says
                    found.errors[exc.message] += 1
                continue
            _add(found, [sum(len(one.content) for one in parse_input(given)) for given in inputs], setup, most)
    _price(found, settings, setup)
    return found


def _add(found: DryRun, characters: list[int], setup: Setup, most: int) -> None:
    said = len(setup.plan.spec.context.get("system_prompt") or "") // CHARACTERS_PER_TOKEN
    for size in characters:
        said += max(1, size // CHARACTERS_PER_TOKEN)
        found.runs += 1
        found.input_tokens += said
        found.output_tokens += most
        said += most


def _most_output_tokens(settings: dict[str, Any], setup: Setup) -> int:
    declared = settings["providers"].get(setup.plan.spec.provider)
    options: dict[str, Any] = dict(declared.options) if declared else {}
    options |= setup.plan.options.get("provider_options") or {}
    return int(options.get("max_tokens") or ASSUMED_OUTPUT_TOKENS)


def _price(found: DryRun, settings: dict[str, Any], setup: Setup) -> None:
    providers = ProviderSet(settings["providers"], settings["routers"])
    name = setup.plan.spec.provider or settings["default_provider"]
    router = providers.router(name)
    if router is not None:
        name = router.providers[0]  # the one that is tried first
    found.model = setup.plan.options.get("model") or providers.manifest(name, None).model
    usage = TokenUsage(input_tokens=found.input_tokens, output_tokens=found.output_tokens)
    found.cost_usd = providers.price_usd(name, found.model, usage)
