"""What proving a session's log found."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The report on one session."""

    session_id: str
    events: int
    """Events that were read and proven."""
    pruned: int
    """Events that were pruned on purpose."""
    last_seq: int
    problems: tuple[str, ...]
    """What is not as it was acknowledged."""

    @property
    def ok(self) -> bool:
        """True only when the log is intact."""
        return not self.problems
