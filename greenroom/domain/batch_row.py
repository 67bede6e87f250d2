"""A row of a batch: one session, with a run for each of its turns."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .session import ROW, SessionSpec

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


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsPlan:
    """What all rows of a job have in common."""

    job: str
    spec: SessionSpec
    options: Mapping[str, Any]
    """Options of the runs, as they were given."""
    needs_own_server: bool
    """Its provider starts processes, so each of its sessions has a server of its own."""
    stops_at_failure: bool
    """Whether the turns after one that failed are not carried out: they go on from what it said."""
    tools: bytes | None = None
    """Packed tools, the same for all."""

    def spec_of(self, row: RowWork) -> SessionSpec:
        """What the row's session is opened with."""
        which = {"job": self.job, "keys": list(row.keys), "stops_at_failure": self.stops_at_failure}
        return replace(
            self.spec,
            metadata={**self.spec.metadata, ROW: which},
            max_queued_runs=max(self.spec.max_queued_runs, len(row.inputs)),
        )


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
