"""The agents of the Agent Client Protocol that take seconds to start, set up for greenroom.testing.conformance."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from greenroom.domain.errors import GreenroomError, ProviderError, ProviderUnavailable
from greenroom.testing import Answer, answers
from greenroom.testing.conformance import API_KEY, Abilities, Rig

from .chat_completions_wire import ChatCompletionsServer
from .gemini_wire import GeminiServer
from .provider_rigs import AGENTS


class GeminiRig(Rig):
    """Gemini CLI.

    It tells every command as completed, and not how it ended. It loses a conversation that is loaded within the minute
    in which it began. It asks again for a stream that breaks off; when it has asked often enough it ends its turn as
    if all were well.
    """

    kind = "acp"
    name = "acp-gemini"
    can = Abilities(tells_failures=False, native=False, reasks=True, keeps_client=True)
    program: ClassVar[Path] = AGENTS / "gemini-cli/node_modules/.bin/gemini"

    @classmethod
    def missing(cls) -> str | None:
        return None if cls.program.exists() else f"{cls.program} is not installed; run make install-agents"

    def start(self) -> None:
        self.server = GeminiServer().start()

    def options(self) -> dict[str, Any]:
        assert self.server is not None
        write_configuration(self.home / ".gemini/settings.json", GEMINI_CONFIGURATION)
        env = {
            "GOOGLE_GEMINI_BASE_URL": self.server.url,
            "GEMINI_API_KEY": API_KEY,
            "GEMINI_MODEL": "gemini-2.5-flash",  # else it asks a model which model to ask
        }
        return {"preset": "gemini", "command": str(self.program), "cwd": str(self.cwd), "env": env}

    def shell_call(self, command: str) -> Answer:
        return answers.tool_use("run_shell_command", {"command": command})

    def fault_class(self, status: int, expected: type[GreenroomError]) -> type[GreenroomError]:
        """Its API has no status of its own for an overload: that is 503."""
        return ProviderUnavailable if status == 529 else expected


class OpencodeRig(Rig):
    """OpenCode, with a provider of its users' own. A command that failed it tells as completed, with its exit status in
    what it hands over beside the output."""

    kind = "acp"
    name = "acp-opencode"
    can = Abilities(tells_failures=False, reasks=True, keeps_client=True)
    program: ClassVar[Path] = AGENTS / "opencode/node_modules/.bin/opencode"

    @classmethod
    def missing(cls) -> str | None:
        return None if cls.program.exists() else f"{cls.program} is not installed; run make install-agents"

    def start(self) -> None:
        self.server = ChatCompletionsServer().start()

    def options(self) -> dict[str, Any]:
        assert self.server is not None
        write_configuration(
            self.home / ".config/opencode/opencode.json", opencode_configuration(f"{self.server.url}/v1")
        )
        env = {"OPENCODE_DISABLE_MODELS_FETCH": "1"}
        return {"preset": "opencode", "command": str(self.program), "cwd": str(self.cwd), "env": env}

    def shell_call(self, command: str) -> Answer:
        return answers.tool_use("bash", {"command": command, "description": "What it is for."})

    def fault(self, answer: Answer) -> tuple[str, dict[str, Any]]:
        """It asks five times more, after 2, 4, 8, 16 and 30 s unless it is told when."""
        return super().fault(replace(answer, headers={**answer.headers, "retry-after-ms": "20"}))

    def fault_class(self, status: int, expected: type[GreenroomError]) -> type[GreenroomError]:
        """It passes on what the API says and not the status: what is not in the words, nobody knows."""
        return ProviderError if status >= 500 else expected


GEMINI_CONFIGURATION: dict[str, Any] = {
    "general": {"maxAttempts": 2, "enableAutoUpdate": False},  # it waits 5 s before it asks again
    "privacy": {"usageStatisticsEnabled": False},
    "tools": {"shell": {"enableInteractiveShell": False}},  # else it tells nothing of what a command has put out
}


def opencode_configuration(base_url: str) -> dict[str, Any]:
    model = {"name": "Fake", "limit": {"context": 100_000, "output": 4_000}}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "Fake",
        "options": {"baseURL": base_url, "apiKey": API_KEY},
        "models": {"fake-model": model},
    }
    return {
        "$schema": "https://opencode.ai/config.json",
        "model": "fake/fake-model",
        "agent": {"title": {"disable": True}},  # it would take an answer that is meant for the run
        "enabled_providers": ["fake"],
        "autoupdate": False,
        "provider": {"fake": provider},
    }


def write_configuration(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


HEAVY_RIGS: list[type[Rig]] = [GeminiRig, OpencodeRig]
