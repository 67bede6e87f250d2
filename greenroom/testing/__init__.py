"""For tests of what is built on Greenroom: doubles that need no network, no key and no money.

from greenroom.testing import MessagesServer, answers

with MessagesServer() as server:
    server.answers.append(answers.text("Hello."))
    ...  # a session with provider options {"base_url": server.url}
    assert server.requests[0].body["messages"][0]["content"] == "Hi."
"""

from . import answers
from .answers import Answer
from .messages_server import MessagesServer, RecordedRequest

__all__ = ["Answer", "MessagesServer", "RecordedRequest", "answers"]
