"""One turn of one thread of `codex app-server`."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, cast

from ....domain.errors import GreenroomError, InvalidOperation
from ....domain.permission_mode import PermissionMode
from ....domain.provider import ProviderRequest
from ....domain.tool import ToolOutcome, ToolResult
from ..agents.turn import AgentTurn, refusal_text
from .connection import CodexConnection, Message
from .errors import unreadable
from .mapping import CodexMapping, call_of_item, in_exec_spelling

_PATCH = re.compile(r"\s*(cd\s+\S+\s*&&\s*)?(apply_patch|applypatch)\b")
"""A command that Codex takes for a change of files."""

_COMMAND = "command_execution"
_FILE_CHANGE = "file_change"
_SPAWN = "spawn_agent"

_ANSWERED_WITHIN_S = 0.5
"""How long a client may take to read the answers to what it has asked."""

_NO_TURN = "no active turn"

_STOPPED = "The run is being stopped."
_PLAN_REFUSAL = "The run is in plan mode: nothing may be changed, and the plan itself is the answer."

_ASKING_MODES = (PermissionMode.DEFAULT, PermissionMode.ACCEPT_EDITS)

_Call = tuple[str, dict[str, Any]]


class CodexTurn(AgentTurn):
    """Codex asks twice: its hook before each call of a tool, for policies and the record; and, where its approval
    policy wants that, for a call that is to leave the sandbox, which is for a person.

    A tool that Codex calls without running the hook is put to the policies when it tells of the call: too late to keep
    it from running, but a violation is recorded, and ends the run where the policy says so.
    """

    mapping: CodexMapping

    def __init__(
        self,
        request: ProviderRequest,
        mapping: CodexMapping,
        connection: CodexConnection,
        thread_id: str,
        release: "Callable[[CodexTurn], Awaitable[None]]",
    ) -> None:
        super().__init__(request, mapping, connection.process.where)
        self.thread_id = thread_id
        self.leaves_behind = False
        """Whether something may go on after the turn: what was allowed outside the sandbox, or a subagent."""
        self._connection = connection
        self._release = release
        self._begun: asyncio.Task[None] | None = None
        self._turn_id: str | None = None
        self._allowed: dict[str, str] = {}
        """Id of a call -> the name of the tool that it was allowed as."""
        self._outputs: dict[str, object] = {}
        """Of calls that were made, by id, until Codex has told of them as an item if it does at all."""
        self._elicited: set[str] = set()
        self._is_stopping = False
        self._asking: set[asyncio.Task[ToolResult | None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def pids(self) -> list[int]:
        return [self._connection.process.pid]

    def begin(self, prompt: str, instructions: str | None) -> None:
        """Send the prompt, and before it what the thread is to be told anew, if anything."""
        self._begun = asyncio.create_task(self._start(prompt, instructions))

    async def steer(self, message: str) -> bool:
        if self._begun is not None:
            await asyncio.wait((self._begun,))
        if self._turn_id is None or self.mapping.is_over:
            raise _too_late()
        given = {"threadId": self.thread_id, "expectedTurnId": self._turn_id, "input": _text(message)}
        try:
            await self._connection.request("turn/steer", given)
        except GreenroomError as exc:
            if _NO_TURN in exc.message:
                raise _too_late() from exc
            raise
        return True

    async def stop(self) -> None:
        self._is_stopping = True
        for task in self._asking:
            task.cancel()
        if self._begun is not None:
            await asyncio.wait((self._begun,))
        await self._interrupt()

    async def release(self) -> None:
        if self._begun is not None:
            self._begun.cancel()
        self._is_stopping = True
        for task in self._asking:
            task.cancel()
        ending = [*self._tasks, *self._asking, *(() if self._begun is None else (self._begun,))]
        if ending:
            await asyncio.wait(ending, timeout=_ANSWERED_WITHIN_S)
        for task in self._tasks:
            task.cancel()
        await self._release(self)

    # For whoever reads the client; none of these waits for a person, but `may_call`

    async def take(self, message: Message) -> None:
        """A notification of this thread."""
        method = message.get("method")
        await self.hear(partial(self.mapping.take, message))
        if method == "item/started":
            self._check_late(message["params"]["item"])
        elif method == "hook/completed":
            await self._end_calls(message["params"]["run"])
        elif method == "turn/started" and self._is_stopping:  # asked before there was something to interrupt
            await self._interrupt()

    def asked(self, message: Message) -> None:
        """A request of the client: it is answered in its time."""
        self._spawn(self._answer(message))

    def called(self, said: Mapping[str, Any]) -> None:
        """What the hook says after a call. Codex notifies of its hook when it has notified of the item; of the calls of
        subagents it tells nothing else."""
        call_id, output = str(said["tool_use_id"]), said.get("tool_response")
        if self._is_of_subagent(said):
            self._spawn(self.hear(partial(self.mapping.end_call, call_id, output, of_subagent=True)))
        else:
            self._outputs[call_id] = output

    async def may_call(self, asked: Mapping[str, Any]) -> str | None:
        """What the hook asks: None, or why not."""
        call_id, (name, arguments) = str(asked["tool_use_id"]), _call_of_hook(asked)
        if self.request.permission_mode is PermissionMode.PLAN and name.startswith((_FILE_CHANGE, "mcp__")):
            return await self._refused(call_id, (name, arguments), _denied(_PLAN_REFUSAL))
        if self._is_of_subagent(asked):
            self.mapping.adopt_call(call_id)
        result = await self._permitted(call_id, (name, arguments), asks=False)
        if result is not None:
            return await self._refused(call_id, (name, arguments), result)
        self._allowed[call_id] = name
        self.leaves_behind = self.leaves_behind or name.endswith(_SPAWN)
        return None

    def _is_of_subagent(self, said: Mapping[str, Any]) -> bool:
        """Its hooks name the thread of the turn that started it, and a turn of its own."""
        return self._turn_id is not None and said.get("turn_id") != self._turn_id

    async def _start(self, prompt: str, instructions: str | None) -> None:
        try:
            if instructions is not None:
                item = {
                    "type": "message",
                    "role": "developer",
                    "content": [{"type": "input_text", "text": instructions}],
                }
                await self._connection.request("thread/inject_items", {"threadId": self.thread_id, "items": [item]})
            given = {"threadId": self.thread_id, "input": _text(prompt)}
            answer = await self._connection.request("turn/start", given)
            self._turn_id = str(answer["turn"]["id"])
        except GreenroomError as exc:
            await self.wire_is_over(exc)
        except Exception as exc:  # noqa: BLE001  or else the run would wait for ever
            await self.wire_is_over(unreadable(exc, self._connection.process.redacted))

    async def _interrupt(self) -> None:
        if self._turn_id is not None and not self.mapping.is_over:
            given = {"threadId": self.thread_id, "turnId": self._turn_id}
            await self._connection.order("turn/interrupt", given)

    async def _permitted(self, call_id: str, call: _Call, *, asks: bool) -> ToolResult | None:
        """What `permit` says; a refusal when the turn is stopped meanwhile. A person is asked about the call as it was
        told of first: what Codex asks for in other words is the same."""
        if self._is_stopping:
            return _denied(_STOPPED)
        began = partial(self.mapping.begin_call, call_id, *call)
        told = partial(self.mapping.begun_call, call_id) if asks else lambda: call
        task = asyncio.create_task(self.permit(began, told, call_id, asks=asks))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        await asyncio.wait((task,))
        if task.cancelled():
            return _denied(_STOPPED)
        error = task.exception()
        return task.result() if error is None else _denied(f"Greenroom cannot allow it now ({error}).")

    async def _refused(self, call_id: str, call: _Call, result: ToolResult) -> str:
        """Have the call told as denied: Codex does not tell of what its hook stops."""
        denied = replace(result, outcome=result.outcome or ToolOutcome.DENIED)

        def said() -> list[Any]:
            return [*self.mapping.begin_call(call_id, *call), *self.mapping.refuse_call(call_id, denied)]

        if not self._is_stopping:
            await self.hear(said)
        return refusal_text(result)

    async def _end_calls(self, hook_run: Message) -> None:
        if hook_run["eventName"] != "postToolUse":
            return
        for call_id in [one for one in self._outputs if str(hook_run["id"]).endswith(f":{one}")]:
            await self.hear(partial(self.mapping.end_call, call_id, self._outputs.pop(call_id)))

    def _check_late(self, item: Message) -> None:
        """Put a call that has begun to the policies, unless they were asked before."""
        call = call_of_item(in_exec_spelling(item))
        if call is not None and self._allowed.get(item["id"]) != call[0]:
            self._spawn(self._permit_late(item["id"], call))

    async def _permit_late(self, call_id: str, call: _Call) -> None:
        if await self._permitted(call_id, call, asks=False) is not None:
            self.mapping.deny(call_id)

    async def _answer(self, message: Message) -> None:
        try:
            await self._answer_as_asked(message)
        except (AttributeError, KeyError, TypeError, ValueError):  # else Codex, and the run, would wait for ever
            await answer_no(self._connection, message)

    async def _answer_as_asked(self, message: Message) -> None:
        method = str(message["method"])
        given: Mapping[str, Any] = message.get("params") or {}
        if method == "item/commandExecution/requestApproval":
            call = (_COMMAND, {key: given[key] for key in ("command", "cwd") if given.get(key) is not None})
            answer = {"decision": await self._decision(given["itemId"], call)}
        elif method == "item/fileChange/requestApproval":
            answer = {"decision": await self._decision(given["itemId"], (_FILE_CHANGE, {}))}
        elif method == "mcpServer/elicitation/request":
            answer = {"action": await self._action(given)}
        else:
            await answer_no(self._connection, message)
            return
        await self._connection.answer(message["id"], answer)

    async def _decision(self, call_id: str, call: _Call) -> str:
        """accept, decline, or cancel when the turn is to end."""
        if self.request.permission_mode not in _ASKING_MODES:
            result = _denied("Nobody is asked in this mode.")
        else:
            result = await self._permitted(call_id, call, asks=True)
        if self._is_stopping:
            return "cancel"
        if result is not None:
            self.mapping.deny(call_id)
            return "decline"
        self._allowed.setdefault(call_id, call[0])
        self.leaves_behind = self.leaves_behind or call[0] == _COMMAND
        return "accept"

    async def _action(self, given: Message) -> str:
        """Whether an MCP server's tool may be called, which Codex asks in this form; all else is declined."""
        meta: Mapping[str, Any] = given.get("_meta") or {}
        call_id = self._call_elicited(str(given.get("serverName")), meta.get("tool_params") or {})
        if meta.get("codex_approval_kind") != "mcp_tool_call" or call_id is None:
            return "decline"
        self._elicited.add(call_id)
        return await self._decision(call_id, self.mapping.begun_call(call_id))

    def _call_elicited(self, server: str, arguments: object) -> str | None:
        """The call that is meant: Codex does not say. The hook has asked for it before."""
        prefix = _mcp_name(f"mcp__{server}__")
        of_server = [call_id for call_id, name in self._allowed.items() if _mcp_name(name).startswith(prefix)]
        for call_id in of_server:
            is_waiting = call_id not in self._elicited and self.mapping.is_open(call_id)
            if is_waiting and self.mapping.begun_call(call_id)[1] == arguments:
                return call_id
        return None

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(_unless_gone(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def answer_no(connection: CodexConnection, message: Message) -> None:
    """Answer a request with what means no."""
    refusals: Mapping[str, Mapping[str, Any]] = {
        "item/commandExecution/requestApproval": {"decision": "decline"},
        "item/fileChange/requestApproval": {"decision": "decline"},
        "execCommandApproval": {"decision": "denied"},
        "applyPatchApproval": {"decision": "denied"},
        "item/permissions/requestApproval": {"permissions": {}, "scope": "turn"},
        "item/tool/requestUserInput": {"answers": {}},
        "item/tool/call": {"contentItems": [], "success": False},
        "mcpServer/elicitation/request": {"action": "decline"},
    }
    method = str(message["method"])
    if method in refusals:
        await connection.answer(message["id"], refusals[method])
    else:
        await connection.refuse(message["id"], method)


async def _unless_gone(work: Coroutine[Any, Any, None]) -> None:
    with suppress(GreenroomError):  # the client has gone, which its reader tells the turn
        await work


def _call_of_hook(asked: Mapping[str, Any]) -> _Call:
    """Name and arguments, in the names that items have."""
    name, raw = str(asked["tool_name"]), asked.get("tool_input")
    given: dict[str, Any] = cast("dict[str, Any]", raw) if isinstance(raw, dict) else {"arguments": raw}
    if name == "view_image":
        return "image_view", given
    if name == "apply_patch":
        return _FILE_CHANGE, {"patch": given.get("command")}
    if name != "Bash":
        return name, given
    command = str(given.get("command"))
    if _PATCH.match(command):
        return _FILE_CHANGE, {"patch": command}
    return _COMMAND, {"command": command, "cwd": asked.get("cwd")}


def _mcp_name(name: str) -> str:
    """As a model may be given it: with nothing but letters, digits and underscores."""
    return re.sub(r"\W", "_", name)


def _text(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _too_late() -> InvalidOperation:
    return InvalidOperation("The turn of the agent has ended; submit a new run.")


def _denied(text: str) -> ToolResult:
    return ToolResult(output=text, outcome=ToolOutcome.DENIED)
