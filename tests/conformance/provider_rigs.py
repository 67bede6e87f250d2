"""Greenroom's own kinds of providers, set up for the suite of greenroom.testing.conformance."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import psutil

from greenroom.adapters.supervised_process import SupervisedProcess, scrubbed_environment
from greenroom.adapters.tools import CallableToolbox
from greenroom.domain.event import EventType
from greenroom.domain.tool import Toolbox
from greenroom.testing import AmpProgram, Answer, MessagesServer, ResponsesServer, answers
from greenroom.testing.conformance import API_KEY, Abilities, Rig
from greenroom.testing.loopback_server import LoopbackServer

AGENTS = Path(__file__).parents[2] / ".agents"
"""Where `make install` and `make install-agents` put the agents that come from npm."""


class ScriptedRig(Rig):
    kind = name = "scripted"
    can = Abilities(native=False, interrupts=False)

    def text(self, content: str, **how: Any) -> tuple[str, dict[str, Any]]:
        chunked = {"chunks": how.get("chunks", 3), "chunk_delay_s": how.get("chunk_delay_s", 0.0)}
        return "Say something.", {"provider_options": {"reply": content, **chunked}}

    def call(self, command: str, then: str = "Done.") -> tuple[str, dict[str, Any]]:
        call = {"name": "run_shell", "input": {"command": command}}
        return "Do something.", {"provider_options": {"reply": then, "tool_calls": [call]}}

    def freely(self) -> dict[str, Any]:
        return {}

    def tools(self) -> Toolbox:
        return CallableToolbox([run_shell])

    def fault(self, answer: Answer) -> tuple[str, dict[str, Any]]:
        return "Say something.", {"provider_options": {"fail_with": SCRIPTED_FAULTS[answer.status]}}

    def silence(self) -> tuple[str, dict[str, Any]]:
        return "Say something.", {"provider_options": {"hang": True}}

    def stall(self, content: str) -> tuple[str, dict[str, Any]]:
        return "Say something.", {"provider_options": {"reply": content, "chunks": 1, "hang": True}}

    def breaking(self, answer: Answer) -> tuple[str, dict[str, Any]]:
        return "Say something.", {"provider_options": {"reply": "Whole.", "fail_after_chunks": 1, "chunks": 3}}

    @property
    def has_been_asked(self) -> bool:
        return True


SCRIPTED_FAULTS = {
    400: "provider_invalid_request",
    401: "provider_authentication_failed",
    429: "provider_rate_limited",
    500: "provider_unavailable",
    529: "provider_overloaded",
}


class ShellRig(Rig):
    kind = name = "shell"
    can = Abilities(errors=False, tools=False, asks=False, native=False, counts=False)

    def options(self) -> dict[str, Any]:
        return {"cwd": str(self.cwd), "max_output_bytes": 20_000_000}

    def text(self, content: str, **how: Any) -> tuple[str, dict[str, Any]]:
        delay_s = how.get("chunk_delay_s", 0.0)
        if not delay_s:
            return f"printf %s '{content}'", {}
        size = -(-len(content) // how.get("chunks", 1))
        pieces = [content[start : start + size] for start in range(0, len(content), size)]
        return "; ".join(f"sleep {delay_s}; printf %s '{piece}'" for piece in pieces), {}

    def freely(self) -> dict[str, Any]:
        return {}

    def call(self, command: str, then: str = "Done.") -> tuple[str, dict[str, Any]]:
        return command, {}

    def silence(self) -> tuple[str, dict[str, Any]]:
        return "tail -f /dev/null", {}

    def stall(self, content: str) -> tuple[str, dict[str, Any]]:
        return f"printf %s '{content}'; tail -f /dev/null", {}

    @property
    def has_been_asked(self) -> bool:
        return True


class AnthropicRig(Rig):
    kind = name = "anthropic"
    can = Abilities(native=False, interrupts=False)

    def start(self) -> None:
        os.environ["GREENROOM_TEST_ANTHROPIC_KEY"] = API_KEY
        self.server = MessagesServer().start()

    def options(self) -> dict[str, Any]:
        assert self.server is not None
        return {
            "base_url": self.server.url,
            "api_key_env": "GREENROOM_TEST_ANTHROPIC_KEY",
            "model": "claude-sonnet-5-5",
        }

    def tools(self) -> Toolbox:
        return CallableToolbox([run_shell])

    def freely(self) -> dict[str, Any]:
        return {}

    def shell_call(self, command: str) -> Answer:
        return answers.tool_use("run_shell", {"command": command})


class ClaudeCodeRig(Rig):
    kind = name = "claude-code"
    can = Abilities(reasks=True)

    def start(self) -> None:
        self.server = MessagesServer().start()

    def options(self) -> dict[str, Any]:
        assert self.server is not None
        return {"cwd": str(self.cwd), "env": claude_environment(self.server)}

    def asked(self, command: str) -> tuple[str, dict[str, Any]]:
        return self.call(command)

    def bare_command(self, prompt: str) -> tuple[list[str], dict[str, str], str]:
        command = [str(bundled_claude()), "-p", prompt, "--output-format", "stream-json", "--verbose"]
        return command, bare_environment(self), str(self.cwd)

    def write(self, path: Path, content: str) -> tuple[str, dict[str, Any]]:
        """The agent writes a file with its own tool for that."""
        self.answer(answers.tool_use("Write", {"file_path": str(path), "content": content}))
        self.answer(answers.text("Done."))
        return "Write it.", {}


class AmpRig(Rig):
    """The stand-in for Amp's program: the real one cannot do a turn without Amp's servers."""

    kind = name = "amp"
    can = Abilities(streams=False, asks=False)
    first_sign = (EventType.TOOL_CALL_STARTED,)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._program = AmpProgram(folder)

    def start(self) -> None:
        self.server = MessagesServer().start()

    def options(self) -> dict[str, Any]:
        assert self.server is not None
        env = {"AMP_URL": self.server.url, "AMP_API_KEY": API_KEY}
        return {"command": str(self._program.path), "cwd": str(self.cwd), "env": env}

    def shell_call(self, command: str) -> Answer:
        return answers.tool_use("Bash", {"cmd": command})

    def stall(self, content: str) -> tuple[str, dict[str, Any]]:
        return call_and_stall(self, content)


class CodexRig(Rig):
    """Commands run in Codex's own sandbox: it asks for what leaves that, and processes have other numbers in there."""

    kind = name = "codex"
    can = Abilities(reasks=True, keeps_client=True)

    def start(self) -> None:
        self.server = ResponsesServer().start()

    def options(self) -> dict[str, Any]:
        assert self.server is not None
        env = {"OPENAI_API_KEY": API_KEY, "OPENAI_BASE_URL": f"{self.server.url}/v1"}
        return {"cwd": str(self.cwd), "env": env}

    def shell_call(self, command: str) -> Answer:
        return answers.tool_use("exec_command", {"cmd": command})

    def asked(self, command: str) -> tuple[str, dict[str, Any]]:
        self.answer(self.escalated(command))
        self.answer(answers.text("Done."))
        return "Do something.", {}

    @staticmethod
    def escalated(command: str) -> Answer:
        """A call of a command that is to run outside the sandbox."""
        arguments = {"cmd": command, "sandbox_permissions": "require_escalated", "justification": "It has to be."}
        return answers.tool_use("exec_command", arguments)

    @staticmethod
    def is_alive(pid: int, pid_file: Path) -> bool:
        return any(str(pid_file) in " ".join(command) for command in command_lines())


