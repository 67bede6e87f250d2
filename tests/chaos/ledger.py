"""What was asked of a store and what it acknowledged, written down outside it; how that compares with what it has."""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from greenroom.domain.event import Event

from .made_events import Place, may_be_pruned, place_of


class LedgerWriter:
    """Lines that outlive the process: each is one write."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def note(self, *words: object) -> None:
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())


@dataclass(slots=True)
class Stream:
    """What one owner wrote."""

    number: int
    epoch: int
    submitted: int = 0
    acknowledged: dict[int, int] = field(default_factory=dict[int, int])
    """Seq by the event's number in the stream."""


@dataclass(slots=True)
class KnownSession:
    """What must be found of one session."""

    name: str
    seen: dict[int, Event] = field(default_factory=dict[int, Event])
    """Events that were read before, by seq."""
    streams: list[Stream] = field(default_factory=list[Stream])
    """Since then."""
    epoch: int = 0
    """The highest that was granted."""
    is_leaving: bool = False
    """Its deletion was asked for, and not acknowledged."""
    exists: bool = False

    @property
    def last_seq(self) -> int:
        """The highest that anybody was told of."""
        told = [seq for stream in self.streams for seq in stream.acknowledged.values()]
        return max([0, *self.seen, *told])


@dataclass(slots=True)
class Comparison:
    """What is not as it should be."""

    missing: dict[str, set[int]] = field(default_factory=dict[str, set[int]])
    """Seqs of acknowledged events that are not there, by session."""
    problems: list[str] = field(default_factory=list[str])
    """What must never be, whatever was reported."""

    @property
    def missing_count(self) -> int:
        return sum(map(len, self.missing.values()))


class Ledger:
    """Everything that was acknowledged, over many lives of one store."""

    def __init__(self, *, prunes: bool = False) -> None:
        self.sessions: dict[str, KnownSession] = {}
        self.problems: list[str] = []
        self.acknowledged = 0
        """Events, over all lives."""
        self.was_fatal = self.was_full = self.was_refused = False
        self._prunes = prunes

    def read(self, path: Path) -> None:
        """Take in what a life wrote down; a line that was cut short does not count."""
        self.was_fatal = self.was_full = self.was_refused = False
        text = path.read_text() if path.exists() else ""
        for line in text[: text.rfind("\n") + 1].splitlines():
            self._take(line.split(" "))

    def _take(self, words: Sequence[str]) -> None:
        match words:
            case ["own", name, stream, epoch, last_seq]:
                self._own(name, int(stream), int(epoch), int(last_seq))
            case ["sub", name, stream, upto]:
                self._stream(name, stream).submitted = int(upto)
            case ["ack", name, stream, first, count, seq]:
                numbers = range(int(first), int(first) + int(count))
                self._stream(name, stream).acknowledged.update(zip(numbers, itertools.count(int(seq)), strict=False))
                self.acknowledged += int(count)
            case ["deleting", name]:
                self.sessions[name].is_leaving = True
            case ["deleted", name]:
                del self.sessions[name]
            case ["fatal", *_]:
                self.was_fatal = True
            case ["full"]:
                self.was_full = True
            case ["refused", *_]:
                self.was_refused = True
            case ["problem", *rest]:
                self.problems.append(" ".join(rest))
            case _:
                self.problems.append(f"a line that says nothing: {' '.join(words)}")

    def _own(self, name: str, stream: int, epoch: int, last_seq: int) -> None:
        known = self.sessions.setdefault(name, KnownSession(name))
        if known.is_leaving and (epoch, last_seq) == (1, 0):  # deleted after all, though the disk refused at first
            known = self.sessions[name] = KnownSession(name)
        known.is_leaving = False
        known.exists = True
        if epoch <= known.epoch:
            self.problems.append(f"{name}: epoch {epoch} was granted after {known.epoch}")
        if last_seq < known.last_seq:
            self.problems.append(f"{name}: the owner was told that it ends at {last_seq}, not {known.last_seq}")
        known.epoch = max(epoch, known.epoch)
        known.streams.append(Stream(stream, epoch))

    def _stream(self, name: str, number: str) -> Stream:
        known = self.sessions.get(name)
        streams = reversed(known.streams) if known is not None else ()
        found = next((stream for stream in streams if stream.number == int(number)), None)
        return found or Stream(0, 0)  # of a session that was deleted since: nobody asks for it any more

    def compare(self, found: Mapping[str, Sequence[Event]], *, reported: Mapping[str, set[int]]) -> Comparison:
        """The found events of every session that exists, against what was acknowledged. `reported` are seqs that repair
        says are lost: what lies there may have been anything."""
        result = Comparison()
        for name in (name for name in found if found[name] and name not in self.sessions):
            result.problems.append(f"{name} is there, and nobody made it, or it was deleted")
        for name, known in self.sessions.items():
            if name in found:
                check = _Check(known, found[name], reported.get(name, set()), prunes=self._prunes)
                result.problems += check.problems()
                missing = check.missing()
            else:
                missing = set[int]() if known.is_leaving else set(_must_be_there(known))
                if not known.is_leaving and known.exists and not missing:
                    result.problems.append(f"{name} is not there at all")
            if missing:
                result.missing[name] = missing
        return result

    def take_as_given(self, found: Mapping[str, Sequence[Event]]) -> None:
        """What was found counts from now on: it was read, so it may never change again."""
        for name in list(self.sessions):
            if name not in found:
                del self.sessions[name]
                continue
            known = self.sessions[name]
            known.seen = {event.seq: event for event in found[name]}
            known.streams.clear()
            known.is_leaving = False


