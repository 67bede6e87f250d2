"""Appends on their way to the store: one frame holds a batch of each session that has something to say."""

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import msgpack

from .event_codec import EncodedBatch


class AppendEntry(NamedTuple):
    """One batch of one session, numbered within its epoch."""

    session_id: str
    epoch: int
    batch_number: int
    batch: EncodedBatch


class AppendStatus(IntEnum):
    """What became of an entry."""

    STORED = 0
    """first_seq and recorded_at_us follow."""
    FENCED = 1
    """The session's epoch and 0 follow."""
    OUT_OF_ORDER = 2
    """The expected batch number and 0 follow: send again from there."""
    STORAGE_FULL = 3
    """Two zeros follow: send again when there is room."""


class AppendAnswer(NamedTuple):
    """The store's answer to one entry."""

    status: AppendStatus
    first: int
    second: int


def encode_frame(number: int, entries: Sequence[AppendEntry]) -> bytes:
    """A frame; the number comes back with its answer."""
    return msgpack.packb((number, entries))


def decode_frame(frame: bytes) -> tuple[int, list[AppendEntry]]:
    """The inverse of `encode_frame`."""
    number, entries = msgpack.unpackb(frame, use_list=False)
    return number, [
        AppendEntry(session_id, epoch, batch_number, EncodedBatch(*batch))
        for session_id, epoch, batch_number, batch in entries
    ]


def encode_answers(number: int, answers: Sequence[AppendAnswer], *, is_short_of_room: bool) -> bytes:
    """The answers to a frame's entries, in their order, and whether new work should be refused."""
    return msgpack.packb((number, answers, is_short_of_room))


def decode_answers(reply: bytes) -> tuple[int, list[AppendAnswer], bool]:
    """The inverse of `encode_answers`."""
    number, answers, is_short_of_room = msgpack.unpackb(reply, use_list=False)
    return number, [_answer(answer) for answer in answers], is_short_of_room


def _answer(answer: Any) -> AppendAnswer:
    status, first, second = answer
    return AppendAnswer(AppendStatus(status), first, second)
