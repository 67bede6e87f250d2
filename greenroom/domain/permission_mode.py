"""How freely an agent that runs its own tools may use them."""

from enum import StrEnum


class PermissionMode(StrEnum):
    """From the agent's own default to no questions at all. A provider that cannot honour one refuses it."""

    DEFAULT = "default"
    """As the agent does by itself; a call that needs a person becomes an approval."""
    ACCEPT_EDITS = "accept_edits"
    """Changes of files in the working directory need no person."""
    PLAN = "plan"
    """It reads and plans, and changes nothing."""
    FULL_AUTO = "full_auto"
    """No call needs a person; policies, and the agent's sandbox where it has one, hold."""
    DANGEROUSLY_SKIP_PERMISSIONS = "dangerously_skip_permissions"
    """The agent's own checks are off, its sandbox too."""
