"""A typed client of the HTTP service: the verbs of a session handle, from any machine.

    with greenroom.Client("http://127.0.0.1:8000", key="gk_...") as client:
        session = client.open_session(agent_id="reviewer")
        print(session.execute_run("Hello!").output["content"])

Needs neither Ray nor a database.
"""

from .async_client import AsyncClient as AsyncClient
from .async_session import AsyncClientSession as AsyncClientSession
from .client import Client as Client, ClientSession as ClientSession
from .event_streams import AsyncEventStream as AsyncEventStream, AsyncFeed as AsyncFeed, FeedEvent as FeedEvent
from .plain import Stream as Stream
from .streams import AsyncStream as AsyncStream
