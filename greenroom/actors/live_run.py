"""A run that has not ended: what the session's process keeps of it in memory."""

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..domain.amount import MICRO, Amount
from ..domain.approval import Approval
from ..domain.errors import GreenroomError
from ..domain.event import EventType, to_microseconds
from ..domain.event_log import Committed
from ..domain.past_calls import NO_PAST_CALLS, PastCalls
from ..domain.policy import Policy, merged
from ..domain.provider import ProviderEvent
from ..domain.run import Run, RunResult, RunStatus
from ..domain.run_input import Message, Role
from ..domain.run_options import RunOptions
from ..domain.run_outcome import KEPT_OF_FAILURES, cancelled_error, deadline_error
from ..domain.token_usage import NO_TOKENS, TokenUsage
from .run_route import RunRoute

if TYPE_CHECKING:
    from .run_limits import RunLimits

_MICROSECONDS = 1_000_000

_TOOL_ENDINGS = (EventType.TOOL_CALL_COMPLETED, EventType.TOOL_CALL_FAILED)


@dataclass(slots=True, kw_only=True)
class LiveRun:
    """State of one run between run_queued and its end. Only the session's loop touches it."""

    run_id: str
    session_id: str
    number: int
    """Which run of the session this is, from 1."""
    messages: tuple[Message, ...]
    options: RunOptions
    provider: str
    """Empty until a router has chosen one."""
    queued_at_us: int
    attempt: int = 1
    started_at_us: int = 0
    first_started_at_us: int | None = None
    queued: "asyncio.Future[Committed] | None" = None
    """Done when its run_queued is durable; None for a run that was found in the log."""
    task: "asyncio.Task[None] | None" = None
    deadline: asyncio.TimerHandle | None = None
    ended: bool = False
    """Its terminal event has been appended: nothing more is recorded of it."""
    waiters: "list[asyncio.Future[RunResult]]" = field(default_factory=list["asyncio.Future[RunResult]"])
    open_tool_calls: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    """Data of the tool calls that started and have not ended."""
    text: list[str] = field(default_factory=list[str])
    """What the agent has said so far, kept for a run that is stopped."""
    token_usage: dict[str, int] = field(default_factory=dict[str, int])
    recorded_calls: "dict[str, asyncio.Future[Committed]]" = field(
        default_factory=dict[str, "asyncio.Future[Committed]"]
    )
    """By call id: done when its tool_call_started is durable. No tool runs before."""
    approvals: tuple[Approval, ...] = ()
    """What earlier attempts asked for."""
    approvals_asked: set[str] = field(default_factory=set[str])
    """What this attempt has asked for so far."""
    past_calls: PastCalls = NO_PAST_CALLS
    """Tool calls of earlier attempts."""
    conversation: dict[str, str] | None = None
    """What its provider has said that it needs to go on with the conversation."""
    violated: set[str] = field(default_factory=set[str])
    """Rules on tools that it has broken so far."""
    route: RunRoute = field(default_factory=RunRoute)
    policies: tuple[Policy, ...] = ()
    """Its own, those of its session, and those of its tenant and project."""
    limits: "RunLimits | None" = None
    """Holds it to the limits of its policies, from its first attempt on."""
    violations: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """What was recorded of broken rules and used up budgets."""
    warnings: list[str] = field(default_factory=list[str])
    """What its policies want and its provider cannot keep."""
    is_advisory: bool = False
    """Whether its provider may run a tool before it asks."""
    is_between_attempts: bool = False
    """Whether it waits for its next attempt."""
    calls_before: int = 0
    """Tool calls of attempts in processes that died."""
    turns_before: int = 0
    has_acted: bool = False
    """Whether a tool with side effects may have run in this attempt."""
    cost_usd: float | None = None
    """Of this attempt, as far as it is known."""
    usage_before: TokenUsage = NO_TOKENS
    """Of the attempts before it."""
    cost_before_usd: float | None = 0.0
    """None: not known."""

    @property
    def is_placed(self) -> bool:
        """Whether it is known which provider it is at, or goes to next."""
        return bool(self.provider) and not self.route.is_undecided

    def used(self) -> Amount:
        """What all its attempts have used."""
        return Amount.of(self.total_cost_usd, self.total_usage.total_tokens)

    @property
    def total_usage(self) -> TokenUsage:
        """Tokens of all attempts."""
        usage = TokenUsage.from_dict(self.token_usage) if self.token_usage else NO_TOKENS
        return usage if self.usage_before is NO_TOKENS else self.usage_before + usage

    @property
    def total_cost_usd(self) -> float | None:
        """What all attempts have cost; None: nobody knows. What has used no tokens has cost nothing."""
        if self.cost_before_usd is None:
            return None
        if self.cost_usd is None:
            has_used = TokenUsage.from_dict(self.token_usage).total_tokens > 0
            return None if has_used or not self.cost_before_usd else self.cost_before_usd
        return self.cost_before_usd + self.cost_usd

    def note_violation(self, data: dict[str, Any]) -> None:
        """Keep for its result what was recorded."""
        self.violations.append(data)

    def warn(self, text: str) -> None:
        """Keep for its result, once, what its policies want and nobody can keep."""
        if text not in self.warnings:
            self.warnings.append(text)

    def begin_next_attempt(self, queued_at_us: int) -> None:
        """This attempt has failed, and the run goes on: what was said and used in it counts for the next one no more,
        but for what it cost."""
        self.cost_before_usd = self.total_cost_usd if self.total_usage.total_tokens else 0.0
        self.usage_before = self.total_usage
        self.attempt += 1
        self.is_between_attempts = True
        self.queued_at_us = queued_at_us
        self.text.clear()
        self.token_usage, self.cost_usd = {}, None
        self.open_tool_calls, self.recorded_calls = {}, {}
        self.conversation = None
        self.has_acted = False
        self.approvals_asked.clear()

    def policy_result(self) -> dict[str, Any] | None:
        """What the result of the run says of its policies; None where there was none, and no budget was used up."""
        if not self.policies and not self.violations:
            return None
        used = self.used()
        return {
            "policies": [policy.name for policy in self.policies],
            "limits": {metric.value: limit for metric, limit in merged(self.policies).limits.items()},
            "violations": self.violations,
            "warnings": self.warnings,
            "advisory": self.is_advisory,
            "usage": {
                "total_tokens": used.tokens,
                "cost_usd": None if used.micro_usd is None else used.micro_usd / MICRO,
            },
        }

    def observe(self, event: ProviderEvent) -> None:
        """Keep what a later stop of the run would have to account for."""
        data = event.data
        if event.type is EventType.MESSAGE_STREAMED:
            if data.get("kind") == "text":
                self.text.append(data["content"])
        elif event.type is EventType.TOOL_CALL_STARTED:
            self.open_tool_calls[data["tool_call_id"]] = data
        elif event.type in _TOOL_ENDINGS:
            self.open_tool_calls.pop(data["tool_call_id"], None)
        elif event.type is EventType.TOKEN_USAGE_UPDATED:
            self.token_usage = data

    def stopped_data(self, **data: Any) -> dict[str, Any]:
        """Data of a terminal event other than run_completed: what was produced is kept."""
        if self.text:
            data["output"] = {"content": "".join(self.text)}
        if self.total_usage.total_tokens:
            data["token_usage"] = self.total_usage.to_dict()
        if self.total_cost_usd is not None:
            data["cost_usd"] = self.total_cost_usd
        return data | self.extra_data()

    def extra_data(self) -> dict[str, Any]:
        """What every terminal event tells of routing and policies, where there is something to tell."""
        told = {"routing": self.route.to_dict(self.provider, self.attempt), "policy": self.policy_result()}
        return {name: value for name, value in told.items() if value is not None}

    def under_way_s(self, now_us: int) -> float:
        """Seconds since its newest attempt started."""
        return (now_us - self.started_at_us) / _MICROSECONDS

    def remaining_s(self, now_us: int) -> float:
        """Seconds to the deadline, which is measured from the start of the first attempt."""
        elapsed_s = (now_us - (self.first_started_at_us or now_us)) / _MICROSECONDS
        return self.options.deadline_s - elapsed_s


