"""The tools of a session: how they are called here, and how they travel to the process that calls them."""

import asyncio
import contextvars
import importlib
import inspect
import io
import json
import pickle
import sys
from collections import ChainMap
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import MISSING, asdict, replace
from operator import attrgetter
from typing import Any

from pydantic import ValidationError as PydanticError
from pydantic_core import to_json

from ..domain.errors import Timeout, ToolExecutionFailed, ToolNotFound
from ..domain.tool import ToolApproval, ToolOutcome, ToolResult, ToolSpec
from .logs import get_logger
from .tool_definition import (
    Tool,
    ToolLike,
    as_tool,
    build_tool,
    describe_tool,
    evaluated_hints,
    found_at,
    refusal,
    tool,
)

__all__ = [
    "MAX_TOOL_THREADS",
    "CallableToolbox",
    "Tool",
    "ToolLike",
    "as_tool",
    "describe_tool",
    "pack_tool",
    "spec_from_record",
    "spec_to_record",
    "tool",
    "unpack_tools",
]

MAX_TOOL_THREADS = 8
"""Sync tools of one toolbox that run at once; further calls wait for a thread, within their own timeout_s."""

_log = get_logger(__name__)


class CallableToolbox:
    """The tools of one session, called in this process.

    Async tools run on the caller's event loop, sync ones in threads of their own. A thread cannot be stopped: a sync
    tool that is past its time, or whose run is cancelled, goes on unseen and keeps its thread until it returns.
    """

    def __init__(
        self, tools: Iterable[ToolLike] = (), *, lost: Iterable[ToolSpec] = (), max_threads: int | None = None
    ) -> None:
        """`lost` are tools that could not be restored: listed, and answered with tool_not_found. `max_threads` sync
        tools run at once, eight if None: as many as a session needs, too few for one that many sessions share."""
        self._max_threads = max_threads or MAX_TOOL_THREADS
        self._specs: dict[str, ToolSpec] = {}
        self._tools: dict[str, Tool] = {}
        self._executor: ThreadPoolExecutor | None = None
        for each in map(as_tool, tools):
            self._add(each.spec)
            self._tools[each.spec.name] = each
        for spec in lost:
            self._add(spec)

    def specs(self) -> tuple[ToolSpec, ...]:
        return tuple(self._specs.values())

    async def permit(
        self, name: str, arguments: dict[str, Any], call_id: str, *, asks: bool = False
    ) -> ToolResult | None:
        return None

    async def invoke(self, name: str, arguments: dict[str, Any], call_id: str) -> ToolResult:
        """Call a tool. All that goes wrong comes back as a result for the model; only cancellation passes."""
        called = self._tools.get(name)
        if called is None:
            return _not_found(name, known=self._tools)
        try:
            bound = called.bound(arguments)
        except PydanticError as exc:
            return _failed("validation_error", _complaint(name, exc))
        except Exception as exc:  # noqa: BLE001  # a validator of the tool's own author; told to the model
            return _raised(exc)
        if _is_async(called.function):
            return await _on_loop(called, bound)
        return await self._in_thread(called, bound)

    def close(self) -> None:
        """Let go of the threads without waiting for them; calls that wait for a thread are dropped."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None

    def _add(self, spec: ToolSpec) -> None:
        if spec.name in self._specs:
            raise refusal(f"there are two tools named {spec.name!r}; give one of them another name", tool=spec.name)
        self._specs[spec.name] = spec

    async def _in_thread(self, called: Tool, bound: inspect.BoundArguments) -> ToolResult:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._max_threads, thread_name_prefix="greenroom-tool")
        context = contextvars.copy_context()
        running = self._executor.submit(context.run, _guarded, called.function, bound)
        try:
            async with asyncio.timeout(called.spec.timeout_s):
                given = await asyncio.wrap_future(running)
                return given if isinstance(given, ToolResult) else await _awaited(lambda: given)
        except TimeoutError:
            return _overdue(called.spec, running)
        except asyncio.CancelledError:
            running.cancel()
            raise


async def _on_loop(called: Tool, bound: inspect.BoundArguments) -> ToolResult:
    try:
        async with asyncio.timeout(called.spec.timeout_s):
            return await _awaited(lambda: called.function(*bound.args, **bound.kwargs))
    except TimeoutError:
        return _failed(Timeout.code, f"timed out after {called.spec.timeout_s} s and was stopped")


async def _awaited(call: Callable[[], Awaitable[Any]]) -> ToolResult:
    try:
        return _completed(await call())
    except asyncio.CancelledError as exc:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return _raised(exc)  # nobody cancelled this call: the tool awaited something of its own that was cancelled
    except (Exception, SystemExit) as exc:  # noqa: BLE001  # whatever a tool does is for the model to hear
        return _raised(exc)


def _guarded(function: Callable[..., Any], bound: inspect.BoundArguments) -> ToolResult | Awaitable[Any]:
    """What runs in the thread. It never raises: a StopIteration in a future hangs its waiter, a SystemExit kills it."""
    try:
        output = function(*bound.args, **bound.kwargs)
        return output if inspect.isawaitable(output) else _completed(output)
    except BaseException as exc:  # noqa: BLE001  # whatever a tool does is for the model to hear
        return _raised(exc)


def _overdue(spec: ToolSpec, running: Future[ToolResult | Awaitable[Any]]) -> ToolResult:
    if running.cancel():
        return _failed(Timeout.code, f"timed out after {spec.timeout_s} s without having begun: all threads are taken")
    if not running.done():
        text = f"timed out after {spec.timeout_s} s and cannot be stopped; whether it had its effect is not known"
        return _failed(Timeout.code, text, ToolOutcome.IN_DOUBT)
    given = running.result()
    if isinstance(given, ToolResult):
        return given
    return _failed(Timeout.code, f"timed out after {spec.timeout_s} s and was stopped")


def pack_tool(given: ToolLike) -> dict[str, Any]:
    """The tool as it travels: `spec`, and the `path` of an importable function or else its `pickle`.

    What stands in `__main__` or a notebook, or inside another function, goes by pickle, and so can be restored only by
    the same version of Python. ValidationError for what cannot be pickled.
    """
    packed = as_tool(given)
    record: dict[str, Any] = {"spec": spec_to_record(packed.spec)}
    path = _importable_path(packed.function)
    if path is not None:
        return {**record, "path": path}
    try:
        return {**record, "pickle": _pickled((packed.function, dict(packed.hints)))}
    except Exception as exc:
        raise refusal(
            f"tool {packed.spec.name!r} cannot be sent to a session ({type(exc).__name__}: {exc}); make it a function "
            "of an importable module",
            tool=packed.spec.name,
        ) from exc


def unpack_tools(records: Iterable[Mapping[str, Any]], *, max_threads: int | None = None) -> CallableToolbox:
    """The toolbox that `pack_tool` packed, one record per tool. A tool that cannot be restored here stays listed."""
    restored: list[Tool] = []
    lost: list[ToolSpec] = []
    for record in records:
        spec = spec_from_record(record["spec"])
        try:
            restored.append(_restored(spec, record))
        except Exception as exc:  # noqa: BLE001  # importing and unpickling run foreign code; calls say that it is lost
            _log.warning("tool_lost", tool=spec.name, error=repr(exc))
            lost.append(spec)
    return CallableToolbox(restored, lost=lost, max_threads=max_threads)


def spec_to_record(spec: ToolSpec) -> dict[str, Any]:
    """The spec as plain data; `spec_from_record` turns it back."""
    return {**asdict(spec), "approval": spec.approval.value}


def spec_from_record(record: Mapping[str, Any]) -> ToolSpec:
    fields: dict[str, Any] = {**record, "approval": ToolApproval(record["approval"])}
    return ToolSpec(**fields)


def _pickled(value: object) -> bytes:
    cloudpickle: Any = importlib.import_module("ray.cloudpickle")  # late: it takes a second, and most tools go by path
    # By name: a copy of the sentinel is another object, and a dataclass restored with it counts as broken.
    sentinel: dict[type, Any] = {type(MISSING): _name_of_missing}
    dispatch_table = ChainMap(sentinel, cloudpickle.CloudPickler.dispatch_table)
    pickler_class: Any = type("_Pickler", (cloudpickle.CloudPickler,), {"dispatch_table": dispatch_table})
    buffer = io.BytesIO()
    pickler_class(buffer).dump(value)
    return buffer.getvalue()


def _name_of_missing(_: object) -> str:
    return "MISSING"


def _restored(spec: ToolSpec, record: Mapping[str, Any]) -> Tool:
    if "path" in record:
        found = found_at(str(record["path"]))
        function = found.function if isinstance(found, Tool) else found
        return build_tool(
            function, replace(spec, description=inspect.getdoc(function) or ""), evaluated_hints(function, spec.name)
        )
    function, hints = pickle.loads(record["pickle"])  # noqa: S301  # written by pack_tool into the session's own row
    return build_tool(function, spec, hints)


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _importable_path(function: Callable[..., Any]) -> str | None:
    """Where another process finds this very function; None if it cannot."""
    module_name = getattr(function, "__module__", None)
    qualified_name = getattr(function, "__qualname__", "")
    module = sys.modules.get(module_name or "")
    if module is None or module_name in ("__main__", "__mp_main__") or getattr(module, "__spec__", None) is None:
        return None
    try:
        found = attrgetter(qualified_name)(module)
    except AttributeError:
        return None
    same = found is function or (isinstance(found, Tool) and found.function is function)
    return f"{module_name}:{qualified_name}" if same else None


def _completed(output: Any) -> ToolResult:
    return ToolResult(output=_json_safe(output))


def _raised(exc: BaseException) -> ToolResult:
    return _failed(ToolExecutionFailed.code, f"{type(exc).__name__}: {_as_text(exc)}")


def _failed(code: str, text: str, outcome: ToolOutcome = ToolOutcome.ERROR) -> ToolResult:
    return ToolResult(output=text, outcome=outcome, error={"code": code, "message": text})


def _not_found(name: str, *, known: Iterable[str]) -> ToolResult:
    return _failed(ToolNotFound.code, f"There is no tool {name!r} here. There are: {', '.join(known) or 'none'}.")


def _complaint(name: str, exc: PydanticError) -> str:
    wrong = (
        f"{'.'.join(str(part) for part in error['loc']) or 'arguments'}: {error['msg']}"
        for error in exc.errors(include_url=False, include_input=False, include_context=False)
    )
    return f"The arguments of {name} are not valid. {'; '.join(wrong)}."


def _json_safe(value: Any) -> Any:
    """The value as JSON knows it; what JSON does not know becomes text, and so does all of it where that fails."""
    try:
        return json.loads(to_json(value, inf_nan_mode="strings", bytes_mode="base64", serialize_unknown=True))
    except Exception:  # noqa: BLE001  # serialisers of the tool's own types, cycles, lone surrogates; the text is the record
        return _as_text(value)


def _as_text(value: object) -> str:
    try:
        return str(value).encode("utf-8", "replace").decode()
    except Exception:  # noqa: BLE001  # a __str__ of the tool's own types; its type is all that can be said
        return f"<{type(value).__name__}>"
