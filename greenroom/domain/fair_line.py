"""A waiting line with fair shares: whoever asks for much waits behind whoever asks for little."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple


class Place(NamedTuple):
    """One that waits."""

    key: str
    shares: tuple[str, ...]
    """Whose share it is taken from, the widest first: a tenant, a batch of it, a session of that."""
    priority: int = 0


@dataclass(slots=True)
class _Share:
    """What was served to one of those that share something, in turns, and who waits in it."""

    served: int = 0
    clock: int = 0
    """How far the one of its parts has come that was served last: who joins does so from there."""
    parts: dict[str, "_Share"] = field(default_factory=dict[str, "_Share"])
    ahead: dict[str, int] = field(default_factory=dict[str, int])
    """Parts in which nobody waits, and that were served more than the clock: they owe it."""
    places: dict[int, Place] = field(default_factory=dict[int, Place])
    """By the number of their arrival."""

    def first(self) -> Iterator[tuple[str, "_Share"]]:
        """The way down to who is next."""
        share = self
        while share.parts:
            name, share = min(share.parts.items(), key=lambda item: item[1].served)
            yield name, share

    @property
    def is_empty(self) -> bool:
        return not self.parts and not self.places


class FairLine:
    """Higher priorities first. Within one, turns: at every level those that share are served one after the other, and
    who joins late has no turns saved up (start-time fair queueing with equal weights, Goyal, Vin and Cheng, 1996)."""

    def __init__(self) -> None:
        self._roots: dict[int, _Share] = {}
        self._where: dict[str, tuple[int, Place]] = {}
        self._arrivals = itertools.count()

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, key: object) -> bool:
        return key in self._where

    def add(self, place: Place) -> None:
        """At the end of its share. One that stands in line already keeps its place."""
        if place.key in self._where:
            return
        number = next(self._arrivals)
        share = self._roots.setdefault(place.priority, _Share())
        for name in place.shares:
            share = _joined(share, name)
        share.places[number] = place
        self._where[place.key] = (number, place)

    def first(self) -> Place | None:
        """Who is next; it stays in line."""
        if not self._roots:
            return None
        share = self._roots[max(self._roots)]
        for _, part in share.first():
            share = part
        return next(iter(share.places.values()))

    def serve(self, key: str) -> None:
        """It has had its turn, and is out of the line."""
        if key not in self._where:
            return
        _, place = self._where[key]
        share = self._roots[place.priority]
        for name in place.shares:
            part = share.parts[name]
            share.clock = max(share.clock, part.served)
            part.served += 1
            share.ahead = {other: served for other, served in share.ahead.items() if served > share.clock}
            share = part
        self.remove(key)

    def remove(self, key: str) -> None:
        """It waits no more."""
        if key not in self._where:
            return
        number, place = self._where.pop(key)
        way = [self._roots[place.priority]]
        for name in place.shares:
            way.append(way[-1].parts[name])
        del way[-1].places[number]
        for parent, name, part in reversed(list(zip(way, place.shares, way[1:], strict=False))):
            if part.is_empty:
                del parent.parts[name]
                if part.served > parent.clock:
                    parent.ahead[name] = part.served
        if way[0].is_empty:  # nobody waits at this priority, so nobody owes anybody anything
            del self._roots[place.priority]


def _joined(share: _Share, name: str) -> _Share:
    part = share.parts.get(name)
    if part is None:
        part = share.parts[name] = _Share(served=max(share.clock, share.ahead.pop(name, 0)))
    return part
