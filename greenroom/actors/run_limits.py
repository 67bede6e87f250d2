"""The limits that policies set to a run, held against what it uses: by events, by a clock, and before a tool runs."""

import asyncio
from collections.abc import Callable
from typing import Any

from ..domain.approval import Decision
from ..domain.errors import PolicyViolation
from ..domain.event import EventType
from ..domain.policy import POLICY_QUESTION, Breach, Metric, OnViolation, breaches
from ..domain.provider import ProviderEvent
from .approvals import Approvals
from .live_run import LiveRun

_KIND = "budget_exceeded"


class RunLimits:
    """Of one run, over all its attempts. Each limit is reported once. What the provider does on its own is seen when it
    says so; a tool call beyond the limit never runs."""

    def __init__(
        self,
        run: LiveRun,
        *,
        approvals: Approvals,
        report: Callable[[LiveRun, dict[str, Any]], None],
        stop: Callable[[LiveRun, PolicyViolation], None],
    ) -> None:
        self._run = run
        self._approvals = approvals
        self._report = report
        self._stop = stop
        self._loop = asyncio.get_running_loop()
        self._passed: set[Breach] = {
            Breach(one["policy"], Metric(one["metric"]), one["limit"], 0.0, OnViolation.WARN)
            for one in run.violations  # of earlier processes: a warning is given once
            if "metric" in one and one["action"] == OnViolation.WARN.value
        }
        self._questions: set[asyncio.Task[None]] = set()
        self._timers: list[asyncio.TimerHandle] = []
        self._tool_calls, self._turns = run.calls_before, run.turns_before
        self._is_over = False
        """Whether the provider has done all its work: there is nothing left to ask about."""
        self._counted: set[str] = set()

    def start(self, elapsed_s: float) -> None:
        """The first attempt of the run here begins; so long after that of the run."""
        for policy in self._run.policies:
            limit_s = policy.limits.get(Metric.DURATION_S)
            if limit_s is not None:
                breach = Breach(policy.name, Metric.DURATION_S, limit_s, limit_s, policy.on_violation)
                self._timers.append(self._loop.call_later(max(0.0, limit_s - elapsed_s), self._pass, breach))

    def close(self) -> None:
        """The run has ended."""
        for timer in self._timers:
            timer.cancel()
        for question in self._questions:
            question.cancel()

    def observe(self, event: ProviderEvent) -> None:
        """Something happened at the provider."""
        if event.type is EventType.TOKEN_USAGE_UPDATED:
            self.check_spending()
        elif event.type is EventType.TURN_COMPLETED:
            self._turns += 1
            self._check(Metric.TURNS, self._turns)
        elif event.type is EventType.TOOL_CALL_STARTED:
            self._count_call(event.data["tool_call_id"])

    def check_spending(self) -> None:
        """Tokens and money, as far as they are known."""
        used = self._run.used()
        self._check(Metric.TOTAL_TOKENS, used.tokens or 0)
        if used.micro_usd is not None:
            self._check(Metric.COST_USD, used.micro_usd / 1_000_000)

    def settle(self, *, turns_ran_out_at: float | None) -> None:
        """The provider is done: what it has used in all counts, and if it stopped because it was told to after so many
        turns."""
        self._is_over = True
        self.check_spending()
        if turns_ran_out_at is not None:
            self._check(Metric.TURNS, turns_ran_out_at + 1)

    async def before_call(self, call_id: str) -> None:
        """Count a call before it runs, and wait while a person is asked. Where it may not run, the run has ended."""
        self._count_call(call_id)
        await self.cleared()

    async def cleared(self) -> None:
        """Wait until nobody has to be asked any more."""
        while self._questions:
            await asyncio.wait(self._questions)

    def _count_call(self, call_id: str) -> None:
        if call_id not in self._counted:
            self._counted.add(call_id)
            self._tool_calls += 1
            self._check(Metric.TOOL_CALLS, self._tool_calls)

    def _check(self, metric: Metric, value: float) -> None:
        for breach in breaches(self._run.policies, metric, value):
            self._pass(breach)

    def _pass(self, breach: Breach) -> None:
        rule = breach._replace(value=0.0)  # two policies may have the same name
        if rule in self._passed or self._run.ended:
            return
        self._passed.add(rule)
        self._report(self._run, violation_data(breach))
        if breach.on_violation is OnViolation.CANCEL:
            details = {"policy": breach.policy, "metric": breach.metric.value, "limit": breach.limit}
            self._stop(self._run, PolicyViolation(_text(breach), details={**details, "value": breach.value}))
        elif breach.on_violation is OnViolation.ASK and not self._is_over:
            question = self._loop.create_task(self._ask(breach))
            self._questions.add(question)
            question.add_done_callback(self._questions.discard)

    async def _ask(self, breach: Breach) -> None:
        asked = {"policy": breach.policy, "metric": breach.metric.value, "limit": breach.limit}
        answer = await self._approvals.ask(
            self._run, f"policy_{breach.policy}_{breach.metric.value}", POLICY_QUESTION, asked
        )
        if answer.decision is not Decision.APPROVE:
            self._stop(self._run, PolicyViolation(f"{_text(breach)} {answer.by} did not allow more.", details=asked))


def violation_data(breach: Breach) -> dict[str, Any]:
    """The data of policy_violation."""
    return {
        "policy": breach.policy,
        "kind": _KIND,
        "rule": {breach.metric.value: breach.limit},
        "action": breach.on_violation.value,
        "metric": breach.metric.value,
        "limit": breach.limit,
        "actual": breach.value,
    }


def _text(breach: Breach) -> str:
    return f"The run has passed the limit {breach.metric.value} ({breach.limit:g}) of policy {breach.policy!r}."