class CodexExecRig(CodexRig):
    name = "codex-exec"
    can = Abilities(streams=False, asks=False, reasks=True)
    first_sign = (EventType.TOOL_CALL_STARTED,)

    def options(self) -> dict[str, Any]:
        return {**super().options(), "interface": "exec"}

    def stall(self, content: str) -> tuple[str, dict[str, Any]]:
        return call_and_stall(self, content)


class AcpClaudeRig(Rig):
    """Claude Code behind its adapter for the Agent Client Protocol."""

    kind = "acp"
    name = "acp-claude"
    can = Abilities(reasks=True, keeps_client=True)
    program: ClassVar[Path] = AGENTS / "claude-agent-acp/node_modules/.bin/claude-agent-acp"

    @classmethod
    def missing(cls) -> str | None:
        return None if cls.program.exists() else f"{cls.program} is not installed; run make install-agents"

    def start(self) -> None:
        self.server = MessagesServer().start()

    def options(self) -> dict[str, Any]:
        assert self.server is not None
        env = {**claude_environment(self.server), "CLAUDE_CODE_EXECUTABLE": str(bundled_claude())}
        return {"preset": "claude-agent-acp", "command": str(self.program), "cwd": str(self.cwd), "env": env}

    def asked(self, command: str) -> tuple[str, dict[str, Any]]:
        return self.call(command)