def _must_be_there(known: KnownSession) -> Iterator[int]:
    yield from known.seen
    for stream in known.streams:
        yield from stream.acknowledged.values()


class _Check:
    """One session."""

    def __init__(self, known: KnownSession, found: Sequence[Event], reported: set[int], *, prunes: bool) -> None:
        self._known = known
        self._found = found
        self._by_seq = {event.seq: event for event in found}
        self._reported = reported
        self._prunes = prunes
        self._streams = {stream.number: stream for stream in known.streams}
        self._places = {event.seq: place_of(event) for event in found}

    def missing(self) -> set[int]:
        """Seqs that were acknowledged, are not there, and may not have been pruned."""
        gone = {seq for seq, event in self._known.seen.items() if seq not in self._by_seq and not self._pruned(event)}
        for stream in self._known.streams:
            gone |= {
                seq
                for counter, seq in stream.acknowledged.items()
                if seq not in self._by_seq and not (self._prunes and may_be_pruned(counter))
            }
        return gone

    def _pruned(self, event: Event) -> bool:
        place = place_of(event)
        return self._prunes and place is not None and may_be_pruned(place.counter)

    def problems(self) -> list[str]:
        found = [self._different(), self._foreign(), self._out_of_line()]
        return [f"{self._known.name}: {problem}" for problem in itertools.chain(*found)]

    def _different(self) -> Iterator[str]:
        for seq, event in self._known.seen.items():
            if self._by_seq.get(seq, event) != event:
                yield f"seq {seq} is not the event that it was"
        for stream in self._known.streams:
            for counter, seq in stream.acknowledged.items():
                event = self._by_seq.get(seq)
                if event is not None and self._places[seq] != Place(self._known.name, stream.number, counter):
                    yield f"seq {seq} was acknowledged as event {counter} of stream {stream.number}, and is {event.id}"

    def _foreign(self) -> Iterator[str]:
        for event in self._found:
            if event.seq in self._known.seen:
                continue
            place = self._places[event.seq]
            stream = self._streams.get(place.stream) if place is not None else None
            if place is None or stream is None or place.counter > stream.submitted:
                yield f"seq {event.seq} ({event.id}) was never submitted like that"

    def _out_of_line(self) -> Iterator[str]:
        """Seqs and the numbers in a stream go up together; pruned and lost ones are left out of both."""
        before: tuple[int, Place] | None = None
        for event in self._found:
            place = self._places[event.seq]
            if place is None:
                continue  # said above
            gap = range(before[0] + 1 if before else 1, event.seq)
            if before is not None and event.seq <= before[0]:
                yield f"seq {event.seq} comes after {before[0]}"
            elif not self._reported.issuperset(gap):
                yield from self._unexplained(gap, before[1] if before else None, place)
            elif not gap and before is not None and not _follows(before[1], place):
                yield f"{event.id} follows {before[1]} at seq {event.seq}"
            before = event.seq, place

    def _unexplained(self, gap: range, before: Place | None, place: Place) -> Iterator[str]:
        """Seqs that nobody was told of, and that are not there: they may only have been pruned."""
        at = {seq: place.counter - (gap.stop - seq) for seq in gap}
        same = before is None or before.stream == place.stream
        for seq in gap:
            pruned = self._prunes and may_be_pruned(at[seq])
            if not pruned and seq not in self._reported and not self._is_told(seq):
                yield f"seq {seq} is not there, though {place} comes after it"
        if same and before is not None and place.counter - before.counter != len(gap) + 1:
            yield f"{place} follows {before} {len(gap)} seqs later"

    def _is_told(self, seq: int) -> bool:
        return seq in self._known.seen or any(seq in stream.acknowledged.values() for stream in self._known.streams)


def _follows(before: Place, place: Place) -> bool:
    if before.stream == place.stream:
        return place.counter == before.counter + 1
    return place.stream > before.stream and place.counter == 1
