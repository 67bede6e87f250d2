"""The approvals of a live session: asked, waited for, decided, expired. Whatever goes wrong, the tool does not run."""

import asyncio
from collections.abc import Sequence
from typing import Any

from ..domain.approval import APPROVAL_TYPES, BY_GREENROOM, DECISION_EVENTS, Approval, Decision, fold_approvals
from ..domain.errors import InvalidOperation, NotFound
from ..domain.event import EventType, NewEvent
from ..domain.event_log import EventQuery
from .live_run import LiveRun
from .session_writer import SessionWriter

EXPIRED = "expired"
_PAGE = 1_000


class Approvals:
    """Belongs to one live session. A decision counts, and is acted upon, once it is durable."""

    def __init__(self, writer: SessionWriter, *, expires_s: float) -> None:
        self._writer = writer
        self._expires_s = expires_s
        self._loop = asyncio.get_running_loop()
        self._by_id: dict[str, Approval] = {}
        self._runs: dict[str, LiveRun] = {}
        self._decided: dict[str, asyncio.Future[None]] = {}
        """Done when the decision is durable; one for each approval."""
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._asked: set[str] = set()
        """Approvals whose question is durable: nobody hears of one that a crash could take back."""

    def adopt(self, run: LiveRun, approvals: Sequence[Approval]) -> None:
        """Go on with what an earlier owner asked for this run, decided or not."""
        for approval in approvals:
            self._keep(run, approval)
            self._asked.add(approval.id)
            if approval.decision is not None:
                self._decided[approval.id].set_result(None)
            else:
                self._set_timer(approval)

    @property
    def pending(self) -> list[Approval]:
        """Those that wait for a decision, the oldest first."""
        return [one for one in self._by_id.values() if one.decision is None and one.id in self._asked]

    async def ask(self, run: LiveRun, call_id: str, tool_name: str, arguments: dict[str, Any]) -> Approval:
        """The decision about a call; a run that asks again after a crash gets the answer that was given meanwhile."""
        approval = self._asked_before(run, tool_name, arguments)
        if approval is None:
            approval = Approval(
                id=self._writer.ids.approval_id(),
                run_id=run.run_id,
                tool_call_id=call_id,
                tool_name=tool_name,
                input=arguments,
                expires_at_us=self._writer.now_us() + round(self._expires_s * 1_000_000),
                attempt=run.attempt,
            )
            self._keep(run, approval)
            self._set_timer(approval)
        approval.tool_call_id, approval.attempt = call_id, run.attempt
        run.approvals_asked.add(approval.id)
        if approval.decision is None:
            await asyncio.shield(self._append(EventType.TOOL_APPROVAL_REQUESTED, run, approval.request_data(), None))
            self._asked.add(approval.id)
        await asyncio.shield(self._decided[approval.id])
        return approval

    async def decide(self, approval_id: str, decision: Decision, *, by: str, reason: str | None, call_id: str) -> None:
        """Durable when it returns. NotFound; InvalidOperation when it was decided before, or came too late."""
        approval = self._by_id.get(approval_id)
        if approval is None:
            await self._refuse_late(approval_id, call_id)
            return
        if approval.decision is not None:
            await self._refuse_late(approval_id, call_id)
        else:
            self._decide(approval, decision, by=by, reason=reason, call_id=call_id)
        await asyncio.shield(self._decided[approval_id])

    def close_run(self, run: LiveRun) -> list[NewEvent]:
        """The run ends: events that close what it still asked for."""
        events: list[NewEvent] = []
        for approval in [one for one in self._by_id.values() if one.run_id == run.run_id]:
            if approval.decision is None:
                approval.decision, approval.by, approval.reason = Decision.DENY, BY_GREENROOM, "the run ended"
                events.append(self._writer.event(EventType.TOOL_APPROVAL_DENIED, run, approval.decision_data()))
            self._drop(approval)
        return events

    def close(self) -> None:
        """The session is served elsewhere: no more timers."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _asked_before(self, run: LiveRun, tool_name: str, arguments: dict[str, Any]) -> Approval | None:
        probe = Approval(
            id="", run_id="", tool_call_id="", tool_name=tool_name, input=arguments, expires_at_us=0, attempt=0
        )
        for approval in self._by_id.values():
            if approval.run_id == run.run_id and approval.id not in run.approvals_asked and approval.key == probe.key:
                return approval
        return None

    def _keep(self, run: LiveRun, approval: Approval) -> None:
        self._by_id[approval.id] = approval
        self._runs[approval.id] = run
        self._decided[approval.id] = self._loop.create_future()

    def _drop(self, approval: Approval) -> None:
        del self._by_id[approval.id]
        del self._runs[approval.id]
        del self._decided[approval.id]
        self._asked.discard(approval.id)
        timer = self._timers.pop(approval.id, None)
        if timer is not None:
            timer.cancel()

    def _set_timer(self, approval: Approval) -> None:
        left_s = max(0.0, (approval.expires_at_us - self._writer.now_us()) / 1_000_000)
        self._timers[approval.id] = self._loop.call_later(left_s, self._expire, approval)

    def _expire(self, approval: Approval) -> None:
        if approval.decision is None:
            self._decide(approval, Decision.DENY, by=BY_GREENROOM, reason=EXPIRED, call_id=None)

    def _decide(
        self, approval: Approval, decision: Decision, *, by: str, reason: str | None, call_id: str | None
    ) -> None:
        approval.decision, approval.by, approval.reason = decision, by, reason
        run, decided = self._runs[approval.id], self._decided[approval.id]
        committed = self._append(DECISION_EVENTS[decision], run, approval.decision_data(), call_id)

        def settle(committed: "asyncio.Future[Any]") -> None:
            if not committed.cancelled() and committed.exception() is None and not decided.done():
                decided.set_result(None)

        committed.add_done_callback(settle)

    def _append(
        self, event_type: EventType, run: LiveRun, data: dict[str, Any], call_id: str | None
    ) -> "asyncio.Future[Any]":
        metadata = None if call_id is None else {"call_id": call_id}
        return self._writer.append([self._writer.event(event_type, run, data, metadata=metadata)])

    async def _refuse_late(self, approval_id: str, call_id: str) -> None:
        """Nothing if this very call decided it, maybe under an earlier owner."""
        asked: dict[str, Approval] = {}
        after = 0
        while page := await self._writer.log.read(
            self._writer.session_id, EventQuery(after=after, types=APPROVAL_TYPES, limit=_PAGE)
        ):
            for event in page:
                fold_approvals(asked, event)
                if event.data["approval_id"] == approval_id and event.metadata.get("call_id") == call_id:
                    return
            after = page[-1].seq
        found = asked.get(approval_id)
        if found is None:
            raise NotFound(
                f"Session {self._writer.session_id} has no approval {approval_id}.",
                details={"approval_id": approval_id},
            )
        said = f"{found.decision or 'left undecided'} by {found.by or BY_GREENROOM}"
        raise InvalidOperation(
            f"Approval {approval_id} was settled before ({said}{f', {found.reason}' if found.reason else ''}); nothing"
            " was changed.",
            details={
                "approval_id": approval_id,
                "decision": found.decision.value if found.decision else None,
                "by": found.by,
                "reason": found.reason,
            },
        )
