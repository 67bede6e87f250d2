"""A Responses API on the loopback: `codex exec` and `codex app-server` can be driven with no network and no key."""

from .loopback_server import Answering, LoopbackServer
from .responses_wire import ResponsesWire


class ResponsesServer(LoopbackServer):
    """Answers `POST /v1/responses`, streamed or whole, on 127.0.0.1 and a free port.

    It takes the answers that a MessagesServer takes, so that one script drives both APIs; `ResponsesWire` says what
    becomes of them. Each request takes the next of `answers`; when there is none, `default` answers, which says the
    last input again. All else is as with a MessagesServer.

    The base_url of Codex has the version in it: `server.url + "/v1"`. Codex calls a tool of its own for commands:

        with ResponsesServer() as server:
            server.answers.append(answers.tool_use("exec_command", {"cmd": "echo Hi"}))
            server.answers.append(answers.text("Done."))
    """

    def __init__(self, *, default: Answering | None = None) -> None:
        super().__init__(ResponsesWire(), default=default)
