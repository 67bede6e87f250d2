"""What a run is told of its session: nothing, the transcript, or the provider's own conversation."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from greenroom.actors.live_session import LiveSession
from greenroom.domain.errors import CapabilityNotSupported, ProviderError, ProviderInvalidRequest, ValidationError
from greenroom.domain.provider import ProviderConversation, ProviderRequest

from .live_session_world import Answers, PlayProvider, World, error_of, outcome, streamed

NATIVE, AUTO, REPLAY = ({"continuation": how} for how in ("native", "auto", "replay"))


class Conversations(PlayProvider):
    """Has conversations of its own, counts their turns, and can lose them."""

    CONTINUES_NATIVELY = True

    def __init__(self) -> None:
        super().__init__(self._run)
        self.requests: list[ProviderRequest] = []
        self.lost: set[str] = set()
        self.fails_after_telling = False
        self._count = 0

    async def _run(self, request: ProviderRequest) -> Answers:
        self.requests.append(request)
        if request.conversation is None:
            self._count += 1
            conversation = {"id": f"conversation_{self._count}", "turns": "1"}
        else:
            if request.conversation["id"] in self.lost:
                raise ProviderInvalidRequest("It is gone.", details={"field": "continuation"})
            conversation = {**request.conversation, "turns": str(int(request.conversation["turns"]) + 1)}
        yield streamed("...")
        yield ProviderConversation(conversation)
        if self.fails_after_telling:
            await asyncio.Event().wait()
        yield outcome(conversation["id"])


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Conversations:
    from greenroom.adapters.providers.scripted import ScriptedProvider

    monkeypatch.setattr(ScriptedProvider, "CONTINUES_NATIVELY", True, raising=False)  # the kind that World declares
    return Conversations()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.aclose()


async def said(world: World, live: LiveSession, text: str, **options: Any) -> str:
    (run_id,) = await world.submit(live, text, options=options)
    return (await live.await_run(run_id)).output["content"]


async def test_a_run_hears_nothing_of_the_session_unless_it_says_so(world: World, provider: Conversations) -> None:
    live = await world.open(provider)

    assert await said(world, live, "one") == "conversation_1"
    assert await said(world, live, "two") == "conversation_2"

    assert [(request.conversation, request.history) for request in provider.requests] == [(None, ())] * 2


async def test_a_native_run_goes_on_with_the_newest_conversation(world: World, provider: Conversations) -> None:
    live = await world.open(provider)

    assert await said(world, live, "one", **NATIVE) == "conversation_1"
    assert await said(world, live, "two", **NATIVE) == "conversation_1"
    assert await said(world, live, "three", **NATIVE) == "conversation_1"

    assert [request.conversation and request.conversation["turns"] for request in provider.requests] == [None, "1", "2"]
    assert all(request.continues for request in provider.requests)


async def test_the_next_owner_of_the_session_goes_on_with_it(world: World, provider: Conversations) -> None:
    await said(world, await world.open(provider), "one", **NATIVE)

    later = await world.open(provider, create=False)

    assert later.session.conversations == {"given": {"id": "conversation_1", "turns": "1"}}
    assert await said(world, later, "two", **NATIVE) == "conversation_1"


async def test_a_run_that_was_cancelled_leaves_its_conversation_too(world: World, provider: Conversations) -> None:
    live = await world.open(provider)
    provider.fails_after_telling = True
    (run_id,) = await world.submit(live, "one", options=NATIVE)
    while "message_streamed" not in await world.types(run_id):
        await asyncio.sleep(0)
    await live.cancel_run(run_id, None, world.call())
    await error_of(live, run_id)
    provider.fails_after_telling = False

    assert await said(world, live, "two", **NATIVE) == "conversation_1"


async def test_a_replay_tells_what_the_runs_that_ended_said(world: World, provider: Conversations) -> None:
    live = await world.open(provider)
    await said(world, live, "My name is Ada.")

    await said(world, live, "What is it?", **REPLAY)

    assert [message.text() for message in provider.requests[1].history] == ["user: My name is Ada."]
    assert provider.requests[1].conversation is None


async def test_a_replay_can_be_limited_to_its_newest_messages(world: World, provider: Conversations) -> None:
    live = await world.open(provider)
    await said(world, live, "one")
    await said(world, live, "two")

    await said(world, live, "three", **REPLAY, continuation_limits={"max_messages": 1})

    assert [message.content for message in provider.requests[2].history] == ["two"]


async def test_auto_replays_where_the_conversation_is_gone_and_says_so(world: World, provider: Conversations) -> None:
    live = await world.open(provider)
    await said(world, live, "one", **AUTO)
    provider.lost.add("conversation_1")

    (run_id,) = await world.submit(live, "two", options=AUTO)
    result = await live.await_run(run_id)

    assert result.output["content"] == "conversation_2"
    assert [message.content for message in provider.requests[-1].history] == ["one"]
    assert "error_occurred" in await world.types(run_id)


async def test_native_does_not_replay_by_itself(world: World, provider: Conversations) -> None:
    live = await world.open(provider)
    await said(world, live, "one", **NATIVE)
    provider.lost.add("conversation_1")

    (run_id,) = await world.submit(live, "two", options=NATIVE)
    error = await error_of(live, run_id)

    assert isinstance(error, ProviderInvalidRequest)
    assert error.details["field"] == "continuation"


async def test_a_handle_that_no_event_can_hold_ends_the_run_instead_of_leaving_it_open(world: World) -> None:
    async def play(request: ProviderRequest) -> Answers:
        yield ProviderConversation({"id": object()})  # pyright: ignore[reportArgumentType]  a provider of somebody's own
        yield outcome()

    live = await world.open(PlayProvider(play))
    (run_id,) = await world.submit(live, "x")

    error = await error_of(live, run_id)

    assert isinstance(error, ProviderError)
    assert (await world.types(run_id))[-1] == "run_failed"


async def test_what_a_provider_cannot_do_is_refused_before_anything_is_stored(world: World) -> None:
    live = await world.open()

    for options in (NATIVE, {"permission_mode": "plan"}):
        with pytest.raises(CapabilityNotSupported) as caught:
            await world.submit(live, "x", options=options)
        assert caught.value.details["field"] == f"options.{next(iter(options))}"

    assert await world.types() == ["session_created", "session_started"]


async def test_a_secret_in_the_options_of_a_run_is_refused_because_they_are_kept(world: World) -> None:
    live = await world.open()

    with pytest.raises(ValidationError) as caught:
        await world.submit(live, "x", options={"provider_options": {"env": {"SOME_API_KEY": "sk-1"}}})

    assert caught.value.details["field"] == "options.provider_options.env.SOME_API_KEY"
    assert "sk-1" not in str(caught.value)


async def test_the_transcript_of_a_session_can_be_read_and_limited(world: World, provider: Conversations) -> None:
    live = await world.open(provider)
    await said(world, live, "one")
    await said(world, live, "two")

    assert [message["content"] for message in await live.transcript(None, None)] == ["one", "two"]
    assert [message["content"] for message in await live.transcript(1, None)] == ["two"]
    with pytest.raises(ValidationError):
        await live.transcript(0, None)
