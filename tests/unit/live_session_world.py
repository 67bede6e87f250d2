"""A live session over the log in memory, and providers that do what a test tells them, when it tells them."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from itertools import count
from typing import Any

from greenroom.actors.activation import Activation
from greenroom.actors.live_session import LiveSession
from greenroom.actors.provider_set import ProviderSet
from greenroom.adapters.clock import id_factory, now_us
from greenroom.adapters.memory_event_log import MemoryEventLog
from greenroom.domain.capability import Capability
from greenroom.domain.errors import CapabilityNotSupported, GreenroomError
from greenroom.domain.event import Event, EventType
from greenroom.domain.event_log import EventQuery
from greenroom.domain.provider import (
    Provider,
    ProviderConversation,
    ProviderDeclaration,
    ProviderEvent,
    ProviderOutcome,
    ProviderRequest as Request,
)
from greenroom.domain.routing import RouterOptions
from greenroom.domain.run import Run, RunResult
from greenroom.domain.run_gate import RunGate
from greenroom.domain.run_outcome import outcome_of
from greenroom.domain.session import SessionSpec
from greenroom.domain.token_usage import TokenUsage
from greenroom.domain.tool import NoTools, Toolbox

SESSION = "ses_1"
ENOUGH_TURNS = 50
MAX_INPUT_BYTES = 1_000

Answers = AsyncGenerator[ProviderEvent | ProviderConversation | ProviderOutcome]
Play = Callable[[Request], Answers]


def streamed(text: str) -> ProviderEvent:
    return ProviderEvent(EventType.MESSAGE_STREAMED, {"content": text, "kind": "text"})


def tool_started(call_id: str) -> ProviderEvent:
    data = {"tool_call_id": call_id, "tool_name": "search", "tool_input": {"q": "x"}}
    return ProviderEvent(EventType.TOOL_CALL_STARTED, data)


def outcome(content: str = "ok", **fields: Any) -> ProviderOutcome:
    return ProviderOutcome(content=content, stop_reason="end_turn", token_usage=TokenUsage(output_tokens=1), **fields)


class PlayProvider:
    """Plays an async generator function for every run."""

    def __init__(self, play: Play) -> None:
        self.play = play

    def capabilities(self) -> tuple[Capability, ...]:
        return ()

    def execute(self, request: Request) -> Answers:
        return self.play(request)

    async def interrupt(self, run_id: str) -> None:
        raise CapabilityNotSupported

    async def steer(self, run_id: str, message: str) -> bool:
        raise CapabilityNotSupported

    def processes(self, run_id: str) -> list[dict[str, int]]:
        return []

    async def aclose(self) -> None:
        return None


class Gates(PlayProvider):
    """Every run says that it is there, then waits until the test lets it go on. Runs are named by their input."""

    def __init__(self) -> None:
        super().__init__(self._run)
        self.started: list[str] = []
        self.requests: list[Request] = []
        self.most_at_once = 0
        self._inside = 0
        self._entered: dict[str, asyncio.Event] = {}
        self._opened: dict[str, asyncio.Event] = {}

    def open(self, *names: str) -> None:
        for name in names:
            self._opened.setdefault(name, asyncio.Event()).set()

    async def entered(self, name: str) -> None:
        """Return when the run has reached the provider."""
        await self._entered.setdefault(name, asyncio.Event()).wait()

    async def _run(self, request: Request) -> Answers:
        name = request.messages[-1].content
        self.started.append(name)
        self.requests.append(request)
        self._inside += 1
        self.most_at_once = max(self.most_at_once, self._inside)
        self._entered.setdefault(name, asyncio.Event()).set()
        try:
            yield streamed(f"{name}...")
            await self._opened.setdefault(name, asyncio.Event()).wait()
        finally:
            self._inside -= 1
        yield outcome(f"{name}!")


class GivenProviders(ProviderSet):
    """Providers that a test made itself, beside the built-in ones."""

    def __init__(self, given: dict[str, Provider], routers: dict[str, RouterOptions] | None = None) -> None:
        super().__init__({name: ProviderDeclaration(name=name, kind="scripted") for name in given}, routers)
        self._given = given

    def get(self, name: str) -> Provider:
        return self._given.get(name) or super().get(name)


class World:
    """One log, the processes that serve its sessions one after another, and a clock that a test can move."""

    def __init__(self, log: MemoryEventLog | None = None) -> None:
        self.log = log or MemoryEventLog()
        self.ids = id_factory()
        self.ahead_us = 0
        self.approval_expires_s = 3_600.0
        self.lost: Counter[str] = Counter()
        self._lives: list[LiveSession] = []
        self._calls = count(1)
        self._owners = count(1)

    def now_us(self) -> int:
        return now_us() + self.ahead_us

    def call(self) -> str:
        return f"call_{next(self._calls)}"

    async def open(
        self,
        provider: Provider | None = None,
        *,
        session_id: str = SESSION,
        create: bool = True,
        tools: Toolbox | None = None,
        key: str | None = None,
        gate: RunGate | None = None,
        shared: bool = False,
        declared: ProviderDeclaration | None = None,
        home: str | None = None,
        scope_policies: dict[str, dict[str, Any]] | None = None,
        providers: ProviderSet | None = None,
        accounts: Any = None,
        **spec: Any,
    ) -> LiveSession:
        """Take the session over as a new process would; runs go to the given provider, or to the declared one, else to
        the scripted one."""
        owner = f"owner_{next(self._owners)}"
        name = "given" if provider else None
        given = GivenProviders({"given": provider} if provider else {})
        activation = Activation(
            owner,
            log=self.log,
            accounts=lambda: accounts,
            default_provider="scripted",
            max_input_bytes=MAX_INPUT_BYTES,
            approval_expires_s=self.approval_expires_s,
            ids=self.ids,
            now_us=self.now_us,
            gate=gate,
            scope_policies=scope_policies,
        )
        live = await activation.activate(
            session_id,
            spec=SessionSpec(provider=declared.name if declared else name, **spec) if create else None,
            idempotency_key=key,
            providers=providers or (ProviderSet({declared.name: declared}) if declared else given),
            home=home,
            unpack_tools=lambda _: tools or NoTools(),
            on_lost=lambda: self.lost.update([owner]),
            shared=shared,
        )
        self._lives.append(live)
        return live

    async def submit(self, live: LiveSession, *inputs: str, options: Any = None) -> list[str]:
        return [(await live.submit_runs([one], options, [None], self.call()))[0] for one in inputs]

    async def events(self, run_id: str | None = None, session_id: str = SESSION, after: int = 0) -> list[Event]:
        return await self.log.read(session_id, EventQuery(after=after, run_id=run_id, limit=10_000))

    async def types(self, run_id: str | None = None) -> list[str]:
        return [event.type.value for event in await self.events(run_id)]

    async def record(self, run_id: str) -> Run:
        found = await self.log.find_run(run_id)
        assert found is not None
        return found

    async def recorded_outcome(self, run_id: str) -> RunResult | GreenroomError:
        """What the log says of the run's end."""
        return outcome_of(await self.record(run_id))

    async def aclose(self) -> None:
        await asyncio.gather(*(live.aclose() for live in self._lives))


async def settled() -> None:
    """Let everything that can happen now happen: for saying that something did not. Nothing here takes time."""
    for _ in range(ENOUGH_TURNS):
        await asyncio.sleep(0)


async def error_of(live: LiveSession, run_id: str, timeout_s: float | None = 10) -> GreenroomError:
    """The error that awaiting the run raises."""
    try:
        result = await live.await_run(run_id, timeout_s)
    except GreenroomError as exc:
        return exc
    raise AssertionError(f"the run completed: {result}")


def count_of(types: Sequence[str], *wanted: str) -> int:
    return sum(one in wanted for one in types)


TERMINAL = ("run_completed", "run_failed", "run_cancelled", "run_timeout")
