"""Proving that a session's log is whole: every batch is read from the files and compared with the chain."""

import re
from collections.abc import Sequence

from ...domain.artifact_store import ArtifactStore
from ...domain.errors import GreenroomError
from ...domain.hash_chain import chain_start
from ...domain.verification import Verification
from .chunks import SealedBatch
from .log_file import LogFile, SessionSpan
from .part_file import PartFile

MAX_PROBLEMS = 100


_REFERENCE = re.compile(rb"\xc7\x47\x01(sha256:[0-9a-f]{64})")  # as `with_spilled_data` packs it


class _Proof:
    def __init__(self, session_id: str) -> None:
        self.references: set[str] = set()
        self.digest = chain_start(session_id)
        self.last_seq = self.events = self.pruned = 0
        self.problems: list[str] = []

    def check(self, file: PartFile | LogFile, session_key: int, span: SessionSpan) -> None:
        """What the file has of the session, and what the record of heads says of it."""
        if span.previous != self.digest and span.first_seq == self.last_seq + 1:
            self.problems.append(f"{file.path.name} does not continue what ends at seq {self.last_seq}")
            self.digest = span.previous
        for batch in file.session_batches(session_key):
            self._add(batch)
            if self.last_seq >= span.last_seq:
                break
        if self.digest != span.digest:
            self.problems.append(
                f"seqs {span.first_seq} to {span.last_seq} in {file.path.name} are not as they were stored"
            )
            self.digest = span.digest

    def _add(self, batch: SealedBatch) -> None:
        header = batch.header
        if header.first_seq != self.last_seq + 1:
            self.problems.append(f"seqs {self.last_seq + 1} to {header.first_seq - 1} are missing")
        digest = batch.next_digest(self.digest)
        self.references.update(found.decode() for found in _REFERENCE.findall(batch.row))
        if batch.is_lost:
            self.problems.append(
                f"seqs {header.first_seq} to {header.last_seq} were lost, and repair could not recover them"
            )
        elif batch.kept is not None:
            self.pruned += header.event_count - len(batch.kept)
        self.events += len(batch.kept) if batch.kept is not None else header.event_count
        self.digest, self.last_seq = digest, header.last_seq


def verify_session(
    session_id: str,
    session_key: int,
    last_seq: int,
    artifacts: ArtifactStore,
    parts: Sequence[PartFile],
    logs: Sequence[tuple[LogFile, SessionSpan]],
) -> Verification:
    """Read the whole log of the session: the parts, then the log files as far as their spans go."""
    proof = _Proof(session_id)
    try:
        for part in parts:
            found = part.span(session_key)
            if found is not None:
                proof.check(part, session_key, found)
        for log, span in logs:
            proof.check(log, session_key, span)
    except GreenroomError as exc:
        proof.problems.append(f"after seq {proof.last_seq} nothing can be read: {exc.message}")
    for reference in sorted(proof.references):
        try:
            artifacts.get(session_id, reference)
        except GreenroomError as exc:
            proof.problems.append(f"event data in the artifact store is not what was stored: {exc.message}")
    if proof.last_seq < last_seq:
        proof.problems.append(f"it ends at seq {proof.last_seq}, and seq {last_seq} was acknowledged")
    return Verification(
        session_id=session_id,
        events=proof.events,
        pruned=proof.pruned,
        last_seq=proof.last_seq,
        problems=tuple(proof.problems[:MAX_PROBLEMS]),
    )
