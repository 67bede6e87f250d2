"""A session's tools as one attempt may use them: policies first, then a person, then what an earlier attempt did."""

import asyncio
from collections.abc import Callable
from typing import Any

from ..domain.approval import Decision
from ..domain.errors import ApprovalDenied, PolicyViolation, ToolPermissionDenied
from ..domain.past_calls import PastCalls
from ..domain.policy import OnViolation, Permission, Verdict, tool_verdict
from ..domain.tool import ToolApproval, Toolbox, ToolOutcome, ToolResult, ToolSpec
from .approvals import Approvals
from .live_run import LiveRun


class GuardedTools:
    """Implements the Toolbox port over the session's own one."""

    def __init__(
        self,
        tools: Toolbox,
        run: LiveRun,
        *,
        approvals: Approvals,
        past: PastCalls,
        report: Callable[[LiveRun, Verdict, str, str], None],
        stop: Callable[[LiveRun, PolicyViolation], None],
    ) -> None:
        """`report` records a violation: the run, the verdict, tool and call. `stop` ends the run with the error."""
        self._tools = tools
        self._run = run
        self._approvals = approvals
        self._past = past
        self._report = report
        self._stop = stop
        self._specs = {spec.name: spec for spec in tools.specs()}
        self._agreed: set[str] = set()
        """Calls that a person has agreed to: whoever asks again, for another reason, need not ask that person."""

    def specs(self) -> tuple[ToolSpec, ...]:
        return self._tools.specs()

    async def permit(
        self, name: str, arguments: dict[str, Any], call_id: str, *, asks: bool = False
    ) -> ToolResult | None:
        recorded = self._run.recorded_calls.pop(call_id, None)
        if recorded is not None:
            await asyncio.shield(recorded)  # else a crash could leave the effects of a call that nobody knows of
        approval = ToolApproval.ALWAYS if asks else self._approval_of(name)
        verdict = tool_verdict(self._run.policies, name, approval)
        if verdict.permission is Permission.DENY:
            return self._deny(verdict, name, call_id)
        if self._run.limits is not None:
            await self._run.limits.before_call(call_id)
            if self._run.ended:
                return _run_has_ended()
        past = self._past.take(name, arguments, side_effects=self._has_side_effects(name))
        if past is not None:
            return past
        if verdict.permission is Permission.ASK and call_id not in self._agreed:
            answer = await self._approvals.ask(self._run, call_id, name, arguments)
            if answer.decision is not Decision.APPROVE:
                why = f": {answer.reason}" if answer.reason else ""
                return _denied(ApprovalDenied.code, f"{answer.by} did not allow this call of {name}{why}.")
            self._agreed.add(call_id)
        if self._run.ended:  # meanwhile: what an agent's own client asks is not cancelled with the run
            return _run_has_ended()
        return None

    async def invoke(self, name: str, arguments: dict[str, Any], call_id: str) -> ToolResult:
        refusal = await self.permit(name, arguments, call_id)
        return refusal if refusal is not None else await self._tools.invoke(name, arguments, call_id)

    def _approval_of(self, name: str) -> ToolApproval:
        spec = self._specs.get(name)
        return spec.approval if spec else ToolApproval.NEVER

    def _has_side_effects(self, name: str) -> bool:
        spec = self._specs.get(name)
        return spec.side_effects if spec else True

    def _deny(self, verdict: Verdict, name: str, call_id: str) -> ToolResult:
        self._report(self._run, verdict, name, call_id)
        text = f"Policy {verdict.policy!r} does not allow the tool {name}."
        if verdict.on_violation is OnViolation.CANCEL:
            details = {"policy": verdict.policy, "rule": verdict.rule, "tool_name": name}
            self._stop(self._run, PolicyViolation(text, details=details))
        return _denied(ToolPermissionDenied.code, text)


def _run_has_ended() -> ToolResult:
    return _denied(ToolPermissionDenied.code, "The run has ended.")


def _denied(code: str, text: str) -> ToolResult:
    return ToolResult(output=text, outcome=ToolOutcome.DENIED, error={"code": code, "message": text})
