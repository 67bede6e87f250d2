"""What a run of a live session asks before it starts: of routers and accounts, and of limits that lie outside it."""

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from ..adapters.logs import get_logger
from ..domain.amount import Amount
from ..domain.approval import Decision
from ..domain.budget_scopes import scopes_of
from ..domain.errors import BudgetExceeded, GreenroomError, InternalError
from ..domain.event import EventType
from ..domain.policy import Metric, OnViolation, binding, tightest
from ..domain.session import Session
from .approvals import Approvals
from .live_run import LiveRun
from .placement import Placer
from .session_writer import SessionWriter

if TYPE_CHECKING:
    from ..domain.budget import BudgetDecision
    from ..domain.run_gate import RunGate
    from .session_budget import SessionBudget

_log = get_logger(__name__)

BUDGET_QUESTION = "greenroom.budget"
"""The name under which a person is asked if a run may go beyond a budget."""


class Starter(Protocol):
    """Whose runs ask to start. It comes with each call: kept, it would be a circle that only the collector ends."""

    def retry(self) -> None:
        """The run should be asked for again, or it has been ended."""

    def refuse(self, run: LiveRun, error: GreenroomError) -> None:
        """End a run that may not start."""

    def has_started(self, run_id: str) -> bool: ...


class Admissions:
    """Belongs to one live session. A run for which nothing is to be decided or counted starts at once."""

    def __init__(
        self,
        session: Session,
        *,
        placer: Placer,
        gate: "RunGate | None",
        budget: "SessionBudget | None",
        approvals: Approvals,
        writer: SessionWriter,
    ) -> None:
        self._placer = placer
        self._gates = [one for one in (budget, gate) if one is not None]
        self._session = session
        self._approvals = approvals
        self._writer = writer
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._admitted: set[str] = set()

    def admit(self, run: LiveRun, starter: Starter) -> bool:
        """Whether the run may start now. If not, the starter is told to `retry` when it should be asked for again, or
        to `refuse` the run."""
        if run.run_id in self._admitted or (not self._gates and self._placer.is_free(run)):
            return True
        if run.run_id not in self._asking:
            self._asking[run.run_id] = asyncio.get_running_loop().create_task(self._ask(run, starter))
        return False

    def release(self, run: LiveRun) -> None:
        """The run has ended, or waits no more: what it holds goes back."""
        asking = self._asking.pop(run.run_id, None)
        if asking is not None and asking is not asyncio.current_task():
            asking.cancel()
        self._admitted.discard(run.run_id)
        self._placer.settle(run)
        for gate in self._gates:
            gate.leave(run.run_id, run.used())

    async def _ask(self, run: LiveRun, starter: Starter) -> None:
        try:
            # Slots and budgets first, then the account: a run that is tried again holds those while it waits for its
            # account, so in the other order two runs could wait for each other.
            if self._gates:
                provider = await self._placer.first_choice(run)
                for gate in self._gates:
                    await self._enter(gate, run, provider)
            await self._placer.place(run)
            self.placed(run)
        except GreenroomError as exc:
            starter.refuse(run, exc)
        except Exception:  # noqa: BLE001  recorded: the run ends with it
            _log.exception("admission_raised", run_id=run.run_id)
            starter.refuse(run, InternalError("The run could not be admitted."))
        else:
            self._admitted.add(run.run_id)
            self._asking.pop(run.run_id, None)
            starter.retry()
            if not starter.has_started(run.run_id):  # the session was paused meanwhile: others may have what it holds
                self.release(run)

    def placed(self, run: LiveRun) -> None:
        """The run has its provider for the next attempt."""
        for gate in self._gates:
            gate.move(run.run_id, run.provider)

    async def _enter(self, gate: "RunGate | SessionBudget", run: LiveRun, provider: str) -> None:
        from ..domain.budget import BudgetAnswer  # noqa: PLC0415  only where there are limits
        from ..domain.slots import Slot  # noqa: PLC0415

        hard = binding(run.policies)
        slot = Slot(
            run_id=run.run_id,
            provider=provider,
            tenant=self._session.tenant,
            priority=run.options.priority,
            scopes=scopes_of(self._session.tenant, self._session.project),
            model=run.options.model,
            most=Amount.of(tightest(hard, Metric.COST_USD), tightest(hard, Metric.TOTAL_TOKENS)),
        )
        while (decision := await gate.enter(slot)).answer is BudgetAnswer.EXCEEDED:
            await self._go_beyond(run, decision)
            slot = replace(slot, beyond=(*slot.beyond, decision.scope or ""))

    async def _go_beyond(self, run: LiveRun, decision: "BudgetDecision") -> None:
        """Nothing is left of a budget: BudgetExceeded, unless its owner says that this does not matter."""
        assert decision.options is not None, "a scope that is exceeded has a budget"
        action, scope = decision.options.on_violation, decision.scope
        caps = {"max_cost_usd": decision.options.max_cost_usd, "max_total_tokens": decision.options.max_total_tokens}
        data = {"policy": f"budget of {scope}", "kind": "budget_exceeded", "rule": caps, "action": action.value}
        self._writer.record(self._writer.event(EventType.POLICY_VIOLATION, run, data))
        run.note_violation(data)
        if action is OnViolation.WARN:
            return
        why = ""
        if action is OnViolation.ASK:
            answer = await self._approvals.ask(run, f"budget_{run.run_id}", BUDGET_QUESTION, {"scope": scope, **caps})
            if answer.decision is Decision.APPROVE:
                return
            why = f", and {answer.by} did not allow more"
        raise BudgetExceeded(
            f"The budget of {scope} is used up{why}; the run was not started. Raise the budget, or wait until it is"
            " renewed.",
            details={"scope": scope, **caps},
        )
