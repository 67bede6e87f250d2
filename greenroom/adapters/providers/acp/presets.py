"""Agents that are known by name: how each is started, what it finds its account by, and what it calls its modes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ....domain.permission_mode import PermissionMode

ModeNames = Mapping[PermissionMode, Sequence[str]]
"""Ids of modes, the best first. FULL_AUTO is the default mode with all questions answered, so it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AcpPreset:
    """What Greenroom knows of one agent. `$HOME` in its environment is the home of the session."""

    command: tuple[str, ...]
    package: str
    """What npm installs, in the version that was tried."""
    agent_names: frozenset[str]
    """What it says of itself in agentInfo."""
    credentials: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    """Under the home, written where there is none."""
    key_methods: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """Ids of its ways to authenticate that need no person, and the variables one of which has to be set."""
    workspace: tuple[str, ...] = ()
    """Settings that it reads where it works, and cannot be told to leave alone: they run commands or loosen rules."""
    modes: ModeNames


_ANY_AGENT: ModeNames = {
    PermissionMode.DEFAULT: ("default", "ask"),
    PermissionMode.ACCEPT_EDITS: ("acceptEdits", "autoEdit", "accept_edits", "auto_edit"),
    PermissionMode.PLAN: ("plan",),
    PermissionMode.DANGEROUSLY_SKIP_PERMISSIONS: ("bypassPermissions", "yolo", "full-access", "agent-full-access"),
}
"""Names that mean the same wherever they were seen. An agent that is not known, and has no such default, keeps its
own."""

_CODEX_KEYS = ("CODEX_API_KEY", "OPENAI_API_KEY")

PRESETS: Mapping[str, AcpPreset] = {
    "claude-agent-acp": AcpPreset(
        command=("claude-agent-acp",),
        package="@agentclientprotocol/claude-agent-acp@0.49.0",
        agent_names=frozenset({"@agentclientprotocol/claude-agent-acp", "@zed-industries/claude-agent-acp"}),
        credentials=(
            "ANTHROPIC_API_KEY",
            "ANTHROPIC_AUTH_TOKEN",
            "ANTHROPIC_BASE_URL",
            "CLAUDE_CODE_EXECUTABLE",
            "CLAUDE_CODE_OAUTH_TOKEN",
            "HTTPS_PROXY",
            "NO_PROXY",
        ),
        environment={
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_TELEMETRY": "1",
            "CLAUDE_CODE_MAX_RETRIES": "2",
        },
        modes={
            PermissionMode.DEFAULT: ("default",),
            PermissionMode.ACCEPT_EDITS: ("acceptEdits",),
            PermissionMode.PLAN: ("plan",),
            PermissionMode.DANGEROUSLY_SKIP_PERMISSIONS: ("bypassPermissions",),
        },
    ),
    "codex-acp": AcpPreset(
        command=("codex-acp",),
        package="@agentclientprotocol/codex-acp@2.6.0",
        agent_names=frozenset({"@agentclientprotocol/codex-acp", "codex-acp"}),
        credentials=(*_CODEX_KEYS, "CODEX_PATH", "HTTPS_PROXY", "NO_PROXY"),
        environment={"CODEX_HOME": "$HOME/.codex"},
        files={
            ".codex/config.toml": (
                "check_for_update_on_startup = false\n[features]\nplugins = false\n[analytics]\nenabled = false\n"
            )
        },  # nothing but what the run is for leaves the machine
        workspace=(".codex/config.toml", ".codex/hooks.json", ".codex/rules"),
        key_methods={"api-key": _CODEX_KEYS, "codex-api-key": _CODEX_KEYS[:1], "openai-api-key": _CODEX_KEYS[1:]},
        modes={  # its own default, `agent`, has another model answer the questions
            PermissionMode.DEFAULT: ("read-only",),
            PermissionMode.ACCEPT_EDITS: ("workspace-write", "auto"),
            PermissionMode.PLAN: ("read-only",),
            PermissionMode.DANGEROUSLY_SKIP_PERMISSIONS: ("agent-full-access", "full-access"),
        },
    ),
    "gemini": AcpPreset(
        command=("gemini", "--acp"),
        package="@google/gemini-cli@0.61.0",
        agent_names=frozenset({"gemini-cli"}),
        credentials=(
            "GEMINI_API_KEY",
            "GEMINI_MODEL",
            "GOOGLE_API_KEY",
            "GOOGLE_APPLICATION_CREDENTIALS",
            "GOOGLE_CLOUD_LOCATION",
            "GOOGLE_CLOUD_PROJECT",
            "GOOGLE_GEMINI_BASE_URL",
            "HTTPS_PROXY",
            "NO_PROXY",
        ),
        environment={"GEMINI_CLI_TRUST_WORKSPACE": "true"},
        files={
            ".gemini/settings.json": json.dumps(
                {
                    "tools": {"shell": {"enableInteractiveShell": False}},  # else no output of commands is told
                    "general": {"maxAttempts": 3, "enableAutoUpdate": False},
                    "privacy": {"usageStatisticsEnabled": False},
                }
            )
        },
        workspace=(".gemini/settings.json", ".gemini/policies", ".gemini/extensions"),
        key_methods={"gemini-api-key": ("GEMINI_API_KEY",)},
        modes={
            PermissionMode.DEFAULT: ("default",),
            PermissionMode.ACCEPT_EDITS: ("autoEdit",),
            PermissionMode.PLAN: ("plan",),
            PermissionMode.DANGEROUSLY_SKIP_PERMISSIONS: ("yolo",),
        },
    ),
    "opencode": AcpPreset(
        command=("opencode", "acp"),
        package="opencode-ai@1.18.33",
        agent_names=frozenset({"OpenCode"}),
        credentials=(
            "ANTHROPIC_API_KEY",
            "GEMINI_API_KEY",
            "OPENAI_API_KEY",
            "OPENCODE_API_KEY",
            "OPENROUTER_API_KEY",
            "HTTPS_PROXY",
            "NO_PROXY",
        ),
        environment={
            "OPENCODE_DISABLE_AUTOUPDATE": "1",
            "OPENCODE_DISABLE_PROJECT_CONFIG": "1",  # the agent could write it, and it starts commands
            "OPENCODE_PERMISSION": json.dumps({"bash": "ask", "edit": "ask", "webfetch": "ask"}),
        },  # without the permissions it asks for nothing
        modes={PermissionMode.DEFAULT: ("build",), PermissionMode.PLAN: ("plan",)},
    ),
}


def preset_of_agent(agent_name: str) -> AcpPreset | None:
    """What is known of an agent by the name that it gives itself, whatever command started it."""
    return next((preset for preset in PRESETS.values() if agent_name in preset.agent_names), None)


def modes_of_agent(agent_name: str) -> ModeNames:
    """What the agent calls the permission modes."""
    preset = preset_of_agent(agent_name)
    return _ANY_AGENT if preset is None else preset.modes
