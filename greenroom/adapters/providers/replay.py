"""Kind `replay`: plays what was recorded of an agent's client, turn by turn, with no client and no network."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...domain.capability import Capability, CapabilityType
from ...domain.errors import CapabilityNotSupported, InvalidOperation
from ...domain.provider import ProviderConversation, ProviderEvent, ProviderOutcome, ProviderRequest
from ..option_parsing import parse_options
from .acp import replay as acp
from .agents.recording import RECORDING_SUFFIX, read_recording
from .agents.replayed_attempt import Attempt, Line
from .amp import replay as amp
from .claude_code import replay as claude_code
from .codex import replay as codex

REPLAYS: Mapping[str, Callable[[Sequence[Line]], list[Attempt]]] = {
    "acp": acp.replay,
    "amp": amp.replay,
    "claude-code": claude_code.replay,
    "codex": codex.replay,
}
"""Kind of the provider that was recorded -> how its lines are taken apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    client: Literal["acp", "amp", "claude-code", "codex"]
    """The kind that was recorded."""
    recording: str
    """A file, or a directory with the files of one session: the provider option `record` writes both."""


class ReplayProvider:
    """The first run of a session is given the first turn of the recording, the second run the second, and so on."""

    RUNS_IN_PROCESS = True

    def __init__(self, name: str) -> None:
        self.name = name
        self._attempts: dict[ReplayOptions, list[Attempt]] = {}

    @staticmethod
    def check_options(options: Mapping[str, Any], *, field: str) -> ReplayOptions:
        """The parsed options; ValidationError names the field that is wrong."""
        return parse_options(ReplayOptions, options, field=field)

    def capabilities(self) -> tuple[Capability, ...]:
        return (Capability(name="streaming", type=CapabilityType.SAMPLING),)

    async def execute(
        self, request: ProviderRequest
    ) -> AsyncGenerator[ProviderEvent | ProviderConversation | ProviderOutcome]:
        attempt = await self._attempt(self.check_options(request.options, field="options"), request.run_number)
        for event in attempt.events:
            yield event
        if attempt.mapping.handle is not None:
            yield ProviderConversation(attempt.mapping.handle)
        yield attempt.mapping.outcome()

    async def interrupt(self, run_id: str) -> None:
        raise CapabilityNotSupported("A recording cannot be interrupted; cancel the run.")

    async def steer(self, run_id: str, message: str) -> bool:
        raise CapabilityNotSupported("A recording cannot be steered.")

    def processes(self, run_id: str) -> list[dict[str, int]]:
        return []

    async def aclose(self) -> None:
        return None

    async def _attempt(self, options: ReplayOptions, number: int) -> Attempt:
        if options not in self._attempts:
            self._attempts[options] = await asyncio.to_thread(_attempts_of, options)
        attempts = self._attempts[options]
        if number > len(attempts):
            raise InvalidOperation(
                f"The recording {options.recording!r} has {len(attempts)} turns, and this is run {number} of the"
                " session.",
                details={"field": "recording", "turns": len(attempts)},
            )
        return attempts[number - 1]


def _attempts_of(options: ReplayOptions) -> list[Attempt]:
    replayed = [REPLAYS[options.client](list(read_recording(path))) for path in _files(options.recording)]
    return [attempt for attempts in replayed for attempt in attempts]


def _files(recording: str) -> list[Path]:
    path = Path(recording).expanduser()
    return sorted(path.glob(f"*{RECORDING_SUFFIX}")) if path.is_dir() else [path]
