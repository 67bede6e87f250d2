"""What an agent is told at the beginning of a run, for clients that take one text."""

from ....domain.provider import ProviderRequest
from ....domain.run_input import Role
from ....domain.transcript import transcript_text

_HISTORY_HEADING = "What was said in this session before:"
_INPUT_HEADING = "What is said now:"


def prompt_of(request: ProviderRequest) -> str:
    """The history, where the run is told of it, and the input. A lone user message goes as it is."""
    messages = [message for message in request.messages if message.role is not Role.SYSTEM]
    if all(message.role is Role.USER for message in messages):
        said = "\n\n".join(message.content for message in messages)
    else:
        said = "\n".join(f"{message.role.value}: {message.content}" for message in messages)
    if not request.history:
        return said
    return "\n\n".join([_HISTORY_HEADING, transcript_text(request.history), _INPUT_HEADING, said])


def system_prompt_of(request: ProviderRequest, declared: str | None) -> str | None:
    """That of the session, or else the declared one, and the system messages of the input behind it."""
    parts = [request.system_prompt or declared]
    parts += [message.content for message in request.messages if message.role is Role.SYSTEM]
    return "\n\n".join(part for part in parts if part) or None
