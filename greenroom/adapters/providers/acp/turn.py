"""A run in a session of an agent: a prompt until its answer, and one more for each message that came meanwhile."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import Any

from ....domain.errors import CapabilityNotSupported, GreenroomError, ProviderError, QueueFull
from ....domain.event import EventType
from ....domain.permission_mode import PermissionMode
from ....domain.policy import Permission, tool_verdict
from ....domain.provider import ProviderEvent, ProviderRequest
from ....domain.tool import ToolApproval, ToolResult
from ...logs import get_logger
from ..agents.turn import AgentTurn, Said
from . import requests
from .agent import CANCELLED, UNHEARD, AcpAgent
from .connection import Params, RequestFailed
from .errors import REQUEST_CANCELLED
from .mapping import AcpMapping
from .session import AcpSession

_log = get_logger(__name__)

MAX_STEERED = 32
"""Messages that wait for the agent to end its turn."""

_ASKS_A_PERSON = frozenset({PermissionMode.DEFAULT, PermissionMode.ACCEPT_EDITS})

_ENDS = frozenset({EventType.TOOL_CALL_COMPLETED, EventType.TOOL_CALL_FAILED})


class AcpTurn(AgentTurn):
    """Implements Hearer.

    The agent asks before the calls that it thinks need it, and those alone can be stopped by a policy. A call that it
    makes without asking is judged when it is told of, after the fact: a rule that denies it is reported and, if it says
    so, stops the run; one that wanted a person asked gives error_occurred.
    """

    mapping: AcpMapping

    def __init__(
        self,
        request: ProviderRequest,
        agent: AcpAgent,
        session: AcpSession,
        released: "Callable[[AcpTurn], Awaitable[None]]",
        *,
        system_prompt: str | None,
    ) -> None:
        """`system_prompt` names the one that the session began with."""
        mapping = AcpMapping(
            session.session_id,
            agent=agent.name,
            session_cost_usd=session.cost_usd,
            system_prompt=system_prompt,
        )
        super().__init__(request, mapping, agent.process.where)
        self.agent = agent
        self.session = session
        self._released = released
        self._is_sent = asyncio.Event()
        self._is_stopping = False
        self._prompts: asyncio.Queue[str] = asyncio.Queue()
        """To be sent now; never more than one."""
        self._steered: deque[str] = deque()
        self._questions: dict[object, asyncio.Task[None]] = {}
        """By the id of the request, until the answer is on its way."""
        self._asked_for: set[str] = set()
        self._judgements: dict[str, asyncio.Task[ToolResult | None]] = {}
        """Of calls that a policy denies, by call id."""
        self._tasks: set[asyncio.Task[Any]] = set()

    def begin(self, prompt: str) -> None:
        """Send the prompt; what goes wrong is heard as the end of the wire."""
        self.session.turn, self.session.has_begun = self, True
        self._prompts.put_nowait(prompt)
        self._run_task(self._run())

    def pids(self) -> list[int]:
        return [self.agent.process.pid]

    async def steer(self, message: str) -> bool:
        """The protocol has no word for it: the agent gets the message as a prompt of its own, once this is answered."""
        if self._is_stopping or self.mapping.is_over:
            raise CapabilityNotSupported("The agent is ending its turn; submit a new run instead.")
        if len(self._steered) >= MAX_STEERED:
            raise QueueFull(f"{MAX_STEERED} messages wait for the agent already; wait until it has taken one up.")
        self._steered.append(message)
        self.mapping.prompt_waits()
        return False

    async def stop(self) -> None:
        await self._is_sent.wait()  # an agent takes no notice of a cancellation that comes before the prompt
        self._is_stopping = True
        self._steered.clear()
        self.mapping.asked_to_cancel()
        connection = self.agent.connection
        await connection.notify("session/cancel", {"sessionId": self.session.session_id})
        for request_id in list(self._questions):
            self._questions.pop(request_id).cancel()
            await connection.answer(request_id, CANCELLED)

    async def release(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self.session.turn = None
        for request_id in self._questions:
            self.agent.answer_later(request_id, CANCELLED)
        self.session.cost_usd = self.mapping.session_cost_usd
        await self._released(self)

    # What the agent says

    async def heard(self, params: Params) -> None:
        await self.hear(partial(self._taken, partial(self._take, params)))

    def _take(self, params: Params) -> list[ProviderEvent]:
        if self.mapping.is_over and params["update"]["sessionUpdate"] in UNHEARD:
            self.agent.end_unheard(self.session)
        return self.mapping.take(params)

    async def permission_asked(self, request_id: object, params: Params) -> None:
        if self._is_stopping:
            self.agent.answer_later(request_id, CANCELLED)
            return
        call_id = str(params["toolCall"]["toolCallId"])
        self._asked_for.add(call_id)
        await self.hear(partial(self._taken, partial(self.mapping.permission_requested, params)))
        self._questions[request_id] = self._run_task(self._decide(request_id, params, call_id))

    def withdrawn(self, request_id: object) -> bool:
        question = self._questions.pop(request_id, None)
        if question is None:
            return False
        question.cancel()
        self.agent.refuse_later(request_id, REQUEST_CANCELLED, "Request cancelled")
        return True

    async def _run(self) -> None:
        try:
            while True:
                await self._ask(await self._prompts.get())
        except GreenroomError as exc:
            await self.wire_is_over(exc)
        except Exception as exc:  # noqa: BLE001  or else the run would wait for ever
            text = self.agent.process.redacted(repr(exc))
            await self.wire_is_over(ProviderError(f"The prompt could not be sent to the agent: {text}"))

    async def _ask(self, text: str) -> None:
        connection = self.agent.connection
        try:
            answer = await connection.begin_request("session/prompt", requests.prompt(self.session.session_id, text))
        finally:
            self._is_sent.set()
        try:
            result = await connection.result(answer)
            said: Said = partial(self._answered, result)
        except RequestFailed as exc:
            said = partial(self.mapping.failed, exc.error)
        if self.request.policies:
            await self._judged()
        await self.hear(partial(self._taken, partial(self._ended, said)))

    def _ended(self, said: Said) -> list[ProviderEvent]:
        """An answer that makes no sense ends the run: there will be no other."""
        try:
            return list(said())
        except Exception as exc:  # noqa: BLE001  or else the run would wait for ever
            text = self.agent.process.redacted(repr(exc))
            error = ProviderError(f"The agent's answer to the prompt cannot be read: {text}")
            self._run_task(self.wire_is_over(error))
            return []

    def _answered(self, result: Params) -> list[ProviderEvent]:
        events = self.mapping.answered(result)
        if not self.mapping.is_over:
            self._is_sent.clear()
            self._prompts.put_nowait(self._steered.popleft())
        return events

    # Who may call what

    async def _decide(self, request_id: object, params: Params, call_id: str) -> None:
        """Answer the agent's question; takes as long as a person takes."""
        try:
            is_allowed = await self._may_run(call_id)
        except KeyError:  # the question was not understood, so nobody knows of the call
            is_allowed = False
        option_id = _option(params, allow=is_allowed)
        if option_id is None or not is_allowed:
            self.mapping.deny(call_id)
        outcome = CANCELLED if option_id is None else {"outcome": {"outcome": "selected", "optionId": option_id}}
        self._questions.pop(request_id, None)
        self.agent.answer_later(request_id, outcome)

    async def _may_run(self, call_id: str) -> bool:
        if self.request.permission_mode is PermissionMode.PLAN:
            return False
        asks = self.request.permission_mode in _ASKS_A_PERSON
        if call_id in self._judgements:
            return await self._judgements[call_id] is None
        return await self._permitted(call_id, asks=asks) is None

    async def _permitted(self, call_id: str, *, asks: bool) -> ToolResult | None:
        return await self.permit(tuple, partial(self.mapping.call, call_id), call_id, asks=asks)

    def _taken(self, said: Said) -> list[ProviderEvent]:
        """The events of a message, and what the policies have to say of calls in them."""
        try:
            events = list(said())
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            _log.warning("acp_message_not_understood", run_id=self.request.run_id, error=type(exc).__name__)
            return []
        if not self.request.policies:
            return events
        return [one for event in events for one in (event, *self._judge(event))]

    def _judge(self, event: ProviderEvent) -> list[ProviderEvent]:
        call_id, name = str(event.data.get("tool_call_id")), str(event.data.get("tool_name"))
        if event.type is EventType.TOOL_CALL_STARTED:
            if self._permission(name) is Permission.DENY:
                self._judgements[call_id] = self._run_task(self._permitted(call_id, asks=False))
        elif event.type in _ENDS and call_id not in self._asked_for and self._permission(name) is Permission.ASK:
            return [_not_asked(call_id, name)]
        return []

    def _permission(self, name: str) -> Permission:
        return tool_verdict(self.request.policies, name, ToolApproval.NEVER).permission

    async def _judged(self) -> None:
        """Wait until everything that was said so far is recorded, and what is against a policy is reported."""
        heard: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self.hear(partial(_done, heard))
        await heard
        if self._judgements:
            await asyncio.wait(self._judgements.values())

    def _run_task(self, coroutine: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        task: asyncio.Task[Any] = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _done(heard: "asyncio.Future[None]") -> list[ProviderEvent]:
    if not heard.done():
        heard.set_result(None)
    return []


def _option(params: Mapping[str, Any], *, allow: bool) -> str | None:
    """By kind, since ids differ from agent to agent; for this once rather than for ever. None: there is none."""
    kinds = ("allow_once", "allow_always") if allow else ("reject_once", "reject_always")
    by_kind = {str(option.get("kind")): str(option.get("optionId")) for option in reversed(params.get("options") or [])}
    return next((by_kind[kind] for kind in kinds if kind in by_kind), None)


def _not_asked(call_id: str, name: str) -> ProviderEvent:
    message = f"The agent ran {name} without asking, though a policy wants a person to agree first."
    data = {"error_code": "policy_violation", "error_message": message, "retryable": False, "tool_call_id": call_id}
    return ProviderEvent(EventType.ERROR_OCCURRED, data)
