"""Recordings of the anthropic SDK, replayed: what went over the wire through the provider, and the events that the SDK
gave through what it makes of a message. `python -m tests.anthropic_recordings` writes the golden lists anew: read what
has changed before you believe it."""

import asyncio
import importlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import anthropic
import httpx2
from anthropic.types import RawMessageStreamEvent
from pydantic import TypeAdapter

from greenroom.adapters.providers.agents.replayed_attempt import Attempt
from greenroom.adapters.providers.anthropic.attempt import AssistantMessage
from greenroom.adapters.providers.anthropic.errors import translated
from greenroom.adapters.providers.anthropic.provider import AnthropicProvider
from greenroom.adapters.tools import CallableToolbox
from greenroom.domain.errors import Cancelled, GreenroomError
from greenroom.domain.event import EventType
from greenroom.domain.provider import ProviderEvent, ProviderLevels, ProviderOutcome, ProviderRequest
from greenroom.domain.run_input import Message, Role
from greenroom.domain.token_usage import TokenUsage
from greenroom.testing.answers import Answer, Ending
from greenroom.testing.loopback_server import LoopbackServer, RecordedRequest
from tests.provider_recordings import GOLDEN, RECORDINGS, to_golden

FOLDER = RECORDINGS / "anthropic"

RAW_EVENTS: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)

RAW_KINDS = frozenset(
    {
        "message_start",
        "message_delta",
        "message_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
    }
)
"""What the API sends; the SDK's own events say again what these have brought."""

ADDED_BY_THE_SDK = frozenset({("content_block_stop", "content_block"), ("message_stop", "message")})
"""Fields that the SDK adds to events of the API."""

ENDINGS = {"server drops the connection": Ending.CUT, "client disconnected mid-stream": Ending.STALL}
"""What the server has to do where the recording has a note."""

STREAM_HEADERS = {"request-id": "req_fake"}
"""Not in the recordings of the wire; the SDK reports it in its own."""

KEY = "key-of-no-account"


def get_weather(city: str) -> str:
    """What the recorded client answered."""
    return "rain"


@dataclass(frozen=True, slots=True)
class Ended:
    """Implements WireMapping for an attempt that is over."""

    end: ProviderOutcome | GreenroomError
    handle: dict[str, str] | None = None
    is_over: bool = True

    def take(self, message: Mapping[str, Any]) -> list[ProviderEvent]:
        return []

    def outcome(self) -> ProviderOutcome:
        if isinstance(self.end, GreenroomError):
            raise self.end
        return self.end


@dataclass(slots=True)
class Exchange:
    """One recorded request and its answer."""

    request: dict[str, Any]
    frames: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    response: dict[str, Any] | None = None
    """Instead of frames: status, headers and body."""
    ending: Ending = Ending.COMPLETE

    @property
    def answer(self) -> Answer:
        return Answer(status=200 if self.response is None else self.response["status"], ending=self.ending)

    @property
    def calls_a_tool(self) -> bool:
        return any(frame.get("content_block", {}).get("type") == "tool_use" for frame in self.frames)


