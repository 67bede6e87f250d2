"""Metrics of the whole runtime, as of now: made anew for each scrape, so that every replica says the same."""

import asyncio
from importlib.metadata import version

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ...actors.runtime import Runtime
from ...actors.runtime_overview import RuntimeStats
from ...domain.account import AccountState
from ...domain.budget import BudgetState
from ...domain.circuit import CircuitState


class _Found(Collector):
    """Metrics that are there already."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


async def registry_of(runtime: Runtime) -> CollectorRegistry:
    """What the runtime says of itself. Raises what its actors raise."""
    stats, statuses, accounts, budgets = await asyncio.gather(
        runtime.astats(), runtime.astatus_counts(), runtime.aaccounts(), runtime.abudgets()
    )
    registry = CollectorRegistry()
    info = GaugeMetricFamily("greenroom_build_info", "The version that serves.", labels=["version"])
    info.add_metric([version("greenroom")], 1)
    metrics = [info, *_of_stats(stats), *_of_statuses(statuses), *_of_accounts(accounts), *_of_budgets(budgets)]
    registry.register(_Found(metrics))
    return registry


def _of_stats(stats: RuntimeStats) -> list[Metric]:
    actors = GaugeMetricFamily("greenroom_actors", "Actors of the runtime.", labels=["kind"])
    held = GaugeMetricFamily("greenroom_live_sessions", "Sessions that have a process now.")
    kinds = [actor["kind"] for actor in stats.actors]
    for kind in sorted(set(kinds)):
        actors.add_metric([kind], kinds.count(kind))
    held.add_metric([], sum(len(actor.get("session_ids") or ()) for actor in stats.actors))
    events = CounterMetricFamily("greenroom_events", "Events that were committed and are kept.")
    events.add_metric([], stats.events)
    size = GaugeMetricFamily("greenroom_store_bytes", "Size of the event store on the disk.")
    size.add_metric([], stats.bytes)
    return [actors, held, events, size]


def _of_statuses(counts: dict[str, dict[str, int]]) -> list[Metric]:
    found: list[Metric] = []
    for noun, by_status in sorted(counts.items()):
        family = GaugeMetricFamily(f"greenroom_{noun}", f"The {noun} that there are.", labels=["status"])
        for status, count in sorted(by_status.items()):
            family.add_metric([status], count)
        found.append(family)
    return found


def _of_accounts(accounts: dict[str, AccountState]) -> list[Metric]:
    state = GaugeMetricFamily("greenroom_breaker_state", "1 for the state it is in.", labels=["provider", "state"])
    under_way = GaugeMetricFamily("greenroom_attempts_under_way", "Attempts at a provider.", labels=["provider"])
    waiting = GaugeMetricFamily("greenroom_attempts_waiting", "Attempts that wait for one.", labels=["provider"])
    for name, account in sorted(accounts.items()):
        for one in CircuitState:
            state.add_metric([name, one.value], account.state is one)
        under_way.add_metric([name], account.under_way)
        waiting.add_metric([name], account.waiting)
    return [state, under_way, waiting]


def _of_budgets(budgets: dict[str, BudgetState]) -> list[Metric]:
    spent = GaugeMetricFamily("greenroom_budget_spent_usd", "Spent of a budget, in USD.", labels=["scope"])
    limit = GaugeMetricFamily("greenroom_budget_limit_usd", "What may be spent, in USD.", labels=["scope"])
    for scope, budget in sorted(budgets.items()):
        if budget.spent_usd is not None and budget.options.max_cost_usd is not None:
            spent.add_metric([scope], budget.spent_usd)
            limit.add_metric([scope], budget.options.max_cost_usd)
    return [spent, limit]
