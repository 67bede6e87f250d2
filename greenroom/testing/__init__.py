"""For tests of what is built on Greenroom: doubles that need no network, no key and no money.

    from greenroom.testing import MessagesServer, answers

    with MessagesServer() as server:
        server.answers.append(answers.text("Hello."))
        ...  # a session with provider options {"base_url": server.url}
        assert server.requests[0].body["messages"][0]["content"] == "Hi."

A MessagesServer is what the Messages API's SDK and Claude Code talk to, a ResponsesServer what Codex talks to; both
take the same answers. An AmpProgram is what the SDK of Amp starts instead of `amp`; behind it is a MessagesServer too.

Names are loaded when they are first used, so that the amp program starts fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import answers as answers
    from .amp_program import AmpProgram as AmpProgram
    from .answers import Answer as Answer
    from .loopback_server import RecordedRequest as RecordedRequest
    from .messages_server import MessagesServer as MessagesServer
    from .responses_server import ResponsesServer as ResponsesServer

_HOME_OF = {
    "AmpProgram": "amp_program",
    "Answer": "answers",
    "MessagesServer": "messages_server",
    "RecordedRequest": "loopback_server",
    "ResponsesServer": "responses_server",
}

__all__ = ["AmpProgram", "Answer", "MessagesServer", "RecordedRequest", "ResponsesServer", "answers"]


def __getattr__(name: str) -> Any:
    if name == "answers":
        return importlib.import_module(".answers", __name__)
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
