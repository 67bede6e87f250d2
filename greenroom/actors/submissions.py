"""What was submitted to a live session: options parsed once, and the first answer for what comes again."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgpack

from ..adapters.json_safety import require_json_safe
from ..adapters.run_option_parsing import parse_run_options
from ..domain.errors import ValidationError
from ..domain.event import EventType
from ..domain.event_log import EventLog, EventQuery
from ..domain.run_options import RunOptions, given_options
from ..domain.session import Session
from .answered_calls import AnsweredCalls
from .live_run import LiveRun

MAX_KEPT_CALLS = 10_000
"""Newest mutating calls whose answer is repeated when they come again."""

MAX_KEPT_OPTIONS = 64
"""Different run options that are kept parsed."""

_STEERED = frozenset({EventType.SESSION_STEERED})


class ParsedOptions(NamedTuple):
    """Options of runs as they were given, and as they hold."""

    options: RunOptions
    given: dict[str, Any]
    """As an event keeps them."""


_WITHOUT_DEFAULTS: AnsweredCalls[ParsedOptions] = AnsweredCalls(MAX_KEPT_OPTIONS)
"""Of all sessions of the process that have no run_defaults: rows of a batch have a session each, and all the same."""


class Submissions:
    """Call ids, idempotency keys and run options of one session."""

    def __init__(self, session: Session, log: EventLog, *, is_first: bool) -> None:
        """`is_first`: nobody has owned the session before, so that the log knows of no keys that this does not."""
        self._session = session
        self._log = log
        self._is_first = is_first
        self._answers: AnsweredCalls[list[str]] = AnsweredCalls(MAX_KEPT_CALLS)
        self._keys: AnsweredCalls[str] = AnsweredCalls(MAX_KEPT_CALLS)
        self._options = AnsweredCalls[ParsedOptions](MAX_KEPT_OPTIONS) if session.run_defaults else _WITHOUT_DEFAULTS

    def answer(self, call_id: str) -> list[str] | None:
        """The run ids that this call was answered with, if it has come before."""
        return self._answers.get(call_id)

    def keep_answer(self, call_id: str, run_ids: list[str]) -> None:
        self._answers.keep(call_id, run_ids)

    def keep_past(self, recent_calls: Sequence[tuple[str, str]]) -> None:
        """Calls that earlier owners answered, with their runs, the oldest first."""
        for call_id, run_id in recent_calls:
            self._answers.keep(call_id, [*(self._answers.get(call_id) or ()), run_id])

    def keep_key(self, key: str | None, run_id: str) -> None:
        if key is not None:
            self._keys.keep(key, run_id)

    def known(self, keys: Sequence[str | None]) -> dict[str, str]:
        """The runs of those keys that are known in memory."""
        return {key: self._keys[key] for key in keys if key is not None and key in self._keys}

    async def look_up(self, keys: Sequence[str | None], *, steering: bool) -> None:
        """Make `known` know all there is to know of these keys. ValidationError for one that cannot be a key."""
        for key in keys:
            if key is None:
                continue
            if not isinstance(key, str) or not key:  # pyright: ignore[reportUnnecessaryIsInstance]  callers are not type-checked
                raise ValidationError("idempotency_key must be text.", details={"field": "idempotency_key"})
            require_json_safe(key, field="idempotency_key")
            if key not in self._keys and (steering or self._keys.has_forgotten or not self._is_first):
                stored = await self._log.find_run_by_key(self._session.id, key)
                if stored is None and steering:
                    stored = await self._steered_with(key)
                self.keep_key(stored and key, stored or "")

    async def _steered_with(self, key: str) -> str | None:
        """The run into which an input with this key was steered."""
        after = 0
        while page := await self._log.read(
            self._session.id, EventQuery(after=after, types=_STEERED, limit=MAX_KEPT_CALLS)
        ):
            for event in page:
                if event.metadata.get("idempotency_key") == key:
                    return event.run_id
            after = page[-1].seq
        return None

    def options(self, given: object) -> ParsedOptions:
        """The run's options; the same object for the same options, since parsing them costs as much as a short run."""
        defaults = self._session.run_defaults
        try:
            key: bytes = msgpack.packb(given)
        except (TypeError, ValueError, OverflowError):  # a RunOptions, or what parsing will refuse
            return _parsed(defaults, given)
        parsed = self._options.get(key)
        if parsed is None:
            parsed = _parsed(defaults, given)
            self._options.keep(key, parsed)
        return parsed


def _parsed(defaults: Mapping[str, Any], given: object) -> ParsedOptions:
    options = parse_run_options(defaults, given)  # pyright: ignore[reportArgumentType]  checked there
    return ParsedOptions(options, given_options(options))


def new_among(keys: Sequence[str | None], known: dict[str, str]) -> dict[str | int, int]:
    """What is not known yet: a key, or the place of what has none, and where its input is. A key that comes twice
    counts once."""
    wanted: dict[str | int, int] = {}
    for index, key in enumerate(keys):
        if key not in known:
            wanted.setdefault(index if key is None else key, index)
    return wanted


def run_ids_of(
    keys: Sequence[str | None], known: dict[str, str], wanted: dict[str | int, int], added: Sequence[LiveRun]
) -> list[str]:
    """The run ids of all inputs, in their order."""
    taken = dict(zip(wanted, (run.run_id for run in added), strict=True))
    return [known[key] if key in known else taken[index if key is None else key] for index, key in enumerate(keys)]
