"""One kind of provider, set up so that the suite can be run over it: a client, and a stand-in for what it talks to."""

import contextlib
import json
import threading
from abc import ABC
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import psutil

from ...domain.errors import GreenroomError
from ...domain.event import EventType
from ...domain.provider import ProviderDeclaration
from ...domain.tool import NoTools, Toolbox
from .. import Answer, answers
from ..loopback_server import LoopbackServer

API_KEY = "sk-test-8c1f-not-to-be-seen"
"""What a rig gives as a key: the suite looks for it where it must not be."""

NATIVE = {"continuation": "native"}


@dataclass(frozen=True)
class Abilities:
    """What a kind can do: tests of what it cannot are left out by name, not skipped."""

    errors: bool = True
    """It talks to an API whose faults it has to tell."""
    streams: bool = True
    tools: bool = True
    tells_failures: bool = True
    """A call whose command ends with another status than 0 is told as failed."""
    asks: bool = True
    """A person can be asked before a call."""
    native: bool = True
    """It goes on with conversations of its own."""
    interrupts: bool = True
    counts: bool = True
    """It tells what a run used."""
    keeps_client: bool = False
    """A client of the session outlives its runs, whatever they say of continuation."""
    denial_ends_turn: bool = False
    reasks: bool = False
    """A stream that breaks off is asked for again by the client itself."""


class Rig(ABC):
    """One kind of provider, in a directory of its own."""

    kind: ClassVar[str]
    name: ClassVar[str]
    can: ClassVar[Abilities] = Abilities()
    secret: ClassVar[str] = API_KEY
    first_sign: ClassVar[tuple[EventType, ...]] = (EventType.MESSAGE_STREAMED,)
    """What shows that the model has begun to answer."""

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot be run here."""
        return None

    def __init__(self, folder: Path) -> None:
        self.cwd = folder / "work"
        self.cwd.mkdir()
        self.home = folder / "home"
        self.server: LoopbackServer | None = None

    def start(self) -> None:  # noqa: B027  some have nothing to talk to
        """Begin to listen."""

    def stop(self) -> None:
        if self.server is not None:
            self.server.stop()

    def options(self) -> dict[str, Any]:
        """Of the declaration."""
        return {}

    def declaration(self) -> ProviderDeclaration:
        return ProviderDeclaration(name=self.kind, kind=self.kind, options=self.options())

    def tools(self) -> Toolbox:
        return NoTools()

    # What the next run is to do: its input, and the options of the run

    def text(self, content: str, **how: Any) -> tuple[str, dict[str, Any]]:
        self.answer(answers.text(content, **how))
        return "Say something.", {}

    def call(self, command: str, then: str = "Done.") -> tuple[str, dict[str, Any]]:
        """The agent runs a shell command, and says something."""
        self.answer(self.shell_call(command))
        self.answer(answers.text(then))
        return "Do something.", {}

    def asked(self, command: str) -> tuple[str, dict[str, Any]]:
        """The same, and a person has to agree first."""
        prompt, options = self.call(command)
        return prompt, {**options, "policy": {"name": "ask", "tool_rules": [{"ask": ["*"]}]}}

    def freely(self) -> dict[str, Any]:
        """Options of a run whose calls nobody is asked about."""
        return {"permission_mode": "full_auto"}

    def fault(self, answer: Answer) -> tuple[str, dict[str, Any]]:
        self.always(answer)
        return "Say something.", {}

    def bare_command(self, prompt: str) -> tuple[list[str], dict[str, str], str] | None:
        """The client alone, for benchmarks: command line, environment and directory; None where it has no such way."""
        return None

    def fault_class(self, status: int, expected: type[GreenroomError]) -> type[GreenroomError]:
        """What the client lets us know of the fault."""
        return expected

    def breaking(self, answer: Answer) -> tuple[str, dict[str, Any]]:
        """A first answer that breaks off; whoever asks again is answered."""
        self.answer(answer)
        self.always(answers.text("Whole."))
        return "Say something.", {}

    def outside(self) -> Path:
        """Where a command has to ask before it writes."""
        return self.cwd

    @staticmethod
    def is_alive(pid: int, pid_file: Path) -> bool:
        """Whether the command that wrote its pid there runs."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        return False

    def silence(self) -> tuple[str, dict[str, Any]]:
        """Nothing comes back, not even the head of an answer."""
        assert self.server is not None
        self.server.default = self._held
        return "Say something.", {}

    def stall(self, content: str) -> tuple[str, dict[str, Any]]:
        """Some text, and then nothing more."""
        self.always(answers.stall(content))
        return "Say something.", {}

    # The stand-in

    def answer(self, answer: Answer) -> None:
        assert self.server is not None
        self.server.answers.append(answer)

    def always(self, answer: Answer) -> None:
        assert self.server is not None
        self.server.default = lambda body: answer

    def shell_call(self, command: str) -> Answer:
        return answers.tool_use("Bash", {"command": command})

    def heard(self) -> str:
        """What the last request said to the model."""
        assert self.server is not None
        return json.dumps(self.server.requests[-1].body)

    @property
    def has_been_asked(self) -> bool:
        return self.request_count > 0

    @property
    def request_count(self) -> int:
        assert self.server is not None
        return len(self.server.requests)

    _released: threading.Event | None = None

    def _held(self, body: dict[str, Any]) -> Answer:
        self._released = self._released or threading.Event()
        self._released.wait(60)
        return answers.error(500)

    def release(self) -> None:
        """Let go of requests that are held."""
        self._released = self._released or threading.Event()
        self._released.set()
