"""What was said in a session before, as messages of the Messages API."""

from collections.abc import Sequence
from typing import Any

from ....domain.run_input import Role
from ....domain.transcript import TranscriptMessage

_CUT_OFF = "(What was said before this is not shown.)"


def history_messages(history: Sequence[TranscriptMessage]) -> list[dict[str, Any]]:
    """One message for each turn of somebody: the API wants the user first, and takes turns after that.

    Tool calls and results are told in words: the run may have other tools, and the API refuses calls of tools that
    the request does not offer.
    """
    turns: list[tuple[str, list[str]]] = []
    for message in history:
        if message.role == Role.SYSTEM.value:
            continue
        role = Role.ASSISTANT.value if message.role == Role.ASSISTANT.value else Role.USER.value
        text = message.content if message.content is not None else message.text()
        if turns and turns[-1][0] == role:
            turns[-1][1].append(text)
        else:
            turns.append((role, [text]))
    if turns and turns[0][0] != Role.USER.value:
        turns.insert(0, (Role.USER.value, [_CUT_OFF]))
    return [{"role": role, "content": "\n\n".join(texts)} for role, texts in turns]