class AcpZedCodexRig(CodexRig):
    """Codex behind the adapter of zed, a program without node."""

    kind = "acp"
    name = "acp-codex-zed"
    can = Abilities(denial_ends_turn=True, reasks=True, counts=False, keeps_client=True)
    program: ClassVar[Path] = AGENTS / "codex-acp-zed/node_modules/.bin/codex-acp-linux-x64"

    @classmethod
    def missing(cls) -> str | None:
        return None if cls.program.exists() else f"{cls.program} is not installed; run make install-agents"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._sandbox_folder = folder / "bin"

    def start(self) -> None:
        super().start()
        self._sandbox_folder.mkdir()
        (self._sandbox_folder / "bwrap").symlink_to(bundled_sandbox())

    def shell_call(self, command: str) -> Answer:
        return self.escalated(command)  # the modes in which these ask have a sandbox that lets nothing be written

    def options(self) -> dict[str, Any]:
        assert self.server is not None
        folder = self.home / ".codex"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.toml").write_text(CODEX_CONFIGURATION.format(url=self.server.url))
        env = {"FAKE_KEY": API_KEY, "PATH": f"{self._sandbox_folder}:{os.environ['PATH']}"}
        where = {"cwd": str(self.cwd), "home": str(self.home)}  # its settings are there, so it cannot be the session's
        return {"preset": "codex-acp", "command": str(self.program), "env": env, **where}


class AcpCodexRig(AcpZedCodexRig):
    """Codex behind the adapter of the protocol's own makers."""

    name = "acp-codex"
    can = Abilities(denial_ends_turn=True, reasks=True, keeps_client=True)
    program = AGENTS / "codex-acp/node_modules/.bin/codex-acp"


CODEX_CONFIGURATION = """
model = "gpt-5.5"
model_provider = "fake"
check_for_update_on_startup = false
[features]
plugins = false
[analytics]
enabled = false
[model_providers.fake]
name = "fake"
base_url = "{url}/v1"
wire_api = "responses"
env_key = "FAKE_KEY"
request_max_retries = 1
stream_max_retries = 1
"""

RIGS: list[type[Rig]] = [
    ScriptedRig,
    ShellRig,
    AnthropicRig,
    ClaudeCodeRig,
    CodexRig,
    CodexExecRig,
    AmpRig,
    AcpClaudeRig,
    AcpZedCodexRig,
    AcpCodexRig,
]


def bundled_claude() -> Path:
    """The `claude` that comes with the SDK."""
    import claude_agent_sdk

    return Path(claude_agent_sdk.__file__).parent / "_bundled" / "claude"


def bundled_sandbox() -> Path:
    """The `bwrap` that comes with Codex."""
    import codex_cli_bin

    return Path(codex_cli_bin.__file__).parent / "codex-resources" / "bwrap"


def call_and_stall(rig: Rig, content: str) -> tuple[str, dict[str, Any]]:
    """For clients that stream nothing: a text that stalls shows nothing, so each run calls a tool before."""
    assert rig.server is not None
    rig.server.default = lambda body: answers.stall(content) if _ends_with_a_result(body) else rig.shell_call("true")
    return "Say something.", {}


def _ends_with_a_result(body: dict[str, Any]) -> bool:
    last = (body.get("input") or body["messages"])[-1]
    return "tool_result" in str(last.get("content")) or last.get("type") == "function_call_output"


def command_lines() -> Iterator[list[str]]:
    """Of every process that there is."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            yield process.cmdline()


def bare_environment(rig: Rig) -> dict[str, str]:
    """What a client alone is given by benchmarks."""
    rig.home.mkdir(exist_ok=True)
    return scrubbed_environment({"HOME": str(rig.home), **rig.options()["env"]})


def claude_environment(server: LoopbackServer) -> dict[str, str]:
    return {"ANTHROPIC_BASE_URL": server.url, "ANTHROPIC_API_KEY": API_KEY, "CLAUDE_CODE_MAX_RETRIES": "1"}


async def run_shell(command: str) -> str:
    """Run a shell command."""
    process = await SupervisedProcess.start(f"{command} 2>&1", env=scrubbed_environment({}))
    try:
        output = await process.stdout.read(-1)
        status = await process.wait()
    finally:
        await process.aclose()
    if status:
        raise RuntimeError(f"exit status {status}")
    return output.decode(errors="replace")