class RecordedWire:
    """Implements Wire with the answers of a recording, one connection each."""

    path = "/v1/messages"
    delta = "content_block_delta"
    pages: Mapping[str, dict[str, Any]] = {}

    def __init__(self, exchanges: list[Exchange]) -> None:
        self._exchanges = exchanges

    def message(self, answer: Answer, number: int, body: dict[str, Any]) -> dict[str, Any]:
        raise AssertionError("All recorded requests are for streams.")

    def events(self, answer: Answer, number: int, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        return iter(self._exchanges[number - 1].frames)

    def error(self, answer: Answer, number: int) -> tuple[int, dict[str, Any]]:
        response = self._exchanges[number - 1].response
        assert response is not None
        return response["status"], response["body"]

    def headers(self, number: int) -> dict[str, str]:
        response = self._exchanges[number - 1].response
        return {**(STREAM_HEADERS if response is None else response["headers"]), "connection": "close"}

    def echo(self, body: dict[str, Any]) -> Answer:
        raise AssertionError("There are more requests than have been recorded.")


@dataclass(frozen=True, slots=True)
class Played:
    """What the provider made of a recording of the wire, and what it asked for."""

    exchanges: list[Exchange]
    attempts: list[Attempt]
    requests: list[RecordedRequest]


@dataclass(slots=True)
class RecordedMessage:
    """What the SDK reported of one answer of the model; of none, where the request failed at once."""

    events: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    whole: dict[str, Any] | None = None
    """The message at its end, as the SDK has put it together."""
    cut_off: dict[str, Any] | None = None
    """The same, when the client cancelled."""
    exception: dict[str, Any] | None = None

    def raw_events(self) -> list[dict[str, Any]]:
        """As the API sent them."""
        return [
            {name: value for name, value in event.items() if (event["type"], name) not in ADDED_BY_THE_SDK}
            for event in self.events
            if event["type"] in RAW_KINDS
        ]

    def synthetic_events(self) -> list[dict[str, Any]]:
        """Those that the SDK made of the others."""
        return [event for event in self.events if event["type"] not in RAW_KINDS]


def wire_names() -> list[str]:
    """The recordings of what went over the wire."""
    return sorted(path.stem for path in FOLDER.glob("*.wire.jsonl"))


def sdk_names() -> list[str]:
    """The recordings of what the SDK gave."""
    return sorted(path.stem for path in FOLDER.glob("*.jsonl") if not path.stem.endswith(".wire"))


def golden_path(name: str) -> Path:
    return GOLDEN / "anthropic" / f"{name}.json"


def read_exchanges(name: str) -> list[Exchange]:
    """The requests of a recording of the wire, in order."""
    exchanges: list[Exchange] = []
    for line in _lines(name):
        match line["dir"]:
            case "req":
                exchanges.append(Exchange(line))
            case "sse":
                exchanges[-1].frames.append(line["data"])
            case "resp":
                exchanges[-1].response = line
            case _:
                exchanges[-1].ending = ENDINGS[line["note"]]
    return exchanges


def read_messages(name: str) -> list[RecordedMessage]:
    """The answers of the model in a recording of the SDK, in order."""
    messages: list[RecordedMessage] = []
    for line in _lines(name):
        if not messages or line.get("sdk_event") == "message_start":
            messages.append(RecordedMessage())
        if "sdk_event" in line:
            messages[-1].events.append({name: value for name, value in line.items() if name != "sdk_event"})
        elif "exception" in line:
            messages[-1].exception = line
        else:
            messages[-1].whole = line.get("final_message", messages[-1].whole)
            messages[-1].cut_off = line.get("cancelled_snapshot", messages[-1].cut_off)
    return messages


def foreign_error(recorded: dict[str, Any]) -> Exception:
    """The exception that the SDK raised."""
    errors = importlib.import_module("anthropic._exceptions")
    kind = cast(
        "type[Exception]", getattr(errors, recorded["exception"], None) or httpx2.__dict__[recorded["exception"]]
    )
    if not issubclass(kind, anthropic.APIStatusError):
        return kind(recorded["str"])
    headers = {"request-id": recorded["request_id"], "retry-after": recorded["retry_after"]}
    response = httpx2.Response(
        recorded["status_code"],
        headers={name: value for name, value in headers.items() if value is not None},
        request=httpx2.Request("POST", "http://127.0.0.1:1/v1/messages"),
    )
    return kind(recorded["str"], response=response, body=recorded["body"])


def take_messages(name: str) -> list[tuple[RecordedMessage, AssistantMessage, Attempt]]:
    """What AssistantMessage makes of each answer, ended as an attempt would be of which it is the last."""
    taken: list[tuple[RecordedMessage, AssistantMessage, Attempt]] = []
    spent = TokenUsage()
    for recorded in read_messages(name):
        message = AssistantMessage(spent)
        raw_events = [RAW_EVENTS.validate_python(event) for event in recorded.raw_events()]
        events = [event for raw_event in raw_events for event in message.take(raw_event)]
        if message.complete:
            events += message.received()
        spent = spent + message.usage
        end = _end(recorded, message, spent, turn_count=len(taken) + 1)
        taken.append((recorded, message, Attempt(Ended(end), events)))
    return taken


def _end(
    recorded: RecordedMessage, message: AssistantMessage, spent: TokenUsage, *, turn_count: int
) -> ProviderOutcome | GreenroomError:
    if recorded.exception is not None:
        return translated(foreign_error(recorded.exception), secret=KEY)
    if recorded.cut_off is not None:
        return Cancelled("The client cancelled.")
    assert message.complete
    return ProviderOutcome(
        content=message.text,
        stop_reason=message.stop_reason or "unknown",
        token_usage=spent,
        model=message.model,
        turn_count=turn_count,
    )


async def play_wire(name: str) -> Played:
    """Let the provider make attempts until all recorded answers have been given."""
    exchanges = read_exchanges(name)
    attempts: list[Attempt] = []
    provider = AnthropicProvider("claude")
    with LoopbackServer(RecordedWire(exchanges)) as server, tempfile.TemporaryDirectory() as folder:
        server.answers.extend(exchange.answer for exchange in exchanges)
        (key_file := Path(folder) / "key").write_text(KEY, encoding="utf-8")
        options = {"base_url": server.url, "api_key_file": str(key_file), "timeout_s": 10.0}
        while (number := len(server.requests)) < len(exchanges):
            tools = [get_weather] if any(exchange.calls_a_tool for exchange in exchanges) else []
            request = _request(exchanges[number].request["body"], CallableToolbox(tools), len(attempts) + 1, options)
            attempts.append(await _attempt(provider, request, exchanges[number]))
            assert len(server.requests) > number, attempts[-1].end()
            if exchanges[number].ending is Ending.STALL:
                await asyncio.to_thread(server.requests[number].wait_disconnected)
        await provider.aclose()
        return Played(exchanges, attempts, server.requests)


def _request(body: dict[str, Any], tools: CallableToolbox, attempt: int, options: dict[str, Any]) -> ProviderRequest:
    return ProviderRequest(
        session_id="ses_1",
        run_id="run_1",
        attempt=attempt,
        run_number=1,
        messages=tuple(Message(Role(one["role"]), one["content"]) for one in body["messages"]),
        system_prompt=None,
        model=body["model"],
        max_turns=None,
        options={**options, "max_tokens": body["max_tokens"]},
        tools=tools,
    )


async def _attempt(provider: AnthropicProvider, request: ProviderRequest, exchange: Exchange) -> Attempt:
    """One attempt; cancelled after its last piece where the recorded client went away."""
    steps: list[ProviderEvent | ProviderLevels | ProviderOutcome] = []
    pieces = sum(frame["type"] == "content_block_delta" for frame in exchange.frames)

    async def consume(*, until_stalled: bool) -> None:
        async with aclosing(provider.execute(request)) as given:
            async for step in given:
                steps.append(step)
                streamed = [one for one in steps if getattr(one, "type", None) is EventType.MESSAGE_STREAMED]
                if until_stalled and len(streamed) == pieces:
                    stalled.set()

    stalled = asyncio.Event()
    task = asyncio.create_task(consume(until_stalled=exchange.ending is Ending.STALL))
    waiting = asyncio.create_task(stalled.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    task.cancel()
    await asyncio.wait({task, waiting})
    events = [step for step in steps if isinstance(step, ProviderEvent)]
    return Attempt(Ended(_end_of(task, steps)), events)


def _end_of(
    task: "asyncio.Task[None]", steps: list[ProviderEvent | ProviderLevels | ProviderOutcome]
) -> ProviderOutcome | GreenroomError:
    """The error, or the one outcome, behind which nothing came."""
    outcomes = [step for step in steps if isinstance(step, ProviderOutcome)]
    if task.cancelled():
        assert not outcomes
        return Cancelled("The client cancelled.")
    error = task.exception()
    if error is not None:
        assert not outcomes
        if not isinstance(error, GreenroomError):
            raise error
        return error
    assert outcomes == steps[-1:]
    return outcomes[0]


def _lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def _write_golden() -> None:
    replayed = {name: [attempt for *_, attempt in take_messages(name)] for name in sdk_names()}
    replayed |= {name: asyncio.run(play_wire(name)).attempts for name in wire_names()}
    for name, attempts in replayed.items():
        path = golden_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        golden = [to_golden(attempt) for attempt in attempts]
        path.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _write_golden()
