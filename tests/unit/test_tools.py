"""Tools from Python callables: described, called, and sent elsewhere."""

import asyncio
import functools
import math
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from greenroom.adapters.tools import (
    MAX_TOOL_THREADS,
    CallableToolbox,
    Tool,
    describe_tool,
    pack_tool,
    tool,
    unpack_tools,
)
from greenroom.domain.errors import ValidationError
from greenroom.domain.tool import ToolApproval, ToolOutcome


@dataclass
class Place:
    city: str
    country: str = "NO"


def weather(place: Place, unit: Annotated[Literal["C", "F"], Field(description="of temperature")] = "C") -> str:
    """What the weather is like."""
    return f"rain in {place.city}, {place.country} ({unit})"


async def double(number: int) -> int:
    """Twice the number."""
    return 2 * number


@tool(name="quick", timeout_s=3, side_effects=False)
def decorated(text: str) -> str:
    """Decorated."""
    return text.upper()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Opened at the end of the test, so that no thread outlives it."""
    event = threading.Event()
    yield event
    event.set()


def test_a_description_comes_from_name_docstring_and_annotations() -> None:
    spec = describe_tool(weather)

    assert (spec.name, spec.description) == ("weather", "What the weather is like.")
    assert spec.input_schema == {
        "$defs": {
            "Place": {
                "type": "object",
                "title": "Place",
                "additionalProperties": False,
                "properties": {"city": {"type": "string"}, "country": {"type": "string", "default": "NO"}},
                "required": ["city"],
            }
        },
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "place": {"$ref": "#/$defs/Place"},
            "unit": {"type": "string", "enum": ["C", "F"], "default": "C", "description": "of temperature"},
        },
        "required": ["place"],
    }


def test_a_tool_without_parameters_has_an_empty_object_as_schema() -> None:
    def now() -> str:
        return "now"

    assert describe_tool(now).input_schema == {"type": "object", "properties": {}, "additionalProperties": False}


def test_parameters_may_have_names_that_pydantic_keeps_to_itself() -> None:
    def odd(schema: str, _private: int, model_config: bool) -> None: ...

    assert list(describe_tool(odd).input_schema["properties"]) == ["schema", "_private", "model_config"]


def test_a_path_names_a_tool() -> None:
    assert describe_tool(f"{__name__}:weather") == describe_tool(weather)


@pytest.mark.parametrize("path", ["weather", "tests.unit.test_tools:nothing", "no_such_module:f", ":f", "m:"])
def test_a_path_to_nothing_is_refused(path: str) -> None:
    with pytest.raises(ValidationError):
        describe_tool(path)


def test_a_decorated_tool_keeps_what_was_said_of_it_and_can_still_be_called() -> None:
    assert (decorated.spec.name, decorated.spec.timeout_s, decorated.spec.side_effects) == ("quick", 3, False)
    assert decorated("a") == "A"


def test_a_parameter_without_annotation_is_refused_by_name() -> None:
    untyped: Any = eval("lambda city: city")
    untyped.__name__ = "untyped"

    with pytest.raises(ValidationError, match=r"'untyped', parameter 'city'") as caught:
        describe_tool(untyped)

    assert caught.value.details == {"field": "tools", "tool": "untyped", "parameter": "city"}


def test_variable_parameters_are_refused_by_name() -> None:
    def many(*cities: str) -> None: ...
    def named(**cities: str) -> None: ...

    with pytest.raises(ValidationError, match=r"'many', parameter '\*cities'"):
        describe_tool(many)
    with pytest.raises(ValidationError, match=r"'named', parameter '\*\*cities'"):
        describe_tool(named)


def test_an_annotation_without_json_schema_is_refused() -> None:
    def locked(lock: threading.Event) -> None: ...

    with pytest.raises(ValidationError, match="locked"):
        describe_tool(locked)


def test_a_lambda_needs_a_name() -> None:
    with pytest.raises(ValidationError, match="name="):
        tool(lambda: 1)

    assert tool(lambda: 1, name="one").spec.name == "one"


def test_what_is_no_callable_is_refused() -> None:
    with pytest.raises(ValidationError, match="no tool"):
        describe_tool(3)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("timeout_s", [0, -1, math.inf, math.nan])
def test_a_timeout_must_be_a_time(timeout_s: float) -> None:
    with pytest.raises(ValidationError, match="timeout_s"):
        tool(weather, timeout_s=timeout_s)


@pytest.mark.parametrize("approval", ["never", "always", "policy"])
def test_a_tool_says_whether_a_person_is_asked(approval: str) -> None:
    assert ToolApproval(approval) is tool(weather, approval=approval).spec.approval


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(ValidationError, match="two tools named 'weather'"):
        CallableToolbox([weather, f"{__name__}:weather"])


async def test_arguments_are_converted_to_the_annotations() -> None:
    result = await CallableToolbox([weather]).invoke("weather", {"place": {"city": "Oslo"}}, "call_1")

    assert (result.output, result.outcome) == ("rain in Oslo, NO (C)", None)


async def test_an_async_tool_is_awaited() -> None:
    assert (await CallableToolbox([double]).invoke("double", {"number": "21"}, "call_1")).output == 42


async def test_a_sync_tool_runs_in_a_thread_of_its_own_kind() -> None:
    def where() -> str:
        return threading.current_thread().name

    assert (await CallableToolbox([where]).invoke("where", {}, "call_1")).output.startswith("greenroom-tool")


async def test_partials_methods_and_callable_objects_are_tools() -> None:
    class Greeter:
        def __call__(self, name: str) -> str:
            return f"Hello {name}"

        def method(self, name: str) -> str:
            return f"Hi {name}"

    named = tool(functools.partial(weather, unit="F"), name="fahrenheit")
    toolbox = CallableToolbox([Greeter(), Greeter().method, named])

    assert (await toolbox.invoke("Greeter", {"name": "A"}, "call_1")).output == "Hello A"
    assert (await toolbox.invoke("method", {"name": "B"}, "call_1")).output == "Hi B"
    assert (await toolbox.invoke("fahrenheit", {"place": {"city": "C"}}, "call_1")).output == "rain in C, NO (F)"


async def test_what_a_sync_tool_returns_is_awaited_when_it_must_be() -> None:
    def wrapped(number: int) -> Any:
        return double(number)

    assert (await CallableToolbox([wrapped]).invoke("wrapped", {"number": 2}, "call_1")).output == 4


async def test_wrong_arguments_are_told_to_the_model_and_nothing_is_called() -> None:
    result = await CallableToolbox([double]).invoke("double", {"number": "many", "extra": 1}, "call_1")

    assert result.outcome is ToolOutcome.ERROR
    assert result.error is not None
    assert result.error["code"] == "validation_error"
    assert "number: Input should be a valid integer" in result.output
    assert "extra: " in result.output


async def test_an_unknown_name_answers_tool_not_found() -> None:
    result = await CallableToolbox([double]).invoke("triple", {}, "call_1")

    assert (result.outcome, (result.error or {})["code"]) == (ToolOutcome.ERROR, "tool_not_found")


@pytest.mark.parametrize("raised", [ValueError("bad"), TimeoutError("bad"), KeyError("bad"), SystemExit("bad")])
async def test_what_a_tool_raises_is_told_to_the_model(raised: BaseException) -> None:
    def sync_tool() -> None:
        raise raised

    async def async_tool() -> None:
        raise raised

    toolbox = CallableToolbox([sync_tool, async_tool])

    for name in ("sync_tool", "async_tool"):
        result = await toolbox.invoke(name, {}, "call_1")
        assert (result.outcome, (result.error or {})["code"]) == (ToolOutcome.ERROR, "tool_execution_failed")
        assert "bad" in result.output


async def test_a_tool_whose_own_task_was_cancelled_has_failed() -> None:
    async def confused() -> None:
        raise asyncio.CancelledError

    assert (await CallableToolbox([confused]).invoke("confused", {}, "call_1")).outcome is ToolOutcome.ERROR


async def test_an_async_tool_past_its_time_is_stopped() -> None:
    stopped = asyncio.Event()

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    result = await CallableToolbox([tool(slow, timeout_s=0.01)]).invoke("slow", {}, "call_1")

    assert (result.outcome, (result.error or {})["code"]) == (ToolOutcome.ERROR, "timeout")
    assert "timed out" in result.output
    assert stopped.is_set()


async def test_a_sync_tool_past_its_time_is_in_doubt(gate: threading.Event) -> None:
    def slow() -> None:
        gate.wait()

    result = await CallableToolbox([tool(slow, timeout_s=0.05)]).invoke("slow", {}, "call_1")

    assert (result.outcome, (result.error or {})["code"]) == (ToolOutcome.IN_DOUBT, "timeout")


async def test_a_sync_tool_that_never_got_a_thread_is_not_in_doubt(gate: threading.Event) -> None:
    begun = threading.Semaphore(0)

    def hold() -> None:
        begun.release()
        gate.wait()

    toolbox = CallableToolbox([hold, tool(weather, timeout_s=0.05)])
    holders = [asyncio.create_task(toolbox.invoke("hold", {}, "call_1")) for _ in range(MAX_TOOL_THREADS)]
    for _ in holders:
        await asyncio.to_thread(begun.acquire)

    result = await toolbox.invoke("weather", {"place": {"city": "Oslo"}}, "call_1")

    gate.set()
    await asyncio.gather(*holders)
    toolbox.close()
    assert result.outcome is ToolOutcome.ERROR
    assert "without having begun" in result.output


async def test_cancellation_passes(gate: threading.Event) -> None:
    begun = threading.Semaphore(0)

    async def wait() -> None:
        begun.release()
        await asyncio.Event().wait()

    def block() -> None:
        begun.release()
        gate.wait()

    toolbox = CallableToolbox([tool(wait, timeout_s=60), block])

    for name in ("wait", "block"):
        task = asyncio.create_task(toolbox.invoke(name, {}, "call_1"))
        await asyncio.to_thread(begun.acquire)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ({1: (2, 3)}, {"1": [2, 3]}),
        (Place("Oslo"), {"city": "Oslo", "country": "NO"}),
        (float("nan"), "NaN"),
        (b"\xff", "_w=="),
        ("\ud800", "?"),
        (ToolOutcome.ERROR, "error"),
    ],
    ids=repr,
)
async def test_outputs_are_made_json_safe(value: object, expected: object) -> None:
    def give() -> Any:
        return value

    assert (await CallableToolbox([give]).invoke("give", {}, "call_1")).output == expected


async def test_an_output_without_end_is_cut() -> None:
    def knot() -> Any:
        itself: list[Any] = []
        itself.append(itself)
        return itself

    assert (await CallableToolbox([knot]).invoke("knot", {}, "call_1")).output == ["..."]


async def test_a_stop_iteration_does_not_hang_the_caller() -> None:
    def stop() -> None:
        raise StopIteration

    assert (await CallableToolbox([stop]).invoke("stop", {}, "call_1")).outcome is ToolOutcome.ERROR


async def test_an_importable_tool_travels_by_path() -> None:
    record = pack_tool(tool(double, name="twice", timeout_s=5))

    toolbox = unpack_tools([pickle.loads(pickle.dumps(record))])

    assert record["path"] == f"{__name__}:double"
    assert toolbox.specs() == (tool(double, name="twice", timeout_s=5).spec,)
    assert (await toolbox.invoke("twice", {"number": 4}, "call_1")).output == 8


async def test_a_decorated_tool_travels_by_path_too() -> None:
    toolbox = unpack_tools([pack_tool(decorated)])

    assert toolbox.specs() == (decorated.spec,)
    assert (await toolbox.invoke("quick", {"text": "a"}, "call_1")).output == "A"


async def test_a_tool_that_cannot_be_imported_travels_by_pickle() -> None:
    factor = 3

    @dataclass
    class Local:
        number: int

    def triple(local: Local) -> int:
        return factor * local.number

    record = pack_tool(triple)
    toolbox = unpack_tools([record])

    assert "path" not in record
    assert isinstance(record["pickle"], bytes)
    assert toolbox.specs() == (describe_tool(triple),)
    assert (await toolbox.invoke("triple", {"local": {"number": 2}}, "call_1")).output == 6


MAIN_SCRIPT = """
from __future__ import annotations
import dataclasses, pickle, sys, typing
import pydantic
from greenroom.adapters.tools import pack_tool, tool

