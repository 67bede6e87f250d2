"""What the runs of one session may use together, where the session was opened with a budget."""

import asyncio

from ..domain.amount import Amount
from ..domain.budget import BudgetAnswer, BudgetDecision, BudgetTree
from ..domain.budget_options import BudgetOptions
from ..domain.budget_scopes import SESSION
from ..domain.event import RUN_ENDINGS
from ..domain.event_log import EventLog, EventQuery
from ..domain.slots import Slot

_PAGE = 10_000


class SessionBudget:
    """Reserve, then commit, in the process that serves the session; what was spent before is in its log."""

    def __init__(self, session_id: str, options: BudgetOptions, log: EventLog) -> None:
        self._session_id = session_id
        self._log = log
        self._tree = BudgetTree({SESSION: options})
        self._changed = asyncio.Event()
        self._loading: asyncio.Task[None] | None = None

    async def enter(self, slot: Slot) -> BudgetDecision:
        """Wait until the run may start within the budget; EXCEEDED if it may not."""
        if self._loading is None:
            self._loading = asyncio.get_running_loop().create_task(self._load())
        await asyncio.shield(self._loading)
        kind = (slot.provider, slot.model)
        while True:
            decision = self._tree.decide((SESSION,), kind, slot.most)
            if SESSION in slot.beyond or decision.answer is BudgetAnswer.GRANTED:
                self._tree.reserve(slot.run_id, (SESSION,), kind, slot.most)
                return BudgetDecision(BudgetAnswer.GRANTED)
            if decision.answer is BudgetAnswer.EXCEEDED:
                return decision
            self._changed.clear()
            await self._changed.wait()

    def move(self, run_id: str, provider: str) -> None:
        """Its money is the same wherever it is."""

    def leave(self, run_id: str, used: Amount) -> None:
        """The run has ended, or waits no more."""
        if run_id in self._tree:
            self._tree.commit(run_id, used)
            self._changed.set()

    async def _load(self) -> None:
        after = 0
        while page := await self._log.read(self._session_id, EventQuery(after=after, types=RUN_ENDINGS, limit=_PAGE)):
            for event in page:
                usage: dict[str, int] = event.data.get("token_usage") or {}
                self._tree.spend(SESSION, Amount.of(event.data.get("cost_usd"), usage.get("total_tokens")))
            after = page[-1].seq
