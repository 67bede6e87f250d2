"""A row of a batch: one session, with a run for each of its turns."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .errors import Cancelled, DeadlineExceeded, GreenroomError, error_from_record
from .run import Run, RunResult, RunStatus
from .run_outcome import outcome_of
from .session import ROW, Session, SessionSpec

JOB_PREFIX = "batch:"
"""How the id of a job's own session begins; the name of the job follows."""

_ID_BITS = 74
"""What RFC 9562 leaves of a UUIDv7 beside time, version and variant."""


@dataclass(frozen=True, slots=True)
class RowWork:
    """One session's worth of work."""

    session_id: str
    """Says which row of which job it is, and with what: the same work has the same id, so it is done once."""
    keys: tuple[str, ...]
    """Of the rows in it: one, or those of a group, in their order."""
    inputs: tuple[Any, ...]
    """One for each run, in the order in which they run."""
    tools: bytes | None = None
    """Packed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsPlan:
    """What all rows of a job have in common."""

    job: str
    spec: SessionSpec
    options: Mapping[str, Any]
    """Options of the runs, as they were given."""
    needs_own_server: bool
    """Its provider starts processes, so each of its sessions has a server of its own."""
    per_server: int
    """How many of its sessions share a server at most."""
    stops_at_failure: bool
    """Whether the turns after one that failed are not carried out: they go on from what it said."""

    def own_of(self, row: RowWork) -> dict[str, Any]:
        """What the row's session has otherwise than `spec`, by the names of its fields."""
        which = {"job": self.job, "keys": list(row.keys), "stops_at_failure": self.stops_at_failure}
        return {
            "metadata": {**self.spec.metadata, ROW: which},
            "max_queued_runs": max(self.spec.max_queued_runs, len(row.inputs)),
        }

    def spec_of(self, row: RowWork) -> SessionSpec:
        """What the row's session is opened with."""
        return replace(self.spec, **self.own_of(row))


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """What became of a row that was begun: its session, and its runs in their order."""

    session: Session
    runs: tuple[Run, ...]

    @property
    def outcomes(self) -> list[RunResult | GreenroomError] | None:
        """How its runs ended; None while one is open, or none was submitted."""
        if not self.runs and self.session.error is not None:  # its runs were refused
            return [error_from_record(self.session.error)]
        if not self.runs or not all(run.status.is_terminal for run in self.runs):
            return None
        return [outcome_of(run) for run in self.runs]


def fingerprint(config: Mapping[str, Any], inputs: Sequence[Any]) -> str:
    """What is to be done, as SHA-256 in hex: the same for the same configuration and the same inputs."""
    content = json.dumps([config, list(inputs)], sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def row_session_id(job: str, key: str, content: str, *, job_started_ms: int, attempt: int = 0) -> str:
    """The id of the session that does this, in the form of a UUIDv7 of the time at which the job was first started:
    so all of a job's rows stand together in every list. `attempt` counts the times that it was done over."""
    digest = hashlib.sha256("\0".join((job, key, content, str(attempt))).encode("utf-8", "surrogatepass")).digest()
    bits = int.from_bytes(digest[:10], "big") >> (80 - _ID_BITS)
    rand_a, rand_b = bits >> 62, bits & ((1 << 62) - 1)
    return f"ses_{(job_started_ms << 80) | (0x7 << 76) | (rand_a << 64) | (0b10 << 62) | rand_b:032x}"


RESULT_COLUMNS: Mapping[str, type] = {
    "status": str,
    "output": str,
    "turn_outputs": list,
    "error_code": str,
    "error_message": str,
    "session_id": str,
    "run_id": str,
    "provider": str,
    "model": str,
    "attempts": int,
    "stop_reason": str,
    "input_tokens": int,
    "output_tokens": int,
    "cache_read_tokens": int,
    "cache_write_tokens": int,
    "total_tokens": int,
    "cost_usd": float,
    "queued_s": float,
    "running_s": float,
}
"""What is said of each row beside its own columns, in this order."""

_TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "total_tokens")


def result_columns(session_id: str | None, outcomes: Sequence[RunResult | GreenroomError]) -> dict[str, Any]:
    """The columns of a row whose turns ended like this; of a row that could not be begun, with the one error why.

    `output` is what was said last, `turn_outputs` what was said in each turn where there are several; the error is the
    first one; tokens, cost (None when that of one turn is not known) and times are those of all turns together.
    """
    turns = [_turn(outcome) for outcome in outcomes]
    failed = next((turn for turn in turns if turn["error_code"] is not None), None)
    last = failed or turns[-1]
    costs = [turn["cost_usd"] for turn in turns if turn["total_tokens"] or turn["cost_usd"] is not None]
    return {
        "status": last["status"],
        "output": last["output"],
        "turn_outputs": [turn["output"] for turn in turns] if len(turns) > 1 else None,
        "error_code": last["error_code"],
        "error_message": last["error_message"],
        "session_id": session_id,
        "run_id": last["run_id"],
        "provider": last["provider"],
        "model": last["model"],
        "attempts": max(turn["attempts"] for turn in turns),
        "stop_reason": last["stop_reason"],
        **{name: sum(turn[name] for turn in turns) for name in _TOKENS},
        "cost_usd": None if not costs or None in costs else sum(costs),
        "queued_s": turns[0]["queued_s"],
        "running_s": sum(turn["running_s"] or 0.0 for turn in turns),
    }


def _turn(outcome: RunResult | GreenroomError) -> dict[str, Any]:
    if isinstance(outcome, RunResult):
        usage: Mapping[str, int] = outcome.token_usage
        return {
            "status": outcome.status.value,
            "output": outcome.output.get("content"),
            "error_code": None,
            "error_message": None,
            "run_id": outcome.run_id,
            "provider": outcome.provider,
            "model": outcome.model,
            "attempts": outcome.attempts,
            "stop_reason": outcome.stop_reason,
            **{name: usage.get(name, 0) for name in _TOKENS},
            "cost_usd": outcome.cost_usd,
            **outcome.timings,
        }
    details = outcome.details
    usage: Mapping[str, int] = details.get("token_usage") or {}
    output: Mapping[str, Any] = details.get("output") or {}
    return {
        "status": _FAILED_AS.get(outcome.code, RunStatus.FAILED).value,
        "output": output.get("content"),
        "error_code": outcome.code,
        "error_message": outcome.message,
        "run_id": details.get("run_id"),
        "provider": details.get("provider"),
        "model": None,
        "attempts": details.get("attempts", 0),
        "stop_reason": details.get("reason"),
        **{name: usage.get(name, 0) for name in _TOKENS},
        "cost_usd": details.get("cost_usd"),
        "queued_s": None,
        "running_s": None,
    }


_FAILED_AS = {Cancelled.code: RunStatus.CANCELLED, DeadlineExceeded.code: RunStatus.TIMEOUT}