@dataclasses.dataclass
class Place:
    city: str
    tags: list[str] = dataclasses.field(default_factory=list)

class Wish(pydantic.BaseModel):
    sky: typing.Literal["sun", "rain"] = "sun"

@tool(timeout_s=9)
def forecast(place: Place, wish: Wish) -> str:
    return f"{wish.sky} in {place.city} {place.tags}"

sys.stdout.buffer.write(pickle.dumps(pack_tool(forecast)))
"""


async def test_a_function_of_a_script_is_restored_in_another_process_with_the_types_of_its_parameters() -> None:
    packed = subprocess.run([sys.executable, "-c", MAIN_SCRIPT], capture_output=True, check=True).stdout
    record = pickle.loads(packed)

    toolbox = unpack_tools([record])
    result = await toolbox.invoke("forecast", {"place": {"city": "Oslo"}, "wish": {"sky": "rain"}}, "call_1")

    assert set(record) == {"spec", "pickle"}
    assert [spec.timeout_s for spec in toolbox.specs()] == [9]
    assert result.output == "rain in Oslo []"
    assert (await toolbox.invoke("forecast", {"place": {}, "wish": {}}, "call_1")).outcome is ToolOutcome.ERROR


def test_a_tool_that_cannot_be_pickled_is_refused_by_name() -> None:
    lock = threading.Lock()

    def locked() -> bool:
        return lock.locked()

    with pytest.raises(ValidationError, match="'locked' cannot be sent"):
        pack_tool(locked)


async def test_a_tool_that_cannot_be_restored_stays_listed_and_answers_tool_not_found() -> None:
    gone = {**pack_tool(double), "path": "no_such_module:double"}
    renamed: dict[str, Any] = {**pack_tool(double)["spec"], "name": "broken"}
    broken: dict[str, Any] = {"spec": renamed, "pickle": b"nonsense"}

    toolbox = unpack_tools([gone, broken, pack_tool(weather)])

    assert {spec.name for spec in toolbox.specs()} == {"double", "broken", "weather"}
    for name in ("double", "broken"):
        result = await toolbox.invoke(name, {"number": 1}, "call_1")
        assert (result.error or {})["code"] == "tool_not_found"


def test_a_tool_is_shown_without_its_machinery() -> None:
    assert "arguments" not in repr(tool(weather))
    assert isinstance(tool(weather), Tool)