def live_run_of(
    run: Run, options: RunOptions, *, number: int, provider: str, route: RunRoute, policies: tuple[Policy, ...]
) -> LiveRun:
    """The live form of a run found open in the log."""
    first = run.first_started_at
    return LiveRun(
        run_id=run.id,
        session_id=run.session_id,
        number=number,
        messages=tuple(Message(Role(item["role"]), item["content"]) for item in run.input["messages"]),
        options=options,
        provider=provider,
        route=route,
        policies=policies,
        queued_at_us=to_microseconds(run.queued_at),
        attempt=run.attempt,
        first_started_at_us=to_microseconds(first) if first else None,
    )


def result_of(run: LiveRun, data: dict[str, Any], *, ended_at_us: int, last_seq: int) -> RunResult:
    """The result of a run whose run_completed carries this data; the same as outcome_of gives for its record."""
    return RunResult(
        run_id=run.run_id,
        session_id=run.session_id,
        status=RunStatus.COMPLETED,
        output=data["output"],
        token_usage=data["token_usage"],
        cost_usd=data["cost_usd"],
        provider=run.provider,
        model=data["model"],
        attempts=run.attempt,
        stop_reason=data["stop_reason"],
        timings={
            "queued_s": (run.started_at_us - run.queued_at_us) / _MICROSECONDS,
            "running_s": (ended_at_us - run.started_at_us) / _MICROSECONDS,
        },
        workspace=None,
        policy=data.get("policy"),
        routing=data.get("routing"),
        last_seq=last_seq,
    )


def error_of(
    run: LiveRun, event_type: EventType, data: dict[str, Any], error: GreenroomError | None, *, last_seq: int
) -> GreenroomError:
    """What awaiting a run raises that ended in any other way; the same as outcome_of gives for its record."""
    details: dict[str, object] = {
        "run_id": run.run_id,
        "session_id": run.session_id,
        "last_seq": last_seq,
        "attempts": run.attempt,
    }
    details |= {name: data[name] for name in KEPT_OF_FAILURES if data.get(name) not in (None, {})}
    if event_type is EventType.RUN_CANCELLED:
        return cancelled_error(details, data.get("reason"))
    if event_type is EventType.RUN_TIMEOUT or error is None:
        return deadline_error(details)
    return type(error)(error.message, details={**error.details, **details}, provider_error=error.provider_error)
